"""Into a new image, or one that is known to read as zeros: zeros are left out, data goes to fresh places."""

from __future__ import annotations

from collections.abc import Sequence

from ...contract.extents import Placement
from ..access import put
from .stretches import Stretch, data_in, rounded_out, shared_out, touched
from .tasks import Task
from .writer import Turns, Window, Writer

_DENSE = 5 / 6
"""How much of a run of units must be data for zeros in them to be written too: to write many pieces takes longer."""


class Fresh(Writer):
    """Writes units verbatim."""

    def wanted(self, task: Task, low: int, high: int) -> list[Stretch]:
        return touched(task.extents, low, high, self.gauge.edge) if self.plan.sparse else [(low, high)]

    def data(self, window: Window) -> list[Stretch]:
        """Runs of units that are not all zeros."""
        if not self.plan.sparse:
            return [(window.low, window.high)]
        return data_in(window.buffer, window.low, window.stretches, self.gauge.granule)

    def write(self, window: Window, turns: Turns) -> None:
        target, low, view = self.target, window.low, window.view
        data = runs = self.data(window)
        if target.subunit:
            data = self.look_closely(window, data)
            runs = rounded_out(data, target.unit, window.high)
        turns.wait(window.turn)
        with target.lock:
            placed = [placement for begin, end in runs for placement in target.reserve(begin, end - begin)]
        turns.passed()
        if not target.subunit and not all(placement.fresh for placement in placed):
            data = self.look_closely(window, data)
        if data is runs:
            self.store_each(placed, low, view)
        else:
            placed = self.store_parts(placed, data, low, view)
        with target.lock:
            target.publish(placed)

    def look_closely(self, window: Window, data: list[Stretch]) -> list[Stretch]:
        """What of *data*, runs of units, is not zeros, however little; *data* itself where it makes no difference."""
        gauge = self.gauge
        if not gauge.closely:
            return data
        result: list[Stretch] = []
        closer = touched(window.task.extents, window.low, window.high, gauge.hole)
        for run, found in zip(data, shared_out(closer, data), strict=True):
            if gauge.fine < gauge.granule:
                found = data_in(window.buffer, window.low, found, gauge.fine)
            dense = sum(end - begin for begin, end in found) > (run[1] - run[0]) * _DENSE
            result += [run] if dense else found
        return result

    def store_parts(
        self, placed: Sequence[Placement], data: Sequence[Stretch], low: int, view: memoryview
    ) -> list[Placement]:
        """Let *placed* read as *view*, guest bytes from *low* on: zeros but for *data*. So reads the target there.

        :return: what is to be published.
        """
        result: list[Placement] = []
        borders = ((placement.start, placement.end) for placement in placed)
        for placement, inside in zip(placed, shared_out(data, borders), strict=True):
            if not placement.fresh and placement.cipher is None:
                # Its bytes are zeros already, maybe without space of their own: that is left so.
                for begin, end in inside:
                    put(placement, begin, view[begin - low : end - low])
                result.append(placement)
                continue
            parts = [placement]
            if placement.part:
                parts = [placement.clip(*one) for one in rounded_out(inside, placement.part, placement.end)]
            for part in parts:
                self.store(part, low, view)
            result += parts
        return result
