"""Partitions of a disk, as far as it takes to find one: GUID partition tables (GPT) and master boot records (MBR).

GPT: UEFI Specification 2.10, chapter 5, "GUID Partition Table (GPT) Disk Layout". MBR: the same, section 5.2.1, with
extended partitions as every system numbers them: logical ones from 5 on.
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from ..contract.node import Node
from ..errors import ImageError, UsageError
from ..kit.structs import Record, Structure, raw, u8, u32, u64
from ..sizes import SECTOR


class GptHeader(Record):
    Signature = raw(8)
    Revision = u32
    HeaderSize = u32
    HeaderCRC32 = u32
    _Reserved = raw(4)
    MyLBA = u64
    AlternateLBA = u64
    FirstUsableLBA = u64
    LastUsableLBA = u64
    DiskGUID = raw(16)
    PartitionEntryLBA = u64
    NumberOfPartitionEntries = u32
    SizeOfPartitionEntry = u32
    PartitionEntryArrayCRC32 = u32


GPT_HEADER = Structure("GPT header", "<", GptHeader)


class GptEntry(Record):
    PartitionTypeGUID = raw(16)
    UniquePartitionGUID = raw(16)
    StartingLBA = u64
    EndingLBA = u64
    Attributes = u64
    PartitionName = raw(72)


GPT_ENTRY = Structure("GPT partition entry", "<", GptEntry)


class MbrRecord(Record):
    BootIndicator = u8
    _StartingCHS = raw(3)
    OSType = u8
    _EndingCHS = raw(3)
    start = u32
    size = u32


MBR_RECORD = Structure("MBR partition record", "<", MbrRecord)
_SECTORS = (SECTOR, 4096)
"""Sizes of sectors by which a GPT may count."""
_RECORDS, _SIGNATURE, _DISK = 446, 510, 440
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
_MAX_LOGICAL = 256
_MAX_TABLE = 1 << 20
"""Bytes of a GPT's entries; 16 KiB are usual."""


class Partition(NamedTuple):
    """One partition: bytes *offset* to *offset + size* of the disk.

    :param number: as systems count, from 1.
    :param uuid: of a GPT, its own; of an MBR, the disk's signature and the number, as Linux has it.
    """

    number: int
    name: str
    uuid: str
    offset: int
    size: int


def find(disk: Node, wanted: str) -> Partition:
    """The partition that *wanted* names: its number, its UUID, or its name (GPT).

    :raises ImageError: the disk has no partition table, or a damaged one.
    :raises UsageError: there is no such partition, or several have the name.
    """
    there = list(partitions(disk))
    if wanted.isdecimal() and len(wanted) < 10:
        found = [one for one in there if one.number == int(wanted)]
    else:
        found = [one for one in there if one.uuid == wanted.lower()] or [one for one in there if one.name == wanted]
    if len(found) > 1:
        numbers = ", ".join(str(one.number) for one in found)
        raise UsageError(f"several partitions are called '{wanted[:80]}': take one of {numbers}", file=disk.name)
    if not found:
        known = ", ".join(f"{one.number} ('{one.name}')" if one.name else str(one.number) for one in there[:32])
        raise UsageError(f"there is no partition '{wanted[:80]}'; there are: {known or 'none'}", file=disk.name)
    one = found[0]
    if one.size <= 0 or one.offset + one.size > disk.size:
        raise ImageError(f"partition {one.number} does not lie inside the disk", file=disk.name)
    return one


def partitions(disk: Node) -> Iterator[Partition]:
    """All partitions of *disk*, as its tables have them.

    :raises ImageError: it has no partition table, or a damaged one.
    """
    start = disk.read(0, SECTOR)
    signed = start[_SIGNATURE:] == b"\x55\xaa"
    protective = signed and any(record.OSType == _PROTECTIVE for record in _records(start))
    for sector in _SECTORS:
        last = disk.size // sector - 1
        for lba in (1, last):
            header = _gpt_header(disk, lba, sector)
            if header is not None and (lba == 1 or protective):
                yield from _gpt(disk, header, sector)
                return
    if protective:
        raise ImageError("its GUID partition table is damaged, and so is the copy", file=disk.name)
    if not signed:
        raise ImageError("it has no partition table", file=disk.name)
    yield from _mbr(disk, start)


def _gpt_header(disk: Node, lba: int, sector: int) -> GptHeader | None:
    """The sound header at *lba*; None: there is none."""
    if lba < 1:
        return None
    raw = disk.read(lba * sector, sector)
    if not raw.startswith(b"EFI PART"):
        return None
    header = GPT_HEADER.unpack(raw)
    if not GPT_HEADER.size <= header.HeaderSize <= sector or header.MyLBA != lba:
        return None
    at = GPT_HEADER.offsets["HeaderCRC32"]
    if zlib.crc32(raw[:at] + bytes(4) + raw[at + 4 : header.HeaderSize]) != header.HeaderCRC32:
        return None
    length = header.NumberOfPartitionEntries * header.SizeOfPartitionEntry
    if header.SizeOfPartitionEntry < GPT_ENTRY.size or length > _MAX_TABLE:
        return None
    table = disk.read(min(header.PartitionEntryLBA * sector, disk.size), length)
    return header if zlib.crc32(table) == header.PartitionEntryArrayCRC32 else None


def _gpt(disk: Node, header: GptHeader, sector: int) -> Iterator[Partition]:
    size = header.SizeOfPartitionEntry
    table = disk.read(header.PartitionEntryLBA * sector, header.NumberOfPartitionEntries * size)
    for index in range(header.NumberOfPartitionEntries):
        entry = GPT_ENTRY.unpack(table, index * size)
        if any(entry.PartitionTypeGUID):
            name = entry.PartitionName.decode("utf-16-le", "replace").partition("\0")[0]
            own = str(uuid.UUID(bytes_le=entry.UniquePartitionGUID))
            start, end = entry.StartingLBA * sector, (entry.EndingLBA + 1) * sector
            yield Partition(index + 1, name, own, start, end - start)


def _records(sector: bytes) -> list[MbrRecord]:
    return [MBR_RECORD.unpack(sector, _RECORDS + index * MBR_RECORD.size) for index in range(4)]


def _mbr(disk: Node, start: bytes) -> Iterator[Partition]:
    signature = int.from_bytes(start[_DISK : _DISK + 4], "little")

    def partition(number: int, first: int, count: int) -> Partition:
        return Partition(number, "", f"{signature:08x}-{number:02x}", first * SECTOR, count * SECTOR)

    extended = 0
    for index, record in enumerate(_records(start)):
        if record.OSType and record.size:
            yield partition(index + 1, record.start, record.size)
            if record.OSType in _EXTENDED and not extended:
                extended = record.start
    table, seen = extended, set[int]()
    number = 5
    while table:
        if table in seen or len(seen) >= _MAX_LOGICAL:
            raise ImageError("its chain of logical partitions has no end", file=disk.name)
        seen.add(table)
        sector = disk.read(min(table * SECTOR, disk.size), SECTOR)
        if sector[_SIGNATURE:] != b"\x55\xaa":
            raise ImageError(f"the table of logical partition {number} is damaged", file=disk.name)
        own, following = _records(sector)[:2]
        if own.OSType and own.size:
            yield partition(number, table + own.start, own.size)
            number += 1
        table = extended + following.start if following.OSType in _EXTENDED and following.size else 0
