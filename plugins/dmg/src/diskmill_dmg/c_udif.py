"""The structures of UDIF, big-endian, in the names of Apple's headers.

Apple never published the format. Sources: the header ``UDIF.h`` as several projects have it; Jonathan Levin,
"Demystifying the DMG File Format" (http://newosxbook.com/DMG.html); keramics' documentation
(https://keramics.github.io/udif.html); for the resource fork, "Inside Macintosh: More Macintosh Toolbox", chapter 1.
"""

from __future__ import annotations

from diskmill.kit.structs import Record, Structure, raw, u16, u32, u64

KOLY = b"koly"
MISH = b"mish"


class Trailer(Record):
    Signature = raw(4)
    Version = u32
    HeaderSize = u32
    Flags = u32
    RunningDataForkOffset = u64
    DataForkOffset = u64
    DataForkLength = u64
    RsrcForkOffset = u64
    RsrcForkLength = u64
    SegmentNumber = u32
    SegmentCount = u32
    SegmentID = raw(16)
    DataChecksumType = u32
    DataChecksumSize = u32
    DataChecksum = raw(128)
    XMLOffset = u64
    XMLLength = u64
    _Reserved1 = raw(120)
    ChecksumType = u32
    ChecksumSize = u32
    Checksum = raw(128)
    ImageVariant = u32
    SectorCount = u64
    _Reserved2 = raw(12)


TRAILER = Structure("UDIFResourceFile", ">", Trailer)
"""The last 512 bytes of the file (of some old ones, the first)."""


class BlockTable(Record):
    Signature = raw(4)
    Version = u32
    SectorNumber = u64
    SectorCount = u64
    DataOffset = u64
    BuffersNeeded = u32
    BlockDescriptors = u32
    _Reserved = raw(24)
    ChecksumType = u32
    ChecksumSize = u32
    Checksum = raw(128)
    NumberOfBlockChunks = u32


BLOCK_TABLE = Structure("BLKXTable", ">", BlockTable)
"""What a ``blkx`` resource begins with: one for each partition. Its chunks follow."""


class Chunk(Record):
    EntryType = u32
    Comment = u32
    SectorNumber = u64
    SectorCount = u64
    CompressedOffset = u64
    CompressedLength = u64


CHUNK = Structure("BLKXChunkEntry", ">", Chunk)
"""Sectors count from the table's ``SectorNumber``, offsets from its ``DataOffset`` in the data fork."""

ZERO, RAW, IGNORE = 0, 1, 2
ADC, ZLIB, BZIP2, LZFSE, LZMA = 0x80000004, 0x80000005, 0x80000006, 0x80000007, 0x80000008
COMMENT, TERMINATOR = 0x7FFFFFFE, 0xFFFFFFFF
"""Values of ``EntryType``. Sectors to ignore were free when the image was made: they count in no checksum."""

CRC32 = 2
"""A value of ``ChecksumType``; the checksum is the first four bytes of its field."""


class ResourceHeader(Record):
    data = u32
    map = u32
    data_length = u32
    map_length = u32


RESOURCE_HEADER = Structure("resource header", ">", ResourceHeader)


class ResourceMap(Record):
    _header = raw(16)
    _handle = raw(8)
    type_list = u16
    name_list = u16


RESOURCE_MAP = Structure("resource map", ">", ResourceMap)


class ResourceType(Record):
    type = raw(4)
    last = u16
    references = u16


RESOURCE_TYPE = Structure("resource type", ">", ResourceType)


class ResourceReference(Record):
    id = u16
    name = u16
    data = u32
    _handle = u32


RESOURCE_REFERENCE = Structure("resource reference", ">", ResourceReference)
"""``data``: attributes in the upper 8 bits, in the others the offset of the resource in the resource data."""
