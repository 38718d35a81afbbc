"""Changing the guest disk's size, and claiming space ahead of use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill import tables
from diskmill.errors import UnsupportedError, UsageError
from diskmill.extents import Kind
from diskmill.node import Storage
from diskmill.sizes import SECTOR, round_up

from . import c_qcow2 as c

if TYPE_CHECKING:
    from .image import Qcow2Image


def resize(image: Qcow2Image, size: int, preallocation: str) -> bool:
    """Make the guest disk *size* bytes large.

    :raises UsageError: the L1 table cannot be that large.
    :raises UnsupportedError: the image has something that stands in the way.
    """
    header = image.header
    size = round_up(size, SECTOR)
    old = image.size
    if header.nb_snapshots and header.version < 3:
        raise UnsupportedError("a version 2 image with snapshots cannot be resized", file=image.name)
    if size < old:
        raise UnsupportedError("shrinking is not supported", file=image.name)
    with image.lock:
        image.flush()
        _grow_l1(image, size)
        header.size = size
        image.write_header()
        image.barrier()
        image.size = size
        if image.external and isinstance(image.data, Storage) and image.data.size < size:
            image.data.truncate(size)
        if preallocation != "off":
            preallocate(image, old, size - old, preallocation)
        image.flush()
    return True


def _grow_l1(image: Qcow2Image, size: int) -> None:
    header, mapping, refcounts = image.header, image.mapping, image.refcounts
    needed = -(-size // (header.cluster_size * header.l2_entries))
    if needed <= header.l1_size:
        return
    if needed * 8 > c.MAX_L1_BYTES:
        raise UsageError(f"a disk of {size} bytes is too large for its clusters of {header.cluster_size} bytes")
    clusters = -(-needed * 8 // header.cluster_size)
    room = -(-header.l1_size * 8 // header.cluster_size)
    grown = mapping.l1 + tables.filled(needed - len(mapping.l1), 8)
    if clusters == room and header.l1_table_offset:
        start = header.l1_table_offset
    else:
        start = refcounts.allocate_together(clusters) * header.cluster_size
        refcounts.drop_metadata(header.l1_table_offset // header.cluster_size, room)
    image.write_refcounts()
    image.file.write(start, tables.to_bytes(grown, "big").ljust(clusters * header.cluster_size, b"\0"))
    image.barrier()
    header.l1_table_offset, header.l1_size = start, needed
    image.write_header()
    mapping.l1, mapping.l1_offset = grown, start
    image.give_back()


def preallocate(image: Qcow2Image, offset: int, length: int, mode: str) -> None:
    """Give every unallocated cluster of guest bytes *offset* to *offset + length* a place in the file.

    :param mode: ``metadata`` only says where; ``falloc`` and ``full`` claim the space as well.
    """
    end = offset + length
    step = image.unit * image.header.l2_entries
    at = offset // image.unit * image.unit
    top = 0
    while at < end:
        upto = min((at // step + 1) * step, end)
        with image.lock:
            holes = [extent for extent in image.extents(at, upto - at) if extent.kind is Kind.HOLE]
            for hole in holes:
                placements = image.reserve(hole.start, hole.length)
                image.publish(placements)
                for placement in placements:
                    if placement.node is image.file:
                        top = max(top, placement.offset + placement.length)
                    if mode != "metadata" and isinstance(placement.node, Storage):
                        placement.node.allocate(placement.offset, placement.length, mode)
        at = upto
    if isinstance(image.file, Storage) and image.file.size < top:
        image.file.truncate(top)
