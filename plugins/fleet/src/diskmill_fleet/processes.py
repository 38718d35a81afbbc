"""Where jobs run: processes of this machine, each with the library loaded, one job after the other.

A worker that dies costs the job that it had; another takes its place. One whose leader dies ends its job, tidies up and
goes.
"""

from __future__ import annotations

import os
import pickle
import selectors
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

from diskmill.jobs import Settings

from .manifest import Line
from .work import Terms

Event = tuple[str, str, Any]
"""``done``, ``lost`` or ``progress``; a job's id; its record, why, or (bytes dealt with, bytes in all)."""


class Processes:
    """As many as *count* workers."""

    def __init__(self, settings: Settings, count: int) -> None:
        self.slots = count
        self._settings = settings
        self._selector = selectors.DefaultSelector()
        self._idle: list[_Worker] = []
        self._busy: dict[str, _Worker] = {}

    def begin(self, line: Line, terms: Terms) -> None:
        """Have a worker do *line*."""
        worker = self._idle.pop() if self._idle else self._started()
        worker.line = line.id
        self._busy[line.id] = worker
        with suppress(OSError):  # it died meanwhile, which is seen where its answer is waited for
            worker.tell((line, terms))

    def _started(self) -> _Worker:
        worker = _Worker()
        self._selector.register(worker.answers, selectors.EVENT_READ, worker)
        with suppress(OSError):
            worker.tell(self._settings)
        return worker

    def wait(self, seconds: float) -> Iterator[Event]:
        """What happens, if anything does within *seconds*."""
        for key, _ in self._selector.select(seconds):
            worker: _Worker = key.data
            try:
                kind, value = worker.answer()
            except (EOFError, OSError):
                yield from self._lost(worker)
                continue
            line = worker.line
            if line is None:
                continue
            if kind == "done":
                worker.line = None
                del self._busy[line]
                self._idle.append(worker)
            yield kind, line, value

    def _lost(self, worker: _Worker) -> Iterator[Event]:
        self._selector.unregister(worker.answers)
        status = worker.end()
        if worker.line is None:
            self._idle.remove(worker)
        else:
            del self._busy[worker.line]
            yield "lost", worker.line, f"its process ended ({'signal' if status < 0 else 'status'} {abs(status)})"

    def close(self) -> None:
        """End all workers, after their jobs have tidied up."""
        for worker in [*self._idle, *self._busy.values()]:
            worker.hang_up()
        for worker in [*self._idle, *self._busy.values()]:
            worker.end()
        self._selector.close()


class _Worker:
    line: str | None = None

    def __init__(self) -> None:
        words = [sys.executable, "-m", f"{__package__}.worker"]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        assert self._process.stdin is not None and self._process.stdout is not None
        self.orders: IO[bytes] = self._process.stdin
        self.answers: IO[bytes] = self._process.stdout
        self.pid = self._process.pid

    def tell(self, order: object) -> None:
        data = pickle.dumps(order)
        while data:
            data = data[os.write(self.orders.fileno(), data) :]

    def answer(self) -> tuple[str, Any]:
        """The next one, and not a byte more: what has come beyond still shows that there is something."""
        found: tuple[str, Any] = pickle.loads(self._bytes(int.from_bytes(self._bytes(4), "big")))
        return found

    def _bytes(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = os.read(self.answers.fileno(), count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def hang_up(self) -> None:
        with suppress(OSError):
            self.orders.close()

    def end(self) -> int:
        self.hang_up()
        try:
            status = self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self.answers.close()
        return status
