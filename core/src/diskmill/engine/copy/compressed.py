"""Into a new image, compressed: whole units, each once; and the same over a backing image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...contract.extents import Placement
from ...contract.node import Image
from ...sizes import round_down, round_up
from ..walk import walk
from ..zeros import data_runs
from .fresh import Fresh
from .gauge import Gauge
from .plan import CopyPlan
from .stretches import Stretch, touched
from .tasks import Task
from .writer import Turns, Window, write_vector

_Payload = bytes | bytearray | memoryview | None
"""What a unit is stored as; None: verbatim."""
_Unit = tuple[int, int, _Payload]
"""Guest offset, guest length, payload."""
_Write = tuple[Placement, _Payload]


class Compressed(Fresh):
    """Compresses units in parallel, and stores them where that makes them smaller, or must be."""

    def __init__(self, target: Image, plan: CopyPlan, gauge: Gauge) -> None:
        super().__init__(target, plan, gauge)
        self.encoder = target.encoder()
        self.ordered = self.ordered or target.sequential

    def write(self, window: Window, turns: Turns) -> None:
        self.write_units(window, self.data(window), turns)

    def write_units(self, window: Window, runs: Sequence[Stretch], turns: Turns, zeros: Sequence[Stretch] = ()) -> None:
        """Encode, reserve and store the units of *runs*; let those of *zeros* read as such."""
        units = self.encoded(window.view, window.low, runs)
        turns.wait(window.turn)
        for start, end in zeros:
            self.target.zero(start, end - start)
        if self.whole:  # what a format puts between units when it reserves, a table, say, comes after those before
            for unit in units:
                self.store_all(self.place([unit]), window.low, window.view)
            return
        writes = self.place(units)
        turns.passed()
        self.store_all(writes, window.low, window.view)

    def encoded(self, view: memoryview, low: int, runs: Sequence[Stretch]) -> list[_Unit]:
        """The units of *runs* with their payloads; *view* is guest bytes from *low* on."""
        encoder, unit = self.encoder, self.target.unit
        units: list[_Unit] = []
        for start, end in runs:
            for at in range(start, end, unit):
                upto = min(at + unit, end)
                data = view[at - low : upto - low]
                if len(data) < unit:
                    data = memoryview(bytes(data) + bytes(unit - len(data)))
                units.append((at, upto - at, encoder.encode(at, data)))
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
            write_vector(placement.node, placement.offset, vector)
        with self.target.lock:
            self.target.publish([placement for placement, _ in writes])


class Overlay(Compressed):
    """Over a backing image, into an image that takes whole units, once: what a task's extents leave of theirs is
    completed with what the target's backing image has there."""

    def wanted(self, task: Task, low: int, high: int) -> list[Stretch]:
        return touched(task.extents, low, high, self.target.unit)

    def write(self, window: Window, turns: Turns) -> None:
        extents, index = window.task.extents, 0
        for at, end in window.stretches:
            while index < len(extents) and extents[index].start < end:
                self.complete(window, at, extents[index].start)
                at = extents[index].end
                index += 1
            self.complete(window, at, end)
        if self.target.sequential:  # which has no other way to say that there are zeros
            self.write_units(window, window.stretches, turns)
        else:
            data, zeros = self.told_apart(window)
            self.write_units(window, data, turns, zeros)

    def told_apart(self, window: Window) -> tuple[list[Stretch], list[Stretch]]:
        """The units of *window* that hold data, and those of zeros."""
        data: list[Stretch] = []
        zeros: list[Stretch] = []
        for start, end in window.stretches:
            at = start
            for offset, length in data_runs(window.buffer, start - window.low, end - window.low, self.target.unit):
                begin = window.low + offset
                if at < begin:
                    zeros.append((at, begin))
                at = begin + length
                data.append((begin, at))
            if at < end:
                zeros.append((at, end))
        return data, zeros

    def complete(self, window: Window, start: int, end: int) -> None:
        """Fill guest bytes *start* to *end* of *window* from the target's backing image."""
        if start < end and self.target.backing is not None:
            self.target.backing.read_into(start, window.view[start - window.low : end - window.low])

    def zeros(self, task: Task, turns: Turns, turn: int) -> None:
        """Put units of zeros over what the target's backing image has."""
        if not self.target.sequential:
            super().zeros(task, turns, turn)
            return
        turns.wait(turn)
        self.hide(task.start, task.end)
        turns.passed()

    def hide(self, start: int, end: int) -> None:
        """Units of zeros over what the backing image has in whole units from *start* to *end*."""
        target, backing = self.target, self.target.backing
        inside = start if backing is None else min(end, backing.size)
        view, at = memoryview(bytes(self.gauge.chunk)), start
        for extent in walk(backing, start, inside - start) if backing is not None and start < inside else ():
            if extent.reads_as_zeros:
                continue
            at = max(at, round_down(extent.start, target.unit))
            upto = min(round_up(extent.end, target.unit), end)
            while at < upto:
                length = min(self.gauge.chunk, upto - at)
                self.store_all(self.place(self.encoded(view, at, [(at, at + length)])), at, view)
                at += length


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
