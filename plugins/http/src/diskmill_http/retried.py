"""Storage that is read by ranges over connections that may fail: what web and FTP servers have in common."""

from __future__ import annotations

import threading
from abc import abstractmethod

from diskmill.kit.ranged import RangedStorage

from .patience import PassingError, Patience
from .settings import Settings


class RetriedStorage(RangedStorage):
    """A file on a server that is asked again, from the byte that comes next, when it fails."""

    def __init__(self, settings: Settings, name: str) -> None:
        super().__init__(name, readahead=settings.readahead, connections=settings.connections)
        self.settings = settings
        self.stopped = threading.Event()

    @abstractmethod
    def receive(self, offset: int, view: memoryview) -> int:
        """Put bytes from *offset* on into *view*, at least one; gives how many.

        :raises PassingError: some may have come all the same. StorageError: it is of no use to try again.
        """

    def patience(self) -> Patience:
        """For one request."""
        return Patience(self.settings.retries, self.stopped, self.name)

    def fetch(self, offset: int, view: memoryview) -> None:
        """Fill *view*, going on after a failure from the byte that comes next."""
        patience, at = self.patience(), 0
        while at < len(view):
            try:
                at += self.receive(offset + at, view[at:])
            except PassingError as error:
                at += error.received
                patience.bear(error, f"read at offset {offset + at}")
