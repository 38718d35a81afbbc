"""The structures of a VHD file, big-endian, and the arithmetic of its geometry.

Source: Microsoft, "Virtual Hard Disk Image Format Specification", version 1.0 (2006), whose names these are.
"""

from __future__ import annotations

from typing import TypeVar

from diskmill.kit.structs import Record, Structure, raw, u8, u16, u32, u64

COOKIE = b"conectix"
HEADER_COOKIE = b"cxsparse"

FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
"""Values of ``disk_type``."""

NONE = 0xFFFFFFFF
"""A table entry: the block is not there."""

EPOCH = 946684800
"""Time stamps count seconds from 2000-01-01 00:00 UTC on; that moment in Unix time."""


class Sealed(Record):
    """What has a checksum of itself."""

    checksum: int


S = TypeVar("S", bound=Sealed)


class Footer(Sealed):
    cookie = raw(8)
    features = u32
    file_format_version = u32
    data_offset = u64
    time_stamp = u32
    creator_application = raw(4)
    creator_version = u32
    creator_host_os = raw(4)
    original_size = u64
    current_size = u64
    cylinders = u16
    heads = u8
    sectors = u8
    disk_type = u32
    checksum = u32
    unique_id = raw(16)
    saved_state = u8
    reserved = raw(427)


FOOTER = Structure("Hard Disk Footer", ">", Footer)

GROWING = b"diskmill:growing"
"""Begins the reserved bytes of a fixed image's footer while the image grows: there are two footers then. Eight bytes
follow, big-endian: the file offset of the old one. Readers of VHD images do not look at reserved bytes."""


class Header(Sealed):
    cookie = raw(8)
    data_offset = u64
    table_offset = u64
    header_version = u32
    max_table_entries = u32
    block_size = u32
    checksum = u32
    parent_unique_id = raw(16)
    parent_time_stamp = u32
    reserved1 = u32
    parent_unicode_name = raw(512)
    parent_locators = raw(192)
    reserved2 = raw(256)


HEADER = Structure("Dynamic Disk Header", ">", Header)


class Locator(Record):
    platform_code = raw(4)
    platform_data_space = u32
    platform_data_length = u32
    reserved = u32
    platform_data_offset = u64


LOCATOR = Structure("Parent Locator", ">", Locator)
LOCATORS = 8

BATMAP_COOKIE = b"tdbatmap"
BATMAP_CREATOR = b"tap\0"


class Batmap(Record):
    cookie = raw(8)
    batmap_offset = u64
    batmap_size = u32
    batmap_version = u32
    checksum = u32


BATMAP = Structure("dd_batmap_hdr", ">", Batmap)
"""What XenServer keeps in the sector behind the table: where its map of full blocks is, ``batmap_size`` sectors long.
The map only saves it from reading bitmaps. Source: the structures of the Xen project's blktap."""

MAX_SECTORS = 0xFF000000
"""Sectors of the largest disk: 2040 GiB."""
MAX_GEOMETRY = (65535, 16, 255)
"""The largest geometry. Of an image with this one the geometry says nothing: the size field counts."""
MAX_GEOMETRY_SECTORS = 65535 * 16 * 255

GEOMETRY_CREATORS = frozenset({b"vpc ", b"qemu"})
"""Programs whose images are as large as their geometry (Virtual PC, and QEMU without ``force_size``). Images of all
others are as large as ``current_size`` says, which is never less than what their writers put in."""


def checksum(structure: Structure[S], record: S) -> int:
    """The one's complement of the sum of all bytes, those of the checksum aside."""
    kept, record.checksum = record.checksum, 0
    total = sum(structure.pack(record))
    record.checksum = kept
    return ~total & 0xFFFFFFFF


def sealed(structure: Structure[S], record: S) -> bytes:
    """*record* as bytes, its checksum set."""
    record.checksum = checksum(structure, record)
    return structure.pack(record)


def geometry(sectors: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors per track for a disk of *sectors*: the appendix "CHS calculation".

    Their product may be less than *sectors*.
    """
    sectors = min(sectors, MAX_GEOMETRY_SECTORS)
    if sectors >= 65535 * 16 * 63:
        heads, track = 16, 255
        return sectors // track // heads, heads, track
    track = 17
    tracks = sectors // track
    heads = max(-(-tracks // 1024), 4)
    if tracks >= heads * 1024 or heads > 16:
        heads, track = 16, 31
        tracks = sectors // track
    if tracks >= heads * 1024:
        heads, track = 16, 63
        tracks = sectors // track
    return tracks // heads, heads, track


def enclosing_geometry(sectors: int) -> tuple[int, int, int]:
    """The geometry of the smallest disk that holds *sectors* and whose size its geometry gives exactly.

    As QEMU finds it: that of the first larger number of sectors whose geometry holds enough. The product grows by
    whole cylinders, so instead of counting up by ones, each step goes to where the geometry can change next.
    """
    wanted = min(sectors, MAX_GEOMETRY_SECTORS)
    if not wanted:
        return 0, 0, 0
    trial = wanted
    while True:
        cylinders, heads, track = geometry(trial)
        if cylinders * heads * track >= wanted:
            return cylinders, heads, track
        trial = _next(trial)


def _next(sectors: int) -> int:
    """The next number of sectors that may have another geometry: another count of tracks in one of the layouts."""
    return min((sectors // track + 1) * track for track in (17, 31, 63, 255))
