"""Reading a task's extents into memory that is used again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...contract.extents import Extent, Kind
from ...errors import DiskmillError
from ...sizes import new_buffer
from ..access import fill_zeros, follows, read_extent, read_gathered, stored_of
from .stretches import Stretch

Salvage = Callable[[int, int, DiskmillError], None]
"""Called with (guest offset, length, error) of what cannot be read."""


class Buffers:
    """A worker's memory, which is used again and again: fresh memory costs as much as copying it does."""

    def __init__(self, guest: int) -> None:
        self.guest = new_buffer(guest)
        self.stored = bytearray()

    def for_guest(self, length: int) -> bytearray:
        """For *length* guest bytes at least."""
        if length > len(self.guest):
            self.guest = new_buffer(length)
        return self.guest

    def for_stored(self, length: int) -> memoryview:
        """For *length* stored bytes."""
        if length > len(self.stored):
            self.stored = new_buffer(length)
        return memoryview(self.stored)[:length]


def read(
    extents: Sequence[Extent],
    stretches: Sequence[Stretch],
    view: memoryview,
    base: int,
    buffers: Buffers,
    salvage: Salvage | None,
) -> None:
    """Fill those *stretches* of *view*, guest bytes from *base* on, with *extents* and zeros between them.

    :param salvage: told what cannot be read, which becomes zeros; None: the first error is raised.
    """
    apart: list[tuple[Extent, memoryview]] = []
    index = 0
    for at, end in stretches:
        while index < len(extents) and extents[index].start < end:
            extent = extents[index]
            if extent.start > at:
                fill_zeros(view[at - base : extent.start - base])
            upto = index + 1
            if extent.unit:
                while upto < len(extents) and follows(extents[upto], extent, extents[upto - 1]):
                    upto += 1
            group = extents[index:upto]
            at = group[-1].end
            into = view[extent.start - base : at - base]
            if extent.kind is Kind.DATA and extent.node is not None and extent.node.requests.at_once > 1:
                apart.append((extent, into))
            else:
                _try_group(group, into, buffers, salvage)
            index = upto
        fill_zeros(view[at - base : end - base])
    if apart:
        _read_together(apart, buffers, salvage)


def _read_together(pieces: Sequence[tuple[Extent, memoryview]], buffers: Buffers, salvage: Salvage | None) -> None:
    """Fill each view of *pieces* from its extent, verbatim data of storages that are asked for many things at once."""
    nodes = {id(extent.node): extent.node for extent, _ in pieces}
    for key, node in nodes.items():
        assert node is not None
        own = [(extent, into) for extent, into in pieces if id(extent.node) == key]
        for _ in own:
            node.event("read_aio")
        try:
            node.read_pieces([(extent.offset, into) for extent, into in own])
        except DiskmillError:
            if salvage is None:
                raise
            for extent, into in own:  # which of them it was, each tells by itself
                _try_group((extent,), into, buffers, salvage)


def _try_group(group: Sequence[Extent], into: memoryview, buffers: Buffers, salvage: Salvage | None) -> None:
    try:
        _read_group(group, into, buffers)
    except DiskmillError as error:
        _salvage(group, into, error, salvage)


def _salvage(group: Sequence[Extent], into: memoryview, error: DiskmillError, tell: Salvage | None) -> None:
    if tell is None:
        raise error
    base = group[0].start
    for extent in group:
        for at in range(extent.start, extent.end, 4096):
            part = extent.clip(at, at + 4096)
            piece = into[part.start - base : part.end - base]
            try:
                read_extent(part, piece)
            except DiskmillError as cause:
                fill_zeros(piece)
                tell(part.start, part.length, cause)


def _read_group(group: Sequence[Extent], view: memoryview, buffers: Buffers) -> None:
    """Fill *view* from neighbouring extents, compressed payloads with one read for all."""
    first = group[0]
    if not first.unit:
        read_extent(first, view)
        return
    assert first.node is not None
    first.node.event("read_compressed")
    read_gathered(group, view, buffers.for_stored(stored_of(group)))
