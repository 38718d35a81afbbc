"""Changing the guest disk's size, and claiming space ahead of use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.contract.extents import Kind
from diskmill.errors import UnsupportedError, UsageError
from diskmill.kit import tables
from diskmill.sizes import SECTOR, round_down, round_up

from . import c_qcow2 as c

if TYPE_CHECKING:
    from .image import Qcow2Image


def resize(image: Qcow2Image, size: int, preallocation: str) -> bool:
    """Make the guest disk *size* bytes large.

    :raises UsageError: the L1 table cannot be that large.
    :raises UnsupportedError: the image has something that stands in the way.
    """
    size = round_up(size, SECTOR)
    refuse_size(image, size, preallocation, image.header.version)
    with image.lock:
        image.flush()
        if size < image.size:
            _shrink(image, size)
        elif size > image.size:
            _grow(image, size, preallocation)
        image.flush()
    return True


def refuse_size(image: Qcow2Image, size: int, preallocation: str, version: int) -> None:
    """Refuse what cannot be, before anything is written.

    :param version: of the format, that the image has when it is resized.
    :raises DiskmillError: as :func:`resize`.
    """
    if image.header.nb_snapshots and version < 3:
        raise UnsupportedError("a version 2 image with snapshots cannot be resized", file=image.name)
    image.require_data()
    if size < image.size and preallocation != "off":
        raise UsageError("preallocation is for growing images", file=image.name)
    _l1_entries(image, size)
    with image.lock:
        image.mapping.require_rightful(min(size, image.size) // (image.unit * image.mapping.count))
        image.bitmaps.refuse_size(size)


def _l1_entries(image: Qcow2Image, size: int) -> int:
    """How many entries the L1 table of a disk of *size* bytes needs."""
    header = image.header
    needed = -(-size // (header.cluster_size * header.l2_entries))
    if needed * 8 > c.MAX_L1_BYTES and needed > header.l1_size:
        cause = f"a disk of {size} bytes is too large for its clusters of {header.cluster_size} bytes"
        raise UsageError(cause, file=image.name)
    return needed


def _grow(image: Qcow2Image, size: int, preallocation: str) -> None:
    """What is new reads as zeros; the header says so last."""
    old = image.size
    image.bitmaps.resize(size)
    image.placing.drop_beyond(old)  # VM state that a snapshot left there, or what a disk that was once larger held
    image.order.flush_tables()
    _grow_l1(image, size)
    image.size = size
    try:
        if image.external and image.data is not None and image.data.resizable and image.data.size < size:
            image.data.truncate(size)
        _blank(image, old, min(round_up(old, image.unit), size))
        if image.backing is not None and image.backing.size > old:
            image.zero(old, min(image.backing.size, size) - old, unmap=False)
        if image.raw_data and preallocation == "off":
            preallocation = "metadata"  # as in a new image
        if preallocation != "off":
            preallocate(image, old, size - old, preallocation)
        image.flush()
    except BaseException:
        image.bitmaps.resize(old)
        image.size = old
        raise
    _write_size(image, size)


def _blank(image: Qcow2Image, start: int, end: int) -> None:
    """Zeros from *start*, where the disk ended, to the *end* of that cluster: anything may be there."""
    for extent in list(image.extents(start, end - start)):
        if extent.kind in (Kind.DATA, Kind.ENCODED):
            image.zero(extent.start, extent.length, unmap=False)


def _shrink(image: Qcow2Image, size: int) -> None:
    """The header says so first: then nothing can be missed."""
    image.begin_change()
    image.bitmaps.resize(size)
    _write_size(image, size)
    image.size = size
    image.placing.drop_beyond(size)
    image.order.flush_tables()
    if image.external:
        if image.data is not None and image.data.resizable and image.header.autoclear_features & c.RAW_EXTERNAL_DATA:
            image.data.truncate(size)
    elif image.file.resizable and image.file.blank:
        end = (image.refcounts.last() + 1) * image.unit
        if end < image.file.size:
            image.file.truncate(end)


def _write_size(image: Qcow2Image, size: int) -> None:
    image.header.size = size
    image.order_files()
    image.order.write_header()
    image.order_files()


def _grow_l1(image: Qcow2Image, size: int) -> None:
    """Give the L1 table entries for a disk of *size* bytes: in place where there is room, else somewhere else."""
    header, mapping, refcounts = image.header, image.mapping, image.refcounts
    needed = _l1_entries(image, size)
    if needed <= header.l1_size:
        return
    clusters = -(-needed * 8 // header.cluster_size)
    room = -(-header.l1_size * 8 // header.cluster_size)
    grown = mapping.l1.part(0, len(mapping.l1)) + tables.filled(needed - len(mapping.l1), 8)
    if clusters == room and header.l1_table_offset:
        start = header.l1_table_offset
    else:
        start = refcounts.allocate_together(clusters) * header.cluster_size
    image.order.write_refcounts()
    image.file.event("l1_grow_write_table")
    image.file.write(start, tables.to_bytes(grown, "big").ljust(clusters * header.cluster_size, b"\0"))
    image.order_files()
    former = header.l1_table_offset
    header.l1_table_offset, header.l1_size = start, needed
    image.file.event("l1_grow_activate_table")
    image.order.write_header()
    mapping.move_l1(start, needed)
    if former != start:  # only now: what fails before leaves the image with the table that it has
        refcounts.drop_metadata(former // header.cluster_size, room)
    image.order.give_back()


def preallocate(image: Qcow2Image, offset: int, length: int, mode: str) -> None:
    """Give every unallocated cluster of guest bytes *offset* to *offset + length* a place in the file.

    With extended L2 entries it only gets the place: its subclusters still read as before. Else it reads as zeros, so
    there must be no backing image.

    :param mode: ``metadata`` only says where; ``falloc`` and ``full`` claim the space as well.
    """
    end = offset + length
    step = image.unit * image.header.l2_entries
    at = round_down(offset, image.unit)
    sizes = {node: node.size if node.blank else end for node in (image.file, image.data) if node is not None}
    top = 0
    while at < end:
        upto = min((at // step + 1) * step, end)
        with image.lock:
            holes = [extent for extent in image.extents(at, upto - at) if extent.kind is Kind.HOLE]
            for hole in holes:
                low = round_up(hole.start, image.unit)  # a cluster that is in use in part stays as it is
                high = hole.end if hole.end == end else round_down(hole.end, image.unit)
                if low >= high:
                    continue
                image.order.place_table(low // image.unit)
                placements = image.reserve(low, high - low)
                for placement in placements:
                    stale = sizes[placement.node] - placement.offset
                    if stale > 0:  # space that is used again
                        placement.node.zero(placement.offset, min(stale, placement.length))
                    if placement.node is image.file:
                        length = min(placement.length, round_up(end - placement.start, image.subunit or image.unit))
                        top = max(top, placement.offset + length)
                    if mode != "metadata" and placement.node.resizable:
                        placement.node.allocate(placement.offset, placement.length, mode)
                image.placing.publish_places(placements)
        at = upto
    if image.file.resizable and image.file.size < top:
        image.file.truncate(top)
