"""Sharing instead of copying: on file systems that can (xfs, btrfs), the target's file names the source's blocks.

That takes the time of metadata, and no space. Nothing is read, so zeros that the source stores are not looked for.
Whole units of the target are shared, where they are whole blocks of both files; the rest is copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from ...contract.extents import Extent, Kind, Placement
from ...contract.node import Image, Node
from ...errors import DiskmillError, UnsupportedError
from ...sizes import MiB, round_down, round_up
from ..access import put
from ..progress import RateLimit
from .reading import Buffers
from .stretches import Stretch, rounded_out
from .tasks import Task
from .writer import Turns

_LONGEST = 256 * MiB
"""Bytes that are shared at once: between, it can be cancelled."""
_PIECE = MiB
"""Bytes that are copied at once where sharing failed."""
_MOST = 4096
"""Extents that are looked at together."""


class Reflink:
    """What of a copy into *target* is shared.

    :param always: what cannot be shared is an error, except for parts of blocks.
    :param sparse: whether holes in a plain window may be shared as what they are.
    """

    def __init__(self, target: Image, *, always: bool, sparse: bool) -> None:
        self._target = target
        self._always = always
        self._window = target.unit == 1
        self._over_holes = self._window and sparse
        self._failed = False
        self._leaves = target.leaves()
        self._blocks: dict[int, int] = {}

    def tasks(self, extents: Iterator[Extent], others: Callable[[Iterator[Extent]], Iterator[Task]]) -> Iterator[Task]:
        """Tasks that share, and what *others* makes of the extents between.

        :raises UnsupportedError: there is data that cannot be shared, and all must be.
        """
        for shared, group in groupby(self._sorted(extents), lambda pair: pair[1]):
            pieces = (extent for extent, _ in group)
            if not shared:
                yield from others(pieces)
                continue
            for extent in pieces:
                for at in range(extent.start, extent.end, _LONGEST):
                    part = extent.clip(at, at + _LONGEST)
                    yield Task(part.start, part.end, [part], shared=True)

    def _sorted(self, extents: Iterator[Extent]) -> Iterator[tuple[Extent, bool]]:
        """*extents* in order, and whether each is shared; those are whole units."""
        stretch: list[Extent] = []
        for extent in extents:
            if stretch and (len(stretch) >= _MOST or not _goes_on(stretch[-1], extent)):
                yield from self._cut(stretch)
                stretch = []
            if self._fits(extent):
                stretch.append(extent)
            else:
                self._refuse(extent)
                yield extent, False
        if stretch:
            yield from self._cut(stretch)

    def _fits(self, extent: Extent) -> bool:
        node = extent.node
        if node is None or self._failed or extent.kind is Kind.ENCODED or extent.offset + extent.length > node.size:
            return False
        block = self._block(node)
        return block > 0 and (extent.offset - extent.start) % block == 0

    def _block(self, node: Node) -> int:
        """Bytes of what is shared at once with *node*; 0: nothing is."""
        if id(node) not in self._blocks:
            self._blocks[id(node)] = max((leaf.clones(node) for leaf in self._leaves), default=0)
        return self._blocks[id(node)]

    def _refuse(self, extent: Extent) -> None:
        """Where all must be shared, *extent* may be no data."""
        if not self._always or extent.reads_as_zeros or (extent.length < 64 << 10 and extent.kind is Kind.DATA):
            return
        if extent.kind is Kind.ENCODED:
            why = "they are compressed or encrypted"
        elif extent.node is None or not self._block(extent.node):
            why = "the files are not on one file system that can (xfs and btrfs can)"
        else:
            why = "they do not lie on block boundaries"
        raise UnsupportedError(
            f"bytes from guest offset {extent.start} on cannot be shared: {why}", file=self._target.name
        )

    def _cut(self, stretch: Sequence[Extent]) -> Iterator[tuple[Extent, bool]]:
        """What of *stretch*, which goes on in one node, is shared, and the rest, in order."""
        first, end = stretch[0], stretch[-1].end
        assert first.node is not None
        step = math.lcm(self._target.unit, self._block(first.node))
        low, high = round_up(first.start, step), round_down(end, step)
        data = [(max(one.start, low), min(one.end, high)) for one in stretch if one.kind is Kind.DATA]
        runs: list[Stretch] = rounded_out([one for one in data if one[0] < one[1]], step, high)
        if self._over_holes and runs:
            runs = [(runs[0][0], runs[-1][1])]
        index, at = 0, first.start
        for begin, upto in (*runs, (end, end)):
            while index < len(stretch) and stretch[index].start < begin:
                if stretch[index].end > at:
                    yield stretch[index].clip(at, begin), False
                if stretch[index].end > begin:
                    break
                index += 1
            if begin < upto:
                yield Extent(begin, upto - begin, Kind.DATA, first.node, first.offset + begin - first.start), True
            at = upto

    def share(self, task: Task, turn: int, turns: Turns, buffers: Buffers, limit: RateLimit) -> None:
        """Deal with a task that shares."""
        target, extent = self._target, task.extents[0]
        turns.wait(turn)
        with target.lock:
            placed = target.reserve(extent.start, extent.length)
        turns.passed()
        for placement in placed:
            self._place(placement, extent, buffers, limit)
        with target.lock:
            target.publish(placed)

    def _place(self, placement: Placement, extent: Extent, buffers: Buffers, limit: RateLimit) -> None:
        source = extent.node
        assert source is not None
        at = extent.offset + placement.start - extent.start
        if placement.cipher is None and not self._failed:
            try:
                placement.node.clone_from(source, at, placement.offset, placement.length)
            except DiskmillError:
                if self._always:
                    raise
                self._failed = True  # as it is for what comes next: the rest is copied
            else:
                return
        elif self._always:
            raise UnsupportedError("what is encrypted cannot be shared", file=self._target.name)
        for start in range(placement.start, placement.end, _PIECE):
            upto = min(start + _PIECE, placement.end)
            limit.take(upto - start)
            view = memoryview(buffers.for_guest(upto - start))[: upto - start]
            source.read_into(at + start - placement.start, view)
            put(placement, start, view)


def _goes_on(one: Extent, other: Extent) -> bool:
    """Whether *other* is what comes after *one* in the same node."""
    return other.start == one.end and other.node is one.node and other.offset == one.offset + one.length


def reflink_of(mode: str, target: Image, *, reads: bool, sparse: bool) -> Reflink | None:
    """What shares in a copy into *target*; None: nothing is shared.

    :param mode: ``auto``, ``always`` or ``never``.
    :param reads: whether all data must be read anyway, or is stored otherwise.
    """
    if mode == "never" or reads and mode == "auto":
        return None
    if reads:
        raise UnsupportedError("what is written to it cannot be shared", file=target.name)
    return Reflink(target, always=mode == "always", sparse=sparse)
