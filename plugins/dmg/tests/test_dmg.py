"""DMG images against qemu-img, 7-Zip and dmg2img, which read what the tests' encoder makes; the format's details."""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import diskmill
import pytest
from diskmill.contract.extents import Kind
from diskmill.errors import DiskmillError, ImageError, UnsupportedError
from diskmill.sizes import SECTOR, KiB, MiB
from encoders import dmg, in_memory
from formats import Machine, fragments
from tools import diskmill as diskmill_command
from tools import qemu_img, run, tool

SIZE = 3 * MiB


def disk() -> bytes:
    data = bytearray(SIZE)
    for offset, part in fragments(5, SIZE, 128 * KiB):
        data[offset : offset + len(part)] = part
    data[MiB : MiB + 700000] = (b"lorem ipsum %d " * 60000)[:700000]
    data[:4] = b"boot"
    return bytes(data)


DISK = disk()


def made(**choices: object) -> bytes:
    return in_memory(dmg.encode, **choices)(DISK)


def opened(data: bytes) -> Machine:
    machine = Machine()
    machine.put("disk", data)
    return machine


def findings(data: bytes) -> list[str]:
    machine = opened(data)
    result = diskmill.check("memory:disk", format="dmg", context=machine.context)
    assert result.corruptions == sum(finding.count for finding in result.findings)
    return [finding.text for finding in result.findings]


# -- other readers ----------------------------------------------------------------------------------------

FOR_QEMU = {
    "zlib": {},
    "raw": {"types": (dmg.RAW,)},
    "mixed, in partitions": {"types": (dmg.ZLIB, dmg.RAW), "chunk": 100, "borders": (1, 34, 2000)},
    "chunks lie in any order": {"types": (dmg.ZLIB, dmg.RAW), "chunk": 200, "borders": (63,), "seed": 1},
    "resource fork": {"types": (dmg.ZLIB, dmg.RAW), "borders": (63,), "fork": True},
    "large chunks": {"chunk": 5 << 11},
}


@pytest.mark.parametrize("choices", FOR_QEMU.values(), ids=FOR_QEMU.keys())
def test_qemu_img_reads_the_same(tmp_path: Path, choices: dict[str, object]) -> None:
    image, raw, ours = tmp_path / "disk.dmg", tmp_path / "disk.raw", tmp_path / "ours.raw"
    image.write_bytes(made(**choices))
    raw.write_bytes(DISK)
    qemu_img("compare", "-f", "dmg", "-F", "raw", image, raw)
    diskmill.convert([str(image)], str(ours), output_format="raw")  # probed, by its name
    assert ours.read_bytes() == DISK
    told, theirs = diskmill.info(str(image)), qemu_img("info", "--output=json", image).stdout
    assert f'"virtual-size": {told.virtual_size}' in theirs
    assert told.format == "dmg"


FOR_7Z = {
    **FOR_QEMU,
    "every type": {"types": dmg.EVERY, "chunk": 77},
    "every type, in any order": {"types": dmg.EVERY, "chunk": 300, "seed": 2},
    "trailer first": {"front": True},
}


@pytest.mark.parametrize("choices", FOR_7Z.values(), ids=FOR_7Z.keys())
def test_7z_reads_the_same_and_finds_the_checksums_right(tmp_path: Path, choices: dict[str, object]) -> None:
    """7-Zip shows partitions as files; one after the other they are the disk."""
    image, out = tmp_path / "disk.dmg", tmp_path / "out"
    image.write_bytes(made(**choices))
    done = run(tool("7z"), "x", "-tdmg", f"-o{out}", image)
    assert "Everything is Ok" in done.stdout
    assert "arning" not in done.stdout
    assert b"".join(part.read_bytes() for part in sorted(out.iterdir())) == DISK
    assert not findings(image.read_bytes())


@pytest.mark.parametrize("type", [dmg.ZLIB, dmg.RAW, dmg.BZIP2, dmg.ADC])
def test_dmg2img_reads_the_same(tmp_path: Path, type: int) -> None:
    image, out = tmp_path / "disk.dmg", tmp_path / "out.img"
    image.write_bytes(made(types=(type,), borders=(64,)))
    run(tool("dmg2img"), "-i", image, "-o", out)
    assert out.read_bytes().ljust(SIZE, b"\0") == DISK


def test_a_downloaded_image_named_dmg_is_probed_and_other_names_are_not(tmp_path: Path) -> None:
    image = tmp_path / "Installer.dmg"
    image.write_bytes(made())
    assert diskmill.info(str(image)).format == "dmg"
    assert diskmill.info(str(image.rename(tmp_path / "Installer.img"))).format == "raw"
    other = tmp_path / "other.dmg"
    qemu_img("create", "-f", "qcow2", other, "1M")
    assert diskmill.info(str(other)).format == "qcow2"


