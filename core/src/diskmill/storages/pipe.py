"""The ``pipe`` protocol: an image that comes or goes through a pipe, ``pipe:-`` for standard input and output,
``pipe:PATH`` for a FIFO.

Only formats that can be read or written from their first byte to their last make use of it (see ``Storage.forward``).
"""

from __future__ import annotations

import fcntl
import os
import stat
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..contract.drivers import ProtocolDriver, hookimpl
from ..contract.node import ReadBuffer, Storage
from ..contract.options import Option
from ..contract.place import NamedPlace
from ..errors import StorageError, UnsupportedError
from ..kit.forward import ForwardOutput, ForwardStorage
from ..sizes import MiB
from .file.locks import lock
from .file.storage import FileStorage

if TYPE_CHECKING:
    from ..contract.requests import CreateRequest, OpenRequest


class PipePlace(NamedPlace):
    """A pipe's name. Standard input and output share theirs, and are two."""

    def identity(self) -> object | None:
        return None


class PipeStorage(ForwardStorage):
    """Bytes that come once, as many as nobody knows unless a file stands behind."""

    def __init__(self, driver: ProtocolDriver, name: str, fd: int) -> None:
        found = os.fstat(fd)
        is_file = stat.S_ISREG(found.st_mode)  # a shell's "< file"
        super().__init__(driver, name, max(found.st_size - os.lseek(fd, 0, os.SEEK_CUR), 0) if is_file else None)
        self._fd = fd
        with suppress(OSError):  # a user has so much for pipes, and no more; other kinds of files have none
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, MiB)

    def more(self, length: int) -> bytes:
        buffer = bytearray(length)
        return bytes(buffer[: self.more_into(memoryview(buffer))])

    def more_into(self, view: memoryview) -> int:
        try:
            return os.readv(self._fd, (view,))
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


class PipeOutput(ForwardOutput):
    """Bytes that go once, in order. What is missing at the end is sent as zeros when it is whole."""

    def __init__(self, driver: ProtocolDriver, name: str, fd: int) -> None:
        super().__init__(driver, name)
        self._fd = fd
        self._settled = False
        with suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, MiB)

    def append(self, data: ReadBuffer) -> None:
        view = memoryview(data).cast("B")
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except OSError as error:
                raise StorageError.from_os(error, self.name, f"write at offset {self.position}") from None

    def settle(self, others: object = ()) -> None:
        self.finish()
        self._settled = True

    @property
    def settled(self) -> bool:
        return self._settled

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                os.close(fd)
            except OSError as error:
                raise StorageError.from_os(error, self.name, "close") from None


class PipeDriver(ProtocolDriver):
    """``pipe``, shipped with the core."""

    contract = 1
    name = "pipe"
    title = "images that come or go through a pipe"
    capabilities = frozenset({"create"})
    prefixes = ("pipe",)
    options = (Option("filename", "str", "pipe:- for standard input or output, or pipe:PATH", when=("open",)),)

    def place(self, options: Mapping[str, Any]) -> PipePlace:
        """Nothing but a name."""
        return PipePlace(self, str(options.get("filename", self.name)))

    @hookimpl
    def open(self, request: OpenRequest) -> Storage:
        """Standard input, or a FIFO, which is waited for. A file that a shell opened for it is one to read at will."""
        where = request.name.removeprefix("pipe:")
        if request.writable:
            raise UnsupportedError("a pipe can only be read", file=request.name)
        try:
            fd = os.dup(0) if where == "-" else os.open(where, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError.from_os(error, request.name) from None
        if stat.S_ISREG(os.fstat(fd).st_mode) and os.lseek(fd, 0, os.SEEK_CUR) == 0:
            try:
                # Not held: the locks would be whose file it is, and outlive this.
                lock(fd, request.name, writable=False, share=request.context.share, hold=False)
                return FileStorage(self, request.name, fd, writable=False, cache=request.context.cache)
            except BaseException:
                os.close(fd)
                raise
        return PipeStorage(self, request.name, fd)

    @hookimpl
    def create(self, request: CreateRequest) -> PipeOutput:
        """Standard output, or a FIFO that is there, whose reader is waited for."""
        where = request.name.removeprefix("pipe:")
        try:
            fd = os.dup(1) if where == "-" else os.open(where, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StorageError.from_os(error, request.name) from None
        return PipeOutput(self, request.name, fd)


driver = PipeDriver()
