"""Storage that is read by ranges over connections that may fail: what web and FTP servers have in common."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import OrderedDict

from diskmill.contract.node import Buffer, Requests, Storage
from diskmill.sizes import MiB

from .patience import PassingError, Patience
from .settings import Settings

_KEPT = 16
"""How many stretches that were read ahead are kept."""


class RangedStorage(Storage):
    """A file on a server, which does not change while it is open, or reading it fails.

    Small reads, which tables are read with, are answered from stretches of ``readahead`` bytes, a few of which are
    kept; the file does not change, so neither do they.
    """

    requests = Requests(best=MiB, at_once=4)

    def __init__(self, settings: Settings, name: str) -> None:
        self.name = name
        self.size = 0
        self.settings = settings
        self.stopped = threading.Event()
        self.requests = Requests(best=MiB, at_once=settings.connections)
        self._lock = threading.Lock()
        self._stretches: OrderedDict[int, bytes] = OrderedDict()

    @abstractmethod
    def receive(self, offset: int, view: memoryview) -> int:
        """Put bytes from *offset* on into *view*, at least one; gives how many.

        :raises PassingError: some may have come all the same. StorageError: it is of no use to try again.
        """

    def patience(self) -> Patience:
        """For one request."""
        return Patience(self.settings.retries, self.stopped, self.name)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        inside = max(min(len(view), self.size - offset), 0)
        ahead = self.settings.readahead
        if inside >= ahead:
            self._fetch(offset, view[:inside])
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
        data = bytearray(min(self.settings.readahead, self.size - start))
        self._fetch(start, memoryview(data))
        with self._lock:
            self._stretches[start] = bytes(data)
            if len(self._stretches) > _KEPT:
                self._stretches.popitem(last=False)
        return bytes(data)

    def _fetch(self, offset: int, view: memoryview) -> None:
        """Fill *view*, going on after a failure from the byte that comes next."""
        patience, at = self.patience(), 0
        while at < len(view):
            try:
                at += self.receive(offset + at, view[at:])
            except PassingError as error:
                at += error.received
                patience.bear(error, f"read at offset {offset + at}")

    def flush(self) -> None:
        """Nothing is written."""
