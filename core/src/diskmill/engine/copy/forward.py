"""Into a new output that takes its bytes once, in order: read by several threads, written in turn."""

from __future__ import annotations

from ...contract.node import Image
from .fresh import Fresh
from .gauge import Gauge
from .plan import CopyPlan
from .tasks import Task
from .writer import Turns, Window

_AT_ONCE = Turns(lambda turn: None, lambda: None, ordered=False)


class Forward(Fresh):
    """Writes units verbatim, one task after the other. What is left out reads as zeros."""

    def __init__(self, target: Image, plan: CopyPlan, gauge: Gauge) -> None:
        super().__init__(target, plan, gauge)
        self.ordered = True

    def write(self, window: Window, turns: Turns) -> None:
        turns.wait(window.turn)
        super().write(window, _AT_ONCE)
        turns.passed()

    def zeros(self, task: Task, turns: Turns, turn: int) -> None:
        turns.wait(turn)
        super().zeros(task, _AT_ONCE, turn)
        turns.passed()
