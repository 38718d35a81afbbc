"""Persistent dirty bitmaps on disk: the bitmap directory and the bitmap tables.

Source: the specification's sections "Bitmaps extension" and "Bitmaps"; limits are QEMU's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diskmill.errors import ImageError
from diskmill.records import record
from diskmill.sizes import round_up

from . import c_qcow2 as c
from .bounds import outside, unaligned

if TYPE_CHECKING:
    from diskmill.contract.node import Node

    from .header import Header


@record
class Entry:
    """A bitmap directory entry."""

    bitmap_table_offset: int
    bitmap_table_size: int
    flags: int
    granularity_bits: int
    name: str
    type: int = c.BITMAP_DIRTY_TRACKING
    extra: bytes = b""
    flags_offset: int = 0
    """Where in the file its flags are."""

    @property
    def in_use(self) -> bool:
        """Whether it was not stored properly, so that what it says is void."""
        return bool(self.flags & c.BITMAP_IN_USE)

    @property
    def auto(self) -> bool:
        """Whether writes are to be recorded in it."""
        return bool(self.flags & c.BITMAP_AUTO)

    def details(self) -> dict[str, Any]:
        """QAPI ``Qcow2BitmapInfo``."""
        flags = [name for bit, name in ((c.BITMAP_IN_USE, "in-use"), (c.BITMAP_AUTO, "auto")) if self.flags & bit]
        return {"flags": flags, "name": self.name, "granularity": 1 << self.granularity_bits}


@record
class Directory:
    """Where the bitmap directory is: the bitmaps extension."""

    count: int
    offset: int
    length: int


def table_entries(size: int, granularity_bits: int, cluster_size: int) -> int:
    """Entries in the table of a bitmap of a disk of *size* bytes."""
    bits = -(-size >> granularity_bits)
    return -(-bits // (cluster_size * 8))


def directory(file: Node, header: Header, name: str) -> Directory | None:
    """The bitmaps extension; None where there is none, or it is no longer consistent.

    :raises ImageError: it breaks the format.
    """
    data = header.extension(c.EXT_BITMAPS)
    if not header.autoclear_features & c.BITMAPS:
        return None
    if data is None:
        raise ImageError("the feature bit for bitmaps is set, but the extension is missing", file=name, place="header")
    record = c.BITMAPS_EXTENSION.unpack(data)
    offset, length = record.bitmap_directory_offset, record.bitmap_directory_size
    if not 1 <= record.nb_bitmaps <= c.MAX_BITMAPS or not 0 < length <= c.MAX_BITMAP_DIRECTORY_BYTES:
        raise ImageError(f"{record.nb_bitmaps} bitmaps in {length} bytes", file=name, place="bitmaps extension")
    if outside(offset, length, header.cluster_size, file.size):
        raise ImageError(
            f"{length} bytes at offset {offset} are not inside the file", file=name, place="bitmap directory"
        )
    return Directory(record.nb_bitmaps, offset, length)


def read_directory(file: Node, header: Header, name: str) -> list[Entry]:
    """The bitmap directory's entries.

    :raises ImageError: they do not fit in it, or are impossible.
    """
    where = directory(file, header, name)
    if where is None:
        return []
    entries, error = scan_directory(file, header, where, name)
    if error is not None:
        raise error
    return entries


def scan_directory(file: Node, header: Header, where: Directory, name: str) -> tuple[list[Entry], ImageError | None]:
    """The entries of the directory at *where* that make sense, and what is wrong with the first that does not."""
    data = file.read(where.offset, where.length)
    entries: list[Entry] = []
    names: set[str] = set()
    error: ImageError | None = None
    at = tables = 0
    for index in range(where.count):
        place = f"bitmap directory entry {index}"
        if at + c.BITMAP.size > len(data):
            return entries, error or ImageError("the bitmap directory ends before it", file=name, place=place)
        record = c.BITMAP.unpack(data, at, file=name)
        length = c.BITMAP.size + record.extra_data_size + record.name_size
        if not record.name_size or record.name_size > c.MAX_BITMAP_NAME or at + length > len(data):
            cause = f"its name and data of {length} bytes do not fit"
            return entries, error or ImageError(cause, file=name, place=place)
        begin = at + c.BITMAP.size
        entry = Entry(
            bitmap_table_offset=record.bitmap_table_offset,
            bitmap_table_size=record.bitmap_table_size,
            flags=record.flags,
            granularity_bits=record.granularity_bits,
            name=data[begin + record.extra_data_size : at + length].decode("utf-8", "surrogateescape"),
            type=record.type,
            extra=data[begin : begin + record.extra_data_size],
            flags_offset=where.offset + at + c.BITMAP.offsets["flags"],
        )
        cause = _fault(entry, header, file.size) or ("its name is there twice" if entry.name in names else "")
        tables += entry.bitmap_table_size * 8
        if not cause and tables > file.size:  # they would have to overlap
            cause = "the tables of the bitmaps are larger than the file"
        if cause:
            error = error or ImageError(cause, file=name, place=place)
        else:
            entries.append(entry)
            names.add(entry.name)
        at = round_up(at + length, 8)
    return entries, error


def _fault(entry: Entry, header: Header, file_size: int) -> str:
    """What is impossible in *entry*; nothing where it makes sense."""
    if entry.type != c.BITMAP_DIRTY_TRACKING:
        return f"its type {entry.type} is not known"
    if entry.flags & c.BITMAP_RESERVED_FLAGS:
        return f"its flags {entry.flags:#x} are not known"
    if entry.extra:
        return f"its {len(entry.extra)} bytes of extra data are not known"
    if not c.MIN_GRANULARITY_BITS <= entry.granularity_bits <= c.MAX_GRANULARITY_BITS:
        return f"its granularity is 2 to the power of {entry.granularity_bits}"
    if entry.bitmap_table_size * header.cluster_size > c.MAX_BITMAP_BYTES:
        return f"its table of {entry.bitmap_table_size} entries is too large"
    offset, length = entry.bitmap_table_offset, entry.bitmap_table_size * 8
    if not length or outside(offset, length, header.cluster_size, round_up(file_size, 512)):
        return f"its table of {length} bytes at offset {offset} is not inside the file"
    needed = table_entries(header.size, entry.granularity_bits, header.cluster_size)
    if not entry.in_use and entry.bitmap_table_size != max(needed, 1):
        return f"its table has {entry.bitmap_table_size} entries, not {needed}"
    return ""


def set_directory(header: Header, count: int, offset: int, length: int) -> None:
    """Let *header*, in memory, say that the directory of *count* bitmaps is at *offset*; none: that there is none."""
    if not count:
        header.set_extension(c.EXT_BITMAPS, None)
        header.autoclear_features &= ~c.BITMAPS
        return
    record = c.BITMAPS_EXTENSION.new(nb_bitmaps=count, bitmap_directory_size=length, bitmap_directory_offset=offset)
    header.set_extension(c.EXT_BITMAPS, c.BITMAPS_EXTENSION.pack(record))
    header.autoclear_features |= c.BITMAPS


def bad_table_entry(entry: int, cluster_size: int) -> bool:
    """Whether a bitmap table entry breaks the format."""
    offset = entry & c.OFFSET_MASK
    return bool(
        entry & c.BITMAP_TABLE_RESERVED or unaligned(offset, cluster_size) or offset and entry & c.BITMAP_ALL_ONES
    )


def pack_directory(entries: Sequence[Entry]) -> bytes:
    """The bitmap directory that has *entries*."""
    parts = []
    for entry in entries:
        name = entry.name.encode("utf-8", "surrogateescape")
        record = c.BITMAP.new(
            bitmap_table_offset=entry.bitmap_table_offset,
            bitmap_table_size=entry.bitmap_table_size,
            flags=entry.flags,
            type=entry.type,
            granularity_bits=entry.granularity_bits,
            name_size=len(name),
            extra_data_size=len(entry.extra),
        )
        data = c.BITMAP.pack(record) + entry.extra + name
        parts.append(data.ljust(round_up(len(data), 8), b"\0"))
    return b"".join(parts)
