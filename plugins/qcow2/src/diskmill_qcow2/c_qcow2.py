"""On-disk structures of qcow2, in the names of the specification.

Source: "QEMU QCOW2 image format", docs/interop/qcow2 in the QEMU sources. All numbers are big-endian. Limits that
QEMU sets on top of the format are marked so.
"""

from __future__ import annotations

from diskmill.kit.structs import Record, Structure, raw, u8, u16, u32, u64
from diskmill.sizes import KiB, MiB

QCOW_MAGIC = b"QFI\xfb"


class HeaderV2(Record):
    magic = raw(4)
    version = u32
    backing_file_offset = u64
    backing_file_size = u32
    cluster_bits = u32
    size = u64
    crypt_method = u32
    l1_size = u32
    l1_table_offset = u64
    refcount_table_offset = u64
    refcount_table_clusters = u32
    nb_snapshots = u32
    snapshots_offset = u64


HEADER_V2 = Structure("header", ">", HeaderV2)


class Header(HeaderV2):
    incompatible_features = u64
    compatible_features = u64
    autoclear_features = u64
    refcount_order = u32
    header_length = u32


HEADER = Structure("header", ">", Header)
COMPRESSION_TYPE_OFFSET = 104
"""Byte offset of the additional field compression_type, one byte."""
HEADER_LENGTH = 112
"""header_length with the field compression_type and its padding."""

# Header extensions.
EXT_END = 0x00000000
EXT_BACKING_FORMAT = 0xE2792ACA
EXT_FEATURE_TABLE = 0x6803F857
EXT_BITMAPS = 0x23852875
EXT_CRYPTO_HEADER = 0x0537BE77
EXT_DATA_FILE = 0x44415441


class Extension(Record):
    type = u32
    length = u32


EXTENSION = Structure("header extension", ">", Extension)


class FeatureName(Record):
    type = u8
    bit = u8
    name = raw(46)


FEATURE_NAME = Structure("feature name table", ">", FeatureName)


class BitmapsExtension(Record):
    nb_bitmaps = u32
    _reserved = u32
    bitmap_directory_size = u64
    bitmap_directory_offset = u64


BITMAPS_EXTENSION = Structure("bitmaps extension", ">", BitmapsExtension)


class CryptoHeader(Record):
    offset = u64
    length = u64


CRYPTO_HEADER = Structure("full disk encryption header pointer", ">", CryptoHeader)

# incompatible_features
DIRTY = 1 << 0
CORRUPT = 1 << 1
EXTERNAL_DATA_FILE = 1 << 2
COMPRESSION_TYPE = 1 << 3
EXTENDED_L2 = 1 << 4
KNOWN_INCOMPATIBLE = DIRTY | CORRUPT | EXTERNAL_DATA_FILE | COMPRESSION_TYPE | EXTENDED_L2
# compatible_features
LAZY_REFCOUNTS = 1 << 0
# autoclear_features
BITMAPS = 1 << 0
RAW_EXTERNAL_DATA = 1 << 1
KNOWN_AUTOCLEAR = BITMAPS | RAW_EXTERNAL_DATA

FEATURES = (
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
)
"""The feature name table that new images carry: (type of feature, bit, name)."""

# crypt_method
CRYPT_NONE = 0
CRYPT_AES = 1
CRYPT_LUKS = 2

# L1, L2 and refcount table entries
OFFSET_MASK = 0x00FFFFFFFFFFFE00
"""Bits 9 to 55: the host offset in L1 entries and standard cluster descriptors."""
REFTABLE_OFFSET_MASK = 0xFFFFFFFFFFFFFE00
COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1 << 0
"""Standard cluster descriptor, version 3: the cluster reads as zeros."""
L1_RESERVED_MASK = 0x7F000000000001FF
L2_RESERVED_MASK = 0x3F000000000001FE
"""Reserved bits of a standard cluster descriptor."""

SUBCLUSTERS = 32
ALL_ALLOCATED = 0x00000000FFFFFFFF
"""A subcluster allocation bitmap: every subcluster is allocated."""
ALL_ZEROS = 0xFFFFFFFF00000000
"""A subcluster allocation bitmap: every subcluster reads as zeros."""

COMPRESSION_TYPES = ("zlib", "zstd")
"""Names by the value of compression_type."""
COMPRESSION_LEVELS = (9, 19)
"""The highest level of each: zlib's, and zstd's without its "ultra" ones, which are for more than a cluster."""

MIN_CLUSTER_BITS = 9
MAX_CLUSTER_BITS = 21
"""A limit of QEMU: clusters of 2 MiB."""
MIN_EXTENDED_CLUSTER_BITS = 14
MAX_BACKING_NAME = 1023
MAX_L1_BYTES = 32 * MiB
"""A limit of QEMU, for active L1 tables and those of snapshots."""
MAX_REFTABLE_BYTES = 8 * MiB
"""A limit of QEMU."""
MAX_SNAPSHOTS = 65536
"""A limit of QEMU."""
MAX_SNAPSHOT_TABLE_BYTES = 64 * MiB
"""A limit of QEMU: 1024 bytes for each of the most snapshots."""
MAX_SNAPSHOT_NAME = 255
"""A limit of QEMU, in bytes; it cuts longer names off."""
MAX_SNAPSHOT_EXTRA_DATA = 1 * KiB
"""A limit of QEMU."""


class Snapshot(Record):
    l1_table_offset = u64
    l1_size = u32
    id_size = u16
    name_size = u16
    date_sec = u32
    date_nsec = u32
    vm_clock_nsec = u64
    vm_state_size = u32
    extra_data_size = u32


SNAPSHOT = Structure("snapshot table entry", ">", Snapshot)

# Bitmap directory
MAX_BITMAPS = 65535
"""A limit of QEMU."""
MAX_BITMAP_DIRECTORY_BYTES = MAX_BITMAPS * (24 + 1023 + 7)
MAX_BITMAP_NAME = 1023
BITMAP_IN_USE = 1 << 0
BITMAP_AUTO = 1 << 1
BITMAP_RESERVED_FLAGS = 0xFFFFFFFC
"""Also those with extra data: QEMU knows of none."""
BITMAP_DIRTY_TRACKING = 1
MAX_BITMAP_BYTES = 512 * MiB
"""A limit of QEMU, for the bits of one bitmap."""
MIN_GRANULARITY_BITS = 9
MAX_GRANULARITY_BITS = 31
BITMAP_ALL_ONES = 1 << 0
"""Bitmap table entry without an offset: all bits are set."""
BITMAP_TABLE_RESERVED = 0xFF000000000001FE


class Bitmap(Record):
    bitmap_table_offset = u64
    bitmap_table_size = u32
    flags = u32
    type = u8
    granularity_bits = u8
    name_size = u16
    extra_data_size = u32


BITMAP = Structure("bitmap directory entry", ">", Bitmap)
