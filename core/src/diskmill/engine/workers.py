"""Threads that work through tasks, in a way that can be stopped.

Bytes move in system calls and codecs that release the GIL, so a few threads use as many cores.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache
from typing import Generic, TypeVar

from ..errors import CancelledError, StorageError

Task = TypeVar("Task")

MAX_THREADS = 16
_LOOK = 0.1
"""Seconds between looks at whether it is time to stop."""
_GRACE = 0.3
"""Seconds that workers get to end by themselves when the user wants to stop."""
_GRACE_AFTER_ERROR = 5.0
"""Seconds that they get when one of them failed: an output that stays must get what belongs together."""

_STACK = 1 << 20
"""Bytes of address space for a worker's stack; by default it would be eight times that."""


def start(target: Callable[[], None], count: int, threads: list[threading.Thread]) -> None:
    """Start *count* threads that run *target*, and add them to *threads*; fewer, where the process may not have more.

    :raises StorageError: it may not even have one.
    """
    _spare_address_space()
    before = threading.stack_size(_STACK)
    try:
        for _ in range(count):
            thread = threading.Thread(target=copy_context().run, args=(target,), daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # a limit of threads or of address space
                if not threads:
                    raise StorageError(
                        f"no thread can be started: {error} ({os.strerror(errno.EAGAIN)})", errno=errno.EAGAIN
                    ) from None
                break
            threads.append(thread)
    finally:
        threading.stack_size(before)


@cache
def _spare_address_space() -> None:
    """Let all threads allocate from few arenas where a service limits the address space (``ulimit -v``).

    glibc sets 64 MiB aside for each thread that allocates: 16 threads would leave nothing of a limit of 1 GiB.
    """
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has neither it nor arenas
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)


_M_ARENA_MAX = -8
"""From malloc.h, see mallopt(3)."""


class Stopped(Exception):
    """Raised inside workers when another one failed, or the caller cancelled."""


class Order:
    """Lets tasks be read about in the order in which they were taken, of what comes once and is kept for a while only.

    :param ahead: no task is begun before all that were taken so many tasks earlier have been read.
    """

    def __init__(self, ahead: int) -> None:
        self._ahead = ahead
        self._first = 0
        self._read = set[int]()
        self._moved = threading.Condition()

    @contextmanager
    def reading(self, turn: int, check: Callable[[], None]) -> Iterator[None]:
        """Read the task *turn* inside.

        :param check: raises when it is time to leave.
        """
        with self._moved:
            while turn >= self._first + self._ahead:
                self._moved.wait(_LOOK)
                check()
        try:
            yield
        finally:
            with self._moved:
                self._read.add(turn)
                while self._first in self._read:
                    self._read.remove(self._first)
                    self._first += 1
                self._moved.notify_all()


class Workers(Generic[Task]):
    """Runs ``work(task, turn)`` for every task, on several threads.

    ``turn`` is the task's number; :meth:`in_turn` makes workers pass a point in that order, so that what is laid out
    on disk does not depend on chance.

    :param tasks: read under a lock, one at a time: it need not be thread-safe.
    :param make: called once in each thread, gives its ``work`` function (with buffers of its own).
    :param cancel: set by the caller to stop early.
    :param interrupt: lets workers that wait for something outside (a network) leave that with an error. It is called
        when they shall stop and have not, a moment later.
    """

    def __init__(
        self,
        tasks: Iterator[Task],
        make: Callable[[Workers[Task]], Callable[[Task, int], None]],
        *,
        threads: int | None = None,
        cancel: threading.Event | None = None,
        interrupt: Callable[[], None] | None = None,
    ) -> None:
        self._interrupt = interrupt
        self._tasks = tasks
        self._make = make
        self._count = max(1, min(threads or len(os.sched_getaffinity(0)), MAX_THREADS))
        self._cancel = cancel
        self._take = threading.Lock()
        self._turn = threading.Condition(threading.Lock())
        self._taken = 0
        self._last: Task | None = None
        self._open: dict[int, Task] = {}
        self._next = 0
        self._stop = False
        self._error: BaseException | None = None

    def run(self) -> None:
        """Work until the tasks are used up.

        :raises CancelledError: the caller cancelled. Whatever a worker raised is raised here.
        """
        threads: list[threading.Thread] = []
        try:
            start(self._thread, self._count, threads)
            for thread in threads:
                while thread.is_alive() and not self._stopping:
                    thread.join(_LOOK)
            self._end(threads, _GRACE if self._error is None else _GRACE_AFTER_ERROR)
        except BaseException:
            self.stop()
            self._end(threads, _GRACE)
            raise
        if self._cancel is not None and self._cancel.is_set():  # errors may be what the interruption brought
            raise CancelledError("cancelled")
        if self._error is not None:
            raise self._error

    @property
    def _stopping(self) -> bool:
        return self._stop or self._cancel is not None and self._cancel.is_set()

    def _end(self, threads: list[threading.Thread], grace: float) -> None:
        """Wait for *threads* to end, and after *grace* seconds let them leave what they wait for."""
        end = time.monotonic() + grace
        for thread in threads:
            thread.join(None if self._interrupt is None else max(end - time.monotonic(), 0))
        if self._interrupt is not None and any(thread.is_alive() for thread in threads):
            self._interrupt()
        for thread in threads:
            thread.join()

    def stop(self) -> None:
        """Let no worker take another task, or wait."""
        with self._turn:
            self._stop = True
            self._turn.notify_all()

    def check(self) -> None:
        """Called by workers in long loops.

        :raises Stopped: time to leave.
        """
        if self._stopping:
            raise Stopped

    def in_turn(self, turn: int) -> None:
        """Wait until all earlier tasks have called :meth:`done`."""
        with self._turn:
            while self._next != turn:
                if self._stop:
                    raise Stopped
                self._turn.wait()

    def done(self) -> None:
        """Let the next task pass :meth:`in_turn`."""
        with self._turn:
            self._next += 1
            self._turn.notify_all()

    def frontier(self) -> tuple[Task | None, bool]:
        """The task before which all others are done, and whether it is done itself; None: none was taken yet."""
        with self._take:  # none is taken meanwhile
            still = self._open.copy()
            return (still[min(still)], False) if still else (self._last, True)

    def _thread(self) -> None:
        try:
            work = self._make(self)
            while True:
                self.check()
                with self._take:
                    task = next(self._tasks, None)
                    turn = self._taken
                    self._taken += 1
                    if task is not None:
                        self._last = self._open[turn] = task
                if task is None:
                    return
                work(task, turn)
                del self._open[turn]
        except Stopped:
            self.stop()
        except BaseException as error:
            with self._turn:
                if self._error is None:
                    self._error = error
            self.stop()
