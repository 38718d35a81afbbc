"""cloop and Bochs images, made and read by the formats' own tools, by qemu-img and by the tests' encoders."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import diskmill
import pytest
from diskmill.contract.extents import Kind
from diskmill.errors import DiskmillError, ImageError, UnsupportedError, UsageError
from diskmill.sizes import KiB, MiB
from encoders import bochs, cloop, in_memory
from formats import Machine, fragments, pattern
from samples import ext4_image
from tools import assert_identical, qemu_img, run, tool
from tools import diskmill as diskmill_command

SIZE = 2 * MiB


def disk(size: int = SIZE) -> bytes:
    data = bytearray(size)
    for offset, part in fragments(9, size, 64 * KiB):
        data[offset : offset + len(part)] = part
    data[:4] = b"boot"
    return bytes(data)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A disk with a file system."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(20):
        (tree / f"file{number}").write_bytes(pattern(number, 10_000) + b"text " * 3000)
    return ext4_image(tmp_path / "disk.raw", 4 * MiB, tree)


def same(image: Path, format: str, raw: Path, tmp_path: Path) -> None:
    """Fail unless qemu-img and diskmill, which probes, both find the disk *raw* in *image*."""
    assert_identical(image, raw, formats=(format, "raw"))
    out = tmp_path / "ours.raw"
    diskmill_command("convert", "-O", "raw", image, out)
    assert out.read_bytes() == raw.read_bytes()
    told = diskmill.info(str(image))
    assert told.format == format
    assert f"virtual size: {told.virtual_size // MiB} MiB ({told.virtual_size} bytes)" in qemu_img("info", image).stdout
    assert not diskmill.check(str(image)).corruptions


# -- cloop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["512", "65536", "1048576", "4194304"])
def test_an_image_of_create_compressed_fs(raw: Path, tmp_path: Path, block: str) -> None:
    image = tmp_path / "disk.cloop"
    run(tool("create_compressed_fs"), "-q", "-B", block, raw, image)
    same(image, "cloop", raw, tmp_path)


def test_extract_compressed_fs_reads_the_encoder_s(raw: Path, tmp_path: Path) -> None:
    image, out = tmp_path / "disk.cloop", tmp_path / "theirs.raw"
    image.write_bytes(in_memory(cloop.encode)(raw.read_bytes()))
    run(tool("extract_compressed_fs"), image, out)
    assert out.read_bytes() == raw.read_bytes()


@pytest.mark.parametrize("block", [512, 77 * 512, 256 * KiB, 3 * MiB])
def test_qemu_img_reads_the_encoder_s(tmp_path: Path, block: int) -> None:
    data = disk()
    image, plain = tmp_path / "disk.cloop", tmp_path / "plain.raw"
    image.write_bytes(in_memory(cloop.encode, block=block)(data))
    plain.write_bytes(data.ljust(-(-len(data) // block) * block, b"\0"))
    assert_identical(image, plain, formats=("cloop", "raw"))
    assert diskmill.compare(str(image), str(plain), format_b="raw").identical


def head(block: int, count: int, *offsets: int) -> bytes:
    return cloop.PREAMBLE.ljust(128, b"\0") + struct.pack(f">II{len(offsets)}Q", block, count, *offsets)


def refusal(data: bytes, format: str) -> str:
    machine = Machine()
    machine.put("disk", data)
    with pytest.raises(DiskmillError) as caught, machine.open("disk", format) as image:
        image.read(0, image.size)
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "does not begin as one"),
        (cloop.PREAMBLE.replace(b"V2.0", b"V4.0").ljust(4096, b"\0"), "version 2.0"),
        (cloop.PREAMBLE, "truncated"),
        (head(0, 1, 152, 160) + bytes(8), "block_size 0"),
        (head(513, 1, 152, 160) + bytes(8), "block_size 513"),
        (head(0xFFFFFE00, 1, 152, 160) + bytes(8), "block_size 4294966784"),
        (head(512, 0xFFFFFFFF, 152, 160) + bytes(8), "offsets of 4294967295 blocks"),
        (head(512, 1, 152, 160), "of a file of 152 bytes"),
        (head(512, 1, 160, 152) + bytes(8), "at offsets 160 to 152"),
        (head(512, 1, 0, 100) + bytes(8), "at offsets 0 to 100"),
        (head(512, 1, 152, 160) + bytes(8), "damaged"),
        (head(512, 1, 152, 164) + zlib.compress(bytes(513))[:12], "damaged"),
    ],
)
def test_a_cloop_image_that_makes_no_sense(data: bytes, words: str) -> None:
    assert words in refusal(data, "cloop")


def test_cloop_check_names_damaged_blocks() -> None:
    data = bytearray(in_memory(cloop.encode, block=4096)(disk(64 * KiB)))
    data[-3] ^= 1
    machine = Machine()
    machine.put("disk", bytes(data))
    result = diskmill.check("memory:disk", format="cloop", context=machine.context)
    assert result.corruptions == 1
    assert re.search("guest offset 61440 is damaged", result.findings[0].text)


# -- Bochs ------------------------------------------------------------------------------------------------


def test_an_image_of_bximage(raw: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    run(tool("bximage"), "-q", "-func=convert", "-imgmode=growing", raw, image)
    same(image, "bochs", raw, tmp_path)


@pytest.mark.parametrize("size", ["10M", "2G", "100G"])
def test_a_new_image_of_bximage_is_all_holes(tmp_path: Path, size: str) -> None:
    image = tmp_path / "disk.img"
    run(tool("bximage"), "-q", "-func=create", f"-hd={size}", "-imgmode=growing", image)
    (entry,) = diskmill.map(str(image))
    assert (entry.length, entry.zero, entry.data) == (diskmill.info(str(image)).virtual_size, True, False)
    assert f"({entry.length} bytes)" in qemu_img("info", image).stdout


def test_bximage_reads_the_encoder_s(tmp_path: Path) -> None:
    image, out = tmp_path / "disk.img", tmp_path / "out.img"
    # bximage chooses the extents' size by the disk's, and so must the encoder here.
    image.write_bytes(in_memory(bochs.encode, extent=4096)(disk()))
    run(tool("bximage"), "-q", "-func=convert", "-imgmode=flat", image, out)
    assert out.read_bytes() == disk()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("extent", [512, 4096, 128 * KiB, 8 * MiB])
@pytest.mark.parametrize("seed", [None, 3])
def test_qemu_img_reads_the_encoder_s_redologs(tmp_path: Path, version: int, extent: int, seed: int | None) -> None:
    data = disk(SIZE // 4 + 512)
    image, plain = tmp_path / "disk.bochs", tmp_path / "plain.raw"
    image.write_bytes(in_memory(bochs.encode, version=version, extent=extent, seed=seed)(data))
    plain.write_bytes(data)
    assert_identical(image, plain, formats=("bochs", "raw"))
    assert diskmill.compare(str(image), str(plain), format_b="raw").identical


def test_holes_and_data_are_told_apart_by_sector() -> None:
    data = bytes(512) + b"x" * 1024 + bytes(8192) + b"y" * 512
    machine = Machine()
    machine.put("disk", in_memory(bochs.encode, extent=4096)(data))
    with machine.open("disk", "bochs") as image:
        found = [(extent.kind, extent.length) for extent in image.extents(0, image.size)]
    assert found == [(Kind.HOLE, 512), (Kind.DATA, 1024), (Kind.HOLE, 8192), (Kind.DATA, 512)]


@pytest.mark.parametrize("subtype", [b"Undoable", b"Volatile"])
def test_a_redolog_reads_over_its_base(subtype: bytes) -> None:
    base = pattern(1, 64 * KiB)
    change = bytearray(64 * KiB)
    change[8192:9216] = b"c" * 1024
    expected = bytearray(base)
    expected[8192:9216] = change[8192:9216]
    machine = Machine()
    machine.put("base", base)
    machine.put("redolog", in_memory(bochs.encode, extent=4096, subtype=subtype)(bytes(change)))
    with pytest.raises(UnsupportedError, match=r"backing\.file\.filename"), machine.open("redolog", "bochs") as image:
        image.read(0, 512)
    spec = {"driver": "bochs", "file": {"driver": "memory", "filename": "memory:redolog"}}
    over = spec | {"backing": {"driver": "raw", "file": {"driver": "memory", "filename": "memory:base"}}}
    with diskmill.opening.graph.open_image(over, context=machine.context) as image:
        assert image.read(0, image.size) == expected
    machine.put("redolog", in_memory(bochs.encode, extent=4096)(bytes(change)))
    with pytest.raises(UsageError, match="stands on no other"):
        diskmill.opening.graph.open_image(over, context=machine.context)


def redolog(**changes: int | bytes) -> bytes:
    fields = {
        "magic": b"Bochs Virtual HD Image",
        "type": b"Redolog",
        "subtype": b"Growing",
        "version": 0x20000,
        "header": 512,
        "catalog": 2,
        "bitmap": 1,
        "extent": 4096,
        "disk": 8192,
        "entry": 0,
    } | changes
    header = struct.pack("<32s16s16sIIIIIIQ", *list(fields.values())[:8], 0, fields["disk"]).ljust(512, b"\0")
    return header + struct.pack("<II", fields["entry"], 0xFFFFFFFF) + b"\xff" * 512 + b"d" * 4096


def test_the_redolog_that_others_differ_from_reads() -> None:
    machine = Machine()
    machine.put("disk", redolog())
    with machine.open("disk", "bochs") as image:
        assert image.read(0, 8192) == b"d" * 4096 + bytes(4096)
    assert not diskmill.check("memory:disk", format="bochs", context=machine.context).corruptions


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"magic": b"Bochs"}, "bad magic"),
        ({"type": b"Other"}, "type 'Other'"),
        ({"subtype": b"vvfat"}, "type 'vvfat'"),
        ({"version": 3}, "version 0x3"),
        ({"extent": 256}, "extent size 256"),
        ({"extent": 5000}, "extent size 5000"),
        ({"extent": 1 << 24}, "extent size 16777216"),
        ({"bitmap": 0}, "bitmap of 0 bytes"),
        ({"catalog": 1}, "too small for a disk"),
        ({"catalog": 1 << 21}, "catalog of 2097152 entries"),
        ({"catalog": 100_000}, "not inside the file"),
        ({"header": 1 << 31}, "not inside the file"),
        ({"disk": 1 << 63}, "impossible disk size"),
        ({"entry": 1}, "not inside the file"),
        ({"entry": 0xFFFFFFFE}, "not inside the file"),
    ],
)
def test_a_redolog_that_makes_no_sense(changes: dict[str, int | bytes], words: str) -> None:
    assert words in refusal(redolog(**changes), "bochs")


def test_sectors_that_were_cut_off_are_an_error_and_not_zeros() -> None:
    whole = redolog()
    machine = Machine()
    machine.put("disk", whole[:-512])
    with machine.open("disk", "bochs") as image:
        assert image.read(4096, 4096) == bytes(4096)
        with pytest.raises(ImageError, match="not inside the file"):
            image.read(3584, 512)


def test_bochs_check_names_extents_that_are_outside_or_shared() -> None:
    machine = Machine()
    data = bytearray(redolog(entry=0))
    struct.pack_into("<II", data, 512, 0, 0)
    machine.put("disk", bytes(data))
    result = diskmill.check("memory:disk", format="bochs", context=machine.context)
    assert [finding.text for finding in result.findings] == ["extent 1 lies at a place that another extent has"]
    struct.pack_into("<II", data, 512, 0, 77)
    machine.put("disk", bytes(data))
    result = diskmill.check("memory:disk", format="bochs", context=machine.context)
    assert [finding.text for finding in result.findings] == ["extent 1 lies outside the file"]
