"""Android sparse images, both ways between diskmill and libsparse's own tools."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import diskmill
import pytest
from diskmill.contract.extents import Kind
from diskmill.errors import DiskmillError, UnsupportedError, UsageError
from diskmill.sizes import GiB, KiB, MiB
from formats import Machine, pattern
from tools import diskmill as command
from tools import run, tool


def disk(size: int = 5 * MiB) -> bytes:
    """Noise, zeros, one word again and again across the borders of units, and text; a block with one other byte."""
    data = bytearray(size)
    data[8 * KiB : 300 * KiB] = pattern(1, 292 * KiB)
    data[MiB - 12 * KiB : MiB + 40 * KiB] = b"\xab\xcd\x01\x02" * (13 * KiB)
    data[3 * MiB : 3 * MiB + 8 * KiB] = b"\xff" * (8 * KiB)
    data[3 * MiB + 5000] = 0
    data[-4096:] = b"the end " * 512
    return bytes(data)


def chunks(image: Path) -> list[tuple[int, int]]:
    """(type, blocks) of each chunk."""
    data, found = image.read_bytes(), []
    header, size, count = struct.unpack_from("<HHIII", data, 8)[0], 12, struct.unpack_from("<I", data, 20)[0]
    at = header
    for _ in range(count):
        kind, blocks, total = struct.unpack_from("<HxxII", data, at)
        assert total >= size
        found.append((kind, blocks))
        at += total
    assert at == len(data)
    return found


@pytest.mark.parametrize("block", ["4096", "65536"])
def test_an_image_of_img2simg(tmp_path: Path, block: str) -> None:
    raw, image, out = tmp_path / "raw", tmp_path / "image", tmp_path / "out"
    raw.write_bytes(disk(5 * MiB + 64 * KiB))
    run(tool("img2simg"), raw, image, block)
    assert diskmill.info(str(image)).format == "sparse"
    command("convert", "-O", "raw", image, out)
    assert out.read_bytes() == raw.read_bytes()
    assert diskmill.compare(str(image), str(raw), format_b="raw").identical
    assert not diskmill.check(str(image)).corruptions


@pytest.mark.parametrize("size", [0, 512, 4096, MiB - 512, 5 * MiB, 5 * MiB + 4096])
@pytest.mark.parametrize("options", [{}, {"zeros": "skip"}, {"block_size": 64 * KiB}, {"block_size": 512}])
def test_simg2img_reads_ours(tmp_path: Path, size: int, options: dict[str, object]) -> None:
    raw, image, theirs = tmp_path / "raw", tmp_path / "image", tmp_path / "theirs"
    raw.write_bytes(disk()[:size])
    diskmill.convert([str(raw)], str(image), format="raw", output_format="sparse", options=options, threads=4)
    assert {kind for kind, _ in chunks(image)} <= {0xCAC1, 0xCAC2, 0xCAC3}
    run(tool("simg2img"), image, theirs)
    data = theirs.read_bytes()
    assert len(data) == diskmill.info(str(image)).virtual_size
    assert data == raw.read_bytes().ljust(len(data), b"\0")


def test_what_is_alike_takes_next_to_nothing(tmp_path: Path) -> None:
    image = tmp_path / "image"
    diskmill.create(str(image), 100 * GiB, format="sparse")
    assert image.stat().st_size == 28 + 12 + 4
    assert chunks(image) == [(0xCAC2, 100 * GiB // 4096)]
    diskmill.create(str(tmp_path / "skipped"), 100 * GiB, format="sparse", options={"zeros": "skip"})
    assert chunks(tmp_path / "skipped") == [(0xCAC3, 100 * GiB // 4096)]


def test_measured_is_enough(tmp_path: Path) -> None:
    raw, image = tmp_path / "raw", tmp_path / "image"
    raw.write_bytes(disk())
    measured = diskmill.measure(str(raw), format="raw", output_format="sparse")
    diskmill.convert([str(raw)], str(image), format="raw", output_format="sparse")
    assert image.stat().st_size <= measured.required <= measured.fully_allocated


@pytest.mark.parametrize("block", [0, 100, 4000, 2 * MiB])
def test_sizes_of_blocks_that_are_refused(tmp_path: Path, block: int) -> None:
    with pytest.raises(UsageError, match="block_size"):
        diskmill.create(str(tmp_path / "image"), MiB, format="sparse", options={"block_size": block})
    assert not os.listdir(tmp_path)


def test_an_existing_image_is_not_written(tmp_path: Path) -> None:
    raw, image = tmp_path / "raw", tmp_path / "image"
    raw.write_bytes(bytes(MiB))
    diskmill.create(str(image), MiB, format="sparse")
    before = image.read_bytes()
    with pytest.raises(UnsupportedError, match="only be read"):
        diskmill.convert([str(raw)], str(image), format="raw", output_format="sparse", existing=True)
    with pytest.raises(UnsupportedError, match="blocks"):
        diskmill.create(str(tmp_path / "huge"), 3 * 1024 * GiB, format="sparse", options={"block_size": 512})
    assert image.read_bytes() == before


# -- what only other writers make ------------------------------------------------------------------------------------


def chunk(kind: int, blocks: int, data: bytes = b"") -> bytes:
    return struct.pack("<HHII", kind, 0, blocks, 12 + len(data)) + data


def image_of(*parts: bytes, blocks: int, checksum: int = 0, header: int = 28, block: int = 4096) -> bytes:
    head = struct.pack("<IHHHHIIII", 0xED26FF3A, 1, 0, header, 12, block, blocks, len(parts), checksum)
    return head.ljust(header, b"\0") + b"".join(parts)


FILLED = b"\x01\x02\x03\x04" * 1024 * 700
PLAIN = pattern(3, 4096) + bytes(4096 * 5) + FILLED + bytes(4096)
WHOLE = zlib.crc32(PLAIN)


def with_crc(middle: int | None = None, whole: int = WHOLE, **more: int) -> bytes:
    """A disk with every type of chunk."""
    crc = zlib.crc32(PLAIN[: 4096 * 6]) if middle is None else middle
    return image_of(
        chunk(0xCAC1, 1, PLAIN[:4096]),
        chunk(0xCAC3, 5),
        chunk(0xCAC4, 0, struct.pack("<I", crc)),
        chunk(0xCAC3, 0),
        chunk(0xCAC2, 700, FILLED[:4]),
        chunk(0xCAC2, 1, bytes(4)),
        blocks=707,
        checksum=whole,
        **more,
    )


def opened(data: bytes) -> Machine:
    machine = Machine()
    machine.put("disk", data)
    return machine


@pytest.mark.parametrize("header", [28, 60])
def test_every_type_of_chunk(tmp_path: Path, header: int) -> None:
    machine = opened(with_crc(header=header))
    with machine.open("disk", None) as image:
        assert image.driver.name == "sparse"
        assert image.read(0, image.size) == PLAIN
        assert image.read(2 * MiB + 4096 * 6 - 5, 9) == PLAIN[2 * MiB + 4096 * 6 - 5 :][:9]
        kinds = [extent.kind for extent in image.extents(0, image.size)]
        assert kinds == [Kind.DATA, Kind.HOLE, *[Kind.ENCODED] * 3, Kind.ZERO]
    machine.check("disk", "sparse")
    (tmp_path / "image").write_bytes(with_crc())
    run(tool("simg2img"), tmp_path / "image", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == PLAIN


@pytest.mark.parametrize(("changes", "words"), [({"middle": 1}, "bytes 0 to 24576"), ({"whole": 1}, "whole disk")])
def test_a_checksum_that_is_wrong(changes: dict[str, int], words: str) -> None:
    machine = opened(with_crc(**changes))
    found = diskmill.check("memory:disk", context=machine.context)
    assert found.corruptions == 1
    assert words in found.findings[0].text


def test_terabytes_of_one_word_are_checked_at_once() -> None:
    machine = opened(image_of(chunk(0xCAC2, 0xFFFFFFFF, b"abcd"), blocks=0xFFFFFFFF, checksum=5))
    assert diskmill.check("memory:disk", context=machine.context).corruptions == 1


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "short header": (lambda: with_crc()[:27], "begin as one"),
    "version": (lambda: with_crc()[:4] + b"\2" + with_crc()[5:], "version 2"),
    "small headers": (lambda: image_of(blocks=0, header=28)[:8] + b"\x1b" + image_of(blocks=0)[9:], "shorter"),
    "blocks of 3": (lambda: image_of(blocks=0, block=3), "blk_sz 3"),
    "blocks of 0": (lambda: image_of(blocks=0, block=0), "blk_sz 0"),
    "size": (lambda: image_of(blocks=0xFFFFFFFF, block=0xFFFFFFFC), "impossible size"),
    "chunks": (lambda: image_of(blocks=0)[:20] + b"\xff\xff\0\0" + bytes(4), "65535 chunks"),
    "many chunks": (lambda: image_of(blocks=0)[:20] + b"\xff" * 4 + bytes(4), "more than"),
    "type": (lambda: image_of(chunk(0xCAC5, 1), blocks=1), "0xcac5"),
    "fill of 8": (lambda: image_of(chunk(0xCAC2, 1, bytes(8)), blocks=1), "total_sz 20"),
    "short raw": (lambda: image_of(chunk(0xCAC1, 1, bytes(4095)), blocks=1), "total_sz 4107"),
    "cut": (lambda: image_of(chunk(0xCAC1, 1, bytes(4096)), blocks=1)[:-1], "cut short"),
    "too few": (lambda: image_of(chunk(0xCAC3, 1), blocks=2), "not 2 blocks"),
    "too many": (lambda: image_of(chunk(0xCAC3, 3), blocks=2), "not 2 blocks"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_refused(case: str) -> None:
    make, words = BROKEN[case]
    with pytest.raises(DiskmillError) as caught, opened(make()).open("disk", "sparse"):
        pass
    assert words in str(caught.value)
