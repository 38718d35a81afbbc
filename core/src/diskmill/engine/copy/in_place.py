"""Onto contents that matter: each stretch of a task's extents by itself, data as data and zeros as zeros."""

from __future__ import annotations

from ...contract.node import Image
from ...sizes import round_down, round_up
from ..access import write_phases
from ..zeros import data_runs
from .gauge import Gauge
from .plan import CopyPlan
from .stretches import Stretch
from .tasks import Task
from .writer import Turns, Window, Writer, write_vector


class InPlace(Writer):
    """Writes over what the target has."""

    def __init__(self, target: Image, plan: CopyPlan, gauge: Gauge) -> None:
        super().__init__(target, plan, gauge)
        self.encoder = target.encoder() if plan.compress else None

    def span(self, task: Task) -> Stretch:
        return round_down(task.start, self.gauge.chunk), round_up(task.end, self.gauge.granule)

    def wanted(self, task: Task, low: int, high: int) -> list[Stretch]:
        result: list[Stretch] = []
        for extent in task.extents:
            if result and result[-1][1] == extent.start:
                result[-1] = result[-1][0], extent.end
            else:
                result.append((extent.start, extent.end))
        return result

    def write(self, window: Window, turns: Turns) -> None:
        turns.wait(window.turn)
        for start, end in window.stretches:
            self.write_stretch(start, end, window.buffer, window.low)
        turns.passed()

    def write_stretch(self, start: int, end: int, buffer: bytearray, base: int) -> None:
        """Guest bytes *start* to *end*, which are in *buffer* from guest *base* on."""
        view = memoryview(buffer)
        if not self.plan.sparse:
            self.write_data(start, view[start - base : end - base])
            return
        step = round_up(self.gauge.fine, self.target.subunit or self.target.unit)
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
        """Guest bytes *data* from *start* on, whole units compressed where that is asked for."""
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
                write_vector(placements[0].node, placements[0].offset, [payload])
                target.publish(placements)
