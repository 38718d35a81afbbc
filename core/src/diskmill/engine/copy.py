"""Copying: guest bytes of any node into any image, by several threads, in bounded memory.

The source is walked for its extents; stretches of data become tasks of at most a chunk. A worker reads a chunk,
finds the units in it that are not zeros, reserves places for those in the target, writes, and publishes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ..contract.extents import Encoder, Extent, Kind, Placement
from ..contract.node import Image, Node, Storage
from ..errors import DiskmillError
from ..sizes import KiB, MiB, round_down, round_up
from . import beneath
from .access import fill_zeros, place_decoded, put, read_extent, store, write_phases
from .progress import Progress, RateLimit
from .walk import walk
from .workers import Workers
from .zeros import data_runs

CHUNK = 1536 * KiB
"""Bytes in a task: small enough that what is read is still near the processor when it is written, large enough that
Python's part of a task counts little. Measured: a copy takes 5 % longer with 1 MiB, 25 % with 512 KiB, and with 2 MiB
as long or twice as long."""
_GATHER = 2 * MiB
"""The most stored bytes that are read at once for a chunk of compressed extents."""
_DENSE = 5 / 6
"""How much of a run of units must be data for zeros in them to be written too: to write many pieces takes longer."""


@dataclass
class CopyPlan:
    """How to copy.

    :param sparse: the shortest stretch of zeros, in bytes, that is left out of the target; 0: write zeros too.
    :param zeroed: the target is known to read as zeros already, so that nothing need be done for zeros.
    :param compress: store units compressed where that makes them smaller.
    :param in_order: lay the target out in guest order, so that the same input gives the same file.
    :param shared: an image of the source's backing chain that reads as the target's backing image does: what the
        source has from there is left to that. Nothing else is: not holes with nothing behind them, which are zeros.
    :param shared_size: how many bytes the target's backing image gives, where *shared* may be larger.
    :param offload: let the kernel copy from file to file where both ends are files, without looking for zeros.
    :param threads: how many; None: as many as the process has processors, or more where storages ask for that.
    :param salvage: where the source cannot be read, write zeros and call this with (offset, length, error).
    """

    sparse: int = 4096
    zeroed: bool = False
    compress: bool = False
    in_order: bool = True
    shared: Image | None = None
    shared_size: int | None = None
    offload: bool = False
    threads: int | None = None
    salvage: Callable[[int, int, DiskmillError], None] | None = None


_Payload = bytes | bytearray | memoryview | None
"""What a unit is stored as; None: verbatim."""
_Unit = tuple[int, int, _Payload]
"""Guest offset, guest length, payload."""
_Stretch = tuple[int, int]
"""Guest offsets: where it starts, and where it ends."""
_Write = tuple[Placement, _Payload]


@dataclass
class _Task:
    start: int
    end: int
    extents: list[Extent]
    zeros: bool = False


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
) -> None:
    """Make guest bytes of *target* read as those of *source*: of one node, or of several one after the other.

    :param source_offset: where to begin in the source (in each, where there are several).
    :param length: how many bytes; None: up to the source's end. They fit in the target.
    :raises CancelledError: *cancel* was set.
    """
    progress = progress or Progress()
    if isinstance(target, Image) and target.detect_zeroes != "off" and not plan.sparse:
        plan = replace(plan, sparse=CopyPlan.sparse)
    if not plan.zeroed and "zero" not in target.driver.capabilities:
        plan = replace(plan, sparse=0)  # zeros are written like data, so there is no use in looking for them
    if plan.compress:
        plan = replace(plan, sparse=target.unit)  # a unit of zeros is never worth a place
    sources = [source] if isinstance(source, Node) else source
    graphs = [*sources, target]
    threads = plan.threads or beneath.threads(graphs)
    copier = _Copier(target, plan, progress, limit or RateLimit(), beneath.chunk(graphs, CHUNK, threads))
    extents = _joined(sources, source_offset, target_offset, length, plan)
    tasks = _tasks(extents, copier.chunk, copier.granule, target.unit, plan, progress)
    interrupt = partial(beneath.interrupt, graphs)
    Workers(tasks, copier.worker, threads=threads, cancel=cancel, interrupt=interrupt).run()


def _joined(sources: Sequence[Node], offset: int, at: int, length: int | None, plan: CopyPlan) -> Iterator[Extent]:
    """The extents of *sources*, from *offset* on, moved to where they go in the target: from *at* on.

    One stream for all, because where one source ends and the next begins they may share a unit of the target.
    """
    for source in sources:
        count = source.size - offset if length is None else length
        extents = _extents(source, offset, count, plan)
        shift = at - offset
        yield from (extent.moved(shift) for extent in extents) if shift else extents
        at += count


def _extents(source: Node, offset: int, count: int, plan: CopyPlan) -> Iterator[Extent]:
    """The extents of *source*; a hole is what is left to the target's backing image, where there is one in common."""
    end = offset + count
    border = end if plan.shared_size is None else min(max(offset, plan.shared_size), end)
    yield from walk(source, offset, border - offset, above=plan.shared)
    if border < end:
        yield from walk(source, border, end - border)


