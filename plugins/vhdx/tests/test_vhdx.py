"""VHDX: the log, differencing images, sectors of 4096 bytes, and what other readers make of it."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import uuid
from pathlib import Path

import diskmill
import pytest
from diskmill.errors import ImageError, RefusedError, UnsupportedError
from samples import KiB, MiB, scattered_file, sparse_file
from tools import qemu_img, qemu_io, run, tool
from vhdx_samples import (
    BAT,
    FILE_PARAMETERS,
    HEADERS,
    LOGICAL_SECTOR,
    METADATA,
    REGION_TABLES,
    announce,
    bat,
    differencing,
    entry,
    header,
    item,
    log_place,
    put_in_log,
    region,
    seal_all,
    with_entries,
)

NAME = bytes(range(16))
BLOCK = MiB


def image_of(folder: Path, pieces: dict[int, bytes], size: int = 12 * MiB, name: str = "image", **options: str) -> Path:
    disk = sparse_file(folder / f"{name}.raw", size, pieces)
    image = folder / name
    diskmill.convert(
        [str(disk)], str(image), format="raw", output_format="vhdx", options={"block_size": "1M", **options}
    )
    return image


def content(image: Path) -> bytes:
    with diskmill.open(str(image), "vhdx") as opened:
        return opened.read(0, opened.size)


# The log. A dirty image is a whole one whose table was set back, with what it had in the log: so its contents
# are known. QEMU replays the same log, to compare.


def dirty(image: Path, sequences: list[list[int]], *, at: int = 0, stale: bool = False) -> tuple[bytearray, bytes]:
    """Let blocks of *image* be in its log only, those of one list in one entry; and what the disk must read as."""
    expected = content(image)
    data = bytearray(image.read_bytes())
    before = bytes(data)
    start = region(data, BAT)
    for blocks in sequences:
        for block in blocks:
            struct.pack_into("<Q", data, start + 8 * block, 2)
    place, tail, state = at, at, bytes(data)
    for number, blocks in enumerate(sequences):
        updates = with_entries(state, {block: bat(before, block) for block in blocks})
        changed = bytearray(state)
        for offset, sector in updates:
            assert isinstance(sector, bytes)
            changed[offset : offset + 4096] = sector
        state = bytes(changed)
        place = put_in_log(data, place, entry(NAME, 7 + number, tail, updates, flushed=len(data), last=len(data)))
    announce(data, NAME)
    image.write_bytes(data)
    return data, expected


def replayed_by_both(image: Path, expected: bytes) -> None:
    """Reading replays in memory, and changes nothing; writing replays for good, as QEMU does."""
    before = image.read_bytes()
    assert content(image) == expected
    assert diskmill.info(str(image)).dirty
    found = diskmill.check(str(image))
    assert found.corruptions == 1 and "log" in found.findings[0].text
    assert image.read_bytes() == before
    theirs = image.with_name("theirs")
    theirs.write_bytes(before)
    assert qemu_img("info", theirs, check=False).returncode == 1
    qemu_img("check", "-r", "all", "-f", "vhdx", theirs)
    assert content(theirs) == expected
    result = diskmill.check(str(image), repair="all")
    assert (result.corruptions, result.corruptions_fixed) == (0, 1)
    assert not diskmill.info(str(image)).dirty
    qemu_img("check", "-f", "vhdx", image)
    qemu_img("compare", "-f", "vhdx", "-F", "vhdx", image, theirs)
    assert content(image) == expected


PIECES = {block * MiB + 4 * KiB * block: bytes([block + 1]) * 70_000 for block in (1, 2, 3, 5, 7, 9)}


@pytest.mark.parametrize(
    ("sequences", "at"),
    [
        ([[1, 2, 3]], 0),
        ([[1], [2], [3, 5], [7]], 0),
        ([[1], [2]], 40 * KiB),
        ([[1], [2], [3]], MiB - 12 * KiB),  # around the log's end
        ([[5]], MiB - 4 * KiB),
    ],
    ids=str,
)
def test_a_log_is_replayed(tmp_path: Path, sequences: list[list[int]], at: int) -> None:
    image = image_of(tmp_path, PIECES)
    _, expected = dirty(image, sequences, at=at)
    replayed_by_both(image, expected)


def test_zeros_in_the_log(tmp_path: Path) -> None:
    """Entries of zeros and of data over one another: what comes last counts."""
    image = image_of(tmp_path, PIECES)
    data, expected = dirty(image, [])
    start = region(data, BAT)
    table = bytes(data[start : start + 4096])
    wrong = bytes(range(256)) * 16
    entries = entry(NAME, 1, 0, [(start, wrong), (start + 4096, wrong), (start + 8192, 4096)], flushed=len(data))
    entries += entry(
        NAME, 2, 0, [(start, 64 * KiB), (start, table), (start + 128 * KiB, 4096)], flushed=len(data), last=len(data)
    )
    data[start : start + 4096] = wrong
    put_in_log(data, 0, entries)
    image.write_bytes(data)
    replayed_by_both(image, expected)
    assert image.read_bytes()[start : start + 12 * KiB] == table + bytes(8 * KiB)


def test_an_entry_of_many_descriptors(tmp_path: Path) -> None:
    """More than fit beside the entry's header. QEMU 7.2 reads only the last sector of them."""
    image = image_of(tmp_path, PIECES)
    data, expected = dirty(image, [])
    start = region(data, BAT)
    updates: list[tuple[int, bytes | int]] = [(start + 256 * KiB + 4096 * index, 4096) for index in range(150)]
    updates.append((start, bytes(data[start : start + 4096])))
    updates += [(start + 128 * KiB, random.Random(5).randbytes(4096)), (start + 128 * KiB, bytes(4096))]
    data[start : start + 16] = bytes(16)
    put_in_log(data, 20 * KiB, entry(NAME, 9, 20 * KiB, updates, flushed=len(data), last=len(data)))
    data[start + 256 * KiB + 4096 * 149 : start + 256 * KiB + 4096 * 151] = b"o" * 8192
    image.write_bytes(data)
    assert content(image) == expected
    assert diskmill.check(str(image), repair="all").corruptions_fixed == 1
    qemu_img("compare", "-f", "raw", "-F", "vhdx", tmp_path / "image.raw", image)
    end = start + 256 * KiB + 4096 * 150
    assert image.read_bytes()[end - 4096 : end + 4096] == bytes(4096) + b"o" * 4096


