"""What the jobs that are left would take: space by measuring each, time by the journal or by a sample."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from diskmill.jobs import Settings

from . import running
from .journal import Journal, Record
from .manifest import Line, Located, is_url
from .running import Executor, Plan
from .standing import Standing
from .work import Terms, perform

_SAMPLE = 1.0
"""Seconds that a sample takes, about: of what is too short to tell, or longer than anybody waits."""
_SAMPLED = 256 << 20
"""Bytes of the disk after which a sample ends too: its output is in memory."""
_BY_NUMBER = ("info", "measure")
"""Jobs that read little of an image, however large it is."""


class Shortage(NamedTuple):
    """A file system whose folder has less room than is needed there."""

    folder: str
    required: int
    free: int


@dataclass
class Estimate:
    """What *jobs* would take.

    :param required: bytes that outputs take at most, where nothing is compressed.
    :param unmade: how many read what others still have to make, and so were not measured.
    :param seconds: that they take, but for those *untimed*, of which nobody can tell.
    :param failures: jobs that could not be measured, and why.
    """

    jobs: int
    required: int = 0
    unmade: int = 0
    seconds: float = 0.0
    untimed: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    short: list[Shortage] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "jobs": self.jobs,
            "required": self.required,
            "unmade": self.unmade,
            "seconds": round(self.seconds, 1),
            "untimed": self.untimed,
            "failed": len(self.failures),
            "short": [one._asdict() for one in self.short],
        }


def estimate(
    lines: Sequence[Line],
    found: Standing,
    records: Sequence[Record],
    plan: Plan,
    settings: Settings,
    executor: Callable[[], Executor],
) -> Estimate:
    """Measure what is left of *lines*; nothing is written.

    :param records: of the journal, whose jobs tell how fast those of their kind are.
    """
    left = [line for line in lines if line.id not in found.done]
    located = Located()
    made = {located(line.to) for line in left if line.to is not None}
    there = [line for line in left if not made.intersection(map(located, _inputs(line)))]
    slots, measured = _measured(there, executor)
    told = Estimate(len(left), unmade=len(left) - len(there))
    told.failures = [(id, str(one["error"])) for id, one in measured.items() if one["status"] != "done"]
    told.required = sum(measured[line.id].get("required", 0) for line in there if line.to is not None)
    told.short = list(_short(there, measured, plan.keep_free))
    told.seconds, told.untimed = _seconds(left, measured, records, plan, settings, slots)
    return told


def _inputs(line: Line) -> Iterable[str]:
    return (name for name in (line.source, line.other) if name is not None)


class _Silent:
    """Looks on, and keeps what was measured."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}

    def began(self, line: Line) -> None: ...
    def progress(self, id: str, done: int, total: int) -> None: ...
    def tick(self) -> None: ...

    def ended(self, line: Line, record: Record, *, final: bool) -> None:
        if final:
            self.records[line.id] = record


def _measured(lines: Sequence[Line], executor: Callable[[], Executor]) -> tuple[int, dict[str, Record]]:
    """How many jobs run at a time, and by id what a look at each image told."""
    looks = [
        replace(
            line, job="measure" if line.job in ("convert", "measure") else "info", to=None, needs=(), backing=None,
            backing_format=None, verify=False, other=None, other_format=None, digest=None,
        )
        for line in lines
    ]  # fmt: skip
    watcher = _Silent()
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(stack.enter_context(tempfile.NamedTemporaryFile()).name))
        where = stack.enter_context(closing(executor()))
        running.run(looks, Standing(), journal, where, Plan(), watcher)
        return where.slots, watcher.records


def _short(lines: Sequence[Line], measured: dict[str, Record], keep_free: int) -> Iterable[Shortage]:
    needed: dict[int, tuple[str, int]] = {}
    for line in lines:
        if line.to is None or is_url(line.to) or line.compress:  # how small that becomes nobody knows
            continue
        folder = os.path.dirname(os.path.abspath(line.to))
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        device = os.stat(folder).st_dev
        known, count = needed.get(device, (folder, 0))
        needed[device] = known, count + measured[line.id].get("required", 0)
    for folder, count in needed.values():
        room = os.statvfs(folder)
        free = max(room.f_bavail * room.f_frsize - keep_free, 0)
        if count > free:
            yield Shortage(folder, count, free)


def _seconds(
    left: Sequence[Line],
    measured: dict[str, Record],
    records: Sequence[Record],
    plan: Plan,
    settings: Settings,
    slots: int,
) -> tuple[float, int]:
    """By kind of job, bytes by how fast they go, no sooner than the largest alone; and how many are not in it."""
    kinds: defaultdict[str, list[tuple[int, Line]]] = defaultdict(list)
    for line in left:
        seen = measured.get(line.id, {}).get("bytes_in") or 0
        kinds[line.job].append((line.size or seen if line.backing is not None else seen or line.size, line))
    total = longest = 0.0
    untimed = 0
    for job, sized in kinds.items():
        if job in _BY_NUMBER:
            total += sum(measured.get(line.id, {}).get("seconds", 0) for _, line in sized)
            continue
        rate = _past(job, records)
        if rate is None:
            sample = _chosen([one for one in sized if measured.get(one[1].id, {}).get("status") == "done"], job)
            rate = None if sample is None else _sampled(*sample, plan, settings)
        known = [count for count, _ in sized if count and rate]
        untimed += len(sized) - len(known)
        if rate and known:
            total += sum(known) / rate
            longest = max(longest, max(known) / rate)
    return max(total / slots, longest), untimed


def _past(job: str, records: Sequence[Record]) -> float | None:
    """Bytes a second of the jobs of that kind that were done."""
    done = [one for one in records if one["status"] == "done" and one.get("job") == job and one.get("bytes_in")]
    seconds = sum(one.get("seconds", 0) for one in done)
    return sum(one["bytes_in"] for one in done) / seconds if seconds else None


def _chosen(sized: Sequence[tuple[int, Line]], job: str) -> tuple[int, Line] | None:
    """One of middle size; of what cannot be ended early, the least."""
    known = sorted((one for one in sized if one[0]), key=lambda one: one[0])
    return known[0 if job == "check" else len(known) // 2] if known else None


def _sampled(size: int, line: Line, plan: Plan, settings: Settings) -> float | None:
    """Bytes a second of the job *line*, whose image has *size*: begun, and ended after a while."""
    part = 0.0
    enough = threading.Event()
    began = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal part
        part = done / total if total else 0.0
        if time.monotonic() - began > _SAMPLE or done > _SAMPLED:
            enough.set()

    to = None if line.to is None else "memory:diskmill-batch-sample"
    trial = replace(line, to=to, backing=None, backing_format=None)
    record = perform(trial, settings, Terms(plan.threads), progress=report, cancel=enough)
    seconds = time.monotonic() - began
    done = 1.0 if record["status"] == "done" else part if enough.is_set() else 0.0
    return size * done / seconds or None
