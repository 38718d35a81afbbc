"""Walking: from an image's extents, through its children and its backing chain, down to storage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..contract.extents import Extent, Kind
from ..contract.limits import READ_PER_WORK, allowed_decoding, allowed_work
from ..contract.node import Image, Node, Storage

_Level = tuple[Iterator[Extent], Image | None, int, int, int | None, Image | None]
"""A node that is being walked, and how what it says is to be told: a plain tuple, which is taken apart at once.

- its extents, as far as they were not looked at;
- the node, where its extents are to be followed;
- what is to be added to its offsets;
- how far down the backing chain it lies;
- where a level above has it for data, the depth of that one: its zeros are allocated there;
- an image of its backing chain to stop at.
"""


def walk(node: Node, offset: int, length: int, *, sparse: bool = True, above: Image | None = None) -> Iterator[Extent]:
    """What the bytes *offset* to *offset + length* of *node* are, as the whole graph below it has it.

    In order, without gaps. ``DATA`` names storage. What lies beyond the end of a shorter backing image is ``ZERO``.
    A ``HOLE`` is left only where no backing image remains to be asked.

    There is no recursion: a chain may be longer than Python's stack is deep.

    :param sparse: ask storage for its holes; ``DATA`` over a hole becomes ``SPARSE``. Without it, reading is all the
        same, with fewer system calls.
    :param above: an image of the backing chain to stop at: a ``HOLE`` is then what *above* gives, and nothing else.
    :raises LimitError: there are more extents, or more data, than files of their size can rightly hold.
    """
    if node is above:
        if length:
            yield Extent(offset, length, Kind.HOLE)
        return
    level = _level(node, offset, length, sparse, 0, 0, None, above)
    stack: list[_Level] = []
    work, most = 0, node.account.limits.work
    decoded, most_decoded = 0, most << READ_PER_WORK
    while True:
        source, image, shift, depth, below, above = level
        for extent in source:
            work += 1
            if work > most:
                most = allowed_work(node, work=work)
            kind = extent.kind
            if image is None:
                pass
            elif kind is Kind.DATA:
                child = extent.node
                assert child is not None
                if sparse or not isinstance(child, Storage):
                    moved = shift + extent.start - extent.offset
                    stack.append(level)
                    under = depth if below is None else below
                    level = _level(child, extent.offset, extent.length, sparse, moved, depth, under, None)
                    break
            elif kind is Kind.HOLE and image.backing is not None:
                base, depth = image.backing, depth + 1
                stack.append(level)
                while base.backing is not None and base is not above and extent.end <= base.size:
                    if not base.vacant(extent.start, extent.length):
                        break
                    base, depth, work = base.backing, depth + 1, work + 1
                beyond = max(extent.start, base.size)
                if beyond < extent.end:
                    zeros = Extent(beyond, extent.end - beyond, Kind.ZERO)
                    stack.append((iter((zeros,)), None, shift, depth, below, None))
                inside = max(min(extent.end, base.size) - extent.start, 0)
                if base is above or not inside:  # a hole that begins behind its end is nothing to ask it for
                    left = (Extent(extent.start, inside, Kind.HOLE),) if inside else ()
                    level = (iter(left), None, shift, depth, below, None)
                else:
                    level = _level(base, extent.start, inside, sparse, shift, depth, below, above)
                break
            elif kind is Kind.HOLE and above is not None:  # nothing is behind it: it is no hole onto *above*
                extent = extent._replace(kind=Kind.ZERO)
            if kind is Kind.DATA:
                work += 1 + (extent.length >> READ_PER_WORK)  # reading costs, however little it is
            elif kind is Kind.ENCODED:
                work, decoded = work + 1, decoded + extent.length
                if decoded > most_decoded:
                    most_decoded = allowed_decoding(node, decoded)
            if below is not None and extent.reads_as_zeros:
                start = extent.start + shift
                yield Extent(start, extent.length, Kind.SPARSE, extent.node, extent.offset, depth=below)
            elif shift or depth:
                yield extent._replace(
                    start=extent.start + shift, shift=extent.shift + shift, depth=extent.depth + depth
                )
            else:
                yield extent
        else:
            if not stack:
                return
            level = stack.pop()


def _level(
    node: Node, offset: int, length: int, sparse: bool, shift: int, depth: int, below: int | None, above: Image | None
) -> _Level:
    """The level of *node*, what it is a window onto being looked at directly. Of no bytes nobody is asked."""
    if not length:
        return (iter(()), None, shift, depth, below, above)
    while isinstance(node, Image) and node.window is not None:
        offset, shift, node = offset + node.window, shift - node.window, node.file
    if isinstance(node, Image):
        return (iter(node.extents(offset, length)), node, shift, depth, below, above)
    if sparse:
        return (iter(node.extents(offset, length)), None, shift, depth, below, above)
    source: Iterable[Extent] = (Extent(offset, length, Kind.DATA, node, offset),) if length else ()
    return (iter(source), None, shift, depth, below, above)
