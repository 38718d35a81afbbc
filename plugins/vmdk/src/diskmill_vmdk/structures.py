"""The on-disk structures of VMDK extents, in the names of their specifications.

Sources: VMware, "Virtual Disk Format 5.0" (SparseExtentHeader, the markers, COWDisk_Header); Joachim Metz, "VMware
Virtual Disk (VMDK) format specification" (libvmdk). seSparse has no public specification; the names are those that
QEMU's driver gave its fields. Offsets and sizes count sectors of 512 bytes, all numbers are little-endian.
"""

from __future__ import annotations

from diskmill.kit.structs import Record, Structure, raw, several, u8, u16, u32, u64

SPARSE_MAGIC = b"KDMV"
COWD_MAGIC = b"COWD"

FLAG_NEWLINE = 1 << 0
"""The four newline characters in the header are there to be tested."""
FLAG_REDUNDANT = 1 << 1
"""There is a redundant grain directory, with tables of its own."""
FLAG_ZEROED = 1 << 2
"""Entry 1 in a grain table means a grain of zeros."""
FLAG_COMPRESSED = 1 << 16
FLAG_MARKERS = 1 << 17

GD_AT_END = 0xFFFFFFFF_FFFFFFFF
"""As gdOffset: the valid header is the footer."""
DEFLATE = 1
"""As compressAlgorithm: grains are zlib streams (RFC 1950)."""


class SparseExtentHeader(Record):
    magicNumber = raw(4)
    version = u32
    flags = u32
    capacity = u64
    grainSize = u64
    descriptorOffset = u64
    descriptorSize = u64
    numGTEsPerGT = u32
    rgdOffset = u64
    gdOffset = u64
    overHead = u64
    uncleanShutdown = u8
    newlines = raw(4)  # singleEndLineChar, nonEndLineChar, doubleEndLineChar1, doubleEndLineChar2
    compressAlgorithm = u16
    _pad = raw(433)


SPARSE_HEADER = Structure("SparseExtentHeader", "<", SparseExtentHeader)
NEWLINES = b"\n \r\n"


class Marker(Record):
    val = u64
    size = u32
    type = u32
    _pad = raw(496)


MARKER = Structure("Marker", "<", Marker)
"""Before metadata: ``val`` is its length in sectors."""


class GrainMarker(Record):
    lba = u64
    size = u32


GRAIN_MARKER = Structure("GrainMarker", "<", GrainMarker)
"""Before a grain's payload of ``size`` bytes; together they fill whole sectors."""
END_OF_STREAM, GRAIN_TABLE, GRAIN_DIRECTORY, FOOTER = range(4)


class CowdHeader(Record):
    magicNumber = raw(4)
    version = u32
    flags = u32
    numSectors = u32
    grainSize = u32
    gdOffset = u32
    numGDEntries = u32
    freeSector = u32


COWD_HEADER = Structure("COWDisk_Header", "<", CowdHeader)
COWD_ENTRIES = 4096
"""Entries in a grain table of a COWD extent."""

SESPARSE_MAGIC = 0xCAFEBABE
SESPARSE_VERSION = 0x2_00000001


class SesparseHeader(Record):
    magic = u64
    version = u64
    capacity = u64
    grain_size = u64
    grain_table_size = u64
    flags = u64
    reserved = several(4, u64)
    volatile_header_offset = u64
    volatile_header_size = u64
    journal_header_offset = u64
    journal_header_size = u64
    journal_offset = u64
    journal_size = u64
    grain_dir_offset = u64
    grain_dir_size = u64
    grain_tables_offset = u64
    grain_tables_size = u64
    free_bitmap_offset = u64
    free_bitmap_size = u64
    backmap_offset = u64
    backmap_size = u64
    grains_offset = u64
    grains_size = u64
    _pad = raw(304)


SESPARSE_HEADER = Structure("SESparseConstHeader", "<", SesparseHeader)
SESPARSE_VOLATILE_MAGIC = 0xCAFECAFE


class SesparseVolatile(Record):
    magic = u64
    free_gt_number = u64
    next_txn_seq_number = u64
    replay_journal = u64
    _pad = raw(480)


SESPARSE_VOLATILE = Structure("SESparseVolatileHeader", "<", SesparseVolatile)


def marker(type: int, sectors: int) -> bytes:
    """A metadata marker of kind *type*, before *sectors* sectors of metadata."""
    return MARKER.pack(MARKER.new(val=sectors, type=type))
