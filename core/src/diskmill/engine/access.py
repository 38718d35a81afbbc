"""Reading and writing guest bytes of one image: copy on write, zeroing and the two phases of a write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..contract.extents import Extent, Kind, Placement
from ..contract.node import Buffer, Image, ReadBuffer
from ..errors import ImageError, UnsupportedError, UsageError
from ..sizes import KiB, MiB, new_buffer, round_down, round_up
from .walk import walk
from .zeros import ZEROS, is_zero

_FEW = memoryview(ZEROS)[: 128 << 10]
"""Zeros that stay in the cache of a processor."""
_GATHER = 2 * MiB
"""The most stored bytes that are read at once for neighbouring compressed extents."""
STRETCH = 24
"""By how many bits an offset is to be shifted for the number of its stretch: see :mod:`diskmill.engine.lookups`."""
_BRIEF = 128 * KiB
"""Bytes that are copied into the page cache in less time than threads take to change places: who writes no more keeps
the image's lock meanwhile. The kernel lets one thread at a time write to a file, too."""


def read_into(image: Image, offset: int, buffer: Buffer) -> None:
    """Fill *buffer* with guest bytes from *offset* on; beyond the disk's end they are zeros.

    :raises UsageError: before the disk's beginning.
    """
    view = memoryview(buffer).cast("B")  # of what is no array of bytes too, the bytes count
    if offset < 0:
        raise UsageError(f"offset {offset} is before the beginning of the disk", file=image.name)
    inside = max(min(len(view), image.size - offset), 0)
    if image.writable:  # what is looked up shall not be put to other use before it is read
        number = image.readers.enter()
        try:
            _read(image, offset, view[:inside])
        finally:
            image.readers.leave(number)
    else:
        _read(image, offset, view[:inside])
    fill_zeros(view[inside:])


def _read(image: Image, offset: int, view: memoryview) -> None:
    read_extents(walk(image, offset, len(view), sparse=False), offset, view)


def read_extents(extents: Iterable[Extent], offset: int, view: memoryview) -> None:
    """Fill *view*, guest bytes from *offset* on, with *extents*, which follow each other and lie inside.

    Nothing is kept of them but neighbours that are compressed, for as long as these are read together.
    """
    group: list[Extent] = []
    for extent in extents:
        if group and not follows(extent, group[0], group[-1]):
            _read_group(group, offset, view)
            group = []
        if extent.unit:
            group.append(extent)
        else:
            read_extent(extent, view[extent.start - offset : extent.end - offset])
    if group:
        _read_group(group, offset, view)


def _read_group(group: Sequence[Extent], offset: int, view: memoryview) -> None:
    view = view[group[0].start - offset : group[-1].end - offset]
    if len(group) == 1:
        read_extent(group[0], view)
    else:
        read_gathered(group, view, memoryview(new_buffer(stored_of(group))))


def follows(extent: Extent, first: Extent, previous: Extent) -> bool:
    """Whether *extent*'s payload comes after *previous*'s, near enough to be read along with it."""
    return (
        extent.unit > 0
        and extent.node is first.node
        and extent.start == previous.end
        and 0 <= extent.offset - previous.offset <= previous.stored + 4 * KiB
        and extent.offset + extent.stored - first.offset <= _GATHER
    )


def stored_of(group: Sequence[Extent]) -> int:
    """The bytes from the first payload of *group* to the end of the last; payloads may overlap."""
    return max(extent.offset + extent.stored for extent in group) - group[0].offset


def read_gathered(group: Sequence[Extent], view: memoryview, stored: memoryview) -> None:
    """Fill *view* from neighbours whose payloads are read at once, into *stored*, which has :func:`stored_of` bytes."""
    first = group[0]
    assert first.node is not None
    first.node.read_into(first.offset, stored)
    for extent in group:
        at = extent.offset - first.offset
        into = view[extent.start - first.start : extent.end - first.start]
        place_decoded(extent, stored[at : at + extent.stored], into)


