"""What storage is built from that is read by ranges, each of which costs a round trip: files on servers."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import OrderedDict

from ..contract.node import Buffer, Requests, Storage
from ..sizes import KiB, MiB

READAHEAD = 256 * KiB
"""Bytes that small reads ask for at least, where nobody says otherwise."""
LARGEST_READAHEAD = 16 * MiB
_KEPT = 16
"""How many stretches that were read ahead are kept."""


class RangedStorage(Storage):
    """A file that does not change while it is open, or reading it fails. A driver answers :meth:`fetch`.

    Small reads, which tables are read with, are answered from stretches of *readahead* bytes, a few of which are kept;
    the file does not change, so neither do they.

    :param connections: how many requests are made at once.
    :param best: bytes that a request had better have.
    """

    def __init__(self, name: str, *, readahead: int, connections: int, best: int = MiB) -> None:
        self.name = name
        self.size = 0
        self.requests = Requests(best=best, at_once=connections)
        self._readahead = readahead
        self._lock = threading.Lock()
        self._stretches: OrderedDict[int, bytes] = OrderedDict()

    @abstractmethod
    def fetch(self, offset: int, view: memoryview) -> None:
        """Fill *view*, which lies inside the file, with the bytes from *offset* on.

        :raises StorageError: they cannot be had.
        """

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        inside = max(min(len(view), self.size - offset), 0)
        ahead = self._readahead
        if inside >= ahead:
            self.fetch(offset, view[:inside])
        else:
            at = offset
            while at < offset + inside:
                start = at // ahead * ahead
                part = memoryview(self._stretch(start))[at - start : offset + inside - start]
                view[at - offset : at - offset + len(part)] = part
                at += len(part)
        view[inside:] = bytes(len(view) - inside)

    def _stretch(self, start: int) -> bytes:
        with self._lock:
            if start in self._stretches:
                self._stretches.move_to_end(start)
                return self._stretches[start]
        data = bytearray(min(self._readahead, self.size - start))
        self.fetch(start, memoryview(data))
        with self._lock:
            self._stretches[start] = bytes(data)
            if len(self._stretches) > _KEPT:
                self._stretches.popitem(last=False)
        return bytes(data)

    def flush(self) -> None:
        """Nothing is written."""
