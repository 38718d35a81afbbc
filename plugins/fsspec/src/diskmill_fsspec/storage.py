"""Files of fsspec's: read by ranges, or written from the first byte to the last."""

from __future__ import annotations

import errno
import json
import os
import posixpath
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

from diskmill.contract.drivers import ProtocolDriver
from diskmill.contract.node import ReadBuffer, Storage
from diskmill.contract.options import Value
from diskmill.errors import DiskmillError, RefusedError, StorageError, UnsupportedError, UsageError
from diskmill.kit.forward import ForwardOutput
from diskmill.kit.ranged import LARGEST_READAHEAD, RangedStorage
from diskmill.sizes import MAX_SIZE, MiB

from .place import FsspecPlace

if TYPE_CHECKING:
    from diskmill import Context
    from diskmill.contract.requests import CreateRequest, OpenRequest

_AT_ONCE = 4


def open_file(driver: ProtocolDriver, request: OpenRequest) -> FsspecStorage:
    """The file at the request's place.

    :raises StorageError: it cannot be had. UnsupportedError: it is to be written.
    """
    place = _expected(request.place)
    if request.writable:
        raise UnsupportedError("a file behind fsspec cannot be changed, only made anew", file=request.name)
    if place.judged and set(request.options) - {"filename"}:
        raise RefusedError("an image may not set options of fsspec (--trust=anything lets it)", file=request.name)
    readahead = int(request.options.get("readahead", MiB))
    if not 512 <= readahead <= LARGEST_READAHEAD:
        raise UsageError(f"option 'readahead' takes 512 to {LARGEST_READAHEAD}", file=request.name)
    system, path = _system(place, request.options, request.context)
    storage = FsspecStorage(driver, place, system, path, readahead)
    request.context.warn(f"'{storage.name}': through fsspec a change of the file meanwhile may go unnoticed")
    return storage


def create_file(driver: ProtocolDriver, request: CreateRequest) -> FsspecOutput:
    """A new file at the request's place.

    :raises StorageError: it cannot be made.
    """
    place = _expected(request.place)
    system, path = _system(place, request.options, request.context)
    output = FsspecOutput(driver, place, system, path, request.context)
    if request.context.overwrite == "refuse":
        with _told(output.name, "open"):
            if system.exists(path):
                output.close()
                raise StorageError("File exists", file=output.name, errno=errno.EEXIST)
    return output


def _expected(place: object) -> FsspecPlace:
    assert isinstance(place, FsspecPlace)
    return place


def _system(place: FsspecPlace, options: Mapping[str, Value], context: Context) -> tuple[Any, str]:
    """The file system of *place*, and the path in it.

    :raises UsageError: it cannot be used so. UnsupportedError: it is not installed.
    """
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    name, given = place.display(), options.get("storage-options")
    if "storage-options-secret" in options:
        given = context.secret(str(options["storage-options-secret"])).decode(errors="replace")
    try:
        words = json.loads(str(given)) if given is not None else {}
    except ValueError:
        words = None
    if not isinstance(words, dict):  # it may be a secret, so it is not shown
        raise UsageError("the option 'storage-options' is a JSON object", file=name)
    try:
        system, path = url_to_fs(place.url, **words)
    except ImportError as error:
        raise UnsupportedError(f"fsspec lacks a package for '{place.protocol}': {error}", file=name) from None
    except ValueError:
        raise UnsupportedError(f"fsspec knows no protocol '{place.protocol}'", file=name) from None
    except Exception as error:
        raise _failure(error, name, "open") from None
    return system, path


@contextmanager
def _told(name: str, doing: str) -> Iterator[None]:
    """Whatever a file system raises becomes one line. They raise what they like."""
    try:
        yield
    except DiskmillError:
        raise
    except Exception as error:
        raise _failure(error, name, doing) from None


def _failure(error: Exception, name: str, doing: str) -> StorageError:
    """*error* in our words: its own may quote a credential."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, FileNotFoundError):
        number = errno.ENOENT
    cause = os.strerror(number) if number else f"the file system failed ({type(error).__name__})"
    return StorageError(cause, file=name, place=None if number == errno.ENOENT else doing, errno=number)


class FsspecStorage(RangedStorage):
    """See the module. Only file systems that say that they are asynchronous are asked from several threads at once."""

    def __init__(self, driver: ProtocolDriver, place: FsspecPlace, system: Any, path: str, readahead: int) -> None:
        parallel = bool(getattr(system, "async_impl", False))
        super().__init__(place.display(), readahead=readahead, connections=_AT_ONCE if parallel else 1)
        self.driver = driver
        self.place = place
        self._system = system
        self._path = path
        self._one: Any = nullcontext() if parallel else threading.Lock()
        with _told(self.name, "open"):
            found = system.info(path)
            if found.get("type") == "directory":
                raise StorageError("Is a directory", file=self.name, errno=errno.EISDIR)
            size = found.get("size")
            if not isinstance(size, int) or not 0 <= size <= MAX_SIZE:
                raise StorageError("the file system does not tell the file's size", file=self.name)
        self.size = size

    def fetch(self, offset: int, view: memoryview) -> None:
        place = f"read at offset {offset}"
        with _told(self.name, place), self._one:
            data = self._system.cat_file(self._path, start=offset, end=offset + len(view))
        if len(data) != len(view):
            raise StorageError("it gave less, or more, than was asked for", file=self.name, place=place)
        view[:] = data

    def close(self) -> None:
        """There is nothing that is open."""


class FsspecOutput(ForwardOutput):
    """A new file, under a name of its own beside the output until it is settled."""

    one_pass = "a file behind fsspec"

    def __init__(self, driver: ProtocolDriver, place: FsspecPlace, system: Any, path: str, context: Context) -> None:
        super().__init__(driver, place.display())
        self.place = place
        self._context = context
        self._system = system
        self._path = path
        self._temporary = posixpath.join(posixpath.dirname(path), f".diskmill-{os.urandom(8).hex()}.part")
        self._settled = False
        with _told(self.name, "create"):
            self._file: Any = system.open(self._temporary, "wb")

    def append(self, data: ReadBuffer) -> None:
        view = memoryview(data)
        with _told(self.name, f"write at offset {self.position}"):
            while view:
                count = self._file.write(view)
                view = view[len(view) if count is None else count :]

    def settle(self, others: Sequence[Storage] = ()) -> None:
        super().settle(others)
        if self._settled:
            return
        self.finish()
        with _told(self.name, "give the finished output its name"):
            self._file.close()
            self._file = None
            size = self._system.info(self._temporary)["size"]
            if size != self.size:
                raise StorageError(f"{self.size} bytes were written, but it has {size}", file=self.name)
            self._system.mv(self._temporary, self._path)
        self._settled = True

    @property
    def settled(self) -> bool:
        return self._settled

    def remove(self) -> None:
        with _told(self.name, "remove"):
            self._system.rm_file(self._path)

    def close(self) -> None:
        if self._settled or not self._temporary:
            return
        temporary, self._temporary = self._temporary, ""
        with suppress(Exception):  # what went wrong before is what tells why
            if self._file is not None:
                self._file.close()
        try:
            self._system.rm_file(temporary)
        except Exception:
            self._context.warn(f"'{self.name}': the unfinished file '{temporary}' may be left")
