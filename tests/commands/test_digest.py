"""Digests of disks: one for the same bytes in every format, by the published definition; and verified copies."""

from __future__ import annotations

import hashlib
import io
import random
from pathlib import Path

import diskmill as api
import pytest
from diskmill.contract.node import Node
from diskmill.engine.digest import Digester
from diskmill.errors import ImageError, UsageError
from hypothesis import given
from hypothesis import strategies as st
from tools import diskmill, qemu_img

BLOCK = 65536


def blksum(data: bytes, algorithm: str = "sha256", block: int = BLOCK) -> str:
    """The definition, word for word: H(H(block_0) ‖ H(block_1) ‖ … ‖ length as 8 bytes little-endian)."""
    outer = hashlib.new(algorithm)
    for at in range(0, len(data), block):
        outer.update(hashlib.new(algorithm, data[at : at + block]).digest())
    outer.update(len(data).to_bytes(8, "little"))
    return outer.hexdigest()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """3 MiB and a sector: data that is aligned to nothing, holes, and a last block that is short."""
    data = bytearray(3 * 1024 * 1024 + 512)
    for at, length in ((0, 10), (65530, 20), (200_000, 300_000), (1 << 20, BLOCK), (len(data) - 3, 3)):
        data[at : at + length] = random.Random(at).randbytes(length)
    path = tmp_path / "disk.raw"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("size", [0, 512, BLOCK, BLOCK + 512, 2 * BLOCK])
def test_zeros_are_no_special_case(tmp_path: Path, size: int) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(size))
    assert api.digest(str(path), format="raw") == blksum(bytes(size))
    if size == 0:  # the hash of its length, 0 as 8 bytes
        assert blksum(b"") == "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc"


