"""What storage is built from whose bytes come once, in order: a pipe, a server that only sends whole files."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import deque

from ..contract.drivers import Driver
from ..contract.node import Buffer, Storage
from ..errors import StorageError
from ..sizes import MAX_SIZE, KiB, MiB

SPOOL = "let a temporary copy be made with --spool, or save it to a file first"
"""What helps where one pass is not enough."""
HEAD = 64 * KiB
"""Bytes at the start that can be read again: headers are looked at more than once."""
WINDOW = 32 * MiB
"""Bytes before ``position`` that can be read again: what 16 workers have taken and not read yet, and clusters that a
writer put down out of order."""


class ForwardStorage(Storage):
    """Bytes that come once; ``size`` is the largest there is where it is not known. A driver answers :meth:`more`."""

    forward = True

    def __init__(self, driver: Driver, name: str) -> None:
        self.driver = driver
        self.name = name
        self.size = MAX_SIZE
        self.position = 0
        """Where the next byte that comes belongs."""
        self.end: int | None = None
        """Where the bytes ended, once that was seen."""
        self._head = bytearray()
        self._window: deque[tuple[int, bytes]] = deque()
        self._lock = threading.Lock()

    @abstractmethod
    def more(self, length: int) -> bytes:
        """The next bytes, up to *length*; none only at the end. They begin at ``position``.

        :raises StorageError: they cannot be had.
        """

    def read_some(self, offset: int, length: int) -> bytes:
        result = bytearray()
        with self._lock:
            if offset < HEAD:
                while len(self._head) < min(offset + length, HEAD) and self._next(HEAD - len(self._head)):
                    pass
                result += self._head[offset : offset + length]
                offset, length = offset + len(result), length - len(result)
            if length and offset < self.position:
                result += self._kept(offset, min(length, self.position - offset))
                length -= min(length, self.position - offset)
                offset = self.position
            while length and self.position < offset:  # skip
                if not self._next(min(offset - self.position, MiB)):
                    return bytes(result)
            while length:
                data = self._next(min(length, MiB))
                if not data:
                    break
                result += data
                length -= len(data)
        return bytes(result)

    def _kept(self, offset: int, length: int) -> bytearray:
        """What was read before, as far as it is kept.

        :raises StorageError: it is not.
        """
        if not self._window or offset < self._window[0][0]:
            raise StorageError(
                f"{self.one_pass} cannot be read backwards: {SPOOL}", file=self.name, place=f"read at offset {offset}"
            )
        result = bytearray()
        for start, data in self._window:
            low, high = max(offset - start, 0), min(offset + length - start, len(data))
            if low < high:
                result += memoryview(data)[low:high]
        return result

    def _next(self, length: int) -> bytes:
        data = b"" if self.end is not None else self.more(length)
        if not data:
            self.end = self.position
            return data
        if len(self._head) < HEAD:
            self._head += data[: HEAD - len(self._head)]
        self._window.append((self.position, data))
        self.position += len(data)
        while self._window[0][0] + len(self._window[0][1]) < self.position - WINDOW:
            self._window.popleft()
        return data

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer)
        data = self.read_some(offset, len(view))
        view[: len(data)] = data
        view[len(data) :] = bytes(len(view) - len(data))
