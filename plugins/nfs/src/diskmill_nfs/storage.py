"""Files of an NFS server as storage: positioned reads and writes, without holes and without locks."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
import threading
from collections.abc import Iterator, Sequence
from copy import copy
from ctypes import c_char
from typing import TYPE_CHECKING

from diskmill.contract.node import Buffer, ReadBuffer, Requests, Storage
from diskmill.errors import StorageError, UnsupportedError

from .connections import AT_ONCE, Connection, Connections, expect_file
from .place import NfsPlace

if TYPE_CHECKING:
    from diskmill import Context
    from diskmill.contract.drivers import ProtocolDriver
    from diskmill.contract.requests import CreateRequest, OpenRequest

    from .c_libnfs import Stat

_SYNC = ("writethrough", "directsync")
_MODE = 0o644
_ZEROS = 1 << 20
_TIDYING = 10
"""Seconds that a new connection has to remove what the lost one left."""


def open_file(driver: ProtocolDriver, request: OpenRequest) -> NfsStorage:
    """An existing file.

    :raises StorageError: it cannot be opened, or there is no connection. ``errno`` is ``ENOENT`` where it is missing.
    """
    place = _asked(request.place)
    flags = os.O_RDWR if request.writable else os.O_RDONLY
    folder, name = posixpath.split(place.path)
    timeout = max(int(request.options["timeout"]), 1)
    with _told(place.display()):
        first = Connection(place.server, folder, timeout=timeout, caching=not request.writable)
        try:
            seen = first.look(name)
            if seen is None:
                raise StorageError(os.strerror(errno.ENOENT), errno=errno.ENOENT)
            linked = stat.S_ISLNK(seen.mode)
            if linked and not place.follow:
                raise StorageError("it is a symbolic link: only its real path may be opened for an image")
            if not linked:
                expect_file(seen)
            first.open(name, flags)
            found = first.attributes()
            expect_file(found)
            if not linked and (found.dev, found.ino) != (seen.dev, seen.ino):
                raise StorageError("another file took its name meanwhile", errno=errno.ESTALE)
            connections = Connections(place.server, folder, name, first, flags=flags, timeout=timeout)
        except BaseException:
            first.close()
            raise
        opened = place.at(place.path, follow=place.follow, linked=linked)
        storage = NfsStorage(driver, opened, connections, writable=request.writable, context=request.context)
        storage.size = found.size
    if request.writable:
        _warn_of_locks(place, request.context)
    return storage


def create_file(driver: ProtocolDriver, request: CreateRequest) -> NfsStorage:
    """A new, empty file, under a name of its own beside the output until it is settled.

    :raises StorageError: it cannot be made.
    """
    place = _asked(request.place)
    like = request.like if isinstance(request.like, NfsStorage) else None
    alone = request.like is not None
    folder, name = posixpath.split(place.path)
    timeout = max(int(request.options["timeout"]), 1)
    with _told(place.display()):
        first = Connection(place.server, folder, timeout=timeout, caching=False)
        try:
            output = _Output(first, name, like=like, alone=alone, same=like is not None and _same(like, place))
            mode = output.mode & 0o600 if output.taken_after is not None else output.mode
            first.open(output.temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
            connections = Connections(place.server, folder, output.temporary, first, flags=os.O_RDWR, timeout=timeout)
        except BaseException:
            first.close()
            raise
        storage = NfsStorage(driver, place, connections, writable=True, context=request.context)
        storage.output = output
    if output.old is not None and not alone:
        _warn_of_locks(place, request.context)
    return storage


class _Output:
    """The way of a new file to its name.

    :param name: what it is to be called in its folder.
    :param like: an open file that the new one takes after.
    :param alone: nothing may bear the name, but *like*.
    :param same: whether *like* bears it.
    """

    def __init__(self, connection: Connection, name: str, *, like: NfsStorage | None, alone: bool, same: bool) -> None:
        self.name = name
        self.temporary = f".diskmill-{os.urandom(8).hex()}.part"
        self.replaces = not alone or same
        self.old = connection.look(name)
        if self.old is not None:
            if not self.replaces:
                raise StorageError(os.strerror(errno.EEXIST), errno=errno.EEXIST)
            if stat.S_ISLNK(self.old.mode):
                raise UnsupportedError("it is a symbolic link there, which would be replaced: name the file itself")
            expect_file(self.old)
        self.taken_after = self.old if like is None else like.attributes()
        self.mode = _MODE if self.taken_after is None else stat.S_IMODE(self.taken_after.mode)

    def settle(self, connection: Connection) -> None:
        """Let the file, which *connection* has open, have its name."""
        after = self.taken_after
        if after is not None:
            now = connection.attributes()
            with contextlib.suppress(StorageError):  # as far as we may
                if (now.uid, now.gid) != (after.uid, after.gid):
                    connection.call("fchown", connection.handle, after.uid, after.gid)
            with contextlib.suppress(StorageError):
                connection.call("fchmod", connection.handle, self.mode)
        temporary, name = (os.fsencode(f"/{one}") for one in (self.temporary, self.name))
        if self.replaces:
            connection.call("rename", temporary, name)
        else:  # a link is refused where the name is taken
            connection.call("link", temporary, name)
            connection.call("unlink", temporary)


class NfsStorage(Storage):
    """A file of an NFS server, open in *connections*."""

    requests = Requests(best=1 << 20, at_once=AT_ONCE)

    def __init__(
        self, driver: ProtocolDriver, place: NfsPlace, connections: Connections, *, writable: bool, context: Context
    ) -> None:
        self.driver = driver
        self.name = place.display()
        self.place: NfsPlace = place
        self.size = 0
        self.writable = writable
        self.output: _Output | None = None
        """Its way to its name, where it has that not yet."""
        self._context = context
        self._cache = context.cache
        self._connections = connections
        self._open = True
        self._growing = threading.Lock()
        self._reaching: list[int] = []
        """The ends of writes at work that make the file longer."""
        self._changed = False
        self._lost: StorageError | None = None

    # -- reading ------------------------------------------------------------------------------------------------

    def read_into(self, offset: int, buffer: Buffer) -> None:
        target = memoryview(buffer).cast("B")
        inside = max(min(self.size - offset, len(target)), 0)
        if inside < len(target):
            target[inside:] = bytes(len(target) - inside)
        if not inside:
            return
        with self._telling(f"read at offset {offset}"), self._connections.one() as connection:
            at = 0
            while at < inside:
                part = (c_char * (inside - at)).from_buffer(target[at:inside])
                count = connection.call("pread", connection.handle, offset + at, inside - at, part)
                if count == 0:
                    if not self.writable:
                        raise StorageError("the file ends there: it was made shorter", errno=errno.EIO)
                    target[at:inside] = bytes(inside - at)  # somebody is about to write behind it
                    return
                at += count

    # -- writing ------------------------------------------------------------------------------------------------

    def write(self, offset: int, data: ReadBuffer) -> None:
        self.write_vector(offset, [data])

    def write_vector(self, offset: int, buffers: Sequence[ReadBuffer]) -> None:
        if not self.writable:
            self._refuse("write what was opened for reading")
        data = bytes(memoryview(buffers[0]).cast("B")) if len(buffers) == 1 else b"".join(buffers)
        if not data:
            return
        with self._reach(offset + len(data)), self._telling(f"write at offset {offset}"):
            self._changed = True
            with self._connections.one() as connection:
                at = 0
                while at < len(data):
                    rest = data[at:] if at else data
                    count = connection.call("pwrite", connection.handle, offset + at, len(rest), rest)
                    if count == 0:
                        raise StorageError("the server took nothing of it", errno=errno.EIO)
                    at += count
        if self._cache in _SYNC:
            self.flush()

    @contextlib.contextmanager
    def _reach(self, end: int) -> Iterator[None]:
        """A write up to *end* is at work. The size is known before: no truncation cuts off what others write."""
        with self._growing:
            grows = end > self.size
            if grows:
                self.size = end
                self._reaching.append(end)
        try:
            yield
        except StorageError:
            if grows:
                self._fell_short(end)
            raise
        finally:
            if grows:
                with self._growing:
                    self._reaching.remove(end)

    def _fell_short(self, end: int) -> None:
        """The write up to *end* failed: the file is as long as it is, or as others are about to make it."""
        with contextlib.suppress(StorageError):
            size = self.attributes().size
            with self._growing:
                others = list(self._reaching)
                others.remove(end)
                self.size = min(self.size, max(size, *others, 0))

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        end = offset + length
        if length <= 0:
            return
        self._write_zeros(offset, min(end, self.size))
        if end > self.size:  # what a file gets by being made longer is zeros, and costs nothing
            self.truncate(end)

    def _write_zeros(self, offset: int, end: int) -> None:
        zeros = bytes(min(max(end - offset, 0), _ZEROS))
        for at in range(offset, end, _ZEROS):
            self.write(at, zeros[: end - at])

    def allocate(self, offset: int, length: int, mode: str) -> None:
        """By writing zeros: to all of the range (``full``), or, as what is there is to stay, behind the end."""
        end = offset + length
        self._write_zeros(offset if mode == "full" else max(offset, self.size), end)
        self.flush()

    def truncate(self, size: int) -> None:
        if not self.writable:
            self._refuse("resize what was opened for reading")
        with self._growing, self._telling(f"set the size to {size} bytes"):
            self._changed = True
            with self._connections.one() as connection:
                connection.call("ftruncate", connection.handle, size)
            self.size = size
        if self._cache in _SYNC:
            self.flush()

    def flush(self) -> None:
        if not self.writable or not self._open or not self._changed or self._cache == "unsafe":
            return
        with self._telling("flush"):
            if self._lost is not None:
                raise copy(self._lost)
            self._changed = False
            try:
                with self._connections.one() as connection:
                    connection.call("fsync", connection.handle)
            except StorageError as error:
                self._changed, self._lost = True, error  # what could not be written is forgotten there, too
                raise

    # -- what it is ---------------------------------------------------------------------------------------------

    def attributes(self) -> Stat:
        """What the server says of the open file."""
        with self._connections.one() as connection:
            return connection.attributes()

    def allocated(self) -> int | None:
        with self._telling("ask for its space"):
            return self.attributes().used

    def identity(self) -> object | None:
        return self.place.identity()

    # -- the end ------------------------------------------------------------------------------------------------

    def settle(self, others: Sequence[Storage] = ()) -> None:
        super().settle(others)  # the protocol names one file at a time: the main one last
        output = self.output
        if output is None:
            return
        self.flush()
        with self._telling("give the finished output its name"), self._connections.one() as connection:
            output.settle(connection)
            self._connections.name = output.name
        self.output = None

    @property
    def settled(self) -> bool:
        return self.output is None

    def remove(self) -> None:
        with self._telling("remove"), self._connections.one() as connection:
            connection.call("unlink", os.fsencode(f"/{self._connections.name}"))
            self.output = None

    def interrupt(self) -> None:
        self._connections.interrupt()

    def close(self) -> None:
        if not self._open:
            return
        try:
            if self.output is None:
                self.flush()
        finally:
            self._release()

    def abandon(self) -> None:
        if self._open:
            with contextlib.suppress(StorageError):  # what went wrong before is what tells why
                self._release()

    def _release(self) -> None:
        self._open = False
        output, self.output = self.output, None
        try:
            if output is not None:
                self._tidy(output)
        finally:
            self._connections.close()

    def _tidy(self, output: _Output) -> None:
        """Remove the file, which did not get its name; by a new connection where the old one is lost."""
        name = os.fsencode(f"/{output.temporary}")
        with contextlib.suppress(StorageError), self._connections.one() as connection:
            connection.call("unlink", name)
            return
        place = self.place
        folder = posixpath.dirname(place.path)
        try:
            another = Connection(place.server, folder, timeout=_TIDYING, caching=False)
            try:
                another.call("unlink", name)
            finally:
                another.close()
        except StorageError as error:
            if error.errno != errno.ENOENT:
                self._context.warn(f"'{self.name}': the unfinished file '{output.temporary}' is left on the server")

    def _telling(self, doing: str) -> contextlib.AbstractContextManager[None]:
        return _told(self.name, doing)


@contextlib.contextmanager
def _told(name: str, doing: str | None = None) -> Iterator[None]:
    """Errors name the file, and what was being done to it."""
    try:
        yield
    except (StorageError, UnsupportedError) as error:
        error.file = error.file or name
        error.place = error.place or doing
        raise


def _asked(place: object) -> NfsPlace:
    assert isinstance(place, NfsPlace)
    return place


def _same(like: NfsStorage, place: NfsPlace) -> bool:
    return like.output is None and like.identity() == place.identity()


_warned: set[str] = set()
"""Servers of which it was told that files there cannot be locked."""


def _warn_of_locks(place: NfsPlace, context: Context) -> None:
    if place.server.host not in _warned:
        _warned.add(place.server.host)
        context.warn(
            f"'{place.display()}': files there are not locked over NFS: see to it that nothing else uses it meanwhile"
        )
