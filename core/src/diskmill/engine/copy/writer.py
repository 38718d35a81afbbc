"""What all writers of a copy have in common.

A writer says which bytes of a task it wants in memory, and then puts them into the target. One is chosen for a whole
copy. What it does *in turn* it does for one task after the other, in guest order, so that the layout of the target does
not depend on chance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ...contract.extents import Placement
from ...contract.node import Image, Node
from ...sizes import round_down, round_up
from ..access import put, store
from .gauge import Gauge
from .plan import CopyPlan
from .stretches import Stretch
from .tasks import Task


class Window(NamedTuple):
    """A task in memory: *buffer* holds guest bytes *low* to *high*, of which *stretches* were read."""

    task: Task
    turn: int
    low: int
    high: int
    buffer: bytearray
    stretches: list[Stretch]

    @property
    def view(self) -> memoryview:
        """The bytes from *low* to *high*."""
        return memoryview(self.buffer)[: self.high - self.low]


class Turns:
    """Lets tasks pass a point in order.

    :param wait: blocks until all tasks before the one of that number have passed.
    :param passed: lets the next one pass.
    :param ordered: whether they pass a point of the writer's own.
    :param whole: whether all that is written for a task comes before what is written for the next one.
    """

    def __init__(
        self, wait: Callable[[int], None], passed: Callable[[], None], *, ordered: bool, whole: bool = False
    ) -> None:
        self._wait = wait
        self._passed = passed
        self._ordered = ordered and not whole
        self._whole = whole

    @contextmanager
    def writing(self, turn: int) -> Iterator[None]:
        """Around all that is written for one task."""
        self.begin(turn)
        yield
        self.end()

    def begin(self, turn: int) -> None:
        """Wait until all is written that comes before a task, where it must be; again for the same task, too."""
        if self._whole:
            self._wait(turn)

    def end(self) -> None:
        """All is written of the task that has begun."""
        if self._whole:
            self._passed()

    def wait(self, turn: int) -> None:
        """Wait for one's turn, where order matters."""
        if self._ordered:
            self._wait(turn)

    def passed(self) -> None:
        """Let the next one go on."""
        if self._ordered:
            self._passed()


class Writer(ABC):
    """Puts what was read into *target*."""

    ordered: bool
    """Whether tasks go in turn somewhere."""
    whole: bool
    """Whether each is written to its end before the next one: what the target stands on takes bytes once, in order."""

    def __init__(self, target: Image, plan: CopyPlan, gauge: Gauge) -> None:
        self.target = target
        self.plan = plan
        self.gauge = gauge
        self.whole = any(storage.forward for storage in target.leaves())
        in_order = plan.in_order or "writes-forward" in target.driver.capabilities
        # Where nothing is allocated, the order of writes leaves no trace.
        self.ordered = in_order and (target.unit > 1 or plan.compress)

    def span(self, task: Task) -> Stretch:
        """The guest bytes that are to be in memory: by default whole units, so that a fresh one is complete."""
        target = self.target
        return round_down(task.start, target.unit), min(round_up(task.end, target.unit), target.size)

    @abstractmethod
    def wanted(self, task: Task, low: int, high: int) -> list[Stretch]:
        """What of guest bytes *low* to *high* must be read, and what lies between read extents be zeros."""

    @abstractmethod
    def write(self, window: Window, turns: Turns) -> None:
        """Put what was read into the target, and publish it."""

    def zeros(self, task: Task, turns: Turns, turn: int) -> None:
        """Let the long stretch of zeros that *task* is read as zeros."""
        turns.wait(turn)
        self.target.zero(task.start, task.end - task.start)
        turns.passed()

    def store_each(self, placed: Sequence[Placement], low: int, view: memoryview) -> None:
        """Put what *view*, guest bytes from *low* on, has of each of *placed* into its place."""
        if len(placed) < 2 or placed[0].node.requests.at_once < 2 or any(one.fresh or one.cipher for one in placed):
            for placement in placed:
                self.store(placement, low, view)
            return
        nodes = {id(one.node): one.node for one in placed}
        for key, node in nodes.items():
            pieces = []
            for one in placed:
                if id(one.node) == key:
                    begin, upto = max(one.start, low), min(one.end, low + len(view))
                    node.event("write_aio")
                    pieces.append((one.offset + begin - one.start, view[begin - low : upto - low]))
            node.write_pieces(pieces)

    def store(self, placement: Placement, low: int, view: memoryview) -> None:
        """Put what *view*, guest bytes from *low* on, has of *placement* into its place; complete what is fresh."""
        end = placement.start + placement.length
        begin, upto = max(placement.start, low), min(end, low + len(view))
        if placement.fresh and (begin > placement.start or upto < min(end, self.target.size)):
            store(self.target, placement, low, view)
            return
        put(placement, begin, view[begin - low : upto - low])
        if placement.fresh and upto < end:  # the unit goes on after the disk's end
            put(placement, upto, memoryview(bytes(end - upto)))


def write_vector(node: Node, offset: int, vector: Sequence[bytes | bytearray | memoryview]) -> None:
    """Put the buffers of *vector* one after the other at *offset*."""
    node.event("write_compressed")
    node.write_vector(offset, vector)
