"""The structures of Android sparse images, in the names of their specification.

Source: the Android Open Source Project's ``system/core/libsparse``, ``sparse_format.h``: the layout is a header, then
chunks, each a header and what it holds, in the order of the disk. All numbers are little-endian; sizes of the disk
are counted in blocks of ``blk_sz`` bytes.
"""

from __future__ import annotations

from diskmill.kit.structs import Record, Structure, raw, u16, u32

SPARSE_HEADER_MAGIC = 0xED26FF3A


class SparseHeader(Record):
    magic = u32
    major_version = u16
    minor_version = u16
    file_hdr_sz = u16
    chunk_hdr_sz = u16
    blk_sz = u32
    total_blks = u32
    total_chunks = u32
    image_checksum = u32


SPARSE_HEADER = Structure("sparse_header", "<", SparseHeader)


class ChunkHeader(Record):
    chunk_type = u16
    _reserved1 = raw(2)
    chunk_sz = u32
    total_sz = u32


CHUNK_HEADER = Structure("chunk_header", "<", ChunkHeader)
"""``chunk_sz`` is in blocks of the disk; ``total_sz`` in bytes of the file, the header included."""

RAW = 0xCAC1
"""Followed by the blocks."""
FILL = 0xCAC2
"""Followed by four bytes, which the blocks are filled with."""
DONT_CARE = 0xCAC3
"""The blocks were never written: they read as zeros."""
CRC32 = 0xCAC4
"""No blocks; followed by the CRC-32 of the disk up to here."""

FILL_SIZE = 4
"""Bytes that a fill repeats."""
CRC_SIZE = 4
MAX_BLOCKS = 0xFFFFFFFF
"""Blocks of a disk at most."""
