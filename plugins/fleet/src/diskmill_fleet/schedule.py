"""Which job may begin next: the largest that waits for nothing, within the limits of stores and of the disk."""

from __future__ import annotations

import heapq
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from diskmill.errors import UsageError
from diskmill.sizes import parse_size

from .manifest import Line, is_url

_LOOKED_AT = 100
"""Jobs that are looked at for one that the disk has room for."""


@dataclass(frozen=True)
class Limit:
    """Of a store: a host, a bucket (``s3://bucket``), or a folder.

    :param jobs: that use it at the same time.
    :param rate: bytes a second that they read, all together; 0: there is no limit.
    """

    store: str
    jobs: int
    rate: int = 0

    @classmethod
    def parse(cls, text: str) -> Limit:
        """``STORE=JOBS[,BYTES]``.

        :raises UsageError: it is not.
        """
        store, equals, rest = text.rpartition("=")
        jobs, comma, rate = rest.partition(",")
        if not equals or not store or not jobs.isdigit() or not 1 <= int(jobs) <= 10_000:
            raise UsageError(f"a limit is STORE=JOBS[,BYTES_A_SECOND], not '{text}'")
        return cls(store.rstrip("/") or "/", int(jobs), parse_size(rate, what="rate") if comma else 0)

    def holds_for(self, name: str) -> bool:
        """Whether an image called *name* is in the store."""
        if is_url(name):
            parts = urlsplit(name)
            return self.store in (parts.hostname, parts.netloc, f"{parts.scheme}://{parts.netloc}")
        path = os.path.abspath(name)
        return self.store.startswith("/") and (path == self.store or path.startswith(self.store.rstrip("/") + "/"))


class Schedule:
    """What is left of the jobs *lines*.

    :param done: ids of those that need not be done again.
    :param keep_free: bytes that stay free where an output goes.
    """

    def __init__(self, lines: Sequence[Line], done: set[str], limits: Sequence[Limit], keep_free: int = 0) -> None:
        self._limits = limits
        self._keep_free = keep_free
        self._used: Counter[Limit] = Counter()
        self._running: dict[str, Line] = {}
        self._waiting = {line.id: {one for one in line.needs if one not in done} for line in lines if line.needs}
        self._after: defaultdict[str, list[Line]] = defaultdict(list)
        self._ready: defaultdict[tuple[Limit, ...], list[tuple[int, int, Line]]] = defaultdict(list)
        """By the limits that hold for them, so that those of a store that is busy are passed over at once."""
        self._order = 0
        self.failed_before: list[tuple[Line, str]] = []
        """Those that cannot be done, and the job that they needed."""
        for line in lines:
            if line.id in done:
                continue
            if self._waiting.get(line.id):
                for one in self._waiting[line.id]:
                    self._after[one].append(line)
            else:
                self._push(line)

    def _push(self, line: Line) -> None:
        self._order += 1
        item = (-(line.size or _size(line.source)), self._order, line)
        heapq.heappush(self._ready[self._limits_of(line)], item)

    def _limits_of(self, line: Line) -> tuple[Limit, ...]:
        return tuple(limit for limit in self._limits if any(map(limit.holds_for, _names(line))))

    @property
    def waiting(self) -> bool:
        """Whether there are jobs that may begin, now or later."""
        return any(self._ready.values())

    def next(self) -> tuple[Line, int] | None:
        """A job to begin, and the bytes a second that it may read; None: nothing may begin now."""
        free = [
            (ready[0], limits)
            for limits, ready in self._ready.items()
            if ready and all(self._used[limit] < limit.jobs for limit in limits)
        ]
        for _, limits in sorted(free, key=lambda one: one[0][:2]):
            line = self._taken(self._ready[limits])
            if line is not None:
                self._used.update(limits)
                self._running[line.id] = line
                rates = [limit.rate // limit.jobs for limit in limits if limit.rate]
                return line, max(min(rates), 1) if rates else 0
        return None

    def _taken(self, ready: list[tuple[int, int, Line]]) -> Line | None:
        """The largest of *ready* for which there is room, taken out; of very many only the first are looked at."""
        passed: list[tuple[int, int, Line]] = []
        found: Line | None = None
        while ready and found is None and len(passed) < _LOOKED_AT:
            item = heapq.heappop(ready)
            if self._fits(item[2]):
                found = item[2]
            else:
                passed.append(item)
        for item in passed:
            heapq.heappush(ready, item)
        return found

    def _fits(self, line: Line) -> bool:
        """Whether there is room for the output, beside those that are being made. Where nothing else runs it is tried
        all the same: how large it becomes is known only afterwards, and nothing will make more room."""
        if line.to is None or is_url(line.to) or not self._running:
            return True
        folder = os.path.dirname(os.path.abspath(line.to))
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        with suppress(OSError):
            room = os.statvfs(folder)
            others = [one for one in self._running.values() if one.to is not None and "://" not in one.to]
            taken = sum(max((one.size or _size(one.source)) - _size(str(one.to)), 0) for one in others)
            return room.f_bavail * room.f_frsize - taken - self._keep_free >= (line.size or _size(line.source))
        return True

    def ended(self, line: Line, *, done: bool) -> None:
        """*line* ran. What waited for it may begin, or never will."""
        self._put_back(line)
        for after in self._after.pop(line.id, []):
            if not done:
                if self._waiting.pop(after.id, None) is not None:
                    self.failed_before.append((after, line.id))
                    self._fail_after(after)
            elif after.id in self._waiting:
                self._waiting[after.id].discard(line.id)
                if not self._waiting[after.id]:
                    self._push(after)

    def _fail_after(self, line: Line) -> None:
        for after in self._after.pop(line.id, []):
            if self._waiting.pop(after.id, None) is not None:
                self.failed_before.append((after, line.id))
                self._fail_after(after)

    def again(self, line: Line) -> None:
        """*line* ran, and is to be tried once more."""
        self._put_back(line)
        self._push(line)

    def _put_back(self, line: Line) -> None:
        del self._running[line.id]
        self._used.subtract(self._limits_of(line))


def _names(line: Line) -> Iterator[str]:
    yield from (name for name in (line.source, line.to, line.other) if name is not None)


def _size(name: str) -> int:
    """Bytes that a file of this machine takes; else nobody knows."""
    with suppress(OSError, ValueError):
        return os.stat(name).st_blocks * 512
    return 0