def test_a_raw_disk_named_dmg_is_refused_with_a_hint(tmp_path: Path) -> None:
    image = tmp_path / "disk.dmg"
    image.write_bytes(DISK)
    done = diskmill_command("info", image, check=False)
    assert done.returncode == 1
    assert "no UDIF trailer" in done.stderr
    assert "-f raw" in done.stderr
    assert diskmill.info(str(image), format="raw").virtual_size == SIZE


# -- chunks -----------------------------------------------------------------------------------------------


def test_zeros_and_ignored_sectors_are_zero_extents_and_raw_chunks_data() -> None:
    data = bytes(64 * KiB) + b"x" * 64 * KiB + bytes(128 * KiB) + b"y" * 128 * KiB
    machine = opened(in_memory(dmg.encode, types=(dmg.RAW,), chunk=128)(data))
    with machine.open("disk", "dmg") as image:
        found = [(extent.kind, extent.length // KiB) for extent in image.extents(0, image.size)]
    assert found == [(Kind.ZERO, 64), (Kind.DATA, 64), (Kind.ZERO, 128), (Kind.DATA, 128)]


def test_a_hundred_thousand_chunks_open_quickly_in_little_memory() -> None:
    data = b"z" * SECTOR
    count = 100_000
    payload = zlib.compress(data)
    chunks = [[dmg.ZLIB, number, 1, 0, len(payload)] for number in range(count)]
    machine = opened(assembled(payload, [(0, chunks)], count))
    with machine.open("disk", "dmg") as image:
        assert image.read((count - 1) * SECTOR, SECTOR) == data
        assert sum(extent.length for extent in image.extents(0, image.size)) == count * SECTOR


def assembled(payload: bytes, tables: list[tuple[int, list[list[int]]]], sectors: int, **fields: int) -> bytes:
    """An image with the data fork *payload* and tables of (first sector, chunks); without checksums."""
    resources = []
    for number, (first, chunks) in enumerate(tables):
        end = max((chunk[1] + chunk[2] for chunk in chunks), default=0)
        header = struct.pack(">4sIQQQII24x", b"mish", 1, first, end, 0, 0, number) + bytes(136)
        body = b"".join(struct.pack(">IIQQQQ", type, 0, *rest) for type, *rest in chunks)
        resources.append(header + struct.pack(">I", len(chunks)) + body)
    listing = dmg.property_list(resources)
    trailer = struct.pack(">4sIII", b"koly", 4, 512, 1) + struct.pack(">QQQQQ", 0, 0, len(payload), 0, 0)
    trailer += struct.pack(">II16x", fields.get("segment", 1), fields.get("segments", 1)) + bytes(136)
    trailer += struct.pack(">QQ120x", len(payload), len(listing)) + bytes(136) + struct.pack(">IQ12x", 1, sectors)
    return payload + listing + trailer


def reading(data: bytes, offset: int = 0, length: int = SECTOR) -> bytes:
    machine = opened(data)
    with machine.open("disk", "dmg") as image:
        return image.read(offset, length)


def test_what_no_chunk_has_cannot_be_read_and_the_rest_can() -> None:
    payload = b"A" * SECTOR + b"B" * SECTOR
    data = assembled(payload, [(0, [[dmg.RAW, 0, 1, 0, SECTOR]]), (4, [[dmg.RAW, 0, 1, SECTOR, SECTOR]])], 6)
    assert reading(data) == b"A" * SECTOR
    assert reading(data, 4 * SECTOR) == b"B" * SECTOR
    for sector in (1, 3, 5):
        with pytest.raises(ImageError, match="no chunk has"):
            reading(data, sector * SECTOR)
    assert [text for text in findings(data) if "no chunk" in text] == [
        "no chunk has sectors 1 to 3",
        "no chunk has sectors 5 to 5",
    ]


def test_salvage_reads_around_what_cannot_be_read(tmp_path: Path) -> None:
    image, out = tmp_path / "disk.dmg", tmp_path / "out.raw"
    payload = b"A" * 8192
    image.write_bytes(
        assembled(payload, [(0, [[dmg.RAW, 0, 8, 0, 4096], [99, 8, 8, 0, 9], [dmg.RAW, 16, 8, 4096, 4096]])], 24)
    )
    failed = diskmill_command("convert", "-O", "raw", image, out, check=False)
    assert failed.returncode == 1
    assert "0x00000063" in failed.stderr
    assert not out.exists()
    diskmill_command("convert", "--salvage", "-O", "raw", image, out)
    assert out.read_bytes() == b"A" * 4096 + bytes(4096) + b"A" * 4096


@pytest.mark.parametrize(
    ("chunk", "words"),
    [
        ([dmg.ZLIB, 0, 1, 0, 10_000], "not inside the file"),
        ([dmg.ZLIB, 0, 1, 1 << 40, 10], "not inside the file"),
        ([dmg.RAW, 0, 2, 0, SECTOR], "it has 512 bytes for 1024"),
        ([dmg.ZLIB, 0, (64 << 11) + 1, 0, 10], "larger than"),
        ([dmg.ZLIB, 0, 1, 0, 20], "damaged"),
        ([dmg.BZIP2, 0, 1, 0, 20], "damaged"),
        ([dmg.LZMA, 0, 1, 0, 20], "damaged"),
        ([dmg.LZFSE, 0, 1, 0, 20], "damaged"),
        ([dmg.ADC, 0, 1, 0, 20], "damaged"),
        ([0x80000009, 0, 1, 0, 20], "0x80000009 are not supported"),
    ],
)
def test_a_chunk_that_cannot_be_read_says_why(chunk: list[int], words: str) -> None:
    with pytest.raises(DiskmillError, match=words):
        reading(assembled(bytes(100), [(0, [chunk])], 1 << 18))


@pytest.mark.parametrize("type", [dmg.ZLIB, dmg.BZIP2, dmg.LZMA, dmg.LZFSE, dmg.ADC])
@pytest.mark.parametrize("sectors", [8, 5 << 10])
def test_a_chunk_of_another_length_than_its_table_says_is_damaged(type: int, sectors: int) -> None:
    for more in (-1, 1):
        payload = dmg.COMPRESS[type](b"abcdefgh" * (sectors + more) * 64)
        with pytest.raises(ImageError, match="damaged"):
            reading(assembled(payload, [(0, [[type, 0, sectors, 0, len(payload)]])], sectors), (sectors - 1) * SECTOR)


def test_an_lzfse_chunk_without_the_library_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    data = made(types=(dmg.LZFSE,))
    monkeypatch.setitem(sys.modules, "lzfse", None)
    with pytest.raises(UnsupportedError, match=r"diskmill-dmg\[lzfse\]"):
        reading(data)


def test_a_payload_that_grows_without_end_costs_what_the_table_says() -> None:
    payload = zlib.compress(bytes(1 << 26))
    with pytest.raises(ImageError, match="more than"):
        reading(assembled(payload, [(0, [[dmg.ZLIB, 0, 8, 0, len(payload)]])], 8))


# -- tables and trailer -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ([(0, [[dmg.RAW, 0, 2, 0, 1024]]), (1, [[dmg.RAW, 0, 1, 0, 512]])], "two chunks have sector 1"),
        ([(1 << 60, [[dmg.RAW, 0, 2, 0, 1024]])], "impossible sector"),
        ([(0, [[dmg.RAW, 1 << 63, 2, 0, 1024]])], "impossible sector"),
        ([(0, [[dmg.RAW, 0, 2, (1 << 64) - 1, 1024]])], "impossible sector or offset"),
    ],
)
def test_tables_that_make_no_sense_are_refused(tables: list[tuple[int, list[list[int]]]], words: str) -> None:
    with pytest.raises(ImageError, match=words):
        reading(assembled(bytes(2048), tables, 8))