def test_the_newest_sequence_counts(tmp_path: Path) -> None:
    """An older one that is whole as well, one with another name, and entries that its last entry no longer needs."""
    image = image_of(tmp_path, PIECES)
    data, expected = dirty(image, [[3], [4]], at=200 * KiB)
    start = region(data, BAT)
    wrong = [(start, bytes(4096))]
    put_in_log(data, 0, entry(NAME, 3, 0, wrong, flushed=len(data), last=len(data)))
    put_in_log(data, 300 * KiB, entry(bytes(15) + b"x", 90, 300 * KiB, wrong, flushed=len(data), last=len(data)))
    image.write_bytes(data)
    replayed_by_both(image, expected)


def test_entries_before_the_tail_are_not_replayed(tmp_path: Path) -> None:
    image = image_of(tmp_path, PIECES)
    data, expected = dirty(image, [])
    start = region(data, BAT)
    # What the first one had was in place, and changed since outside of this sequence. QEMU goes by neither.
    end = put_in_log(data, 0, entry(NAME, 1, 0, [(start + 4096, b"w" * 4096)], flushed=len(data)))
    put_in_log(data, end, entry(NAME, 2, end, [(start, bytes(data[start : start + 4096]))], flushed=len(data)))
    image.write_bytes(data)
    assert diskmill.check(str(image), repair="all").corruptions_fixed == 1
    assert content(image) == expected
    assert image.read_bytes()[start + 4096 : start + 8192] == bytes(4096)


