"""The structures of a VHDX file, little-endian, in the names of their specification.

Source: Microsoft, [MS-VHDX] "Virtual Hard Disk v2 (VHDX) File Format", revision 8.0 (2024).
"""

from __future__ import annotations

import struct

import google_crc32c
from diskmill.kit.structs import Record, Structure, raw, u16, u32, u64
from diskmill.sizes import KiB, MiB, TiB

SIGNATURE = b"vhdxfile"
HEADER_OFFSETS = (64 * KiB, 128 * KiB)
REGION_TABLE_OFFSETS = (192 * KiB, 256 * KiB)
TABLE_SIZE = 64 * KiB
"""Bytes of a region table, and of a metadata table."""
MAX_ENTRIES = 2047
"""Entries in either at most."""
HEADER_SECTION = MiB
"""Bytes before everything that can be anywhere."""
ALIGN = MiB
"""Log, regions and blocks begin at multiples of this."""
MAX_DISK = 64 * TiB
MIN_BLOCK, MAX_BLOCK = MiB, 256 * MiB
CHUNK_SECTORS = 1 << 23
"""Sectors that a sector bitmap block has bits for."""
LOG_SECTOR = 4 * KiB
"""Bytes in a sector of the log, the unit of its updates too."""


def guid(text: str) -> bytes:
    """A GUID as the disk holds it: the first three fields are little-endian.

    :raises ValueError: *text* is none.
    """
    data = bytes.fromhex(text.strip("{}").replace("-", ""))
    if len(data) != 16:
        raise ValueError(text)
    return data[3::-1] + data[5:3:-1] + data[7:5:-1] + data[8:]


NO_GUID = bytes(16)

BAT_REGION = guid("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA_REGION = guid("8B7CA206-4790-4B9A-B8FE-575F050F886E")

FILE_PARAMETERS_ITEM = guid("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
DISK_SIZE_ITEM = guid("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
DISK_ID_ITEM = guid("BECA12AB-B2E6-4523-93EF-C309E000C746")
LOGICAL_SECTOR_ITEM = guid("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
PHYSICAL_SECTOR_ITEM = guid("CDA348C7-445D-4471-9CC9-E9885251C556")
PARENT_LOCATOR_ITEM = guid("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")

VHDX_LOCATOR = guid("B04AEFB7-D19E-4A81-B789-25B8E9445913")
"""``LocatorType`` of a parent that is a VHDX file."""

IS_USER, IS_VIRTUAL_DISK, IS_REQUIRED = 1, 2, 4
"""Bits of a metadata table entry's ``Flags``."""
LEAVE_BLOCKS_ALLOCATED, HAS_PARENT = 1, 2
"""Bits of the file parameters' ``Flags``."""

# A BAT entry: the state in its lowest bits, and a file offset in MiB.
STATE = 7
PLACE = 0xFFFFFFFFFFF00000
NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, FULLY_PRESENT, PARTIALLY_PRESENT = 0, 1, 2, 3, 6, 7
"""States of a payload block; of a sector bitmap block ``NOT_PRESENT`` and ``FULLY_PRESENT``."""
UNMAPPED_095 = 5
"""``UNMAPPED`` in version 0.95 of the specification."""


class Header(Record):
    Signature = raw(4)
    Checksum = u32
    SequenceNumber = u64
    FileWriteGuid = raw(16)
    DataWriteGuid = raw(16)
    LogGuid = raw(16)
    LogVersion = u16
    Version = u16
    LogLength = u32
    LogOffset = u64
    Reserved = raw(4016)


HEADER = Structure("VHDX header", "<", Header)


class RegionTable(Record):
    Signature = raw(4)
    Checksum = u32
    EntryCount = u32
    Reserved = u32


REGION_TABLE = Structure("region table header", "<", RegionTable)


class RegionEntry(Record):
    Guid = raw(16)
    FileOffset = u64
    Length = u32
    Required = u32


REGION = Structure("region table entry", "<", RegionEntry)


class MetadataTable(Record):
    Signature = raw(8)
    Reserved = u16
    EntryCount = u16
    Reserved2 = raw(20)


METADATA_TABLE = Structure("metadata table header", "<", MetadataTable)


class ItemEntry(Record):
    ItemId = raw(16)
    Offset = u32
    Length = u32
    Flags = u32
    Reserved2 = u32


ITEM = Structure("metadata table entry", "<", ItemEntry)


class FileParameters(Record):
    BlockSize = u32
    Flags = u32


FILE_PARAMETERS = Structure("file parameters", "<", FileParameters)


class Locator(Record):
    LocatorType = raw(16)
    Reserved = u16
    KeyValueCount = u16


LOCATOR = Structure("parent locator header", "<", Locator)


class LocatorEntry(Record):
    KeyOffset = u32
    ValueOffset = u32
    KeyLength = u16
    ValueLength = u16


LOCATOR_ENTRY = Structure("parent locator entry", "<", LocatorEntry)


class LogEntry(Record):
    Signature = raw(4)
    Checksum = u32
    EntryLength = u32
    Tail = u32
    SequenceNumber = u64
    DescriptorCount = u32
    Reserved = u32
    LogGuid = raw(16)
    FlushedFileOffset = u64
    LastFileOffset = u64


LOG_ENTRY = Structure("log entry header", "<", LogEntry)


class Descriptor(Record):
    Signature = raw(4)
    TrailingBytes = raw(4)
    LeadingBytes = raw(8)  # ZeroLength in a zero descriptor
    FileOffset = u64
    SequenceNumber = u64


DESCRIPTOR = Structure("log descriptor", "<", Descriptor)
DESCRIPTORS = struct.Struct("<4s4s8sQQ")
"""The fields of :data:`DESCRIPTOR` as a tuple: a log may have a million of them."""


class DataSector(Record):
    Signature = raw(4)
    SequenceHigh = u32
    Data = raw(4084)
    SequenceLow = u32


DATA_SECTOR = Structure("log data sector", "<", DataSector)


def checksum(data: bytes, crc: int = 0) -> int:
    """The CRC-32C of *data*, which goes on after what gave *crc*."""
    return int(google_crc32c.extend(crc, data))


def structure_checksum(data: bytes) -> int:
    """The CRC-32C of a structure with its ``Checksum``, four bytes from byte 4 on, taken for zeros."""
    return checksum(data[:4] + bytes(4) + data[8:])


def sealed(data: bytes) -> bytes:
    """*data*, a whole structure, with its ``Checksum`` set."""
    return data[:4] + structure_checksum(data).to_bytes(4, "little") + data[8:]


def intact(data: bytes, signature: bytes) -> bool:
    """Whether *data* is a structure with this signature and the right checksum."""
    return data.startswith(signature) and int.from_bytes(data[4:8], "little") == structure_checksum(data)