def listing(text: bytes) -> bytes:
    trailer = bytearray(made()[-512:])
    trailer[0xD8:0xE8] = struct.pack(">QQ", 0, len(text))
    trailer[0x18:0x28] = bytes(16)
    return text + bytes(trailer)


BOMB = (
    b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><plist><string>&b;</string></plist>'
)


@pytest.mark.parametrize(
    "text",
    [
        b"not XML at all",
        b"<plist>",
        b"<plist></plist>",
        b"<plist><dict></dict></plist>",
        b"<plist><array/></plist>",
        b"<plist><dict><key>resource-fork</key><array/></dict></plist>",
        b"<plist><dict><key>resource-fork</key><dict><key>blkx</key><string/></dict></dict></plist>",
        b"<plist><dict><key>resource-fork</key><dict><key>blkx</key><array><true/></array></dict></dict></plist>",
        b"<plist><date>tomorrow</date></plist>",
        b"<plist><integer>x</integer></plist>",
        b"<plist><dict><string/></dict></plist>",
        b"<plist><dict><key>a</key></dict></plist>",
        b"<plist><data>@@@</data></plist>",
        b'<?xml version="1.0" encoding="x-none"?><plist></plist>',
        b"<plist>" + b"<array>" * 40_000 + b"</array>" * 40_000 + b"</plist>",
        b"<plist>" + b"<dict/>" * 200_000 + b"</plist>",
        b"bplist00" + bytes(100),
        BOMB,
    ],
)
def test_property_lists_that_are_none_are_refused(text: bytes) -> None:
    with pytest.raises(ImageError, match="property list"):
        reading(listing(text))


