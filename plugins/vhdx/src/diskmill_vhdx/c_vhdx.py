"""The structures of a VHDX file, little-endian, in the names of their specification.

Source: Microsoft, [MS-VHDX] "Virtual Hard Disk v2 (VHDX) File Format", revision 8.0 (2024).
"""

from __future__ import annotations

import struct

import google_crc32c
from diskmill.kit.structs import Structure
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

HEADER = Structure(
    "VHDX header",
    "<",
    [
        ("Signature", "4s"),
        ("Checksum", "I"),
        ("SequenceNumber", "Q"),
        ("FileWriteGuid", "16s"),
        ("DataWriteGuid", "16s"),
        ("LogGuid", "16s"),
        ("LogVersion", "H"),
        ("Version", "H"),
        ("LogLength", "I"),
        ("LogOffset", "Q"),
        ("Reserved", "4016s"),
    ],
)

REGION_TABLE = Structure(
    "region table header", "<", [("Signature", "4s"), ("Checksum", "I"), ("EntryCount", "I"), ("Reserved", "I")]
)
REGION = Structure(
    "region table entry", "<", [("Guid", "16s"), ("FileOffset", "Q"), ("Length", "I"), ("Required", "I")]
)

METADATA_TABLE = Structure(
    "metadata table header", "<", [("Signature", "8s"), ("Reserved", "H"), ("EntryCount", "H"), ("Reserved2", "20s")]
)
ITEM = Structure(
    "metadata table entry",
    "<",
    [("ItemId", "16s"), ("Offset", "I"), ("Length", "I"), ("Flags", "I"), ("Reserved2", "I")],
)
FILE_PARAMETERS = Structure("file parameters", "<", [("BlockSize", "I"), ("Flags", "I")])

LOCATOR = Structure("parent locator header", "<", [("LocatorType", "16s"), ("Reserved", "H"), ("KeyValueCount", "H")])
LOCATOR_ENTRY = Structure(
    "parent locator entry",
    "<",
    [("KeyOffset", "I"), ("ValueOffset", "I"), ("KeyLength", "H"), ("ValueLength", "H")],
)

LOG_ENTRY = Structure(
    "log entry header",
    "<",
    [
        ("Signature", "4s"),
        ("Checksum", "I"),
        ("EntryLength", "I"),
        ("Tail", "I"),
        ("SequenceNumber", "Q"),
        ("DescriptorCount", "I"),
        ("Reserved", "I"),
        ("LogGuid", "16s"),
        ("FlushedFileOffset", "Q"),
        ("LastFileOffset", "Q"),
    ],
)
DESCRIPTOR = Structure(
    "log descriptor",
    "<",
    [
        ("Signature", "4s"),
        ("TrailingBytes", "4s"),
        ("LeadingBytes", "8s"),  # ZeroLength in a zero descriptor
        ("FileOffset", "Q"),
        ("SequenceNumber", "Q"),
    ],
)
DESCRIPTORS = struct.Struct("<4s4s8sQQ")
"""The fields of :data:`DESCRIPTOR` as a tuple: a log may have a million of them."""
DATA_SECTOR = Structure(
    "log data sector", "<", [("Signature", "4s"), ("SequenceHigh", "I"), ("Data", "4084s"), ("SequenceLow", "I")]
)


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