@pytest.mark.parametrize("torn", ["header", "descriptor", "data", "end"])
def test_a_torn_entry_ends_the_sequence(tmp_path: Path, torn: str) -> None:
    """The crash came while the second entry was written: so nothing of it was put in place."""
    image = image_of(tmp_path, {at: data for at, data in PIECES.items() if at < 4 * MiB})
    whole = image.read_bytes()
    data, expected = dirty(image, [[1], [2]], at=8 * KiB)
    first = len(entry(NAME, 1, 0, [(0, bytes(4096))]))
    offset = log_place(data)[0] + 8 * KiB + first
    at = {"header": 2, "descriptor": 70, "data": 5000, "end": first - 1}[torn]
    data[offset + at] ^= 1
    image.write_bytes(data)
    lost = bytearray(expected)
    lost[2 * MiB : 3 * MiB] = bytes(MiB)
    assert bat(whole, 2) & 7 == 6
    replayed_by_both(image, bytes(lost))


def test_a_log_without_a_whole_entry_is_empty(tmp_path: Path) -> None:
    """QEMU announces a log before it writes to it, and a crash may come in between."""
    image = image_of(tmp_path, PIECES)
    expected = content(image)
    data = bytearray(image.read_bytes())
    announce(data, NAME)
    torn = bytearray(entry(NAME, 1, 0, [(region(data, BAT), bytes(4096))]))
    torn[5000] ^= 1
    put_in_log(data, 0, torn)
    image.write_bytes(data)
    assert content(image) == expected
    qemu_img("compare", "-f", "raw", "-F", "vhdx", tmp_path / "image.raw", image)
    with diskmill.open(str(image), "vhdx", writable=True) as opened:
        opened.write(11 * MiB, b"n" * 512)
    qemu_io(image, f"read -P {ord('n')} 11M 512", format="vhdx")
    assert diskmill.check(str(image)).findings == []


def test_a_log_that_lost_its_beginning_is_refused(tmp_path: Path) -> None:
    image = image_of(tmp_path, PIECES)
    data, _ = dirty(image, [[1], [2], [3]])
    offset = log_place(data)[0]
    data[offset] ^= 1
    image.write_bytes(data)
    for writable in (False, True):
        with pytest.raises(ImageError, match="log"):
            diskmill.open(str(image), "vhdx", writable=writable)
    assert image.read_bytes() == data


def test_a_file_that_is_shorter_than_its_log_says_is_refused(tmp_path: Path) -> None:
    image = image_of(tmp_path, PIECES)
    data, _ = dirty(image, [[1], [9]])
    image.write_bytes(data[: -2 * MiB])
    with pytest.raises(ImageError, match="truncated"):
        diskmill.open(str(image), "vhdx")


def test_a_log_lengthens_the_file(tmp_path: Path) -> None:
    """The crash kept the file from its length: the block that the log tells of lies behind its end."""
    image = image_of(tmp_path, {0: b"a" * 1000, 6 * MiB: b"\0" * 1000})
    whole = bytearray(image.read_bytes())
    updates = with_entries(whole, {6: len(whole) | 6})
    put_in_log(whole, 0, entry(NAME, 1, 0, updates, flushed=len(whole), last=len(whole) + MiB))
    announce(whole, NAME)
    image.write_bytes(whole)
    with diskmill.open(str(image), "vhdx") as opened:
        assert opened.read(0, 8 * MiB) == b"a" * 1000 + bytes(8 * MiB - 1000)
    with diskmill.open(str(image), "vhdx", writable=True) as opened:
        opened.write(6 * MiB + 5, b"b")
    assert image.stat().st_size == len(whole) + MiB
    qemu_img("check", "-f", "vhdx", image)


def test_a_log_that_changes_the_headers_is_refused(tmp_path: Path) -> None:
    image = image_of(tmp_path, PIECES)
    data = bytearray(image.read_bytes())
    put_in_log(data, 0, entry(NAME, 1, 0, [(HEADERS[0], bytes(4096))], flushed=len(data)))
    announce(data, NAME)
    image.write_bytes(data)
    with pytest.raises(ImageError, match="log"):
        diskmill.open(str(image), "vhdx", writable=True)
    assert image.read_bytes() == data


def test_a_version_of_the_log_that_is_unknown_is_refused_where_there_is_one(tmp_path: Path) -> None:
    image = image_of(tmp_path, PIECES)
    data = bytearray(image.read_bytes())
    for at in HEADERS:
        struct.pack_into("<H", data, at + 64, 1)
    seal_all(data)
    image.write_bytes(data)
    content(image)
    announce(data, NAME)
    image.write_bytes(data)
    with pytest.raises(UnsupportedError, match="log of version 1"):
        diskmill.open(str(image), "vhdx")


