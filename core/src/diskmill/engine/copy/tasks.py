"""From the extents of the sources to tasks, each of which one worker deals with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ...contract.extents import Extent, Kind
from ...contract.node import Node
from ...sizes import round_down, round_up
from ..walk import walk
from .plan import CopyPlan


class Task(NamedTuple):
    """A stretch of the source that lies within one chunk of the target; or, with *zeros*, a long one of zeros;
    or, *shared*, whole units whose bytes are to be shared with the source's file."""

    start: int
    end: int
    extents: list[Extent]
    zeros: bool = False
    shared: bool = False

    @property
    def length(self) -> int:
        """Bytes that it deals with: between its extents may lie what was left out."""
        return sum(extent.length for extent in self.extents) if self.extents else self.end - self.start


def in_a_row(sources: Sequence[Node], offset: int, at: int, length: int | None, plan: CopyPlan) -> Iterator[Extent]:
    """The extents of *sources*, one disk after the other, from *offset* in all of them on, moved to where they go in
    the target: from *at* on.

    One stream for all, because where one source ends and the next begins they may share a unit of the target.

    :param length: how many bytes; None: all that is left.
    """
    begin, end = 0, sum(source.size for source in sources) if length is None else offset + length
    for source in sources:
        last = source is sources[-1]
        low, high = max(offset, begin), end if last else min(end, begin + source.size)
        if low < high:
            shift = at - offset + begin
            extents = _extents(source, low - begin, high - low, plan)
            yield from (extent.moved(shift) for extent in extents) if shift else extents
        begin += source.size


def _extents(source: Node, offset: int, count: int, plan: CopyPlan) -> Iterator[Extent]:
    """The extents of *source*; a hole is what is left to the target's backing image, where there is one in common."""
    end = offset + count
    border = end if plan.shared_size is None else min(max(offset, plan.shared_size), end)
    yield from walk(source, offset, border - offset, above=plan.shared)
    if border < end:
        yield from walk(source, border, end - border)


def tasks_of(
    extents: Iterator[Extent], chunk: int, granule: int, unit: int, plan: CopyPlan, left: Callable[[Extent], None]
) -> Iterator[Task]:
    """Extents as tasks, or long stretches of whole units that are to be zeros.

    What lies in one chunk is one task, so that no two tasks write to the same unit. Where a chunk's end lies inside
    something that can only be decoded whole, the task goes on to the end of that: it need not be decoded twice.

    :param left: told of each extent for which nothing need be done.
    """
    window: list[Extent] = []
    border = limit = 0
    for extent in extents:
        zeros = extent.reads_as_zeros
        if not zeros and extent.end <= limit:  # as most compressed ones do
            window.append(extent)
            continue
        for part in _zeros_apart(extent, unit, plan) if zeros else (extent,):
            if zeros and _left_out(part, plan):
                left(part)
                continue
            if zeros and part.length >= chunk and plan.sparse:
                if window:
                    yield Task(window[0].start, window[-1].end, window)
                    window = []
                yield Task(part.start, part.end, [], zeros=True)
                continue
            at = part.start
            while at < part.end:
                if at >= limit:
                    if window:
                        yield Task(window[0].start, window[-1].end, window)
                        window = []
                    border = limit = round_down(at, chunk) + chunk
                if part.unit and part.end > limit == border:  # once: the next unit may begin before the granule ends
                    limit = round_up(part.end, granule)
                upto = min(limit, part.end)
                window.append(part if (at, upto) == (part.start, part.end) else part.clip(at, upto))
                at = upto
    if window:
        yield Task(window[0].start, window[-1].end, window)


def _left_out(extent: Extent, plan: CopyPlan) -> bool:
    """Whether nothing need be done for an extent that reads as zeros."""
    if extent.kind is Kind.HOLE and plan.shared is not None:
        return plan.shared_size is None or extent.end <= plan.shared_size
    return plan.zeroed and plan.sparse > 0


def _zeros_apart(extent: Extent, unit: int, plan: CopyPlan) -> Iterator[Extent]:
    """Zeros that must be put into the target: their whole units apart from what shares a unit with data."""
    if _left_out(extent, plan):
        yield extent
        return
    low, high = min(round_up(extent.start, unit), extent.end), max(round_down(extent.end, unit), extent.start)
    if low >= high:
        yield extent
        return
    for start, end in ((extent.start, low), (low, high), (high, extent.end)):
        if start < end:
            yield extent.clip(start, end)
