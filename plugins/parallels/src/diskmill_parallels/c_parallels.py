"""The structures of a Parallels expandable image, little-endian.

Source: "Parallels Expandable Image File Format", QEMU's ``docs/interop/parallels.rst``, whose names these are.
"""

from __future__ import annotations

from diskmill.kit.structs import Record, Structure, raw, u32, u64

MAGIC = b"WithoutFreeSpace"
"""Table entries are sectors; the disk's size is a 32-bit number of sectors."""
MAGIC_EXT = b"WithouFreSpacExt"
"""Table entries are clusters."""
VERSION = 2

IN_USE = 0x746F6E59
"""``in_use``: some program has the image open for writing, or crashed."""
CLOSED = 0x312E3276
"""``in_use``: closed by a program that knows of the format extension."""
CLOSED_OLD = 0
"""``in_use``: closed by a program that does not, so that the extension, if any, no longer holds."""

EMPTY_FLAG = 1
"""``flags``: the image is empty."""


class Header(Record):
    magic = raw(16)
    version = u32
    heads = u32
    cylinders = u32
    tracks = u32
    nb_bat_entries = u32
    nb_sectors = u64
    in_use = u32
    data_off = u32
    flags = u32
    ext_off = u64


HEADER = Structure("Parallels header", "<", Header)

EXTENSION_MAGIC = 0xAB234CEF23DCEA87


class Extension(Record):
    magic = u64
    m_CheckSum = raw(16)


EXTENSION = Structure("Format Extension", "<", Extension)

END_FEATURE = 0
BITMAP_FEATURE = 0x20385FAE252CB34A
NECESSARY = 1
"""Feature flag: who does not know the feature must not change the image."""


class Feature(Record):
    magic = u64
    flags = u64
    data_size = u32
    unused32 = u32


FEATURE = Structure("extension feature", "<", Feature)


class Bitmap(Record):
    size = u64
    id = raw(16)
    granularity = u32
    l1_size = u32


BITMAP = Structure("Dirty bitmap", "<", Bitmap)
