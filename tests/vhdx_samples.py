"""VHDX images that no tool here makes, put together from the specification ([MS-VHDX]): logs that must be replayed, and
differencing images."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping, Sequence

import google_crc32c

MiB = 1 << 20
SECTOR = 4096
HEADERS = (64 << 10, 128 << 10)
REGION_TABLES = (192 << 10, 256 << 10)
BAT = uuid.UUID("2DC27766-F623-4200-9D64-115E9BFD4A08").bytes_le
METADATA = uuid.UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E").bytes_le
FILE_PARAMETERS = uuid.UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B").bytes_le
LOGICAL_SECTOR = uuid.UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F").bytes_le
PARENT_LOCATOR = uuid.UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C").bytes_le
VHDX_LOCATOR = uuid.UUID("B04AEFB7-D19E-4A81-B789-25B8E9445913").bytes_le

Update = tuple[int, bytes | int]
"""Where in the file, and a sector of data or so many bytes of zeros."""


def seal(data: bytearray, offset: int, length: int) -> None:
    """Set the checksum of the structure of *length* bytes at *offset*."""
    data[offset + 4 : offset + 8] = bytes(4)
    data[offset + 4 : offset + 8] = struct.pack("<I", google_crc32c.value(bytes(data[offset : offset + length])))


def seal_all(data: bytearray) -> None:
    """Set the checksums of headers and region tables."""
    for offset, length in [(at, 4096) for at in HEADERS] + [(at, 65536) for at in REGION_TABLES]:
        if offset + length <= len(data):
            seal(data, offset, length)


def header(data: bytes) -> int:
    """The offset of the current header."""
    return max(HEADERS, key=lambda at: struct.unpack_from("<Q", data, at + 8)[0])


def log_place(data: bytes) -> tuple[int, int]:
    """Offset and length of the log."""
    length, offset = struct.unpack_from("<IQ", data, header(data) + 68)
    return offset, length


def region(data: bytes, guid: bytes) -> int:
    """The offset of a region."""
    at = data.index(guid, REGION_TABLES[0], REGION_TABLES[0] + 65536)
    return struct.unpack_from("<Q", data, at + 16)[0]


def item(data: bytes, guid: bytes) -> int:
    """The offset of a metadata item."""
    start = region(data, METADATA)
    at = data.index(guid, start, start + 65536)
    return start + struct.unpack_from("<I", data, at + 16)[0]


def bat(data: bytes, index: int) -> int:
    """An entry of the block allocation table."""
    return struct.unpack_from("<Q", data, region(data, BAT) + 8 * index)[0]


def with_entries(data: bytes, changes: Mapping[int, int]) -> list[Update]:
    """Updates that set entries of the block allocation table."""
    start = region(data, BAT)
    sectors: dict[int, bytearray] = {}
    for index, value in changes.items():
        at = start + 8 * index
        base = at // SECTOR * SECTOR
        sector = sectors.setdefault(base, bytearray(data[base : base + SECTOR]))
        struct.pack_into("<Q", sector, at - base, value)
    return [(base, bytes(sector)) for base, sector in sectors.items()]


def entry(
    name: bytes, sequence: int, tail: int, updates: Sequence[Update], *, flushed: int = 0, last: int = 0
) -> bytes:
    """A log entry."""
    descriptors, sectors = b"", b""
    for offset, data in updates:
        if isinstance(data, int):
            descriptors += struct.pack("<4sIQQQ", b"zero", 0, data, offset, sequence)
        else:
            descriptors += struct.pack("<4s4s8sQQ", b"desc", data[-4:], data[:8], offset, sequence)
            sectors += struct.pack("<4sI4084sI", b"data", sequence >> 32, data[8:-4], sequence & 0xFFFFFFFF)
    front = -(-(64 + len(descriptors)) // SECTOR) * SECTOR
    head = struct.pack(
        "<4sIIIQII16sQQ",
        b"loge",
        0,
        front + len(sectors),
        tail,
        sequence,
        len(updates),
        0,
        name,
        flushed,
        last,
    )
    whole = bytearray((head + descriptors).ljust(front, b"\0") + sectors)
    seal(whole, 0, len(whole))
    return bytes(whole)


def put_in_log(data: bytearray, at: int, entries: bytes) -> int:
    """Put *entries* into the log from its byte *at* on, around its end where they must; gives where they end."""
    offset, length = log_place(data)
    for low in range(0, len(entries), SECTOR):
        place = offset + (at + low) % length
        data[place : place + SECTOR] = entries[low : low + SECTOR]
    return (at + len(entries)) % length


def announce(data: bytearray, name: bytes) -> None:
    """Let the current header say that the log has entries called *name*."""
    at = header(data)
    data[at + 48 : at + 64] = name
    seal(data, at, 4096)


def differencing(
    child: bytearray,
    parent: bytes,
    values: Mapping[str, str],
    present: Mapping[int, bytes],
    *,
    linkage: str | None = None,
) -> bytearray:
    """The dynamic image *child* as a differencing one.

    :param values: of the parent locator.
    :param present: for each block that is there in part, its bits in the sector bitmap.
    :param linkage: what it knows the parent by; None: what is right.
    """
    at = header(parent)
    if linkage is None:
        linkage = f"{{{uuid.UUID(bytes_le=bytes(parent[at + 32 : at + 48]))}}}"
    pairs = {"parent_linkage": linkage, **values}
    table, texts = b"", b""
    place = 20 + 12 * len(pairs)
    for key, value in pairs.items():
        one, other = key.encode("utf-16-le"), value.encode("utf-16-le")
        table += struct.pack("<IIHH", place + len(texts), place + len(texts) + len(one), len(one), len(other))
        texts += one + other
    locator = VHDX_LOCATOR + struct.pack("<HH", 0, len(pairs)) + table + texts
    data = bytearray(child)
    start = region(data, METADATA)
    count = struct.unpack_from("<H", data, start + 10)[0]
    struct.pack_into("<H", data, start + 10, count + 1)
    inside = 128 << 10
    struct.pack_into("<16sIIII", data, start + 32 + 32 * count, PARENT_LOCATOR, inside, len(locator), 4, 0)
    data[start + inside : start + inside + len(locator)] = locator
    parameters = item(data, FILE_PARAMETERS)
    block, flags = struct.unpack_from("<II", data, parameters)
    struct.pack_into("<II", data, parameters, block, flags | 2)
    sector = struct.unpack_from("<I", data, item(data, LOGICAL_SECTOR))[0]
    ratio = (1 << 23) * sector // block
    table_at = region(data, BAT)
    bitmap = len(data)
    data += bytes(MiB)
    struct.pack_into("<Q", data, table_at + 8 * ratio, bitmap | 6)
    for index in range(ratio):  # blocks that were never written are the parent's
        if bat(data, index) & 7 == 2:
            struct.pack_into("<Q", data, table_at + 8 * index, 0)
    for index, bits in present.items():
        struct.pack_into("<Q", data, table_at + 8 * index, bat(data, index) & ~7 | 7)
        low = bitmap + index * (block // sector // 8)
        data[low : low + len(bits)] = bits
    return data
