"""Files as storage: positioned reads and writes, holes, and outputs that get their name last."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..errors import StorageError
from ..extents import Extent, Kind
from ..node import Buffer, ReadBuffer, Storage

if TYPE_CHECKING:
    from ..drivers import ProtocolDriver
    from ..requests import CreateRequest, OpenRequest

_IOV_MAX = 1024
_FALLOC_KEEP_PUNCH = 0x01 | 0x02


class FileStorage(Storage):
    """One open file or block device."""

    def __init__(self, driver: ProtocolDriver, name: str, fd: int, *, writable: bool, cache: str) -> None:
        self.driver = driver
        self.name = name
        self.writable = writable
        self.cache = cache
        self._fd = fd
        self._temporary: str | None = None
        self._target: str | None = None
        info = os.fstat(fd)
        self._identity = (info.st_dev, info.st_ino)
        self.size = os.lseek(fd, 0, os.SEEK_END) if stat.S_ISBLK(info.st_mode) else info.st_size
        self._known: tuple[int, int, Kind] | None = None

    @classmethod
    def open(cls, driver: ProtocolDriver, request: OpenRequest) -> FileStorage:
        """Open what exists."""
        flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDWR if request.writable else os.O_RDONLY)
        try:
            mode = os.stat(request.name).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise StorageError("it is neither a regular file nor a block device", file=request.name)
            fd = os.open(request.name, flags)
        except OSError as error:
            raise StorageError.from_os(error, request.name) from None
        return cls(driver, request.name, fd, writable=request.writable, cache=request.context.cache)

    @classmethod
    def create(cls, driver: ProtocolDriver, request: CreateRequest) -> FileStorage:
        """An empty file beside the output, under a temporary name until :meth:`settle`."""
        target = os.path.realpath(request.name)
        folder, base = os.path.split(target)
        temporary = os.path.join(folder, f".{base[:180]}.{os.urandom(6).hex()}.part")
        try:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError.from_os(error, request.name) from None
        storage = cls(driver, request.name, fd, writable=True, cache=request.context.cache)
        storage._temporary, storage._target = temporary, target
        return storage

    def settle(self) -> None:
        """Give a new output its name, replacing what bore it. Harmless where there is nothing to settle."""
        if self._temporary is not None and self._target is not None:
            try:
                os.rename(self._temporary, self._target)
            except OSError as error:
                raise StorageError.from_os(error, self.name) from None
            self._temporary = None

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = min(offset + length, self.size)
        stop = offset + length
        while offset < end:
            known = self._known
            if known is None or not known[0] <= offset < known[1]:
                self._known = known = self._look(offset)
            upto = min(known[1], end)
            yield Extent(offset, upto - offset, known[2], self, offset)
            offset = upto
        if offset < stop:
            yield Extent(offset, stop - offset, Kind.ZERO, self, offset)

    def _look(self, offset: int) -> tuple[int, int, Kind]:
        """The stretch of data or hole from *offset* on."""
        try:
            data = os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return offset, self.size, Kind.ZERO
            return offset, self.size, Kind.DATA
        if data > offset:
            return offset, data, Kind.ZERO
        return offset, os.lseek(self._fd, offset, os.SEEK_HOLE), Kind.DATA

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer)
        done = 0
        try:
            while done < len(view):
                count = os.preadv(self._fd, [view[done:]], offset + done)
                if count == 0:
                    view[done:] = bytes(len(view) - done)
                    return
                done += count
        except OSError as error:
            raise StorageError.from_os(error, self.name, f"read at offset {offset}") from None

    def write(self, offset: int, data: ReadBuffer) -> None:
        self.write_vector(offset, [data])

    def write_vector(self, offset: int, buffers: Sequence[ReadBuffer]) -> None:
        self._known = None
        for at in range(0, len(buffers), _IOV_MAX):
            group = [memoryview(buffer) for buffer in buffers[at : at + _IOV_MAX]]
            while group:
                try:
                    count = os.pwritev(self._fd, group, offset)
                except OSError as error:
                    raise StorageError.from_os(error, self.name, f"write at offset {offset}") from None
                offset += count
                while group and count >= len(group[0]):
                    count -= len(group.pop(0))
                if group and count:
                    group[0] = group[0][count:]
        self.size = max(self.size, offset)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        step = 1 << 20
        for at in range(offset, offset + length, step):
            self.write(at, bytes(min(step, offset + length - at)))

    def truncate(self, size: int) -> None:
        self._known = None
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise StorageError.from_os(error, self.name, f"set the size to {size} bytes") from None
        self.size = size

    def allocate(self, offset: int, length: int, mode: str) -> None:
        if mode == "falloc":
            try:
                os.posix_fallocate(self._fd, offset, length)
            except OSError as error:
                raise StorageError.from_os(error, self.name, f"allocate {length} bytes") from None
            self.size = max(self.size, offset + length)
        else:
            self.zero(offset, length, unmap=False)

    def allocated(self) -> int | None:
        return os.fstat(self._fd).st_blocks * 512

    def fileno(self) -> int | None:
        return self._fd

    def identity(self) -> object | None:
        return self._identity

    def flush(self) -> None:
        if self.writable and self.cache != "unsafe" and self._fd >= 0:
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                raise StorageError.from_os(error, self.name, "flush") from None

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
        if self._temporary is not None:
            os.unlink(self._temporary)
            self._temporary = None
