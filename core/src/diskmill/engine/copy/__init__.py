"""Copying: guest bytes of any node into any image, by several threads, in bounded memory.

The stages: the source is walked for its extents, which become *tasks* of at most a chunk (:mod:`.tasks`); a worker
*reads* one (:mod:`.reading`); *watchers* look at what was read; and one *writer*, chosen once, finds what need not be
stored, reserves places in the target, writes, and publishes (:mod:`.writer`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

from ...contract.extents import Extent, Kind
from ...contract.node import Image, Node
from ...records import replace
from .. import leaves
from ..progress import Progress, RateLimit
from ..workers import Order, Workers
from .compressed import Compressed, Overlay
from .fresh import Fresh
from .gauge import CHUNK, Gauge
from .in_place import InPlace
from .plan import CopyPlan, Watcher
from .reading import Buffers, read
from .reflink import Reflink, reflink_of
from .tasks import Task, in_a_row, tasks_of
from .writer import Turns, Window, Writer

__all__ = ["CopyPlan", "Watcher", "copy"]


def copy(
    source: Node | Sequence[Node],
    target: Image,
    plan: CopyPlan,
    *,
    source_offset: int = 0,
    target_offset: int = 0,
    length: int | None = None,
    progress: Progress | None = None,
    limit: RateLimit | None = None,
    cancel: threading.Event | None = None,
    watchers: Sequence[Watcher] = (),
    reached: Callable[[int], None] | None = None,
    ranges: Iterable[tuple[int, int]] | None = None,
) -> None:
    """Make guest bytes of *target* read as those of *source*: of one node, or of several one after the other.

    :param source_offset: where to begin in the source: in all of them, where there are several.
    :param length: how many bytes; None: up to the (last) source's end. They fit in the target.
    :param watchers: shown all that is copied, at its guest offsets in the target.
    :param reached: told now and then, from any thread, up to which guest offset of the target everything is written and
        published: a checkpoint (which flushes it) may go on from there.
    :param ranges: only these guest ranges (offset, length) of the one source, ascending and apart.
    :raises CancelledError: *cancel* was set.
    """
    if target.detect_zeroes != "off" and not plan.sparse:
        plan = replace(plan, sparse=CopyPlan.sparse)
    if not plan.zeroed and "zero" not in target.driver.capabilities:
        plan = replace(plan, sparse=0)  # zeros are written like data, so there is no use in looking for them
    if plan.compress:
        plan = replace(plan, sparse=target.unit)  # a unit of zeros is never worth a place
    sources = [source] if isinstance(source, Node) else source
    graphs = [*sources, target]
    threads = plan.threads or leaves.threads(graphs)
    writer = _writer(target, plan, Gauge(target, plan, leaves.chunk(graphs, CHUNK, threads)))
    order = Order(1) if plan.one_by_one else leaves.order(sources)
    stored_anew = plan.compress or target.sequential or bool(watchers) or plan.salvage is not None
    reflink = reflink_of(plan.reflink, target, reads=stored_anew, sparse=plan.sparse > 0)
    copier = _Copier(writer, order, progress or Progress(), limit or RateLimit(), watchers, reached, reflink)
    extents = in_a_row(sources, source_offset, target_offset, length, plan)
    if ranges is not None:
        extents = (one for start, count in ranges for one in in_a_row(sources, start, start, count, plan))
    gauge = writer.gauge

    def cut(extents: Iterator[Extent]) -> Iterator[Task]:
        return tasks_of(extents, gauge.chunk, gauge.granule, target.unit, plan, copier.left_out)

    tasks = cut(extents) if reflink is None else reflink.tasks(extents, cut)
    interrupt = partial(leaves.interrupt, graphs)
    with ExitStack() as inside:
        for one in sources:
            if isinstance(one, Image) and one.writable and one is not target:
                inside.enter_context(one.reading())
        Workers(tasks, copier.worker, threads=threads, cancel=cancel, interrupt=interrupt).run()
    if reached is not None:
        reached(target_offset + (sum(one.size for one in sources) - source_offset if length is None else length))


def _writer(target: Image, plan: CopyPlan, gauge: Gauge) -> Writer:
    """The one that writes all of the copy."""
    if not plan.zeroed:
        whole = target.sequential or plan.compress and plan.shared is not None  # nothing is in the target yet
        return Overlay(target, plan, gauge) if whole else InPlace(target, plan, gauge)
    if plan.compress or target.sequential:
        return Compressed(target, plan, gauge)
    return Fresh(target, plan, gauge)


class _Copier:
    """Takes tasks through the stages."""

    def __init__(
        self,
        writer: Writer,
        order: Order,
        progress: Progress,
        limit: RateLimit,
        watchers: Sequence[Watcher],
        reached: Callable[[int], None] | None,
        reflink: Reflink | None = None,
    ) -> None:
        self.reached = reached
        self.reflink = reflink
        self.order = order
        self.writer = writer
        self.plan = writer.plan
        self.progress = progress
        self.limit = limit
        self.watchers = watchers
        # Places in a plain window need not be published.
        self.offloads = self.plan.offload and writer.target.unit == 1 and not (self.plan.compress or watchers)

    def left_out(self, extent: Extent) -> None:
        """Nothing need be done for *extent*."""
        for watcher in self.watchers:
            tell = watcher.zeros if extent.kind is not Kind.HOLE or self.plan.shared is None else watcher.shared
            tell(extent.start, extent.length)
        self.progress.advance(extent.length)

    def worker(self, workers: Workers[Task]) -> Callable[[Task, int], None]:
        """What a thread does with each task that it takes."""
        buffers = Buffers(self.writer.gauge.chunk)
        turns = Turns(workers.in_turn, workers.done, ordered=self.writer.ordered, whole=self.writer.whole)

        def work(task: Task, turn: int) -> None:
            self.deal(task, turn, turns, buffers, workers.check)
            self.progress.advance(task.length)
            if self.reached is not None and (first := workers.frontier()[0]) is not None:
                self.reached(first.start)  # this one counts as soon as it is handed back

        return work

    def deal(self, task: Task, turn: int, turns: Turns, buffers: Buffers, check: Callable[[], None]) -> None:
        """One task: read, show, write."""
        writer = self.writer
        if task.zeros:
            with self.order.reading(turn, check):
                pass
            with turns.writing(turn):
                writer.zeros(task, turns, turn)
            for watcher in self.watchers:
                watcher.zeros(task.start, task.end - task.start)
            return
        if task.shared:
            assert self.reflink is not None
            with self.order.reading(turn, check), turns.writing(turn):
                self.reflink.share(task, turn, turns, buffers, self.limit)
            return
        self.limit.take(task.length)
        if self.offloads and (len(task.extents) == 1 or not writer.whole):
            turns.begin(turn)
            if self.offload(task.extents):
                with self.order.reading(turn, check):
                    pass
                turns.end()
                return
            if writer.whole:
                self.offloads = False  # the next ones need not wait for their turns to be refused, too
        low, high = writer.span(task)
        buffer = buffers.for_guest(high - low)  # a unit of the source may reach beyond the chunk
        view = memoryview(buffer)[: high - low]
        stretches = writer.wanted(task, low, high)
        with self.order.reading(turn, check):
            read(task.extents, stretches, view, low, buffers, self.plan.salvage)
        if self.watchers:
            self.show(task.extents, view, low)
        with turns.writing(turn):
            writer.write(Window(task, turn, low, high, buffer, stretches), turns)

    def show(self, extents: Sequence[Extent], view: memoryview, low: int) -> None:
        """Let the watchers see *extents*, which were read to *view*, guest bytes from *low* on."""
        for extent in extents:
            for watcher in self.watchers:
                if extent.reads_as_zeros:
                    watcher.zeros(extent.start, extent.length)
                else:
                    watcher.data(extent.start, view[extent.start - low : extent.end - low])

    def offload(self, extents: Sequence[Extent]) -> bool:
        """Let the target's storage take *extents* in its own way; False: it cannot, or not all of them."""
        target = self.writer.target
        for extent in extents:
            if extent.kind is not Kind.DATA or extent.node is None:
                return False
            with target.lock:
                placed = target.reserve(extent.start, extent.length)
            for placement in placed:
                into, start = placement.node, extent.offset + placement.start - extent.start
                if placement.cipher is not None:
                    return False
                if not into.take_from(extent.node, start, placement.offset, placement.length):
                    return False
        return True
