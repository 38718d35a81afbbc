"""The structures of a qcow file (version 1), big-endian, in the names that are in use.

There is no formal specification. Sources: Mark McLoughlin, "The QCOW Image Format", and the images that QEMU makes.
"""

from __future__ import annotations

from diskmill.kit.structs import Record, Structure, raw, u8, u32, u64

QCOW_MAGIC = b"QFI\xfb"
QCOW_VERSION = 1

CRYPT_NONE, CRYPT_AES = 0, 1
"""Values of ``crypt_method``."""

MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 16
MIN_L2_BITS, MAX_L2_BITS = 6, 13
"""L2 tables of 512 bytes to 64 KiB."""
MAX_L1_ENTRIES = (1 << 28) - 1
"""Entries of an L1 table: what QEMU opens."""
MAX_BACKING_NAME = 1023

COMPRESSED = 1 << 63
"""Bit of an L2 entry: its low ``63 - cluster_bits`` bits are the offset of a compressed cluster, any byte of the file;
the ``cluster_bits`` bits above, how many bytes it takes."""


class Header(Record):
    magic = raw(4)
    version = u32
    backing_file_offset = u64
    backing_file_size = u32
    mtime = u32
    size = u64
    cluster_bits = u8
    l2_bits = u8
    _padding = raw(2)
    crypt_method = u32
    l1_table_offset = u64


HEADER = Structure("header", ">", Header)
"""The file's first bytes. The backing file name and the L1 table follow."""
