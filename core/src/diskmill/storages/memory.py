"""The ``memory`` protocol: files of this process, ``memory:NAME``, for tests and notebooks.

>>> diskmill.memory["disk.raw"] = b"…"                                     # doctest: +SKIP
>>> diskmill.convert("memory:disk.raw", "memory:disk.qcow2", output_format="qcow2")       # doctest: +SKIP
>>> open("disk.qcow2", "wb").write(diskmill.memory["disk.qcow2"])          # doctest: +SKIP

They take as much memory as was written to them, and last until they are deleted
(``del diskmill.memory["disk.raw"]``) or the process ends.
"""

from __future__ import annotations

import errno
import os
import posixpath
import threading
import warnings
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from ..contract.drivers import ProtocolDriver, hookimpl
from ..contract.extents import Extent, Kind
from ..contract.node import Buffer, ReadBuffer, Storage
from ..contract.options import Option
from ..contract.place import NamedPlace, Place
from ..errors import LockedError, StorageError
from ..sizes import KiB

if TYPE_CHECKING:
    from ..contract.requests import CreateRequest, OpenRequest

BLOCK = 64 * KiB
"""Bytes that are kept together: what lies between blocks that were written is holes."""


class Content:
    """What a file holds."""

    def __init__(self) -> None:
        self.blocks: dict[int, bytearray] = {}
        self.size = 0
        self.lock = threading.Lock()
        self.readers = 0
        self.writers = 0

    def write(self, offset: int, data: ReadBuffer) -> None:
        view = memoryview(data).cast("B")
        with self.lock:
            for index, skip, start, end in _pieces(offset, len(view)):
                block = self.blocks.get(index)
                if block is None:
                    block = self.blocks[index] = bytearray(BLOCK)
                block[skip : skip + end - start] = view[start:end]
            if len(view):
                self.size = max(self.size, offset + len(view))

    def read_into(self, offset: int, view: memoryview) -> None:
        with self.lock:
            for index, skip, start, end in _pieces(offset, len(view)):
                block = self.blocks.get(index)
                view[start:end] = bytes(end - start) if block is None else block[skip : skip + end - start]

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        with self.lock:
            for index, skip, start, end in _pieces(offset, length):
                if unmap and end - start == BLOCK:
                    self.blocks.pop(index, None)
                elif not unmap or index in self.blocks:
                    self.blocks.setdefault(index, bytearray(BLOCK))[skip : skip + end - start] = bytes(end - start)
            if length:
                self.size = max(self.size, offset + length)

    def truncate(self, size: int) -> None:
        with self.lock:
            last, inside = divmod(size, BLOCK)
            if size < self.size:
                for index in [index for index in self.blocks if index > last]:
                    del self.blocks[index]
                if last in self.blocks:
                    self.blocks[last][inside:] = bytes(BLOCK - inside)
            self.size = size

    def runs(self, offset: int, end: int) -> list[tuple[int, int]]:
        """Start and end of what is kept between *offset* and *end*, in order."""
        with self.lock:
            kept = sorted(index for index in self.blocks if offset < (index + 1) * BLOCK and index * BLOCK < end)
        found: list[tuple[int, int]] = []
        for index in kept:
            low, high = max(index * BLOCK, offset), min((index + 1) * BLOCK, end)
            if found and found[-1][1] == low:
                found[-1] = found[-1][0], high
            else:
                found.append((low, high))
        return found


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """Of the range: each block's index, the first byte in it, and where its part of the range begins and ends."""
    at = 0
    while at < length:
        index, skip = divmod(offset + at, BLOCK)
        end = min(at + BLOCK - skip, length)
        yield index, skip, at, end
        at = end


class MemoryStorage(Storage):
    """A file in memory."""

    driver: MemoryDriver
    place: MemoryPlace

    def __init__(self, driver: MemoryDriver, place: MemoryPlace, content: Content, *, writable: bool) -> None:
        self.driver = driver
        self.place = place
        self.name = place.display()
        self.content = content
        self.writable = writable
        self._held = False
        self._new = False
        self._careful = False
        self._replaced: Content | None = None

    @property
    def size(self) -> int:  # type: ignore[override]
        return self.content.size

    def hold(self, *, share: bool) -> None:
        """Lock the file, as files are: one who writes is alone.

        :raises LockedError: another one holds it.
        """
        content = self.content
        with content.lock:
            if not share and (content.writers or self.writable and content.readers):
                raise LockedError("it is open already, in a way that excludes this use", file=self.name)
            if self.writable:
                content.writers += 1
            else:
                content.readers += 1
        self._held = True

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
        view = memoryview(buffer).cast("B")
        inside = max(min(len(view), self.size - offset), 0)
        self.content.read_into(offset, view[:inside])
        view[inside:] = bytes(len(view) - inside)

    def write(self, offset: int, data: ReadBuffer) -> None:
        self._changing()
        try:
            self.content.write(offset, data)
        except MemoryError:
            raise self._full(offset) from None

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._changing()
        try:
            self.content.zero(offset, length, unmap=unmap)
        except MemoryError:
            raise self._full(offset) from None

    def discard(self, offset: int, length: int) -> None:
        inside = min(length, self.size - offset)
        if inside > 0:
            self.zero(offset, inside)

    def truncate(self, size: int) -> None:
        self._changing()
        self.content.truncate(size)

    def allocate(self, offset: int, length: int, mode: str) -> None:
        if mode == "full":
            self.zero(offset, length, unmap=False)
        elif self.size < offset + length:
            self.truncate(offset + length)

    def allocated(self) -> int:
        return len(self.content.blocks) * BLOCK

    def identity(self) -> object:
        return id(self.content)

    def settle(self, others: Sequence[Storage] = ()) -> None:
        super().settle(others)
        if self._new:
            with self.driver.naming:
                there = self.driver.files.get(self.place.key)
                if self._careful and there is not None and there is not self._replaced:
                    raise _exists(self.place)
                self.driver.files[self.place.key] = self.content
            self._new = False

    @property
    def settled(self) -> bool:
        return not self._new

    @property
    def replaces(self) -> bool:
        return self._new and self.place.key in self.driver.files

    def places(self) -> frozenset[object]:
        return frozenset([self.place.identity()]) if self._new else frozenset()

    def begin(self, *, careful: bool, replaced: Content | None) -> None:
        """It is a new output, which gets its name when it is whole.

        :param careful: of what bears that name then, it replaces *replaced* alone, if anything.
        """
        self._new, self._careful, self._replaced = True, careful, replaced

    def remove(self) -> None:
        key = self.place.key
        if self.driver.files.get(key) is self.content:
            del self.driver.files[key]

    def close(self) -> None:
        if self._held:
            self._held = False
            with self.content.lock:
                if self.writable:
                    self.content.writers -= 1
                else:
                    self.content.readers -= 1
        self.writable = False

    def _changing(self) -> None:
        if not self.writable:
            raise StorageError("it is open for reading only", file=self.name)

    def _full(self, offset: int) -> StorageError:
        error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return StorageError.from_os(error, self.name, f"write at offset {offset}")

    def __del__(self) -> None:
        if getattr(self, "_held", False):
            self.close()
            warnings.warn(f"'{self.name}' was dropped without being closed", ResourceWarning, 2, source=self)