# Headers and tables.


def test_the_header_with_the_higher_number_holds_and_one_is_enough(tmp_path: Path) -> None:
    image = image_of(tmp_path, PIECES)
    expected = content(image)
    whole = image.read_bytes()
    for damaged in HEADERS:
        data = bytearray(whole)
        data[damaged + 100] ^= 1
        image.write_bytes(data)
        assert content(image) == expected
        qemu_img("compare", "-f", "raw", "-F", "vhdx", tmp_path / "image.raw", image)
        assert diskmill.check(str(image)).corruptions == 1
        assert diskmill.check(str(image), repair="all").corruptions_fixed == 1
        assert diskmill.check(str(image)).findings == []
    data = bytearray(whole)
    for damaged in HEADERS:
        data[damaged + 100] ^= 1
    image.write_bytes(data)
    with pytest.raises(ImageError, match="header"):
        diskmill.open(str(image), "vhdx")


def test_two_current_headers_must_be_alike(tmp_path: Path) -> None:
    """disk2vhd makes two that are; anything else says nothing."""
    image = image_of(tmp_path, PIECES)
    data = bytearray(image.read_bytes())
    data[HEADERS[0] : HEADERS[0] + 4096] = data[HEADERS[1] : HEADERS[1] + 4096]
    image.write_bytes(data)
    content(image)
    qemu_img("info", "-f", "vhdx", image)
    data[HEADERS[0] + 20] ^= 1
    seal_all(data)
    image.write_bytes(data)
    with pytest.raises(ImageError, match="sequence number"):
        diskmill.open(str(image), "vhdx")
    assert qemu_img("info", "-f", "vhdx", image, check=False).returncode


def guids(image: Path) -> tuple[bytes, bytes]:
    data = image.read_bytes()
    at = header(data)
    return data[at + 16 : at + 32], data[at + 32 : at + 48]


def test_the_guids_change_with_the_first_write(tmp_path: Path) -> None:
    image = image_of(tmp_path, PIECES)
    before = guids(image)
    with diskmill.open(str(image), "vhdx", writable=True):
        pass
    content(image)
    assert guids(image) == before
    with diskmill.open(str(image), "vhdx", writable=True) as opened:
        opened.write(MiB, b"1" * 512)  # in place
        first = guids(image)
        opened.write(10 * MiB, b"2" * 512)
        opened.flush()
        assert guids(image) == first
    assert first[0] != before[0] and first[1] != before[1]


def test_the_second_region_table_is_enough(tmp_path: Path) -> None:
    image = image_of(tmp_path, PIECES)
    expected = content(image)
    data = bytearray(image.read_bytes())
    data[REGION_TABLES[0] + 30] ^= 1
    image.write_bytes(data)
    assert content(image) == expected
    assert diskmill.check(str(image), repair="all").corruptions_fixed == 1
    qemu_img("compare", "-f", "raw", "-F", "vhdx", tmp_path / "image.raw", image)
    assert diskmill.check(str(image)).findings == []


@pytest.mark.parametrize("required", [0, 1])
def test_unknown_regions_and_items(tmp_path: Path, required: int) -> None:
    """They are kept in peace, or the image is refused, as they say themselves."""
    image = image_of(tmp_path, PIECES)
    whole = bytearray(image.read_bytes())
    place = len(whole)
    data = whole + b"?" * MiB
    for at in REGION_TABLES:
        struct.pack_into("<I", data, at + 8, 3)
        struct.pack_into("<16sQII", data, at + 16 + 64, b"unknown region!!", place, MiB, required)
    seal_all(data)
    region_image = tmp_path / "region"
    region_image.write_bytes(data)
    start = region(whole, METADATA)
    struct.pack_into("<H", whole, start + 10, 6)
    struct.pack_into("<16sIIII", whole, start + 32 + 5 * 32, b"unknown item!!!!", 70000, 5, 4 * required, 0)
    item_image = tmp_path / "item"
    item_image.write_bytes(whole)
    for image in (region_image, item_image):
        if required:
            with pytest.raises(UnsupportedError, match="must be understood"):
                diskmill.open(str(image), "vhdx")
            assert qemu_img("info", "-f", "vhdx", image, check=False).returncode
            continue
        with diskmill.open(str(image), "vhdx", writable=True) as opened:
            opened.write(11 * MiB, b"x" * 512)
        diskmill.resize(str(image), 200 << 30)
        with diskmill.open(str(image), "vhdx", writable=True) as opened:
            opened.write(150 << 30, b"y" * 512)
        qemu_io(image, f"read -P {ord('x')} 11M 512", f"read -P {ord('y')} 150G 512", format="vhdx")
        qemu_img("check", "-f", "vhdx", image)
    if not required:
        assert region_image.read_bytes()[place : place + MiB] == b"?" * MiB


