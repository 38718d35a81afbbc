"""The structures of a Parallels expandable image, little-endian.

Source: "Parallels Expandable Image File Format", QEMU's ``docs/interop/parallels.rst``, whose names these are.
"""

from __future__ import annotations

from diskmill.kit.structs import Structure

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

HEADER = Structure(
    "Parallels header",
    "<",
    [
        ("magic", "16s"),
        ("version", "I"),
        ("heads", "I"),
        ("cylinders", "I"),
        ("tracks", "I"),
        ("nb_bat_entries", "I"),
        ("nb_sectors", "Q"),
        ("in_use", "I"),
        ("data_off", "I"),
        ("flags", "I"),
        ("ext_off", "Q"),
    ],
)

EXTENSION_MAGIC = 0xAB234CEF23DCEA87
EXTENSION = Structure("Format Extension", "<", [("magic", "Q"), ("m_CheckSum", "16s")])

END_FEATURE = 0
BITMAP_FEATURE = 0x20385FAE252CB34A
NECESSARY = 1
"""Feature flag: who does not know the feature must not change the image."""
FEATURE = Structure("extension feature", "<", [("magic", "Q"), ("flags", "Q"), ("data_size", "I"), ("unused32", "I")])

BITMAP = Structure("Dirty bitmap", "<", [("size", "Q"), ("id", "16s"), ("granularity", "I"), ("l1_size", "I")])
