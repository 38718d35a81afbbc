"""The structures of UDIF, big-endian, in the names of Apple's headers.

Apple never published the format. Sources: the header ``UDIF.h`` as several projects have it; Jonathan Levin,
"Demystifying the DMG File Format" (http://newosxbook.com/DMG.html); keramics' documentation
(https://keramics.github.io/udif.html); for the resource fork, "Inside Macintosh: More Macintosh Toolbox", chapter 1.
"""

from __future__ import annotations

from diskmill.kit.structs import Structure

KOLY = b"koly"
MISH = b"mish"

TRAILER = Structure(
    "UDIFResourceFile",
    ">",
    [
        ("Signature", "4s"),
        ("Version", "I"),
        ("HeaderSize", "I"),
        ("Flags", "I"),
        ("RunningDataForkOffset", "Q"),
        ("DataForkOffset", "Q"),
        ("DataForkLength", "Q"),
        ("RsrcForkOffset", "Q"),
        ("RsrcForkLength", "Q"),
        ("SegmentNumber", "I"),
        ("SegmentCount", "I"),
        ("SegmentID", "16s"),
        ("DataChecksumType", "I"),
        ("DataChecksumSize", "I"),
        ("DataChecksum", "128s"),
        ("XMLOffset", "Q"),
        ("XMLLength", "Q"),
        ("_Reserved1", "120s"),
        ("ChecksumType", "I"),
        ("ChecksumSize", "I"),
        ("Checksum", "128s"),
        ("ImageVariant", "I"),
        ("SectorCount", "Q"),
        ("_Reserved2", "12s"),
    ],
)
"""The last 512 bytes of the file (of some old ones, the first)."""

BLOCK_TABLE = Structure(
    "BLKXTable",
    ">",
    [
        ("Signature", "4s"),
        ("Version", "I"),
        ("SectorNumber", "Q"),
        ("SectorCount", "Q"),
        ("DataOffset", "Q"),
        ("BuffersNeeded", "I"),
        ("BlockDescriptors", "I"),
        ("_Reserved", "24s"),
        ("ChecksumType", "I"),
        ("ChecksumSize", "I"),
        ("Checksum", "128s"),
        ("NumberOfBlockChunks", "I"),
    ],
)
"""What a ``blkx`` resource begins with: one for each partition. Its chunks follow."""

CHUNK = Structure(
    "BLKXChunkEntry",
    ">",
    [
        ("EntryType", "I"),
        ("Comment", "I"),
        ("SectorNumber", "Q"),
        ("SectorCount", "Q"),
        ("CompressedOffset", "Q"),
        ("CompressedLength", "Q"),
    ],
)
"""Sectors count from the table's ``SectorNumber``, offsets from its ``DataOffset`` in the data fork."""

ZERO, RAW, IGNORE = 0, 1, 2
ADC, ZLIB, BZIP2, LZFSE, LZMA = 0x80000004, 0x80000005, 0x80000006, 0x80000007, 0x80000008
COMMENT, TERMINATOR = 0x7FFFFFFE, 0xFFFFFFFF
"""Values of ``EntryType``. Sectors to ignore were free when the image was made: they count in no checksum."""

CRC32 = 2
"""A value of ``ChecksumType``; the checksum is the first four bytes of its field."""

RESOURCE_HEADER = Structure(
    "resource header", ">", [("data", "I"), ("map", "I"), ("data_length", "I"), ("map_length", "I")]
)
RESOURCE_MAP = Structure(
    "resource map", ">", [("_header", "16s"), ("_handle", "8s"), ("type_list", "H"), ("name_list", "H")]
)
RESOURCE_TYPE = Structure("resource type", ">", [("type", "4s"), ("last", "H"), ("references", "H")])
RESOURCE_REFERENCE = Structure("resource reference", ">", [("id", "H"), ("name", "H"), ("data", "I"), ("_handle", "I")])
"""``data``: attributes in the upper 8 bits, in the others the offset of the resource in the resource data."""