def _tasks(
    extents: Iterator[Extent], chunk: int, granule: int, unit: int, plan: CopyPlan, progress: Progress
) -> Iterator[_Task]:
    """Extents as tasks, or long stretches of whole units that are to be zeros.

    What lies in one chunk is one task, so that no two tasks write to the same unit. Where a chunk's end lies inside
    something that can only be decoded whole, the task goes on to the end of that: it need not be decoded twice.
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
                progress.advance(part.length)
                continue
            if zeros and part.length >= chunk and plan.sparse:
                if window:
                    yield _Task(window[0].start, window[-1].end, window)
                    window = []
                yield _Task(part.start, part.end, [], zeros=True)
                continue
            at = part.start
            while at < part.end:
                if at >= limit:
                    if window:
                        yield _Task(window[0].start, window[-1].end, window)
                        window = []
                    border = limit = round_down(at, chunk) + chunk
                if part.unit and part.end > limit == border:  # once: the next unit may begin before the granule ends
                    limit = round_up(part.end, granule)
                upto = min(limit, part.end)
                window.append(part if (at, upto) == (part.start, part.end) else part.clip(at, upto))
                at = upto
    if window:
        yield _Task(window[0].start, window[-1].end, window)


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


class _Buffers:
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


class _Copier:
    def __init__(self, target: Image, plan: CopyPlan, progress: Progress, limit: RateLimit, chunk: int) -> None:
        self.target = target
        self.plan = plan
        self.progress = progress
        self.limit = limit
        # Zeros are looked for in whole units (a chunk is whole granules), and more closely where parts of units count.
        self.fine = min(max(plan.sparse, 512), 2 * MiB)
        self.granule = round_up(self.fine, target.unit)
        # What the source says is a hole becomes one, however short.
        self.hole = min(self.fine, 4 * KiB)
        self.edge = round_up(self.hole, target.unit)
        self.closely = plan.sparse > 0 and (self.hole < self.edge or self.fine < self.granule)
        self.chunk = round_up(chunk, self.granule)
        self.encoder: Encoder | None = target.encoder() if plan.compress or target.sequential else None
        # Where nothing is allocated, the order of writes leaves no trace.
        self.ordered = target.sequential or plan.in_order and (target.unit > 1 or plan.compress)

    def worker(self, workers: Workers[_Task]) -> Callable[[_Task, int], None]:
        buffers = _Buffers(self.chunk)

        def work(task: _Task, turn: int) -> None:
            self.deal(workers, task, turn, buffers)
            self.progress.advance(task.end - task.start)

        return work

    def deal(self, workers: Workers[_Task], task: _Task, turn: int, buffers: _Buffers) -> None:
        """One task: read, find data, reserve, write, publish."""
        target, plan = self.target, self.plan
        if task.zeros:
            self.wait(workers, turn)
            if target.sequential:
                self.hide(task.start, task.end)
            else:
                target.zero(task.start, task.end - task.start)
            self.passed(workers)
            return
        self.limit.take(task.end - task.start)
        if plan.offload and not plan.compress and self.offload(task.extents):
            return
        if not plan.zeroed:
            if target.sequential:
                self.deal_overlay(workers, task, turn, buffers)
            else:
                self.deal_in_place(workers, task, turn, buffers)
            return
        # Whole units, so that a fresh unit is completed with zeros here and not by reading the target.
        low = round_down(task.start, target.unit)
        high = min(round_up(task.end, target.unit), target.size)
        buffer = buffers.for_guest(high - low)  # a unit of the source may reach beyond the chunk
        view = memoryview(buffer)[: high - low]
        stretches = _stretches(task.extents, low, high, self.edge) if plan.sparse else [(low, high)]
        self.read(task.extents, stretches, view, low, buffers)
        data = _data(buffer, low, stretches, self.granule) if plan.sparse else [(low, high)]
        if self.encoder is not None:
            self.deal_compressed(workers, turn, view, low, [(begin - low, end - begin) for begin, end in data])
            return
        runs = data
        if target.subunit:
            data = self.look_closely(task, data, buffer, low, high)
            runs = _rounded_out(data, target.unit, high)
        self.wait(workers, turn)
        with target.lock:
            placed = [placement for begin, end in runs for placement in target.reserve(begin, end - begin)]
        self.passed(workers)
        if not target.subunit and not all(placement.fresh for placement in placed):
            data = self.look_closely(task, data, buffer, low, high)
        if data is runs:
            for placement in placed:
                self.store(placement, low, view)
        else:
            placed = self.store_parts(placed, data, low, view)
        with target.lock:
            target.publish(placed)

    def look_closely(self, task: _Task, data: list[_Stretch], buffer: bytearray, low: int, high: int) -> list[_Stretch]:
        """What of *data*, runs of units, is not zeros, however little: *buffer* begins at guest byte *low*.

        *data* itself where it makes no difference.
        """
        if not self.closely:
            return data
        result: list[_Stretch] = []
        touched = _stretches(task.extents, low, high, self.hole)
        for run, found in zip(data, _shared_out(touched, data), strict=True):
            if self.fine < self.granule:
                found = _data(buffer, low, found, self.fine)
            dense = sum(end - begin for begin, end in found) > (run[1] - run[0]) * _DENSE
            result += [run] if dense else found
        return result

    def store_parts(
        self, placed: Sequence[Placement], data: Sequence[_Stretch], low: int, view: memoryview
    ) -> list[Placement]:
        """Let *placed* read as *view*, guest bytes from *low* on: zeros but for *data*. So reads the target there.

        :return: what is to be published.
        """
        result: list[Placement] = []
        borders = ((placement.start, placement.end) for placement in placed)
        for placement, inside in zip(placed, _shared_out(data, borders), strict=True):
            if not placement.fresh and placement.cipher is None:
                # Its bytes are zeros already, maybe without space of their own: that is left so.
                for begin, end in inside:
                    put(placement, begin, view[begin - low : end - low])
                result.append(placement)
                continue
            parts = [placement]
            if placement.part:
                touched = _rounded_out(inside, placement.part, placement.end)
                parts = [placement.clip(begin, end) for begin, end in touched]
            for part in parts:
                self.store(part, low, view)
            result += parts
        return result

    def offload(self, extents: Sequence[Extent]) -> bool:
        """Let the target's storage take *extents* in its own way; False: it cannot, or not all of them."""
        target = self.target
        if target.unit > 1:
            return False
        for extent in extents:
            if extent.kind is not Kind.DATA or extent.node is None:
                return False
            with target.lock:
                placed = target.reserve(extent.start, extent.length)
            for placement in placed:
                into, start = placement.node, extent.offset + placement.start - extent.start
                if not isinstance(into, Storage) or placement.cipher is not None:
                    return False
                if not into.take_from(extent.node, start, placement.offset, placement.length):
                    return False
        return True

    def deal_in_place(self, workers: Workers[_Task], task: _Task, turn: int, buffers: _Buffers) -> None:
        """One task of a copy onto contents that matter: each stretch of the task's extents by itself."""
        base = round_down(task.start, self.chunk)
        buffer = buffers.for_guest(round_up(task.end, self.granule) - base)
        stretches: list[list[Extent]] = []
        for extent in task.extents:
            if stretches and stretches[-1][-1].end == extent.start:
                stretches[-1].append(extent)
            else:
                stretches.append([extent])
        for stretch in stretches:
            start, end = stretch[0].start, stretch[-1].end
            self.read(stretch, [(start, end)], memoryview(buffer)[start - base : end - base], start, buffers)
        self.wait(workers, turn)
        for stretch in stretches:
            self.write_stretch(stretch[0].start, stretch[-1].end, buffer, base)
        self.passed(workers)

    def deal_overlay(self, workers: Workers[_Task], task: _Task, turn: int, buffers: _Buffers) -> None:
        """One task of a copy into a new image that takes whole units, once: what the task's extents leave of theirs is
        completed with what the target's backing image has there.
        """
        low = round_down(task.start, self.target.unit)
        high = min(round_up(task.end, self.target.unit), self.target.size)
        view = memoryview(buffers.for_guest(high - low))[: high - low]
        stretches = _stretches(task.extents, low, high, self.target.unit)
        self.read(task.extents, stretches, view, low, buffers)
        index = 0
        for at, end in stretches:
            while index < len(task.extents) and task.extents[index].start < end:
                self.complete(view, low, at, task.extents[index].start)
                at = task.extents[index].end
                index += 1
            self.complete(view, low, at, end)
        self.deal_compressed(workers, turn, view, low, [(begin - low, end - begin) for begin, end in stretches])

    def complete(self, view: memoryview, base: int, start: int, end: int) -> None:
        """Fill guest bytes *start* to *end* of *view*, which begins at *base*, from the target's backing image."""
        if start < end and self.target.backing is not None:
            self.target.backing.read_into(start, view[start - base : end - base])

    def hide(self, start: int, end: int) -> None:
        """Put units of zeros over what the target's backing image has in whole units from *start* to *end*."""
        target, backing = self.target, self.target.backing
        inside = start if backing is None else min(end, backing.size)
        view, at = memoryview(bytes(self.chunk)), start
        for extent in walk(backing, start, inside - start) if backing is not None and start < inside else ():
            if extent.reads_as_zeros:
                continue
            at = max(at, round_down(extent.start, target.unit))
            upto = min(round_up(extent.end, target.unit), end)
            while at < upto:
                length = min(self.chunk, upto - at)
                self.store_all(self.place(self.encoded(view, at, [(0, length)])), at, view)
                at += length

    def write_stretch(self, start: int, end: int, buffer: bytearray, base: int) -> None:
        """Guest bytes *start* to *end*, which are in *buffer* from guest *base* on: data as data, zeros as zeros."""
        view = memoryview(buffer)
        if not self.plan.sparse:
            self.write_data(start, view[start - base : end - base])
            return
        step = round_up(self.fine, self.target.subunit or self.target.unit)
        low = base + round_down(start - base, step)
        at = start
        whole = bytearray(view[low - base : end - base]) if low != base else buffer
        for offset, length in data_runs(whole, 0, end - low, step):
            begin, upto = max(low + offset, start), low + offset + length
            if begin > at:
                self.target.zero(at, begin - at)
            if begin < upto:
                self.write_data(begin, view[begin - base : upto - base])
                at = upto
        if at < end:
            self.target.zero(at, end - at)

    def write_data(self, start: int, data: memoryview) -> None:
        target, encoder = self.target, self.encoder
        if encoder is None:
            write_phases(target, start, data)
            return
        for at in range(start, start + len(data), target.unit):
            piece = data[at - start : at - start + target.unit]
            payload = encoder.encode(at, piece) if at % target.unit == 0 and len(piece) == target.unit else None
            if payload is None:
                write_phases(target, at, piece)
                continue
            with target.lock:
                placements = target.reserve_encoded([(at, len(piece), len(payload))])
                _write_vector(placements[0].node, placements[0].offset, [payload])
                target.publish(placements)

    def wait(self, workers: Workers[_Task], turn: int) -> None:
        if self.ordered:
            workers.in_turn(turn)

    def passed(self, workers: Workers[_Task]) -> None:
        if self.ordered:
            workers.done()

    def read(
        self,
        extents: Sequence[Extent],
        stretches: Sequence[_Stretch],
        view: memoryview,
        base: int,
        buffers: _Buffers,
    ) -> None:
        """Fill those *stretches* of *view*, guest bytes from *base* on, with *extents* and zeros between them."""
        index = 0
        for at, end in stretches:
            while index < len(extents) and extents[index].start < end:
                extent = extents[index]
                if extent.start > at:
                    fill_zeros(view[at - base : extent.start - base])
                upto = index + 1
                if extent.unit:
                    while upto < len(extents) and _follows(extents[upto], extent, extents[upto - 1]):
                        upto += 1
                group = extents[index:upto]
                at = group[-1].end
                try:
                    _read_group(group, view[extent.start - base : at - base], buffers)
                except DiskmillError as error:
                    self.salvage(group, view, base, error)
                index = upto
            fill_zeros(view[at - base : end - base])

    def salvage(self, group: Sequence[Extent], view: memoryview, base: int, error: DiskmillError) -> None:
        if self.plan.salvage is None:
            raise error
        for extent in group:
            for at in range(extent.start, extent.end, 4096):
                part = extent.clip(at, at + 4096)
                into = view[part.start - base : part.end - base]
                try:
                    read_extent(part, into)
                except DiskmillError as cause:
                    fill_zeros(into)
                    self.plan.salvage(part.start, part.length, cause)

    def store(self, placement: Placement, low: int, view: memoryview) -> None:
        end = placement.start + placement.length
        begin, upto = max(placement.start, low), min(end, low + len(view))
        if placement.fresh and (begin > placement.start or upto < min(end, self.target.size)):
            store(self.target, placement, low, view)
            return
        put(placement, begin, view[begin - low : upto - low])
        if placement.fresh and upto < end:  # the unit goes on after the disk's end
            put(placement, upto, memoryview(bytes(end - upto)))

    def deal_compressed(
        self, workers: Workers[_Task], turn: int, view: memoryview, low: int, runs: Sequence[tuple[int, int]]
    ) -> None:
        units = self.encoded(view, low, runs)
        self.wait(workers, turn)
        writes = self.place(units)
        self.passed(workers)
        self.store_all(writes, low, view)

    def encoded(self, view: memoryview, low: int, runs: Sequence[tuple[int, int]]) -> list[_Unit]:
        """The units of *runs*, (offset, length) in *view*, which is guest bytes from *low* on, with their payloads."""
        encoder, unit = self.encoder, self.target.unit
        assert encoder is not None
        units: list[_Unit] = []
        for start, length in runs:
            for at in range(start, start + length, unit):
                upto = min(at + unit, start + length)
                data = view[at:upto]
                if len(data) < unit:
                    data = memoryview(bytes(data) + bytes(unit - len(data)))
                units.append((low + at, upto - at, encoder.encode(low + at, data)))
        return units

    def place(self, units: Sequence[_Unit]) -> list[_Write]:
        """Reserve places for *units*."""
        target = self.target
        writes: list[_Write] = []
        with target.lock:
            for encoded, group in _grouped(units):
                if encoded:
                    sizes = [(start, length, len(payload or b"")) for start, length, payload in group]
                    placed = target.reserve_encoded(sizes)
                    writes.extend(zip(placed, (payload for _, _, payload in group), strict=True))
                else:
                    start, end = group[0][0], group[-1][0] + group[-1][1]
                    writes.extend((placement, None) for placement in target.reserve(start, end - start))
        return writes

    def store_all(self, writes: list[_Write], low: int, view: memoryview) -> None:
        """Write payloads, those that are neighbours in the file with one call, and publish them."""
        index = 0
        while index < len(writes):
            placement, payload = writes[index]
            if payload is None:
                self.store(placement, low, view)
                index += 1
                continue
            vector, end = [payload], placement.offset + placement.stored
            index += 1
            while index < len(writes):
                following, more = writes[index]
                if more is None or following.node is not placement.node or following.offset != end:
                    break
                vector.append(more)
                end += following.stored
                index += 1
            _write_vector(placement.node, placement.offset, vector)
        with self.target.lock:
            self.target.publish([placement for placement, _ in writes])


