"""The ``pipe`` protocol: an image that comes through a pipe, ``pipe:-`` from standard input, ``pipe:PATH`` from a FIFO.

Only formats that can be read from their first byte to their last make use of it (see ``Storage.forward``).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from ..contract.drivers import ProtocolDriver, hookimpl
from ..contract.extents import Extent, Kind
from ..contract.node import Buffer, ReadBuffer, Storage
from ..contract.options import Option
from ..errors import StorageError, UnsupportedError
from ..sizes import MAX_SIZE, KiB, MiB

if TYPE_CHECKING:
    from ..contract.requests import OpenRequest

HEAD = 64 * KiB
"""Bytes at the start that can be read again: headers are looked at more than once."""


class PipeStorage(Storage):
    """Bytes that come once. ``size`` is not known, so it is the largest there is."""

    forward = True
    size = MAX_SIZE

    def __init__(self, driver: ProtocolDriver, name: str, fd: int) -> None:
        self.driver = driver
        self.name = name
        self._fd = fd
        self._head = b""
        self._position = 0

    def read_some(self, offset: int, length: int) -> bytes:
        if offset < HEAD:
            self._fill_head(min(offset + length, HEAD))
            if offset + length <= HEAD or len(self._head) < HEAD:
                return self._head[offset : offset + length]
        result = bytearray(self._head[offset:])
        if offset + len(result) < self._position:
            raise StorageError("a pipe cannot be read backwards", file=self.name, place=f"read at offset {offset}")
        while self._position < offset:  # skip
            if not self._more(min(offset - self._position, MiB)):
                return b""
        while len(result) < length:
            data = self._more(length - len(result))
            if not data:
                break
            result += data
        return bytes(result)

    def _fill_head(self, upto: int) -> None:
        while len(self._head) < upto:
            data = self._more(upto - len(self._head))
            if not data:
                return
            self._head += data

    def _more(self, length: int) -> bytes:
        try:
            data = os.read(self._fd, length)
        except OSError as error:
            raise StorageError.from_os(error, self.name, f"read at offset {self._position}") from None
        self._position += len(data)
        return data

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer)
        data = self.read_some(offset, len(view))
        view[: len(data)] = data
        view[len(data) :] = bytes(len(view) - len(data))

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, Kind.DATA, self, offset)

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
