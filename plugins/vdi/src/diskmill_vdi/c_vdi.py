"""The structures of a VDI file, little-endian, in VirtualBox's names.

Source: VirtualBox's public header ``VDICore.h`` (``VDIPREHEADER``, ``VDIHEADER1PLUS``) and the forum article "All about
VDIs" (https://forums.virtualbox.org/viewtopic.php?t=8046).
"""

from __future__ import annotations

from diskmill.kit.structs import Structure

SIGNATURE = 0xBEDA107F
VERSION = 0x00010001

NORMAL, FIXED, UNDO, DIFF = 1, 2, 3, 4
"""Values of ``u32Type``."""

FREE = 0xFFFFFFFF
"""A block map entry: never written. Of a differencing image: ask the parent."""
ZERO = 0xFFFFFFFE
"""A block map entry: reads as zeros."""

HEADER = Structure(
    "VDIHEADER",
    "<",
    [
        ("szFileInfo", "64s"),
        ("u32Signature", "I"),
        ("u32Version", "I"),
        ("cbHeader", "I"),
        ("u32Type", "I"),
        ("fFlags", "I"),
        ("szComment", "256s"),
        ("offBlocks", "I"),
        ("offData", "I"),
        ("cCylinders", "I"),
        ("cHeads", "I"),
        ("cSectors", "I"),
        ("cbSector", "I"),
        ("u32Dummy", "I"),
        ("cbDisk", "Q"),
        ("cbBlock", "I"),
        ("cbBlockExtra", "I"),
        ("cBlocks", "I"),
        ("cBlocksAllocated", "I"),
        ("uuidCreate", "16s"),
        ("uuidModify", "16s"),
        ("uuidLinkage", "16s"),
        ("uuidParentModify", "16s"),
        ("rest", "56s"),  # what newer versions keep here is kept
    ],
)
"""The first sector: ``VDIPREHEADER``, then ``VDIHEADER1``."""
