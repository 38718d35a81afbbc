"""The structures of a VDI file, little-endian, in VirtualBox's names.

Source: VirtualBox's public header ``VDICore.h`` (``VDIPREHEADER``, ``VDIHEADER1PLUS``) and the forum article "All about
VDIs" (https://forums.virtualbox.org/viewtopic.php?t=8046).
"""

from __future__ import annotations

from diskmill.kit.structs import Record, Structure, raw, u32, u64

SIGNATURE = 0xBEDA107F
VERSION = 0x00010001

NORMAL, FIXED, UNDO, DIFF = 1, 2, 3, 4
"""Values of ``u32Type``."""

FREE = 0xFFFFFFFF
"""A block map entry: never written. Of a differencing image: ask the parent."""
ZERO = 0xFFFFFFFE
"""A block map entry: reads as zeros."""


class Header(Record):
    szFileInfo = raw(64)
    u32Signature = u32
    u32Version = u32
    cbHeader = u32
    u32Type = u32
    fFlags = u32
    szComment = raw(256)
    offBlocks = u32
    offData = u32
    cCylinders = u32
    cHeads = u32
    cSectors = u32
    cbSector = u32
    u32Dummy = u32
    cbDisk = u64
    cbBlock = u32
    cbBlockExtra = u32
    cBlocks = u32
    cBlocksAllocated = u32
    uuidCreate = raw(16)
    uuidModify = raw(16)
    uuidLinkage = raw(16)
    uuidParentModify = raw(16)
    rest = raw(56)  # what newer versions keep here is kept


HEADER = Structure("VDIHEADER", "<", Header)
"""The first sector: ``VDIPREHEADER``, then ``VDIHEADER1``."""
