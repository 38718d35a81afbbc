"""The filter ``readahead``: reads more than was asked for, and has it ready for the next small read."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from diskmill.contract.drivers import FilterDriver, hookimpl
from diskmill.contract.options import Option
from diskmill.errors import UsageError
from diskmill.kit.filter import Filter
from diskmill.sizes import MiB

if TYPE_CHECKING:
    from diskmill.contract.node import Buffer, Node, ReadBuffer
    from diskmill.contract.requests import OpenRequest

_MOST = 64 * MiB


class ReadAhead(Filter):
    """*file*; what is read in requests of less than *ahead* bytes is read *ahead* bytes at a time."""

    def __init__(self, driver: ReadAheadDriver, file: Node, ahead: int) -> None:
        super().__init__(driver, file)
        self._ahead = ahead
        self._start, self._kept = 0, b""
        self._lock = threading.Lock()

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        if len(view) >= self._ahead:
            super().read_into(offset, view)
            return
        with self._lock:
            at = offset - self._start
            if not (at >= 0 and at + len(view) <= len(self._kept)):
                self._kept = b""  # should reading fail
                self._kept, self._start, at = self.file.read(offset, self._ahead), offset, 0
            view[:] = memoryview(self._kept)[at : at + len(view)]

    def _forget(self) -> None:
        with self._lock:
            self._kept = b""

    def write(self, offset: int, data: ReadBuffer) -> None:
        try:
            super().write(offset, data)
        finally:
            self._forget()

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        try:
            super().zero(offset, length, unmap=unmap)
        finally:
            self._forget()

    def discard(self, offset: int, length: int) -> None:
        super().discard(offset, length)
        self._forget()

    def truncate(self, size: int) -> None:
        super().truncate(size)
        self._forget()


class ReadAheadDriver(FilterDriver):
    """``readahead``."""

    contract = 1
    name = "readahead"
    title = "reads more than was asked for, and keeps it for the next read"
    options = (Option("readahead", "size", "bytes to read at a time", default=MiB, when=("open",)),)

    @hookimpl
    def open(self, request: OpenRequest) -> ReadAhead:
        """The node below."""
        ahead = int(request.options["readahead"])
        if not 512 <= ahead <= _MOST:
            raise UsageError(f"the option 'readahead' is from 512 to {_MOST} bytes", file=request.name)
        return ReadAhead(self, request.below(), ahead)


driver = ReadAheadDriver()