@pytest.mark.parametrize(
    ("state", "reads"), [(0, b"\0"), (1, b"\0"), (2, b"\0"), (3, b"\0"), (5, b"\0"), (6, b"\x02"), (4, None), (7, None)]
)
def test_every_state_of_a_block(tmp_path: Path, state: int, reads: bytes | None) -> None:
    image = image_of(tmp_path, {0: b"\1" * MiB, MiB: b"\2" * MiB, 2 * MiB: b"\3" * MiB})
    data = bytearray(image.read_bytes())
    struct.pack_into("<Q", data, region(data, BAT) + 8, bat(data, 1) & ~7 | state)
    image.write_bytes(data)
    if reads is None:
        with pytest.raises(ImageError, match=f"block 1.*state {state}"):
            content(image)
        assert diskmill.check(str(image)).corruptions == 1
        return
    assert content(image)[: 3 * MiB] == b"\1" * MiB + reads * MiB + b"\3" * MiB
    if state != 3:  # QEMU 7.2 knows it by the number of a draft
        qemu_io(image, f"read -P {reads[0]} 1M 1M", format="vhdx")
    with diskmill.open(str(image), "vhdx", writable=True) as opened:  # a block that was unmapped keeps its place
        opened.write(3 * MiB, b"\4" * MiB)
    assert diskmill.check(str(image)).findings == []
    assert bat(image.read_bytes(), 3) != bat(data, 1) & ~7 | 6


def test_blocks_over_one_another_and_over_metadata(tmp_path: Path) -> None:
    image = image_of(tmp_path, {at * MiB: bytes([at + 1]) * MiB for at in range(12)}, block_size="2M")
    whole = image.read_bytes()
    data = bytearray(whole)
    # Blocks of 2 MiB, one MiB apart: they share half.
    struct.pack_into("<Q", data, region(data, BAT) + 8, bat(data, 0) + MiB)
    image.write_bytes(data)
    expected = content(image)
    assert diskmill.check(str(image)).corruptions >= 1
    assert diskmill.check(str(image), repair="all").corruptions_fixed >= 1
    assert content(image) == expected
    assert diskmill.check(str(image)).findings == []
    data = bytearray(whole)
    struct.pack_into("<Q", data, region(data, BAT) + 8, region(data, BAT) | 6)
    image.write_bytes(data)
    with pytest.raises(ImageError, match="metadata"):
        content(image)
    result = diskmill.check(str(image), repair="all")
    assert result.corruptions and not result.corruptions_fixed


def test_a_block_beyond_the_file_and_lost_space(tmp_path: Path) -> None:
    image = image_of(tmp_path, PIECES)
    data = bytearray(image.read_bytes())
    struct.pack_into("<Q", data, region(data, BAT) + 8 * 2, 1 << 40 | 6)
    image.write_bytes(data + bytes(9 * MiB))
    with pytest.raises(ImageError, match=r"block 2.*beyond the end"):
        content(image)
    result = diskmill.check(str(image))
    assert result.corruptions == 1 and result.leaks
    result = diskmill.check(str(image), repair="all")
    assert result.corruptions_fixed == 1 and result.leaks_fixed
    assert diskmill.check(str(image)).findings == []
    assert content(image)[2 * MiB : 3 * MiB] == bytes(MiB)


