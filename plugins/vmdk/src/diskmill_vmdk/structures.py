"""The on-disk structures of VMDK extents, in the names of their specifications.

Sources: VMware, "Virtual Disk Format 5.0" (SparseExtentHeader, the markers, COWDisk_Header); Joachim Metz, "VMware
Virtual Disk (VMDK) format specification" (libvmdk). seSparse has no public specification; the names are those that
QEMU's driver gave its fields. Offsets and sizes count sectors of 512 bytes, all numbers are little-endian.
"""

from __future__ import annotations

from diskmill.kit.structs import Structure

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

SPARSE_HEADER = Structure(
    "SparseExtentHeader",
    "<",
    [
        ("magicNumber", "4s"),
        ("version", "I"),
        ("flags", "I"),
        ("capacity", "Q"),
        ("grainSize", "Q"),
        ("descriptorOffset", "Q"),
        ("descriptorSize", "Q"),
        ("numGTEsPerGT", "I"),
        ("rgdOffset", "Q"),
        ("gdOffset", "Q"),
        ("overHead", "Q"),
        ("uncleanShutdown", "B"),
        ("newlines", "4s"),  # singleEndLineChar, nonEndLineChar, doubleEndLineChar1, doubleEndLineChar2
        ("compressAlgorithm", "H"),
        ("_pad", "433s"),
    ],
)
NEWLINES = b"\n \r\n"

MARKER = Structure("Marker", "<", [("val", "Q"), ("size", "I"), ("type", "I"), ("_pad", "496s")])
"""Before metadata: ``val`` is its length in sectors."""
GRAIN_MARKER = Structure("GrainMarker", "<", [("lba", "Q"), ("size", "I")])
"""Before a grain's payload of ``size`` bytes; together they fill whole sectors."""
END_OF_STREAM, GRAIN_TABLE, GRAIN_DIRECTORY, FOOTER = range(4)

COWD_HEADER = Structure(
    "COWDisk_Header",
    "<",
    [
        ("magicNumber", "4s"),
        ("version", "I"),
        ("flags", "I"),
        ("numSectors", "I"),
        ("grainSize", "I"),
        ("gdOffset", "I"),
        ("numGDEntries", "I"),
        ("freeSector", "I"),
    ],
)
COWD_ENTRIES = 4096
"""Entries in a grain table of a COWD extent."""

SESPARSE_MAGIC = 0xCAFEBABE
SESPARSE_VERSION = 0x2_00000001
SESPARSE_HEADER = Structure(
    "SESparseConstHeader",
    "<",
    [
        ("magic", "Q"),
        ("version", "Q"),
        ("capacity", "Q"),
        ("grain_size", "Q"),
        ("grain_table_size", "Q"),
        ("flags", "Q"),
        ("reserved", "4Q"),
        ("volatile_header_offset", "Q"),
        ("volatile_header_size", "Q"),
        ("journal_header_offset", "Q"),
        ("journal_header_size", "Q"),
        ("journal_offset", "Q"),
        ("journal_size", "Q"),
        ("grain_dir_offset", "Q"),
        ("grain_dir_size", "Q"),
        ("grain_tables_offset", "Q"),
        ("grain_tables_size", "Q"),
        ("free_bitmap_offset", "Q"),
        ("free_bitmap_size", "Q"),
        ("backmap_offset", "Q"),
        ("backmap_size", "Q"),
        ("grains_offset", "Q"),
        ("grains_size", "Q"),
        ("_pad", "304s"),
    ],
)
SESPARSE_VOLATILE_MAGIC = 0xCAFECAFE
SESPARSE_VOLATILE = Structure(
    "SESparseVolatileHeader",
    "<",
    [("magic", "Q"), ("free_gt_number", "Q"), ("next_txn_seq_number", "Q"), ("replay_journal", "Q"), ("_pad", "480s")],
)


def marker(type: int, sectors: int) -> bytes:
    """A metadata marker of kind *type*, before *sectors* sectors of metadata."""
    return MARKER.pack(MARKER.new(val=sectors, type=type))