def read_extent(extent: Extent, view: memoryview) -> None:
    """Fill *view* with the bytes of *extent*, which is as long."""
    if extent.kind is Kind.DATA:
        assert extent.node is not None
        extent.node.event("read_aio")
        extent.node.read_into(extent.offset, view)
    elif extent.kind is Kind.ENCODED:
        _decode(extent, view)
    else:
        fill_zeros(view)


def _decode(extent: Extent, view: memoryview) -> None:
    extent = extent.original
    assert extent.node is not None and extent.codec is not None
    if extent.unit:
        payload = bytearray(extent.stored)
        extent.node.read_into(extent.offset, payload)
        place_decoded(extent, memoryview(payload), view)
        return
    sector = extent.codec.granularity
    start, end = round_down(extent.start, sector), round_up(extent.end, sector)
    for at in range(start, end, MiB):  # in pieces, for the cache and for memory
        upto = min(at + MiB, end)
        piece = extent._replace(start=at, length=upto - at, offset=extent.offset - extent.start + at)
        low, high = max(at, extent.start), min(upto, extent.end)
        into = view[low - extent.start : high - extent.start]
        # Whole sectors are read where they are wanted, and decoded in place.
        stored = into if len(into) == piece.length else memoryview(new_buffer(piece.length))
        extent.node.read_into(piece.offset, stored)
        plain = extent.codec.decode(piece, stored, stored)
        if plain is not into:
            into[:] = memoryview(plain)[low - at : high - at]


def place_decoded(extent: Extent, payload: memoryview, view: memoryview) -> None:
    """Decode the unit of *extent* from *payload* and put what *extent* covers of it into *view*."""
    assert extent.codec is not None
    unit = extent.unit
    into = view if extent.length == unit else memoryview(bytearray(unit))
    plain = extent.codec.decode(extent.original, payload, into)
    if plain is view:
        return
    if len(plain) != unit:
        raise ImageError(f"compressed data at guest offset {extent.start - extent.skip} is damaged")
    view[:] = memoryview(plain)[extent.skip : extent.skip + extent.length]


def fill_zeros(view: memoryview) -> None:
    """Overwrite *view* with zeros."""
    if len(view) <= len(_FEW):
        view[:] = _FEW[: len(view)]
        return
    whole = len(view) - len(view) % len(_FEW)
    for at in range(0, whole, len(_FEW)):
        view[at : at + len(_FEW)] = _FEW
    view[whole:] = _FEW[: len(view) - whole]


def write(image: Image, offset: int, data: ReadBuffer) -> None:
    """Write guest bytes.

    :raises UsageError: beyond the end of the disk, or the image is open for reading only.
    """
    view = memoryview(data).cast("B")
    _check_range(image, offset, len(view))
    if not len(view):
        return
    if image.detect_zeroes != "off" and is_zero(view):
        zero(image, offset, len(view), unmap=image.detect_zeroes == "unmap")
        return
    if len(view) <= _BRIEF and image.swift:
        with image.lock:
            if not image.ranges or image.ranges.free(*image.units_of(offset, len(view))):
                write_phases(image, offset, view)
                return
    with image.writing(offset, len(view)):
        write_phases(image, offset, view)


def write_phases(image: Image, offset: int, data: memoryview) -> None:
    """The phases of a write, for a caller that lets nobody else write the same units meanwhile."""
    with image.lock:
        placements = image.reserve(offset, len(data))
    for placement in placements:
        store(image, placement, offset, data)
    with image.lock:
        image.publish(placements)


def _check_range(image: Image, offset: int, length: int) -> None:
    if not image.writable:
        raise UsageError("the image is open for reading only", file=image.name)
    if offset < 0 or length < 0 or offset + length > image.size:
        raise UsageError(f"bytes {offset} to {offset + length} are not all inside the disk", file=image.name)