@pytest.mark.parametrize("field", [b"\0\0\0\0", struct.pack("<I", 3 * MiB), struct.pack("<I", 512 * MiB)])
def test_impossible_block_sizes(tmp_path: Path, field: bytes) -> None:
    image = image_of(tmp_path, PIECES)
    data = bytearray(image.read_bytes())
    at = item(data, FILE_PARAMETERS)
    data[at : at + 4] = field
    image.write_bytes(data)
    with pytest.raises(ImageError, match="block size"):
        diskmill.open(str(image), "vhdx")


# Other readers.


def read_by_7z(image: Path) -> bytes:
    done = subprocess.run([tool("7z"), "e", "-so", "-tvhdx", image], capture_output=True, check=True, cwd=image.parent)
    return done.stdout


@pytest.mark.parametrize("options", [{}, {"subformat": "fixed"}, {"block_size": "32M"}], ids=str)
def test_libvhdi_and_7z_read_the_same(tmp_path: Path, options: dict[str, str]) -> None:
    disk = scattered_file(tmp_path / "disk", 21 * MiB, seed=2)
    image = tmp_path / "disk.vhdx"
    diskmill.convert([str(disk)], str(image), format="raw", output_format="vhdx", options=options)
    said = run(tool("vhdiinfo"), image).stdout
    assert f"({21 * MiB} bytes)" in said and ("Fixed" if "subformat" in options else "Dynamic") in said
    assert read_by_7z(image) == disk.read_bytes()


def test_sectors_of_4096_bytes(tmp_path: Path) -> None:
    """A chunk has eight times the blocks then. QEMU 7.2 takes the number of sectors for that of 512 bytes."""
    image = image_of(tmp_path, PIECES)
    data = bytearray(image.read_bytes())
    struct.pack_into("<I", data, item(data, LOGICAL_SECTOR), 4096)
    image.write_bytes(data)
    expected = sparse_file(tmp_path / "expected", 12 * MiB, PIECES).read_bytes()
    assert content(image) == expected
    assert "4096 bytes" in run(tool("vhdiinfo"), image).stdout
    image = image.rename(tmp_path / "image.vhdx")
    assert read_by_7z(image) == expected
    diskmill.resize(str(image), 64 << 30)
    with diskmill.open(str(image), "vhdx", writable=True) as opened:
        opened.write(40 << 30, b"far away" * 512)
    done = subprocess.Popen([tool("7z"), "e", "-so", "-tvhdx", image], stdout=subprocess.PIPE)
    assert done.stdout is not None
    assert done.stdout.read(12 * MiB) == expected
    done.kill()
    done.wait()
    data = bytearray(image.read_bytes()[: 8 * MiB])
    assert bat(data, 40 << 10) == 0 and bat(data, (40 << 10) + 1) & 7 == 6  # behind one sector bitmap's entry


# Differencing images.