def _write_vector(node: Node, offset: int, vector: Sequence[bytes | bytearray | memoryview]) -> None:
    if isinstance(node, Storage):
        node.write_vector(offset, vector)
        return
    node.write(offset, b"".join(vector))


def _grouped(units: Sequence[_Unit]) -> Iterator[tuple[bool, list[_Unit]]]:
    """Neighbours that are all encoded, or all verbatim and adjacent in the guest."""
    group: list[_Unit] = []
    for one in units:
        if group:
            last = group[-1]
            same = (last[2] is None) == (one[2] is None)
            if not same or (one[2] is None and last[0] + last[1] != one[0]):
                yield group[0][2] is not None, group
                group = []
        group.append(one)
    if group:
        yield group[0][2] is not None, group


def _follows(extent: Extent, first: Extent, previous: Extent) -> bool:
    """Whether *extent*'s payload comes after *previous*'s, near enough to be read along with it."""
    return (
        extent.unit > 0
        and extent.node is first.node
        and extent.start == previous.end
        and 0 <= extent.offset - previous.offset <= previous.stored + 4 * KiB
        and extent.offset + extent.stored - first.offset <= _GATHER
    )


def _stretches(extents: Sequence[Extent], low: int, high: int, edge: int) -> list[_Stretch]:
    """(start, end) of the stretches of guest bytes *low* to *high* that extents touch, in steps of *edge* from *low*.

    What lies between them are zeros that need not be looked at.
    """
    result: list[_Stretch] = []
    begin = end = low
    for extent in extents:
        if extent.start > end:
            first, upto = low + round_down(extent.start - low, edge), low + round_up(end - low, edge)
            if first > upto:
                if begin < upto:
                    result.append((begin, upto))
                begin = first
        end = extent.end
    if begin < end:
        result.append((begin, min(low + round_up(end - low, edge), high)))
    return result


