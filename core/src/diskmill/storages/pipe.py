"""The ``pipe`` protocol: an image that comes through a pipe, ``pipe:-`` from standard input, ``pipe:PATH`` from a FIFO.

Only formats that can be read from their first byte to their last make use of it (see ``Storage.forward``).
"""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING

from ..contract.drivers import ProtocolDriver, hookimpl
from ..contract.node import ReadBuffer
from ..contract.options import Option
from ..errors import StorageError, UnsupportedError
from ..kit.forward import ForwardStorage

if TYPE_CHECKING:
    from ..contract.requests import OpenRequest


class PipeStorage(ForwardStorage):
    """Bytes that come once. ``size`` is not known, so it is the largest there is."""

    def __init__(self, driver: ProtocolDriver, name: str, fd: int) -> None:
        super().__init__(driver, name)
        self._fd = fd

    def more(self, length: int) -> bytes:
        try:
            return os.read(self._fd, length)
        except OSError as error:
            raise StorageError.from_os(error, self.name, f"read at offset {self.position}") from None

    def write(self, offset: int, data: ReadBuffer) -> None:
        raise UnsupportedError("a pipe can only be read", file=self.name)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        raise UnsupportedError("a pipe can only be read", file=self.name)

    def truncate(self, size: int) -> None:
        raise UnsupportedError("a pipe can only be read", file=self.name)

    def flush(self) -> None:
        """There is nothing to."""

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            with suppress(OSError):  # it was only read
                os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()
            warnings.warn(f"'{self.name}' was dropped without being closed", ResourceWarning, 2, source=self)


class PipeDriver(ProtocolDriver):
    """``pipe``, shipped with the core."""

    contract = 1
    name = "pipe"
    title = "images that come through a pipe"
    prefixes = ("pipe",)
    options = (Option("filename", "str", "pipe:- for standard input, or pipe:PATH", when=("open",)),)

    @hookimpl
    def open(self, request: OpenRequest) -> PipeStorage:
        """Standard input, or a FIFO, which is waited for."""
        where = request.name.removeprefix("pipe:")
        if request.writable:
            raise UnsupportedError("a pipe can only be read", file=request.name)
        try:
            fd = os.dup(0) if where == "-" else os.open(where, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError.from_os(error, request.name) from None
        return PipeStorage(self, request.name, fd)


driver = PipeDriver()