def pair(folder: Path, values: dict[str, str], **how: str) -> tuple[Path, Path, bytes]:
    """A parent and a child, and what the child reads as.

    Of the child's blocks 0 is there in part, 2 whole, the others are the parent's.
    """
    below, above = random.Random(1).randbytes(6 * MiB), random.Random(2).randbytes(6 * MiB)
    parent = image_of(folder, {0: below}, 6 * MiB, "parent disk.vhdx")
    child = image_of(folder, {0: above[:MiB], 2 * MiB: above[2 * MiB : 3 * MiB]}, 6 * MiB, "child.vhdx")
    bits = random.Random(3).randbytes(200) + b"\xff" * 28 + bytes(28)
    data = differencing(bytearray(child.read_bytes()), parent.read_bytes(), values, {0: bits}, **how)
    child.write_bytes(data)
    expected = bytearray(below)
    expected[2 * MiB : 3 * MiB] = above[2 * MiB : 3 * MiB]
    for sector in range(2048):
        if bits[sector // 8] >> sector % 8 & 1:
            expected[sector * 512 : sector * 512 + 512] = above[sector * 512 : sector * 512 + 512]
    return parent, child, bytes(expected)


@pytest.mark.parametrize(
    "values",
    [
        {"relative_path": ".\\parent disk.vhdx", "absolute_win32_path": "C:\\elsewhere.vhdx"},
        {"relative_path": "parent disk.vhdx"},
        {"absolute_win32_path": "\\\\?\\C:\\disks\\parent disk.vhdx"},
        {"volume_path": "\\\\?\\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\\parent disk.vhdx"},
    ],
    ids=str,
)
def test_a_differencing_image_finds_its_parent(tmp_path: Path, values: dict[str, str]) -> None:
    _, child, expected = pair(tmp_path, values)
    info = diskmill.info(str(child))
    assert info.backing_filename == "./parent disk.vhdx" and info.backing_filename_format == "vhdx"
    assert content(child) == expected
    assert diskmill.check(str(child)).findings == []
    assert "Differential" in run(tool("vhdiinfo"), child).stdout
    with diskmill.open(str(child), "vhdx") as image:  # pieces that begin and end anywhere
        for at in range(0, 3 * MiB, 100_001):
            assert image.read(at, 3000) == expected[at : at + 3000]


def test_7z_agrees_on_a_differencing_image(tmp_path: Path) -> None:
    _, child, expected = pair(tmp_path, {"relative_path": ".\\parent disk.vhdx"})
    assert read_by_7z(child) == expected


def test_the_map_of_a_differencing_image(tmp_path: Path) -> None:
    _, child, _ = pair(tmp_path, {"relative_path": ".\\parent disk.vhdx"})
    depths = [(one.start, one.depth) for one in diskmill.map(str(child))]
    assert depths[-3:] == [(912 * KiB, 1), (2 * MiB, 0), (3 * MiB, 1)] and len(depths) > 500


def test_a_parent_given_by_the_user(tmp_path: Path) -> None:
    parent, child, expected = pair(tmp_path, {"relative_path": "..\\lost.vhdx"})
    name = f"driver=vhdx,file.filename={child},backing.driver=vhdx,backing.file.filename={parent}"
    back = tmp_path / "back"
    diskmill.convert([name], str(back), image_opts=True)
    assert back.read_bytes() == expected


def test_another_disk_is_not_taken_for_the_parent(tmp_path: Path) -> None:
    parent, child, _ = pair(tmp_path, {"relative_path": ".\\parent disk.vhdx"})
    with diskmill.open(str(parent), "vhdx", writable=True) as image:
        image.write(0, b"changed!")
    with pytest.raises(ImageError, match="not its parent"):
        content(child)
    with diskmill.open(str(parent), "vhdx", writable=True):
        pass  # nobody holds it open
    (tmp_path / "other").mkdir()
    linkage = "{83ed0ec3-24c8-49a6-a959-5e4bf1288bfb}"
    _, child, _ = pair(tmp_path / "other", {"relative_path": ".\\parent disk.vhdx"}, linkage=linkage)
    with pytest.raises(ImageError, match="not its parent"):
        content(child)


def test_the_second_linkage_will_do(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    parent, _, expected = pair(tmp_path / "first", {"relative_path": "x"})
    data = parent.read_bytes()
    right = uuid.UUID(bytes_le=data[header(data) + 32 : header(data) + 48])
    linkage = {"linkage": f"{{{uuid.uuid4()}}}"}
    _, child, _ = pair(
        tmp_path, {"relative_path": "first\\parent disk.vhdx", "parent_linkage2": f"{{{right}}}"}, **linkage
    )
    assert content(child) == expected


def test_a_parent_outside_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    _, child, _ = pair(tmp_path, {"relative_path": "..\\parent disk.vhdx"})
    inside = child.rename(tmp_path / "in" / "child.vhdx")
    with pytest.raises(RefusedError, match=r"allow it with trust"):
        content(inside)


def test_a_differencing_image_is_not_written(tmp_path: Path) -> None:
    _, child, _ = pair(tmp_path, {"relative_path": ".\\parent disk.vhdx"})
    before = child.read_bytes()
    with diskmill.open(str(child), "vhdx", writable=True) as image, pytest.raises(UnsupportedError):
        image.write(0, b"x" * 512)
    with pytest.raises(UnsupportedError):
        diskmill.resize(str(child), 10 * MiB)
    diskmill.check(str(child), repair="all")
    assert child.read_bytes() == before


def test_a_missing_sector_bitmap(tmp_path: Path) -> None:
    _, child, _ = pair(tmp_path, {"relative_path": ".\\parent disk.vhdx"})
    data = bytearray(child.read_bytes())
    struct.pack_into("<Q", data, region(data, BAT) + 8 * 4096, 0)
    child.write_bytes(data)
    with pytest.raises(ImageError, match="sector bitmap 0"):
        content(child)
    assert diskmill.check(str(child)).corruptions == 1


def test_a_parent_of_another_kind_is_refused(tmp_path: Path) -> None:
    _, child, _ = pair(tmp_path, {"relative_path": ".\\parent disk.vhdx"})
    data = bytearray(child.read_bytes())
    at = region(data, METADATA) + 128 * KiB
    data[at : at + 16] = os.urandom(16)
    child.write_bytes(data)
    with pytest.raises(UnsupportedError, match="parent"):
        diskmill.open(str(child), "vhdx")


# Sizes.


@pytest.mark.parametrize("around", [4 << 30, 8 << 30])
@pytest.mark.parametrize("by", [-512, 0, 512])
@pytest.mark.parametrize("block", ["1M", "32M", "256M"])
def test_at_the_end_of_a_chunk(tmp_path: Path, around: int, by: int, block: str) -> None:
    """Where a sector bitmap's entry stands between those of blocks."""
    image, size = tmp_path / "image", around + by
    diskmill.create(str(image), size, format="vhdx", options={"block_size": block})
    places = [place for place in (0, (4 << 30) - 1024, (4 << 30) - 512, 4 << 30, size - 512) if place < size]
    with diskmill.open(str(image), "vhdx", writable=True) as opened:
        for number, place in enumerate(places):
            opened.write(place, bytes([number + 1]) * 512)
    last = {place: number + 1 for number, place in enumerate(places)}
    qemu_io(image, *(f"read -P {value} {place} 512" for place, value in last.items()), format="vhdx")
    qemu_img("check", "-f", "vhdx", image)
    assert diskmill.check(str(image)).findings == []
    theirs = tmp_path / "theirs"
    qemu_img("create", "-q", "-f", "vhdx", "-o", f"block_size={block}", theirs, str(size))
    qemu_io(theirs, *(f"write -P {value} {place} 512" for place, value in last.items()), format="vhdx")
    with diskmill.open(str(theirs), "vhdx") as opened:
        for place, value in last.items():
            assert opened.read(place, 512) == bytes([value]) * 512


def test_a_larger_table_keeps_what_there_is(tmp_path: Path) -> None:
    """Past what the table's region holds: the table goes elsewhere, and both readers follow it."""
    image = image_of(tmp_path, PIECES)
    expected = content(image)
    for size in (127 << 30, 129 << 30, 300 << 30, 1 << 40):
        diskmill.resize(str(image), size)
        with diskmill.open(str(image), "vhdx", writable=True) as opened:
            opened.write(size - 4096, b"\x05" * 4096)
        qemu_io(image, f"read -P 5 {size - 4096} 4096", format="vhdx")
        with diskmill.open(str(image), "vhdx") as opened:
            assert opened.read(0, len(expected)) == expected
        qemu_img("check", "-f", "vhdx", image)
        run(tool("vhdiinfo"), image)
        assert diskmill.check(str(image)).findings == []
    qemu_io(image, *(f"read -P {data[0]} {at} {len(data)}" for at, data in PIECES.items()), format="vhdx")


def test_what_grew_reads_as_zeros(tmp_path: Path) -> None:
    """Even where the last block holds something behind the disk's old end."""
    image = image_of(tmp_path, {0: b"z" * (2 * MiB)}, 2 * MiB)
    data = bytearray(image.read_bytes())
    at = region(data, METADATA) + 64 * KiB + 8
    struct.pack_into("<Q", data, at, 2 * MiB - 4096)  # somebody made it smaller
    struct.pack_into("<Q", data, region(data, BAT) + 8 * 5, 0x123 << 20 | 6)  # and was careless with the table
    image.write_bytes(data)
    diskmill.resize(str(image), 7 * MiB)
    assert content(image) == b"z" * (2 * MiB - 4096) + bytes(5 * MiB + 4096)