class MemoryPlace(NamedPlace):
    """Where a file in memory is. Names have slashes, as paths do, and folders so far."""

    @property
    def key(self) -> str:
        """The name without its prefix, in one form."""
        return posixpath.normpath(self.name.removeprefix("memory:").removeprefix("//") or ".")

    def _at(self, key: str) -> MemoryPlace:
        return MemoryPlace(self.driver, f"memory:{key}")

    def beside(self, reference: str) -> MemoryPlace:
        return self._at(posixpath.join(posixpath.dirname(self.key), reference))

    def inside(self, name: str) -> MemoryPlace:
        return self._at(posixpath.join(self.key, name))

    def folder(self) -> MemoryPlace:
        return self._at(posixpath.dirname(self.key) or ".")

    def within(self, folder: Place) -> bool:
        if not isinstance(folder, MemoryPlace) or self.key.startswith("../"):
            return False
        return folder.key == "." or self.key == folder.key or self.key.startswith(folder.key.rstrip("/") + "/")

    def identity(self) -> object | None:
        return self.driver.name, self.key


def _exists(place: Place) -> StorageError:
    return StorageError.from_os(OSError(errno.EEXIST, os.strerror(errno.EEXIST)), place.display())


class MemoryDriver(ProtocolDriver):
    """``memory``, shipped with the core. Its files belong to the driver object."""

    contract = 1
    name = "memory"
    title = "files in the memory of the process that uses the library"
    prefixes = ("memory",)
    capabilities = frozenset({"create", "write", "resize", "preallocation"})
    options = (Option("filename", "str", "memory:NAME", when=("open",)),)
    siblings = True

    def __init__(self) -> None:
        self.files: dict[str, Content] = {}
        self.naming = threading.Lock()

    def place(self, options: Mapping[str, Any]) -> MemoryPlace:
        return MemoryPlace(self, str(options.get("filename", "")))

    @hookimpl
    def open(self, request: OpenRequest) -> MemoryStorage:
        """A file that was made before."""
        place = cast("MemoryPlace", request.place)
        content = self.files.get(place.key)
        if content is None:
            error = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            raise StorageError.from_os(error, place.display())
        storage = MemoryStorage(self, place, content, writable=request.writable)
        storage.hold(share=request.context.share)
        return storage

    @hookimpl
    def create(self, request: CreateRequest) -> MemoryStorage:
        """A new file, which gets its name when it is settled."""
        place = cast("MemoryPlace", request.place)
        there = self.files.get(place.key)
        like = request.like
        refused = request.context.overwrite == "refuse"
        expected = like.content if isinstance(like, MemoryStorage) and not refused else None
        careful = refused or like is not None
        if careful and there is not None and there is not expected:
            raise _exists(place)
        storage = MemoryStorage(self, place, Content(), writable=True)
        storage.hold(share=False)
        storage.begin(careful=careful, replaced=expected)
        return storage


class Files(MutableMapping[str, bytes]):
    """The files in memory by name, without ``memory:``; what they hold as bytes."""

    def __init__(self, driver: MemoryDriver) -> None:
        self._files = driver.files

    def __getitem__(self, name: str) -> bytes:
        content = self._files[posixpath.normpath(name)]
        data = bytearray(content.size)
        content.read_into(0, memoryview(data))
        return bytes(data)

    def __setitem__(self, name: str, data: ReadBuffer) -> None:
        content = Content()
        content.write(0, data)
        self._files[posixpath.normpath(name)] = content

    def __delitem__(self, name: str) -> None:
        del self._files[posixpath.normpath(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._files))

    def __len__(self) -> int:
        return len(self._files)

    def clear(self) -> None:
        """Forget all of them."""
        self._files.clear()  # without reading what is dropped

    def __repr__(self) -> str:
        return f"<files in memory: {', '.join(sorted(self._files)) or 'none'}>"


driver = MemoryDriver()
memory = Files(driver)
