"""A manifest's jobs, done: those that are left, each tried again where that may help, each recorded once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .journal import Journal, Record
from .manifest import Line, is_url
from .processes import Event
from .schedule import Limit, Schedule

_MEMORY = 512 << 20
"""Bytes that a job may need: its images' tables (256 MiB by default), its buffers, and Python."""
_FIRST_WAIT = 0.5
"""Seconds before a job is tried again; each further time twice as long."""


class Executor(Protocol):
    """Where jobs run."""

    @property
    def slots(self) -> int: ...
    def begin(self, line: Line, *, threads: int, rate: int) -> None: ...
    def wait(self, seconds: float) -> Iterator[Event]: ...
    def close(self) -> None: ...


class Watcher(Protocol):
    """Who looks on."""

    def began(self, line: Line) -> None: ...
    def progress(self, id: str, done: int, total: int) -> None: ...
    def ended(self, line: Line, record: Record, *, final: bool) -> None: ...
    def tick(self) -> None: ...


@dataclass
class Outcome:
    """What became of the jobs: how many were done, had been done before, failed, and were not begun."""

    done: int = 0
    before: int = 0
    failed: int = 0
    left: int = 0
    records: list[Record] = field(default_factory=list)

    @property
    def status(self) -> int:
        """The exit status: 1 where jobs failed, 3 where some were not begun, as time was up."""
        return 1 if self.failed else 3 if self.left else 0


@dataclass(frozen=True)
class Plan:
    """How to go about it.

    :param retries: how often a job is tried again after a failure that may pass.
    :param threads: of each copy.
    :param seconds: after which nothing more is begun; None: there is no end.
    :param keep_free: bytes that stay free where outputs go.
    :param limits: of stores.
    """

    retries: int = 2
    threads: int = 1
    seconds: float | None = None
    keep_free: int = 0
    limits: Sequence[Limit] = ()


def is_done(line: Line, record: Record | None) -> bool:
    """Whether *line* need not be done again: it was done as it stands, and its output is as it was then."""
    if record is None or record.get("status") != "done" or record.get("key") != line.key:
        return False
    if line.to is None or is_url(line.to):
        return True
    try:
        return bool(os.stat(line.to).st_size == record.get("length"))
    except (OSError, ValueError):
        return False


def run(lines: Sequence[Line], journal: Journal, executor: Executor, plan: Plan, watcher: Watcher) -> Outcome:
    """Do what is left of *lines*.

    :raises StorageError: the journal cannot be written, or the executor is gone.
    """
    outcome = Outcome()
    done = {line.id for line in lines if is_done(line, journal.last.get(line.id))}
    outcome.before = len(done)
    schedule = Schedule(lines, done, plan.limits, plan.keep_free)
    tries: dict[str, int] = {}
    running: dict[str, Line] = {}
    pausing: list[tuple[float, Line]] = []
    end = None if plan.seconds is None else time.monotonic() + plan.seconds
    late = False
    while running or pausing or schedule.waiting:
        late = late or (end is not None and time.monotonic() >= end)
        for item in [one for one in pausing if late or one[0] <= time.monotonic()]:
            pausing.remove(item)
            schedule.again(item[1])
        while not late and len(running) < executor.slots and (found := schedule.next()) is not None:
            line, rate = found
            running[line.id] = line
            tries[line.id] = tries.get(line.id, 0) + 1
            watcher.began(line)
            executor.begin(line, threads=plan.threads, rate=rate)
        if late and not running:
            break
        for kind, id, value in executor.wait(0.25):
            line = running[id]
            if kind == "progress":
                watcher.progress(id, *value)
                continue
            del running[id]
            record: Record = value if kind == "done" else _lost(line, value)
            record["tries"] = tries[id]
            final = record["status"] == "done" or not record["transient"] or tries[id] > plan.retries
            watcher.ended(line, record, final=final)
            if not final:
                pausing.append((time.monotonic() + _FIRST_WAIT * 2 ** (tries[id] - 1), line))
                continue
            _record(journal, outcome, record)
            schedule.ended(line, done=record["status"] == "done")
            while schedule.failed_before:
                after, needed = schedule.failed_before.pop()
                failed: Record = {"id": after.id, "key": after.key, "job": after.job, "source": after.source}
                failed |= {"status": "failed", "error": f"'{needed}', which it needs, failed", "transient": False}
                watcher.ended(after, failed, final=True)
                _record(journal, outcome, failed)
        watcher.tick()
    outcome.left = len(lines) - outcome.before - outcome.done - outcome.failed
    return outcome


def _lost(line: Line, why: str) -> Record:
    """What is recorded of a job whose process is no more. What it did may have been the reason."""
    record: Record = {"id": line.id, "key": line.key, "job": line.job, "source": line.source}
    return record | {"status": "failed", "error": str(why), "transient": True}


def _record(journal: Journal, outcome: Outcome, record: Record) -> None:
    record["at"] = round(time.time(), 3)
    journal.add(record)
    outcome.records.append(record)
    if record["status"] == "done":
        outcome.done += 1
    else:
        outcome.failed += 1


def workers_here() -> int:
    """How many jobs this machine does at a time: by processors and memory."""
    try:
        with open("/proc/meminfo") as file:
            free = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = _MEMORY * 4
    return max(min(len(os.sched_getaffinity(0)), free // _MEMORY), 1)
