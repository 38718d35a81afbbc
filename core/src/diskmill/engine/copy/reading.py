"""Reading a task's extents into memory that is used again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...contract.extents import Extent
from ...errors import DiskmillError
from ..access import fill_zeros, follows, read_extent, read_gathered, stored_of
from .stretches import Stretch

Salvage = Callable[[int, int, DiskmillError], None]
"""Called with (guest offset, length, error) of what cannot be read."""


class Buffers:
    """A worker's memory, which is used again and again: fresh memory costs as much as copying it does."""

    def __init__(self, guest: int) -> None:
        self.guest = bytearray(guest)
        self.stored = bytearray()

    def for_guest(self, length: int) -> bytearray:
        """For *length* guest bytes at least."""
        if length > len(self.guest):
            self.guest = bytearray(length)
        return self.guest

    def for_stored(self, length: int) -> memoryview:
        """For *length* stored bytes."""
        if length > len(self.stored):
            self.stored = bytearray(length)
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
            try:
                _read_group(group, view[extent.start - base : at - base], buffers)
            except DiskmillError as error:
                _salvage(group, view, base, error, salvage)
            index = upto
        fill_zeros(view[at - base : end - base])


def _salvage(group: Sequence[Extent], view: memoryview, base: int, error: DiskmillError, tell: Salvage | None) -> None:
    if tell is None:
        raise error
    for extent in group:
        for at in range(extent.start, extent.end, 4096):
            part = extent.clip(at, at + 4096)
            into = view[part.start - base : part.end - base]
            try:
                read_extent(part, into)
            except DiskmillError as cause:
                fill_zeros(into)
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
