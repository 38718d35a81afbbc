"""Comparing what two nodes read as, by several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

from ..contract.extents import Extent, Kind
from ..contract.node import Node
from ..errors import CancelledError
from ..sizes import SECTOR, KiB, MiB, new_buffer, round_down, round_up
from . import leaves
from .access import read_extent
from .progress import Progress
from .walk import walk
from .workers import Order, Workers
from .zeros import ZEROS

_CHUNK = 512 * KiB
_GLIMPSE = 64 * KiB
"""Bytes of a block that is looked at."""
_GLIMPSES = 256
"""How many blocks are looked at in one long extent; in all there are four times as many."""

_MOST_EXTENTS = 1000
"""A server may take a moment for each."""

Pair = tuple[Extent, Extent]


def pairs(left: Node, right: Node, length: int) -> Iterator[Pair]:
    """The extents of both nodes' first *length* bytes, cut so that both of a pair cover the same range."""
    lefts, rights = walk(left, 0, length), walk(right, 0, length)
    a, b = next(lefts, None), next(rights, None)
    at = 0
    while a is not None and b is not None:
        end = min(a.end, b.end)
        yield a.clip(at, end), b.clip(at, end)
        at = end
        if a.end == end:
            a = next(lefts, None)
        if b.end == end:
            b = next(rights, None)


def first_difference(
    left: Node,
    right: Node,
    length: int,
    *,
    watch: Callable[[Extent, Extent], bool] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> int | None:
    """The offset of the first sector of 512 bytes that differs in the first *length* bytes; None: none does.

    :param watch: sees every pair of extents in order; True stops the comparison there.
    """
    found = _Found()
    tasks = _tasks(pairs(left, right, length), found, watch, progress or Progress())
    comparer = _Comparer(found, leaves.order((left, right)), progress or Progress())
    count, interrupt = threads or leaves.threads((left, right)), partial(leaves.interrupt, (left, right))
    Workers(tasks, comparer.worker, threads=count, cancel=cancel, interrupt=interrupt).run()
    return found.offset


class _Found:
    """The lowest offset of a difference that any worker has seen."""

    def __init__(self) -> None:
        self.offset: int | None = None
        self._lock = threading.Lock()

    def at(self, offset: int) -> None:
        with self._lock:
            self.offset = offset if self.offset is None else min(self.offset, offset)


def _tasks(
    source: Iterator[Pair], found: _Found, watch: Callable[[Extent, Extent], bool] | None, progress: Progress
) -> Iterator[list[Pair]]:
    task: list[Pair] = []
    for a, b in source:
        if found.offset is not None or (watch is not None and watch(a, b)):
            break
        if a.reads_as_zeros and b.reads_as_zeros:
            progress.advance(a.length)
            continue
        at = a.start
        while at < a.end and found.offset is None:
            base = round_down(at, _CHUNK)
            if task and (round_down(task[0][0].start, _CHUNK) != base or task[-1][0].end != at):
                yield task
                task = []
            upto = min(base + _CHUNK, a.end)
            task.append((a.clip(at, upto), b.clip(at, upto)))
            at = upto
    if task:
        yield task


class _Comparer:
    def __init__(self, found: _Found, order: Order, progress: Progress) -> None:
        self.found = found
        self.order = order
        self.progress = progress

    def worker(self, workers: Workers[list[Pair]]) -> Callable[[list[Pair], int], None]:
        left, right = new_buffer(_CHUNK), new_buffer(_CHUNK)

        def work(task: list[Pair], turn: int) -> None:
            start, end = task[0][0].start, task[-1][0].end
            length = end - start
            with self.order.reading(turn, workers.check):
                for a, b in task:
                    for extent, side in ((a, left), (b, right)):
                        read_extent(extent, memoryview(side)[extent.start - start : extent.end - start])
            # Only whole bytearrays compare at memory speed.
            same = left == right if length == _CHUNK else left[:length] == right[:length]
            if not same:
                self.found.at(start + _first_sector(left, right, length))
            else:
                self.progress.advance(length)

        return work


def _first_sector(left: bytearray, right: bytearray, length: int) -> int:
    for at in range(0, length, SECTOR):
        end = min(at + SECTOR, length)
        if left[at:end] != right[at:end]:
            return at
    raise AssertionError("there is a difference")


def known_blank(node: Node, length: int) -> bool:
    """Whether extents alone tell that the first *length* bytes read as zeros, and few of them do."""
    at = 0
    for extent in islice(walk(node, 0, length), _MOST_EXTENTS):
        if not extent.reads_as_zeros:
            return False
        at = extent.end
    return at == length


def glimpsed_data(node: Node, length: int) -> int | None:
    """The offset of a block of the first *length* bytes that holds other than zeros; None: none was seen.

    Not all is read: of what is said to hold data the first MiB, the beginning and the end of each extent, and blocks
    all over long ones. It takes a moment however large the node is.
    """
    step = round_up(max(length // _GLIMPSES, _GLIMPSE), _GLIMPSE)
    left = 4 * _GLIMPSES
    glimpse = bytearray(_GLIMPSE)
    for extent in walk(node, 0, length):
        if extent.reads_as_zeros:
            continue
        at = extent.start
        while at < extent.end and left:
            count = min(_GLIMPSE, extent.end - at)
            node.read_into(at, memoryview(glimpse)[:count])
            left -= 1
            if not glimpse.startswith(ZEROS[:count]):
                return at
            following = at + _GLIMPSE if at < MiB else round_down(at, step) + step
            at = max(min(following, extent.end - _GLIMPSE), at + _GLIMPSE)
        if not left:
            break
    return None


def first_data(
    node: Node,
    offset: int,
    *,
    end: int | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> int | None:
    """The offset of the first sector from *offset* on, before *end*, that does not read as zeros; None: all does.

    :raises CancelledError: *cancel* was set.
    """
    chunk = new_buffer(_CHUNK)
    for extent in walk(node, offset, (node.size if end is None else end) - offset):
        if extent.kind in (Kind.DATA, Kind.ENCODED):
            for at in range(extent.start, extent.end, _CHUNK):
                if cancel is not None and cancel.is_set():
                    raise CancelledError("cancelled")
                part = extent.clip(at, at + _CHUNK)
                read_extent(part, memoryview(chunk)[: part.length])
                for sector in range(0, part.length, SECTOR):
                    if not chunk.startswith(ZEROS[: min(SECTOR, part.length - sector)], sector):
                        return part.start + sector
        if progress is not None:
            progress.advance(extent.length)
    return None
