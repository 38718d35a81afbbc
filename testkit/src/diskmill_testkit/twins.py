"""In-memory twins of the real parts: storage without a file, an image without a format.

`MemoryDriver` is the protocol `memory`: a registry that has it opens `memory:NAME` wherever a file name is expected.
`Clustered` is an image of clusters whose tables are Python dictionaries: what a format driver owes the engine and
nothing more.
"""

from __future__ import annotations

import errno
import os
import posixpath
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diskmill.contract.drivers import FormatDriver, ProtocolDriver, hookimpl
from diskmill.contract.extents import Extent, Kind, Placement
from diskmill.contract.node import Buffer, Node, ReadBuffer, Storage
from diskmill.contract.place import NamedPlace, Place
from diskmill.contract.requests import CreateRequest, OpenRequest
from diskmill.errors import StorageError, UnsupportedError
from diskmill.kit.image import FormatImage
from diskmill.sizes import SECTOR

PAGE = 4096


class Content:
    """What a file holds: pages that were written; between them are holes."""

    def __init__(self, data: bytes = b"") -> None:
        self.pages: dict[int, bytearray] = {}
        self.size = 0
        self.lock = threading.Lock()  # threads write at once, as they do to files
        self.write(0, data)

    def write(self, offset: int, data: ReadBuffer) -> None:
        with self.lock:
            self._write(offset, data)

    def _write(self, offset: int, data: ReadBuffer) -> None:
        view, at = memoryview(data), 0
        while at < len(view):
            page, skip = divmod(offset + at, PAGE)
            part = view[at : at + PAGE - skip]
            self.pages.setdefault(page, bytearray(PAGE))[skip : skip + len(part)] = part
            at += len(part)
        if len(view):
            self.size = max(self.size, offset + len(view))

    def read(self, offset: int, length: int) -> bytearray:
        result = bytearray(length)
        at = 0
        while at < length:
            page, skip = divmod(offset + at, PAGE)
            count = min(PAGE - skip, length - at)
            if page in self.pages:
                result[at : at + count] = self.pages[page][skip : skip + count]
            at += count
        return result

    def runs(self, start: int, end: int) -> list[tuple[int, int]]:
        """(start, end) of the stretches between *start* and *end* that were written."""
        low, high = start // PAGE, -(-end // PAGE)
        if high - low < len(self.pages):
            pages = [page for page in range(low, high) if page in self.pages]
        else:
            pages = sorted(page for page in self.pages if low <= page < high)
        found: list[tuple[int, int]] = []
        for page in pages:
            upto = min((page + 1) * PAGE, end)
            if found and found[-1][1] == page * PAGE:
                found[-1] = found[-1][0], upto
            else:
                found.append((max(page * PAGE, start), upto))
        return found

    def zero(self, start: int, end: int, *, unmap: bool) -> None:
        for low, high in [(start, end)] if not unmap else self.runs(start, end):
            for at in range(low, high, PAGE):
                self.write(at, bytes(min(PAGE, high - at)))
        low, high = -(-start // PAGE), end // PAGE
        for page in [page for page in self.pages if unmap and low <= page < high]:
            del self.pages[page]
        if end > start:
            self.size = max(self.size, end)

    def truncate(self, size: int) -> None:
        if size < self.size:
            last = size // PAGE
            for page in [page for page in self.pages if page > last]:
                del self.pages[page]
            if last in self.pages:
                self.pages[last][size % PAGE :] = bytes(PAGE - size % PAGE)
        self.size = size

    def copy(self) -> Content:
        twin = Content()
        twin.pages, twin.size = {page: data[:] for page, data in self.pages.items()}, self.size
        return twin

    def __bytes__(self) -> bytes:
        return bytes(self.read(0, self.size))


class MemoryStorage(Storage):
    """Twin of a file. `journal`, where set, gets every change, for tests of what a crash leaves: ("write", offset,
    bytes), ("truncate", size), ("barrier",)."""

    driver: MemoryDriver

    def __init__(self, driver: MemoryDriver, name: str, content: Content, *, writable: bool, new: bool = False) -> None:
        self.driver = driver
        self.name = name
        self.content = content
        self.writable = writable
        self.journal: list[tuple[Any, ...]] | None = None
        self.new = new
        self.like: MemoryStorage | None = None
        self.durable = Content()
        """Of a new file: what was flushed, which is what a crash leaves once it has its name."""
        self.closed = False

    @property
    def size(self) -> int:  # type: ignore[override]
        return self.content.size

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        at, end = offset, offset + length
        for low, high in self.content.runs(offset, min(end, self.size)):
            if low > at:
                yield Extent(at, low - at, Kind.ZERO, self, at)
            yield Extent(low, high - low, Kind.DATA, self, low)
            at = high
        if at < end:
            yield Extent(at, end - at, Kind.ZERO, self, at)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer)
        inside = max(min(len(view), self.size - offset), 0)
        view[:inside] = self.content.read(offset, inside)
        view[inside:] = bytes(len(view) - inside)

    def write(self, offset: int, data: ReadBuffer) -> None:
        self._changing()
        try:
            self._claim(offset, offset + len(data))
        except StorageError:  # as a real one may: the first half of its sectors is there all the same
            self.content.write(offset, data[: len(data) // 2 // SECTOR * SECTOR])
            raise
        self._record("write", offset, bytes(data))
        self.content.write(offset, data)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._changing()
        self._claim(offset, offset + length)
        self._record("zero", offset, length)
        self.content.zero(offset, offset + length, unmap=unmap)

    def truncate(self, size: int) -> None:
        self._changing()
        self._break(size)
        self._record("truncate", size)
        self.content.truncate(size)

    def allocate(self, offset: int, length: int, mode: str) -> None:
        self._changing()
        if self.size < offset + length:
            self.truncate(offset + length)
        if mode == "full":
            self.zero(offset, length, unmap=False)

    def discard(self, offset: int, length: int) -> None:
        """Where changes are recorded, what is discarded turns into something else: nobody may need it."""
        length = min(length, self.size - offset)
        if length > 0 and (self.journal is not None or self.driver.journal is not None):
            self.write(offset, b"\xdd" * length)

    def _record(self, *change: Any) -> None:
        if self.journal is not None:
            self.journal.append(change)
        if self.driver.journal is not None and not self.new:
            self.driver.journal.append((file_key(self.name), change))

    def _claim(self, offset: int, end: int) -> None:
        """Fail where the driver says so; what makes a file longer takes of the room that there is."""
        self._break(offset)
        more = max(end - self.size, 0)
        if more and self.driver.room is not None:
            if more > self.driver.room:
                self._fail(errno.ENOSPC, offset)
            self.driver.room -= more

    def _break(self, offset: int) -> None:
        if self.driver.broken is not None:
            self.driver.broken -= 1
            if self.driver.broken == -1:
                self._fail(errno.EIO, offset)

    def _fail(self, code: int, offset: int) -> None:
        self.driver.failures += 1
        raise StorageError.from_os(OSError(code, os.strerror(code)), self.name, f"write at offset {offset}")

    def _changing(self) -> None:
        if not self.writable or self.closed:
            raise StorageError("Bad file descriptor", file=self.name)

    def allocated(self) -> int:
        return len(self.content.pages) * PAGE

    def identity(self) -> object:
        return id(self.content)

    def barrier(self) -> None:
        self.flush()

    def flush(self) -> None:
        if self.new and self.driver.journal is not None:
            self.durable = self.content.copy()
        if self.journal is None or self.journal[-1:] != [("barrier",)]:
            self._record("barrier")

    def settle(self, others: Sequence[Storage] = ()) -> None:
        super().settle(others)
        if self.new:
            self._claim(0, 0)
            key = file_key(self.name)
            if self.like is not None and self.driver.files.get(key) not in (None, self.like.content):
                raise StorageError("File exists", file=self.name, errno=errno.EEXIST)
            self.driver.files[key] = self.content
            self.new = False
            self._record("settle", self.durable)

    @property
    def settled(self) -> bool:
        return not self.new

    def remove(self) -> None:
        self._claim(0, 0)
        assert self.driver.files.pop(file_key(self.name)) is self.content
        self._record("remove")

    def close(self) -> None:
        self.closed = True


class MemoryPlace(NamedPlace):
    """Where a file in memory is; names have slashes, as paths do."""

    def beside(self, reference: str) -> MemoryPlace:
        return MemoryPlace(self.driver, posixpath.join(posixpath.dirname(self.name), reference))

    def inside(self, name: str) -> MemoryPlace:
        return MemoryPlace(self.driver, posixpath.join(self.name, name))

    def folder(self) -> MemoryPlace:
        return MemoryPlace(self.driver, posixpath.dirname(self.name))

    def within(self, folder: Place) -> bool:
        return isinstance(folder, MemoryPlace)


class MemoryDriver(ProtocolDriver):
    """The protocol `memory`: its files last as long as the driver object."""

    contract = 1
    name = "memory"
    title = "files that tests keep in memory"
    prefixes = ("memory",)
    capabilities = frozenset({"create", "write", "resize", "preallocation"})

    siblings = True

    def place(self, options: Mapping[str, Any]) -> MemoryPlace:
        return MemoryPlace(self, str(options.get("filename", "")))

    def __init__(self) -> None:
        self.files: dict[str, Content] = {}
        self.journal: list[tuple[str, tuple[Any, ...]]] | None = None
        """Where set, gets every change of every file, with the file's key in front."""
        self.room: int | None = None
        """By how many bytes the files may still grow before the disk is full; None: without end."""
        self.broken: int | None = None
        """How many changes (writes, zeros, truncations) succeed before one fails; None: all do."""
        self.failures = 0
        """How many have failed."""

    @hookimpl
    def open(self, request: OpenRequest) -> MemoryStorage:
        key = file_key(request.name)
        if key not in self.files:
            raise StorageError("No such file or directory", file=request.name, errno=errno.ENOENT)
        return MemoryStorage(self, request.name, self.files[key], writable=request.writable)

    @hookimpl
    def create(self, request: CreateRequest) -> MemoryStorage:
        storage = MemoryStorage(self, request.name, Content(), writable=True, new=True)
        if request.like is not None:
            assert isinstance(request.like, MemoryStorage)
            storage.like = request.like
            if self.files.get(file_key(request.name)) not in (None, request.like.content):
                raise StorageError("File exists", file=request.name, errno=errno.EEXIST)
        return storage


def file_key(name: str) -> str:
    """The key in `MemoryDriver.files` of the file that is called *name*."""
    return posixpath.normpath(name).removeprefix("memory:")


class ClusteredDriver(FormatDriver):
    """Stands for a format driver."""

    contract = 1
    name = "clustered"
    capabilities = frozenset({"create", "write", "zero", "backing"})


class Clustered(FormatImage):
    """Twin of a format: clusters of `unit` bytes, anywhere in `file`; None in `table` is a zero cluster."""

    def __init__(self, file: Node, size: int, unit: int, *, writable: bool = True, zeroes: bool = True) -> None:
        super().__init__(ClusteredDriver(), file, name="twin", size=size, writable=writable)
        self.unit = unit
        self.table: dict[int, int | None] = {}
        self.end = 0
        self.zeroes = zeroes
        self.published: list[Placement] = []
        self.reserved: list[tuple[int, int]] = []

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        at = offset
        while at < offset + length:
            index, skip = divmod(at, self.unit)
            count = min(self.unit - skip, offset + length - at)
            place = self.table.get(index, -1)
            if place is None:
                yield Extent(at, count, Kind.ZERO)
            elif place < 0:
                yield Extent(at, count, Kind.HOLE)
            else:
                yield Extent(at, count, Kind.DATA, self.file, place + skip)
            at += count

    def reserve(self, offset: int, length: int) -> list[Placement]:
        self.reserved.append((offset, length))
        places = []
        for index in range(offset // self.unit, -(-(offset + length) // self.unit)):
            start, place = index * self.unit, self.table.get(index)
            if place is None:
                places.append(Placement(start, self.unit, self.file, self.end, fresh=True))
                self.end += self.unit
            else:
                low, high = max(start, offset), min(start + self.unit, offset + length)
                places.append(Placement(low, high - low, self.file, place + low - start))
        return places

    def publish(self, placements: Sequence[Placement]) -> None:
        self.published += placements
        for place in placements:
            if place.fresh:
                self.table[place.start // self.unit] = place.offset

    def zero_units(self, offset: int, length: int, *, unmap: bool) -> None:
        if not self.zeroes:
            raise UnsupportedError("no zero clusters")
        for index in range(offset // self.unit, -(-(offset + length) // self.unit)):
            self.table[index] = None


def memory(data: bytes = b"", *, writable: bool = True, name: str = "memory") -> MemoryStorage:
    """Storage that holds *data*."""
    return MemoryStorage(MemoryDriver(), name, Content(data), writable=writable)
