"""The structures of a QED file, little-endian, in the specification's names.

Source: QEMU's ``docs/interop/qed_spec.txt``.
"""

from __future__ import annotations

from diskmill.kit.structs import Record, Structure, raw, u32, u64
from diskmill.sizes import KiB, MiB

QED_MAGIC = b"QED\0"

QED_F_BACKING_FILE = 0x01
"""The image has a backing file name."""
QED_F_NEED_CHECK = 0x02
"""The image was not closed cleanly: its tables must be checked before it is written."""
QED_F_BACKING_FORMAT_NO_PROBE = 0x04
"""The backing file is raw, whatever it looks like."""
KNOWN_FEATURES = QED_F_BACKING_FILE | QED_F_NEED_CHECK | QED_F_BACKING_FORMAT_NO_PROBE
"""Bits of ``features``. No bits of ``compat_features`` and ``autoclear_features`` are defined."""

MIN_CLUSTER_SIZE, MAX_CLUSTER_SIZE = 4 * KiB, 64 * MiB
MIN_TABLE_SIZE, MAX_TABLE_SIZE = 1, 16
"""In clusters."""
MAX_BACKING_NAME = 4095
"""Bytes in a backing file name: what QEMU reads."""

UNALLOCATED = 0
"""A table entry: no L2 table, or no cluster."""
ZERO = 1
"""An L2 table entry: the cluster reads as zeros."""


class Header(Record):
    magic = raw(4)
    cluster_size = u32
    table_size = u32
    header_size = u32
    features = u64
    compat_features = u64
    autoclear_features = u64
    l1_table_offset = u64
    image_size = u64
    backing_filename_offset = u32
    backing_filename_size = u32


HEADER = Structure("header", "<", Header)
"""The file's first bytes. The backing file name follows in the ``header_size`` clusters of the header."""
