"""Resizing: more room at the end of disks of one extent."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from diskmill import tables
from diskmill.errors import UnsupportedError
from diskmill.node import Storage
from diskmill.sizes import SECTOR, round_up

from .descriptor import resized
from .hosted import LAST_SECTOR, HostedPart
from .parts import FlatPart
from .structures import SPARSE_HEADER

if TYPE_CHECKING:
    from .image import VmdkImage


def resize_vmdk(image: VmdkImage, size: int, preallocation: str) -> bool:
    """Make the guest disk *size* bytes long; it is not shorter than before.

    :raises UnsupportedError: the disk has several extents, or no room to grow.
    """
    size = round_up(size, SECTOR)
    if size == image.size:
        return True
    part = image.parts[0] if len(image.parts) == 1 else None
    if not isinstance(part, FlatPart | HostedPart):
        raise UnsupportedError("only disks of one flat or sparse extent can be resized", file=image.name)
    if isinstance(part, HostedPart):
        if preallocation not in ("off", "metadata"):
            raise UnsupportedError("sparse extents cannot be preallocated", file=image.name)
        text = None if image.descriptor is None else resized(image.descriptor, 0, size // SECTOR)
        if text is not None and len(text) > image.descriptor_room:
            raise UnsupportedError("the embedded descriptor has no room to grow", file=image.name)
        image.begin()
        _grow_sparse(part, size)
    else:
        if not isinstance(part.node, Storage) or part.offset + image.size != part.node.size:
            raise UnsupportedError("the flat extent is not all of its file", file=image.name)
        if preallocation == "metadata":
            raise UnsupportedError("flat extents have no metadata", file=image.name)
        image.begin()
        part.node.truncate(part.offset + size)
        if preallocation != "off":
            part.node.allocate(part.offset + image.size, size - image.size, preallocation)
    if image.descriptor is not None:
        # The descriptor is what makes it so: the room is there before. Its text changed with the first write.
        image.file.barrier()
        image.write_descriptor(resized(image.descriptor, 0, size // SECTOR))
    part.end = part.start + size
    image.size = size
    return True


def _grow_sparse(part: HostedPart, size: int) -> None:
    """Larger directories at the end of the file, with tables for what is new; the header turns to them at once."""
    old, count = part.count, -(-size // part.cover)
    header = part.header
    part.trim()
    part.flush()
    part.node.barrier()
    if count > old:
        directory_sectors = -(-count * part.width // SECTOR)
        table_sectors = part.table_sectors
        places = []
        for present in (part.redundant, part.directory):
            if present is None:
                continue
            at = part.take(directory_sectors + (count - old) * table_sectors)
            first = at + directory_sectors
            added = array("I", range(first, first + (count - old) * table_sectors, table_sectors))
            directory = present + added
            block = tables.to_bytes(directory, "little").ljust(directory_sectors * SECTOR, b"\0")
            part.node.write(at * SECTOR, block + bytes((count - old) * table_sectors * SECTOR))
            places.append((at, directory))
        if places[-1][0] >= LAST_SECTOR:
            raise UnsupportedError("the file of a sparse extent cannot grow beyond 2 TiB", file=part.name)
        header.gdOffset = places[-1][0]
        if len(places) == 2:
            header.rgdOffset = places[0][0]
        part.moved(places[-1], places[0] if len(places) == 2 else None)
    # The file ends with whole grains, for whoever appends to it.
    end = part.take(0)
    if part.node.size < end * SECTOR:
        part.node.truncate(end * SECTOR)
    part.node.barrier()
    header.capacity = size // SECTOR
    part.node.write(0, SPARSE_HEADER.pack(header))
