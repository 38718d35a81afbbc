"""File objects, and images that are open, where the library takes the name of an image.

>>> diskmill.info(io.BytesIO(data))                                         # doctest: +SKIP
>>> with open("disk.qcow2", "rb") as file, diskmill.open(file) as disk:     # doctest: +SKIP
...     diskmill.convert(disk, "disk.vmdk", output_format="vmdk")

What is held is named by :class:`Held`, a text that carries it: ``fileobj:BytesIO-1`` for a file object, and for an
image its own name. The objects stay their callers': nothing here closes them.
"""

from __future__ import annotations

import io
import itertools
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from ..contract.drivers import ProtocolDriver, hookimpl
from ..contract.node import Buffer, Image, ReadBuffer, Storage
from ..contract.options import Option
from ..contract.place import NamedPlace
from ..errors import StorageError, UsageError

if TYPE_CHECKING:
    from ..contract.requests import OpenRequest

_numbers = itertools.count(1)


class Held(str):
    """The name of something that the caller holds, for as long as this very text lives."""

    thing: Any

    def __reduce__(self) -> Any:
        raise UsageError(f"{self} is open in this process: it cannot be sent to another one; name its file")


def hold(thing: Any) -> Held | None:
    """A name for *thing*, a binary file object that can seek, or an open image; None: it is neither.

    :raises UsageError: it is a file of text, or one that cannot seek.
    """
    if isinstance(thing, Image):
        name = Held(thing.name)
    elif isinstance(thing, io.TextIOBase):
        raise UsageError("a file object must be opened in binary mode")
    elif getattr(thing, "closed", False):
        raise UsageError("the file object is closed")
    elif callable(getattr(thing, "read", None)) and callable(getattr(thing, "seek", None)):
        if callable(seekable := getattr(thing, "seekable", None)) and not seekable():
            raise UsageError("the file object cannot seek")
        shown = getattr(thing, "name", None)
        shown = os.path.basename(shown) if isinstance(shown, str) else type(thing).__name__
        name = Held(f"fileobj:{shown}-{next(_numbers)}")
        _held[str(name)] = name
    else:
        return None
    name.thing = thing
    return name


def lent(name: object) -> Image | None:
    """The open image that *name* stands for; None: it names something that is still to be opened."""
    thing = name.thing if isinstance(name, Held) else None
    return thing if isinstance(thing, Image) else None


_held: WeakValueDictionary[str, Held] = WeakValueDictionary()


class FileObjectStorage(Storage):
    """The bytes of a file object, which has one position: requests come one after the other."""

    def __init__(self, driver: ProtocolDriver, name: str, thing: Any, *, writable: bool) -> None:
        self.driver = driver
        self.name = name
        self.writable = writable
        self._file = thing
        self._lock = threading.Lock()
        try:
            self.size = thing.seek(0, os.SEEK_END)
        except (OSError, ValueError) as error:
            raise _failed(error, name, "its end") from error

    def identity(self) -> object:
        return "fileobj", id(self._file)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        at = 0
        try:
            with self._lock:
                self._file.seek(offset)
                while at < len(view) and (count := self._read(view[at:])):
                    at += count
        except (OSError, ValueError) as error:  # the latter: it was closed
            raise _failed(error, self.name, f"read at offset {offset}") from error
        view[at:] = bytes(len(view) - at)

    def _read(self, view: memoryview) -> int:
        if hasattr(self._file, "readinto"):
            return self._file.readinto(view) or 0
        data = self._file.read(len(view))
        view[: len(data)] = data
        return len(data)

    def write(self, offset: int, data: ReadBuffer) -> None:
        if not self.writable:
            raise StorageError("it is open for reading only", file=self.name)
        view = memoryview(data).cast("B")
        at = 0
        try:
            with self._lock:
                self._file.seek(offset)
                while at < len(view):
                    at += self._file.write(view[at:])
        except (OSError, ValueError) as error:
            raise _failed(error, self.name, f"write at offset {offset}") from error
        self.size = max(self.size, offset + len(view))

    def truncate(self, size: int) -> None:
        """Set the size; what is new reads as zeros, as files have it."""
        try:
            with self._lock:
                if size > self.size:  # not every file object can be made longer otherwise
                    self._file.seek(size - 1)
                    self._file.write(b"\0")
                else:
                    self._file.truncate(size)
        except (OSError, ValueError) as error:
            raise _failed(error, self.name, f"set the size to {size} bytes") from error
        self.size = size

    def allocate(self, offset: int, length: int, mode: str) -> None:
        """What is there takes its space; what is new is written."""
        if self.size < offset + length:
            self.truncate(offset + length)

    def flush(self) -> None:
        if self.writable and hasattr(self._file, "flush"):
            try:
                self._file.flush()
            except (OSError, ValueError) as error:
                raise _failed(error, self.name, "flush") from error


def _failed(error: OSError | ValueError, name: str, place: str) -> StorageError:
    if isinstance(error, OSError):
        return StorageError.from_os(error, name, place)
    return StorageError(str(error), file=name, place=place)


class FileObjectDriver(ProtocolDriver):
    """``fileobj``, shipped with the core. Nothing lies beside what it opens."""

    contract = 1
    name = "fileobj"
    title = "file objects of the program that uses the library"
    prefixes = ("fileobj",)
    capabilities = frozenset({"write", "resize"})
    options = (Option("filename", "str", "fileobj:NAME, as the library calls it", when=("open",)),)

    def place(self, options: Mapping[str, Any]) -> NamedPlace:
        return NamedPlace(self, str(options.get("filename", "")))

    @hookimpl
    def open(self, request: OpenRequest) -> FileObjectStorage:
        """The file object of that name."""
        name = request.name
        held = _held.get(name)
        if held is None:
            raise StorageError("no program holds an object of that name", file=name)
        thing = held.thing
        if request.writable and callable(can := getattr(thing, "writable", None)) and not can():
            raise StorageError("the file object is open for reading only", file=name)
        return FileObjectStorage(self, name, thing, writable=request.writable)


driver = FileObjectDriver()
