"""Expert Witness images of ewf-tools, and of the tests' encoder, which ewf-tools read."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import diskmill
import pytest
from diskmill.errors import DiskmillError, ImageError, UnsupportedError
from diskmill.sizes import KiB, MiB
from diskmill_ewf.segments import segment_name
from encoders import ewf, in_memory
from formats import Machine, pattern
from tools import diskmill as command
from tools import run, tool


def disk() -> bytes:
    """Enough noise for more than one segment of 1 MiB, zeros, and what compresses."""
    return pattern(1, 2 * MiB + 7 * 512) + bytes(MiB) + b"the same again; " * 40000 + pattern(2, 512)


def acquired(folder: Path, *options: str, suffix: str = "E01", data: bytes | None = None) -> Path:
    """An image that ewfacquirestream makes of the disk."""
    arguments = [tool("ewfacquirestream"), "-q", "-d", "sha1", *options, "-t", str(folder / "disk")]
    subprocess.run(arguments, input=disk() if data is None else data, check=True, capture_output=True, timeout=120)
    return folder / f"disk.{suffix}"


@pytest.mark.parametrize(
    "options",
    [
        ("-c", "none"),
        ("-c", "fast", "-S", "1048576"),
        ("-c", "none", "-S", "1048576", "-f", "encase3"),
        ("-c", "empty-block", "-b", "16384"),
        ("-c", "best", "-b", "16", "-f", "ftk"),
    ],
    ids=" ".join,
)
def test_an_image_of_ewfacquirestream(tmp_path: Path, options: tuple[str, ...]) -> None:
    image, out = acquired(tmp_path, *options), tmp_path / "out"
    told = diskmill.info(str(image))
    assert (told.format, told.virtual_size) == ("ewf", len(disk()))
    assert told.specific is not None
    assert told.specific["segments"] == len(list(tmp_path.glob("disk.E*"))) >= 1
    assert told.specific["md5"] == hashlib.md5(disk()).hexdigest()
    if "-f" not in options:
        assert told.specific["sha1"] == hashlib.sha1(disk()).hexdigest()
    command("convert", "-O", "raw", image, out)
    assert out.read_bytes() == disk()
    assert not diskmill.check(str(image)).corruptions


@pytest.mark.parametrize(
    ("format", "suffix"), [("smart", "s01"), ("ewfx", "e01"), ("encase5", "E01"), ("linen6", "E01")]
)
def test_an_image_of_ewfacquire(tmp_path: Path, format: str, suffix: str) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(disk())
    run(tool("ewfacquire"), "-u", "-q", "-c", "fast", "-S", "1048576", "-f", format, "-t", tmp_path / "disk", raw)
    image = tmp_path / f"disk.{suffix}"
    assert len(list(tmp_path.glob("disk.*"))) > 1
    assert diskmill.compare(str(image), str(raw), format_b="raw").identical
    assert not diskmill.check(str(image)).corruptions


@pytest.mark.parametrize("variant", ["EnCase", "many tables", "large, stored"])
def test_ewfexport_reads_the_encoder_s(tmp_path: Path, variant: str) -> None:
    image, out = tmp_path / "disk.E01", tmp_path / "out"
    image.write_bytes(ewf.VARIANTS[variant](disk()))
    run(tool("ewfexport"), "-u", "-q", "-t", out, image)
    assert Path(f"{out}.raw").read_bytes() == disk()
    assert diskmill.compare(str(image), f"{out}.raw", format_b="raw").identical


def test_segments_are_named_as_the_specification_says() -> None:
    names = {2: "a.E02", 99: "a.E99", 100: "a.EAA", 125: "a.EAZ", 126: "a.EBA", 775: "a.EZZ", 776: "a.FAA"}
    assert {number: segment_name("a.E01", number) for number in names} == names
    assert segment_name("a.b.s01", 100) == "a.b.saa"
    for first, number in (("a.E01", 100 + 22 * 676), ("a", 2), ("a.raw", 2), ("a.101", 2)):
        with pytest.raises(ImageError):
            segment_name(first, number)


def test_a_segment_that_is_missing_is_named(tmp_path: Path) -> None:
    image = acquired(tmp_path, "-S", "1048576")
    (tmp_path / "disk.E02").unlink()
    with pytest.raises(DiskmillError, match=r"disk\.E02"):
        diskmill.check(str(image))
    said: list[str] = []
    assert diskmill.info(str(image), context=diskmill.Context(warn=said.append)).virtual_size == len(disk())
    assert "disk.E02" in said[0]


def test_segments_that_do_not_belong_there(tmp_path: Path) -> None:
    image = acquired(tmp_path, "-S", "1048576")
    with pytest.raises(ImageError, match="segment 2, not 1"):
        diskmill.info(str(tmp_path / "disk.E02"))
    os.replace(tmp_path / "disk.E03", tmp_path / "disk.E02")
    with pytest.raises(ImageError, match="segment 3, not 2"):
        diskmill.check(str(image))
    (tmp_path / "disk.E02").unlink()
    os.symlink("/etc/passwd", tmp_path / "disk.E02")
    with pytest.raises(DiskmillError, match="was not opened"):
        diskmill.check(str(image))
    image.rename(tmp_path / "renamed")
    with pytest.raises(ImageError, match=r"must end in \.E01"):
        diskmill.check(str(tmp_path / "renamed"))


# -- damage ------------------------------------------------------------------------------------------------------------

DISK = disk()[: 200 * KiB]
IMAGE = in_memory(ewf.encode)(DISK)
SECTORS = IMAGE.index(b"sectors")
TABLE = IMAGE.index(b"table\0")
TABLE2 = IMAGE.index(b"table2\0")


def changed(*places: int) -> Machine:
    data = bytearray(IMAGE)
    for at in places:
        data[at] ^= 1
    machine = Machine()
    machine.put("disk", bytes(data))
    return machine


def test_a_damaged_chunk_costs_its_own_bytes() -> None:
    machine = changed(SECTORS + 76 + 40000)
    with machine.open("disk", None) as image:
        assert image.read(0, 32 * KiB) == DISK[: 32 * KiB]
        assert image.read(64 * KiB, 32 * KiB) == DISK[64 * KiB : 96 * KiB]
        with pytest.raises(ImageError, match=r"guest offset 32768 is damaged: its checksum is wrong"):
            image.read(40000, 1)
    found = diskmill.check("memory:disk", context=machine.context)
    assert found.corruptions == 1


def test_a_damaged_table_has_a_copy() -> None:
    machine = changed(TABLE + 76 + 24 + 1)
    with machine.open("disk", "ewf") as image:
        assert image.read(0, image.size) == DISK
    assert diskmill.check("memory:disk", context=machine.context).corruptions == 1
    machine = changed(TABLE + 76 + 24 + 1, TABLE2 + 76 + 24 + 1)
    with machine.open("disk", "ewf") as image, pytest.raises(ImageError, match="checksum of its entries"):
        image.read(0, 1)


@pytest.mark.parametrize(
    ("at", "words"),
    [
        (13, "section ''"),
        (13 + 76, "section 'volume'"),
        (TABLE + 76, "section 'table'"),
        (IMAGE.index(b"hash\0") + 76, "hash"),
    ],
)
def test_a_damaged_section_is_refused(at: int, words: str) -> None:
    with pytest.raises(ImageError, match="checksum is wrong") as caught, changed(at).open("disk", "ewf"):
        pass
    assert words in str(caught.value)


def test_a_wrong_hash_is_found() -> None:
    at = IMAGE.index(b"hash\0") + 76
    body = bytes([IMAGE[at] ^ 1]) + IMAGE[at + 1 : at + 32]
    machine = Machine()
    machine.put("disk", IMAGE[:at] + ewf.summed(body) + IMAGE[at + 36 :])
    found = diskmill.check("memory:disk", context=machine.context)
    assert found.corruptions == 1
    assert "MD5" in found.findings[0].text


def test_two_disks_in_one_file_are_refused() -> None:
    """A section's size leads to one, the next section's offset to the other."""
    body = IMAGE[13 : 13 + 24] + (4000).to_bytes(8, "little") + bytes(40)
    machine = Machine()
    machine.put("disk", IMAGE[:13] + ewf.summed(body) + IMAGE[13 + 76 :])
    with pytest.raises(ImageError, match="size is 4000, but the next one"), machine.open("disk", "ewf"):
        pass


def test_other_versions_are_named(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"EVF2\x0d\x0a\x81\0".ljust(4096, b"\0"))
    with pytest.raises((ImageError, UnsupportedError), match="begin as one"):
        diskmill.info(str(tmp_path / "disk"), format="ewf")