def test_a_gibibyte_with_a_little_data(tmp_path: Path) -> None:
    """By the definition too, but with the blocks of zeros hashed once."""
    path, blocks = tmp_path / "disk", 1 << 14
    places = {number: random.Random(number).randbytes(BLOCK) for number in (0, 1, 77, blocks // 2, blocks - 1)}
    with path.open("wb") as file:
        file.truncate(blocks * BLOCK)
        for number, data in places.items():
            file.seek(number * BLOCK)
            file.write(data)
    zero, outer = hashlib.sha256(bytes(BLOCK)).digest(), hashlib.sha256()
    for number in range(blocks):
        outer.update(hashlib.sha256(places[number]).digest() if number in places else zero)
    outer.update((1 << 30).to_bytes(8, "little"))
    assert api.digest(path, format="raw") == outer.hexdigest()


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc", "qed", "parallels", "qcow"])
def test_it_is_the_same_in_every_format(disk: Path, tmp_path: Path, format: str) -> None:
    image = tmp_path / f"copy.{format}"
    options = ["-o", "force_size=on"] if format == "vpc" else []
    qemu_img("convert", "-f", "raw", "-O", format, *options, disk, image)
    with api.open(str(image), format) as opened:
        wanted = blksum(opened.read(0, opened.size))
    assert api.digest(str(image), format=format) == wanted
    assert wanted == blksum(disk.read_bytes() + bytes(opened.size - disk.stat().st_size))


@pytest.mark.parametrize("algorithm", ["sha1", "sha512", "sha512-256", "blake2b512"])
@pytest.mark.parametrize("block", [4096, BLOCK, 100_000])
def test_other_algorithms_and_blocks(disk: Path, algorithm: str, block: int) -> None:
    name = {"sha512-256": "sha512_256", "blake2b512": "blake2b"}.get(algorithm, algorithm)
    found = api.digest(str(disk), format="raw", algorithm=algorithm, block_size=block)
    assert found == blksum(disk.read_bytes(), name, block)


def test_an_unknown_algorithm_is_told_with_those_there_are(disk: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown digest 'md55': choose from .*sha256"):
        api.digest(str(disk), format="raw", algorithm="md55")


@given(
    pieces=st.lists(st.tuples(st.integers(0, 40_000), st.booleans()), max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_pieces_may_come_in_any_order(pieces: list[tuple[int, bool]], order: random.Random) -> None:
    data, shown = bytearray(), []
    for length, zeros in pieces:
        if length:
            shown.append((len(data), length, zeros))
            data += bytes(length) if zeros else random.Random(length).randbytes(length)
    digester = Digester(len(data), block=4096)
    order.shuffle(shown)
    for start, length, zeros in shown:
        if zeros:
            digester.zeros(start, length)
        else:
            digester.data(start, memoryview(data)[start : start + length])
    assert digester.hexdigest() == blksum(bytes(data), block=4096)


def test_the_command_prints_and_checks(disk: Path, tmp_path: Path) -> None:
    printed = diskmill("digest", "-f", "raw", disk).stdout
    assert printed == f"{blksum(disk.read_bytes())}  {disk}\n"
    listed = tmp_path / "DIGESTS"
    listed.write_text(printed)
    assert diskmill("digest", "-f", "raw", "--check", listed).stdout == f"{disk}: OK\n"
    with disk.open("r+b") as file:
        file.seek(200_000)
        file.write(b"changed")
    failed = diskmill("digest", "-f", "raw", "--check", listed, check=False)
    assert (failed.returncode, failed.stdout) == (1, f"{disk}: FAILED\n")


def test_the_digests_of_blocks_are_kept(disk: Path) -> None:
    blocks = io.BytesIO()
    api.digest(str(disk), format="raw", block_digests=blocks)
    data = disk.read_bytes()
    wanted = [hashlib.sha256(data[at : at + BLOCK]).digest() for at in range(0, len(data), BLOCK)]
    assert blocks.getvalue() == b"".join(wanted)


@pytest.mark.parametrize("options", [[], ["-c"], ["-W", "-m", "4"], ["-C"]])
def test_a_copy_tells_its_digest(disk: Path, tmp_path: Path, options: list[str]) -> None:
    image = tmp_path / "disk.qcow2"
    done = diskmill("convert", "--digest", *options, "-f", "raw", "-O", "qcow2", disk, image)
    assert done.stdout == f"{blksum(disk.read_bytes())}  {image}\n"


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk", "vhdx"])
def test_a_flipped_bit_in_the_output_is_found_and_the_output_gets_no_name(
    disk: Path, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diskmill.commands import convert

    image = tmp_path / "out"
    api.convert([str(disk)], str(image), format="raw", output_format=format, verify=True)
    assert api.compare(str(disk), str(image), format_a="raw", format_b=format).identical
    image.unlink()
    plain = convert.copy
    for flipped in range(0, 3 * 1024 * 1024, 250_007):

        def copy(*arguments: object, at: int = flipped, **options: object) -> None:
            plain(*arguments, **options)  # type: ignore[arg-type]
            target = arguments[1]
            assert isinstance(target, Node)
            byte = target.read(at, 1)[0]
            target.write(at, bytes([byte ^ 1 << at % 8]))

        monkeypatch.setattr(convert, "copy", copy)
        with pytest.raises(ImageError, match=f"guest offset {flipped // BLOCK * BLOCK}: .*reads back differently"):
            api.convert([str(disk)], str(image), format="raw", output_format=format, verify=True)
        assert not image.exists()


def test_a_file_of_digests_stands_for_a_disk(disk: Path, tmp_path: Path) -> None:
    """Both kinds of files, with the first block that differs named where that is known, and what is neither refused."""
    image, blocks, listed = tmp_path / "disk.qcow2", tmp_path / "blocks", tmp_path / "DIGESTS"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", disk, image)
    listed.write_text(diskmill("digest", "-f", "raw", "--block-digests", blocks, disk).stdout)
    for known in (blocks, listed):
        done = diskmill("compare", "-f", "qcow2", image, f"digests:{known}")
        assert done.stdout == "Digests are identical.\n"
    assert diskmill("digest", "--check", blocks, image).stdout == f"{image}: OK\n"
    with disk.open("r+b") as file:
        file.seek(3 * BLOCK + 7)
        file.write(b"changed")
        file.seek(9 * BLOCK)
        file.write(b"changed")
    failed = diskmill("digest", "-f", "raw", "--check", blocks, disk, check=False)
    assert (failed.returncode, failed.stdout) == (1, f"{disk}: FAILED (the block at offset {3 * BLOCK} differs)\n")
    found = api.compare(disk, f"digests:{blocks}", format_a="raw")
    assert (found.identical, found.offset) == (False, 3 * BLOCK)
    assert not api.compare(disk, f"digests:{listed}", format_a="raw").identical
    for wrong, text in ((image, "does not hold the sha256 of each of 49 blocks"), (tmp_path / "none", "No such file")):
        done = diskmill("compare", "-f", "raw", disk, f"digests:{wrong}", check=False)
        assert (done.returncode, text in done.stderr) == (2, True), done.stderr
