"""Where the partitions of a guest disk lie: a GUID partition table, or a master boot record with logical partitions.

Sources: UEFI Specification 2.10, sections 5.2 (boot records) and 5.3. What the tables say is checked against the disk's
size, and their length and number are bounded.
"""

from __future__ import annotations

import struct
from binascii import crc32

from diskmill.contract.node import Node
from diskmill.errors import ImageError, UsageError

_ENTRY = struct.Struct("<B3xB3xII")
_GPT = struct.Struct("<8s4sII4xQQQQ16sQIII")
_GPT_ENTRY = struct.Struct("<16s16sQQ")
_MBR_SIGNATURE = b"\x55\xaa"
_EXTENDED = (0x05, 0x0F, 0x85)
_PROTECTIVE = 0xEE
_LARGEST_TABLE = 1 << 20
_MOST_LOGICAL = 256


def partition(disk: Node, number: int, sector: int = 512) -> tuple[int, int]:
    """Offset and length, in bytes, of the partition *number* of *disk*: from 1; logical ones from 5.

    :param sector: bytes in a sector.
    :raises UsageError: there is none with that number. ImageError: the table makes no sense.
    """
    if number < 1:
        raise UsageError("partitions are counted from 1", file=disk.name)
    first = _record(disk, 0)
    if first is None:
        raise UsageError("it has no partition table", file=disk.name)
    if any(kind == _PROTECTIVE for kind, _, _ in first):
        found = _guid(disk, number, sector)
    else:
        found = first[number - 1][1:] if number <= 4 else _logical(disk, first, number, sector)
    start, count = found
    if not count or (number <= 4 and first[number - 1][0] in _EXTENDED):
        raise UsageError(f"it has no partition {number}", file=disk.name)
    if start <= 0 or (start + count) * sector > disk.size:
        raise ImageError(f"partition {number} is not inside the disk", file=disk.name, place="partition table")
    return start * sector, count * sector


def _record(disk: Node, offset: int) -> list[tuple[int, int, int]] | None:
    """Type, first sector and count of each of the four entries of a boot record; None: there is none at *offset*."""
    data = disk.read(offset, 512)
    if data[510:] != _MBR_SIGNATURE:
        return None
    found = []
    for at in range(446, 510, 16):
        _, kind, start, count = _ENTRY.unpack_from(data, at)
        found.append((kind, start, count if kind else 0))
    return found


def _logical(disk: Node, first: list[tuple[int, int, int]], number: int, sector: int) -> tuple[int, int]:
    """The chain of boot records in an extended partition: each has a partition, and where the next record is."""
    base = at = next((start for kind, start, _ in first if kind in _EXTENDED), 0)
    for index in range(5, min(number, _MOST_LOGICAL) + 1):
        record = _record(disk, at * sector) if at and (at + 1) * sector <= disk.size else None
        if record is None:
            break
        (_, start, count), (kind, following, _) = record[:2]
        if index == number:
            return at + start, count
        at = base + following if kind in _EXTENDED and following else 0
    return 0, 0


def _guid(disk: Node, number: int, sector: int) -> tuple[int, int]:
    data = disk.read(sector, 512) if disk.size >= 2 * sector else b""
    if len(data) < _GPT.size:
        raise ImageError("it is cut short", file=disk.name, place="GUID partition table")
    fields = _GPT.unpack_from(data)
    magic, _, length, checksum = fields[:4]
    table, count, size, table_checksum = fields[9:13]
    header = data[:length]
    if magic != b"EFI PART" or not _GPT.size <= length <= 512:
        raise ImageError("there is none where it should be", file=disk.name, place="GUID partition table")
    if crc32(header[:16] + bytes(4) + header[20:]) != checksum:
        raise ImageError("its header's checksum is wrong", file=disk.name, place="GUID partition table")
    whole = count * size
    if size < 128 or size % 8 or whole > _LARGEST_TABLE or table * sector + whole > disk.size:
        raise ImageError("it makes no sense", file=disk.name, place="GUID partition table")
    entries = disk.read(table * sector, whole)
    if crc32(entries) != table_checksum:
        raise ImageError("its entries' checksum is wrong", file=disk.name, place="GUID partition table")
    if number > count:
        return 0, 0
    kind, _, start, end = _GPT_ENTRY.unpack_from(entries, (number - 1) * size)
    return (start, end - start + 1) if any(kind) and end >= start else (0, 0)