def _data(buffer: bytearray, low: int, stretches: Sequence[_Stretch], granule: int) -> list[_Stretch]:
    """What of *stretches* is not zeros, in whole granules from the start of each; *buffer* begins at guest *low*."""
    return [
        (low + at, low + at + length)
        for begin, end in stretches
        for at, length in data_runs(buffer, begin - low, end - low, granule)
    ]


def _rounded_out(stretches: Sequence[_Stretch], unit: int, limit: int) -> list[_Stretch]:
    """The whole units, up to *limit*, that *stretches* touch."""
    result: list[_Stretch] = []
    for start, end in stretches:
        start, end = round_down(start, unit), min(round_up(end, unit), limit)
        if result and start <= result[-1][1]:
            start = result.pop()[0]
        result.append((start, end))
    return result


def _shared_out(stretches: Sequence[_Stretch], borders: Iterable[_Stretch]) -> Iterator[list[_Stretch]]:
    """What of *stretches* lies within each of *borders*; both are in order."""
    index = 0
    for start, end in borders:
        inside: list[_Stretch] = []
        while index < len(stretches) and stretches[index][0] < end:
            low, high = stretches[index]
            if high > start:
                inside.append((max(low, start), min(high, end)))
            if high > end:
                break
            index += 1
        yield inside


def _read_group(group: Sequence[Extent], view: memoryview, buffers: _Buffers) -> None:
    """Fill *view* from neighbouring extents, compressed payloads with one read for all."""
    first = group[0]
    if not first.unit:
        read_extent(first, view)
        return
    assert first.node is not None
    end = max(extent.offset + extent.stored for extent in group)  # payloads may overlap
    stored = buffers.for_stored(end - first.offset)
    first.node.read_into(first.offset, stored)
    for extent in group:
        at = extent.offset - first.offset
        place_decoded(
            extent, stored[at : at + extent.stored], view[extent.start - first.start : extent.end - first.start]
        )
