"""Threads that read for requests which have come, and whose turn to be answered has not.

Clients send several requests before the first one is answered. What must be decoded for the later ones is, by the
processors that are idle meanwhile, into the memory from which it is sent. Nothing is read that was not asked for, and
nothing twice.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from .export import PIECE, Export, Piece

_MAX_THREADS = 15
_STACK = 1 << 20
_BUFFERS = 64
"""Buffers of all clients together: however many these are, they cost no more memory."""


class Job:
    """A request to be read: *length* bytes at *offset*, into the beginning of *memory*.

    :ivar buffer: that beginning.
    :ivar pieces: what the range is, when it is done; what of it must be read is in the buffer.
    :ivar failure: why it could not be read, which is for whoever answers the request.
    """

    def __init__(self, export: Export, offset: int, length: int, memory: memoryview) -> None:
        self.export = export
        self.offset = offset
        self.memory = memory
        self.buffer = memory[:length]
        self.pieces: Sequence[Piece] = ()
        self.failure: Exception | None = None
        self.done = False

    def run(self) -> None:
        """Read it. By whoever took it from its queue, and nobody else."""
        try:
            self.pieces = list(self.export.pieces(self.offset, len(self.buffer)))
            at = 0
            for piece in self.pieces:
                if not piece.zero and piece.fd < 0:
                    self.export.read_piece(piece, self.offset + at, self.buffer[at : at + piece.length])
                at += piece.length
        except Exception as error:
            self.failure = error


class Readers:
    """The threads, one fewer than there are processors: those who answer requests read, too."""

    def __init__(self) -> None:
        self.count = min(len(os.sched_getaffinity(0)) - 1, _MAX_THREADS)
        self._turn = threading.Condition(threading.Lock())
        self._waiting: deque[Job] = deque()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._spare: list[memoryview] = []
        self._lent = 0

    def lend(self) -> memoryview | None:
        """Memory for a job; None: all of it is in use, and the request waits for its turn."""
        with self._turn:
            if self._lent == _BUFFERS:
                return None
            try:
                memory = self._spare.pop() if self._spare else memoryview(bytearray(PIECE))
            except MemoryError:
                return None
            self._lent += 1
            return memory

    def take_back(self, *jobs: Job) -> None:
        """Nobody waits for *jobs* any more, nor reads their buffers. One that is being filled is lent to no other."""
        with self._turn:
            for job in jobs:
                self._lent -= 1
                if job.done:
                    self._spare.append(job.memory)
                    continue
                with suppress(ValueError):
                    self._waiting.remove(job)

    def put(self, jobs: Sequence[Job]) -> None:
        """Let *jobs* be read, in this order."""
        with self._turn:
            if not self._threads and not self._closed:
                self._start()
            self._waiting.extend(jobs)
            self._turn.notify_all()  # whoever waits for a job of its own waits here, too

    def finish(self, job: Job, others: Sequence[Job]) -> None:
        """Until *job* is done; where nobody has begun, here. While another thread is at it, one of *others* is done."""
        if job.done:
            return
        for one in (job, *others):
            with self._turn:
                if job.done:
                    return
                mine = one in self._waiting
                if mine:
                    self._waiting.remove(one)
            if mine:
                self._run(one)
        with self._turn:
            self._turn.wait_for(lambda: job.done)

    def close(self) -> None:
        """Wait for what is being read; nothing else is."""
        with self._turn:
            self._closed = True
            self._waiting.clear()
            self._turn.notify_all()
        for thread in self._threads:
            thread.join()

    def _start(self) -> None:
        before = threading.stack_size(_STACK)
        try:
            for _ in range(self.count):
                thread = threading.Thread(target=self._work, name="nbd-ahead", daemon=True)
                thread.start()
                self._threads.append(thread)
        except RuntimeError:  # the process may not have more: then those who answer read all by themselves
            self.count = len(self._threads)
        finally:
            threading.stack_size(before)

    def _work(self) -> None:
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job = self._waiting.popleft()
            self._run(job)

    def _run(self, job: Job) -> None:
        job.run()
        with self._turn:
            job.done = True
            self._turn.notify_all()