def store(image: Image, placement: Placement, offset: int, data: memoryview) -> None:
    """Put the part of *data*, which begins at guest *offset*, that belongs to *placement* into its place.

    Of a fresh placement, what *data* does not cover is completed with what the guest reads there.
    """
    start, end = placement.start, placement.start + placement.length
    low, high = max(start, offset), min(end, offset + len(data))
    # Bytes that must be written together: whole units where the space is new, whole cipher sectors where it is not.
    unit = image.unit if placement.fresh else placement.cipher.granularity if placement.cipher else 1
    head = start + round_down(low - start, unit)
    body_low = low if low == head else min(head + unit, end)
    body_high = end if high == end else start + round_down(high - start, unit)
    if body_low > body_high:  # all inside one unit
        _store_mixed(image, placement, head, body_low, offset, data)
        return
    if low < body_low:
        _store_mixed(image, placement, head, body_low, offset, data)
    if body_low < body_high:
        put(placement, body_low, data[body_low - offset : body_high - offset])
    if body_high < high:
        _store_mixed(image, placement, body_high, min(body_high + unit, end), offset, data)


def _store_mixed(image: Image, placement: Placement, low: int, high: int, offset: int, data: memoryview) -> None:
    """Guest bytes *low* to *high*: from *data* where it covers them, else as they are."""
    whole = bytearray(high - low)
    inside = min(high, image.size) - low
    before, after = max(offset - low, 0), min(offset + len(data) - low, high - low)
    view = memoryview(whole)
    placement.node.event("cow_read")
    if before > 0:
        image.read_into(low, view[:before])
    if after < inside:
        image.read_into(low + after, view[after:inside])
    view[before:after] = data[low + before - offset : low + after - offset]
    placement.node.event("cow_write")
    put(placement, low, view)


def put(placement: Placement, start: int, data: memoryview) -> None:
    """Write *data*, guest bytes from *start* on, where *placement* says."""
    at = placement.offset + start - placement.start
    placement.node.event("write_aio")
    if placement.cipher is not None:
        placement.node.write(at, placement.cipher.encrypt(start, at, data))
    else:
        placement.node.write(at, data)


def zero(image: Image, offset: int, length: int, *, unmap: bool) -> None:
    """Make guest bytes read as zeros: whole units and subunits by the driver's own way, the rest by writing."""
    _check_range(image, offset, length)
    end = offset + length
    with image.writing(offset, length):
        low, high = _whole_units(image, offset, end, image.subunit or image.unit)
        if low >= high:
            _write_zeros(image, offset, end)
            return
        _write_zeros(image, offset, low)
        for start, stop in _edges_apart(image, low, high):
            try:
                with image.lock:
                    image.zero_units(start, stop - start, unmap=unmap)
            except UnsupportedError:
                _write_zeros(image, start, stop)
        _write_zeros(image, high, end)


def _edges_apart(image: Image, low: int, high: int) -> list[tuple[int, int]]:
    """*low* to *high* with the units that it covers in part apart: a driver may not be able to zero those."""
    first, last = _whole_units(image, low, high, image.unit)
    if first >= last:  # there is none between
        first = last = min(first, high)
    return [(start, stop) for start, stop in ((low, first), (first, last), (last, high)) if start < stop]


def discard(image: Image, offset: int, length: int) -> None:
    """Whole units inside the range lose their contents."""
    _check_range(image, offset, length)
    low, high = _whole_units(image, offset, offset + length, image.unit)
    if low < high:
        with image.writing(low, high - low), image.lock:
            image.discard_units(low, high - low)


def _whole_units(image: Image, offset: int, end: int, unit: int) -> tuple[int, int]:
    high = end if end == image.size else round_down(end, unit)
    return round_up(offset, unit), high


def _write_zeros(image: Image, offset: int, end: int) -> None:
    for at in range(offset, end, len(ZEROS)):
        write_phases(image, at, memoryview(ZEROS)[: min(len(ZEROS), end - at)])