def test_a_huge_property_list_is_refused_before_it_is_read() -> None:
    with pytest.raises(UnsupportedError, match="more than"):
        reading(listing(b" " * (17 * MiB)))


@pytest.mark.parametrize("change", [b"\0\0\0\1", b"\xff\xff\xff\xff"])
def test_resource_forks_that_are_damaged_are_refused(change: bytes) -> None:
    data = bytearray(made(fork=True))
    at = struct.unpack_from(">Q", data, len(data) - 512 + 0x28)[0]
    for field in (0, 4, 256 + 4 + len(b"other")):  # where the data and the map are; the first table's length
        damaged = bytearray(data)
        damaged[at + field : at + field + 4] = change
        with pytest.raises(DiskmillError):
            reading(bytes(damaged))


def test_a_segment_of_several_is_refused() -> None:
    data = assembled(bytes(512), [(0, [[dmg.RAW, 0, 1, 0, 512]])], 1, segment=2, segments=3)
    with pytest.raises(UnsupportedError, match="segment 2 of 3"):
        reading(data)


@pytest.mark.parametrize("data", [b"encrcdsa" + bytes(4096), bytes(4096) + b"cdsaencr"])
def test_an_encrypted_image_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(UnsupportedError, match="encrypted"):
        reading(data)


def test_a_read_write_image_has_a_trailer_and_no_tables() -> None:
    trailer = bytearray(made()[-512:])
    trailer[0x18:0x28] = struct.pack(">QQ", 0, SIZE)
    trailer[0xD8:0xE8] = bytes(16)
    assert reading(DISK + bytes(trailer), 0, SIZE) == DISK


@pytest.mark.parametrize("spare", [0, 1, 300, 511])
def test_the_trailer_is_found_before_what_fills_the_last_sector(spare: int) -> None:
    assert reading(made(after=bytes(spare))) == DISK[:SECTOR]


# -- check ------------------------------------------------------------------------------------------------


def patched(data: bytes, offset: int, change: Callable[[int], int] = lambda byte: byte ^ 1) -> bytes:
    copy = bytearray(data)
    copy[offset] = change(copy[offset])
    return bytes(copy)


def test_check_finds_each_wrong_checksum() -> None:
    data = made(types=(dmg.RAW,), chunk=100, borders=(64,))
    trailer = len(data) - 512
    assert findings(data) == []
    assert findings(patched(data, trailer + 88)) == ["the checksum of the data fork is wrong"]
    assert findings(patched(data, trailer + 360)) == ["the checksum of the partitions' checksums is wrong"]
    assert findings(patched(data, 40)) == [
        "the checksum of the data fork is wrong",
        "the checksum of the partition in sectors 0 to 63 is wrong",
    ]


def test_check_counts_zeros_and_leaves_ignored_sectors_out() -> None:
    data = bytes(MiB) + b"x" * 512 + bytes(2 * MiB)
    image = in_memory(dmg.encode, chunk=100)(data)
    types = {struct.unpack_from(">I", table, 204 + 40 * n)[0] for table in dmg.resources_of(image) for n in range(40)}
    assert {dmg.ZERO, dmg.IGNORE, dmg.ZLIB} <= types
    assert findings(image) == []


def test_check_of_a_disk_of_zeros_that_is_huge_takes_no_time() -> None:
    sectors = 1 << 45
    data = assembled(b"", [(0, [[dmg.ZERO, 0, sectors, 0, 0]])], sectors)
    (table,) = dmg.resources_of(data)
    zeros = 0xFFFFFFFF  # not the checksum of so many zeros
    data = dmg.with_resources(data, [table[:64] + dmg.checksum(zeros) + table[200:]])
    assert findings(data) == [f"the checksum of the partition in sectors 0 to {sectors - 1} is wrong"]


def test_check_tells_of_a_damaged_chunk_once() -> None:
    data = made(chunk=100)
    told = findings(patched(data, 700))
    assert len([text for text in told if "damaged" in text]) == 1
    assert any("data fork" in text for text in told)
    done = diskmill.check("memory:disk", format="dmg", context=opened(data).context)
    assert not done.corruptions
