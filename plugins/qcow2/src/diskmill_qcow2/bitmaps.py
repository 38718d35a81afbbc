"""Persistent dirty bitmaps: the bitmap directory and the bitmap tables.

Source: the specification's sections "Bitmaps extension" and "Bitmaps"; limits are QEMU's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diskmill.errors import ImageError
from diskmill.sizes import round_up

from . import c_qcow2 as c

if TYPE_CHECKING:
    from diskmill.node import Node

    from .header import Header


@dataclass
class Entry:
    """A bitmap directory entry."""

    bitmap_table_offset: int
    bitmap_table_size: int
    flags: int
    granularity_bits: int
    name: str
    type: int = c.BITMAP_DIRTY_TRACKING
    extra: bytes = b""

    def details(self) -> dict[str, Any]:
        """QAPI ``Qcow2BitmapInfo``."""
        flags = [name for bit, name in ((c.BITMAP_IN_USE, "in-use"), (c.BITMAP_AUTO, "auto")) if self.flags & bit]
        return {"flags": flags, "name": self.name, "granularity": 1 << self.granularity_bits}


@dataclass
class Directory:
    """Where the bitmap directory is: the bitmaps extension."""

    count: int
    offset: int
    length: int


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
    if not 1 <= record.nb_bitmaps <= c.MAX_BITMAPS or length > c.MAX_BITMAP_DIRECTORY_BYTES:
        raise ImageError(f"{record.nb_bitmaps} bitmaps in {length} bytes", file=name, place="bitmaps extension")
    if offset % header.cluster_size or not offset or offset + length > file.size:
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
    data = file.read(where.offset, where.length)
    entries, at = [], 0
    for index in range(where.count):
        place = f"bitmap directory entry {index}"
        record = c.BITMAP.unpack(data, at, file=name)
        length = c.BITMAP.size + record.extra_data_size + record.name_size
        if not record.name_size or record.name_size > c.MAX_BITMAP_NAME or at + length > len(data):
            raise ImageError(f"its name and data of {length} bytes do not fit", file=name, place=place)
        table = record.bitmap_table_offset, record.bitmap_table_size * 8
        if table[0] % header.cluster_size or table[1] and (not table[0] or sum(table) > round_up(file.size, 512)):
            raise ImageError(f"its table at offset {table[0]} is not inside the file", file=name, place=place)
        begin = at + c.BITMAP.size
        entries.append(
            Entry(
                bitmap_table_offset=record.bitmap_table_offset,
                bitmap_table_size=record.bitmap_table_size,
                flags=record.flags,
                granularity_bits=record.granularity_bits,
                name=data[begin + record.extra_data_size : at + length].decode("utf-8", "replace"),
                type=record.type,
                extra=data[begin : begin + record.extra_data_size],
            )
        )
        at = round_up(at + length, 8)
    return entries
