"""Walking: from an image's extents, through its children and its backing chain, down to storage."""

from __future__ import annotations

from collections.abc import Iterator

from ..extents import Extent, Kind
from ..node import Image, Node, Storage


def walk(node: Node, offset: int, length: int, *, sparse: bool = True, above: Image | None = None) -> Iterator[Extent]:
    """What the bytes *offset* to *offset + length* of *node* are, as the whole graph below it has it.

    In order, without gaps. ``DATA`` names storage. What lies beyond the end of a shorter backing image is ``ZERO``.
    A ``HOLE`` is left only where no backing image remains to be asked.

    :param sparse: ask storage for its holes; ``DATA`` over a hole becomes ``SPARSE``. Without it, reading is all the
        same, with fewer system calls.
    :param above: an image of the backing chain to stop at: a ``HOLE`` is then what *above* gives, and nothing else.
    """
    if node is above:
        if length:
            yield Extent(offset, length, Kind.HOLE)
        return
    if isinstance(node, Storage):
        if sparse:
            yield from node.extents(offset, length)
        elif length:
            yield Extent(offset, length, Kind.DATA, node, offset)
        return
    assert isinstance(node, Image)
    if node.window is not None:
        for extent in walk(node.file, offset + node.window, length, sparse=sparse):
            yield extent.moved(-node.window)
        return
    for extent in node.extents(offset, length):
        if extent.kind is Kind.DATA:
            if sparse or not isinstance(extent.node, Storage):
                yield from _below(extent, sparse)
            else:
                yield extent
        elif extent.kind is Kind.HOLE and node.backing is not None:
            yield from _behind(node.backing, extent, sparse, above)
        elif extent.kind is Kind.HOLE and above is not None:  # nothing is behind it: it is no hole onto *above*
            yield extent._replace(kind=Kind.ZERO)
        else:
            yield extent


def _below(extent: Extent, sparse: bool) -> Iterator[Extent]:
    """Data that lives in another node: what that node makes of it."""
    assert extent.node is not None
    shift = extent.start - extent.offset
    for part in walk(extent.node, extent.offset, extent.length, sparse=sparse):
        if part.reads_as_zeros:
            yield Extent(part.start + shift, part.length, Kind.SPARSE, part.node, part.offset)
        else:
            yield part.moved(shift)


def _behind(backing: Image, hole: Extent, sparse: bool, above: Image | None) -> Iterator[Extent]:
    """A hole: what the backing image has there."""
    inside = min(hole.end, backing.size) - hole.start
    if inside > 0:
        for part in walk(backing, hole.start, inside, sparse=sparse, above=above):
            yield part._replace(depth=part.depth + 1)
    beyond = max(hole.start, backing.size)
    if beyond < hole.end:
        yield Extent(beyond, hole.end - beyond, Kind.ZERO, depth=1)
