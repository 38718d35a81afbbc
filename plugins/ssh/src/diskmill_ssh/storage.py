"""Files of another machine as storage: positioned reads and writes, without holes and without locks."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat
import threading
from collections.abc import Iterator, Sequence
from copy import copy
from typing import TYPE_CHECKING

from diskmill.contract.node import Buffer, ReadBuffer, Requests, Storage
from diskmill.errors import StorageError, UnsupportedError

from . import c_sftp as c
from . import remote
from .place import SshPlace
from .session import Session, connect, release

if TYPE_CHECKING:
    from diskmill import Context
    from diskmill.contract.drivers import ProtocolDriver
    from diskmill.contract.requests import CreateRequest, OpenRequest

_SYNC = ("writethrough", "directsync")
_MODE = 0o644
_TIDYING = 10.0
"""Seconds that a new connection has to remove what the lost one left."""
_ZEROS = 1 << 20


def open_file(driver: ProtocolDriver, request: OpenRequest) -> SshStorage:
    """An existing file.

    :raises StorageError: it cannot be opened, or there is no connection. ``errno`` is ``ENOENT`` where it is missing.
    """
    place = _asked(request.place)
    name = place.display()
    with _session(place, request.context, int(request.options["timeout"])) as session, _told(name):
        found = remote.look(session, place.path, follow=place.follow)
        flags = c.FOR_READING | (c.FOR_WRITING if request.writable else 0)
        handle = remote.opened(session, place.path, flags)
        attributes = remote.attributes_of_open(session, handle)
        remote.expect_file(attributes)
        if not place.follow:  # what was looked at may have been exchanged
            remote.look(session, place.path, follow=False)
        if attributes.size is None:
            raise StorageError("the server does not tell the file's size")
        storage = SshStorage(driver, place, session, handle, writable=request.writable, context=request.context)
        storage.size = attributes.size
        storage.place = SshPlace(
            driver,
            place.server,
            place.path,
            follow=place.follow,
            base=found.base,
            opened_in=posixpath.dirname(found.real),
        )
        storage.real = found.real
    if request.writable:
        _warn_of_locks(name, session, request.context)
    return storage


def create_file(driver: ProtocolDriver, request: CreateRequest) -> SshStorage:
    """A new, empty file, under a name of its own beside the output until it is settled.

    :raises StorageError: it cannot be made.
    """
    place = _asked(request.place)
    name = place.display()
    with _session(place, request.context, int(request.options["timeout"])) as session, _told(name):
        if place.path.endswith("/"):
            raise StorageError("Is a directory", errno=errno.EISDIR)
        like = request.like if isinstance(request.like, SshStorage) else None
        output = _Output(session, place.path, like=like, alone=request.like is not None)
        handle = remote.opened(session, output.temporary, _NEW, output.mode & 0o600 if output.inherits else output.mode)
        storage = SshStorage(driver, place, session, handle, writable=True, context=request.context)
        storage.output = output
        storage.real = output.target
    if output.old is not None and request.like is None:
        _warn_of_locks(name, session, request.context)
    return storage


_NEW = c.FOR_READING | c.FOR_WRITING | c.CREATE | c.EXCLUSIVE


class _Output:
    """The way of a new file to its name.

    :param path: where the output is to be.
    :param like: an open file of the same machine that the new one takes after.
    :param alone: nothing may bear the name, but *like*.
    """

    def __init__(self, session: Session, path: str, *, like: SshStorage | None, alone: bool) -> None:
        folder = posixpath.dirname(path)
        try:
            # A symbolic link stays: the file that it names is replaced.
            self.target = path if alone else _real_target(session, path)
        except StorageError as error:
            raise StorageError(
                f"cannot make a file in the folder '{folder}': {error.cause}", errno=error.errno
            ) from None
        self.temporary = posixpath.join(posixpath.dirname(self.target), f".diskmill-{os.urandom(8).hex()}.part")
        self.old = remote.attributes_of(session, self.target, follow=False)
        self._replaces = not alone or (like is not None and like.real == self.target)
        if self.old is not None:
            if not self._replaces:
                raise StorageError("File exists", errno=errno.EEXIST)
            remote.expect_file(self.old)
            if c.POSIX_RENAME not in session.extensions:
                raise UnsupportedError(
                    "the server cannot put a file in the place of another (it lacks posix-rename@openssh.com)"
                )
        taken_after = like.attributes() if like is not None else self.old
        self.owner = None if taken_after is None else taken_after.owner
        self.inherits = taken_after is not None and taken_after.mode is not None
        self.mode = _MODE
        if taken_after is not None and taken_after.mode is not None:
            self.mode = stat.S_IMODE(taken_after.mode)

    def settle(self, session: Session, handle: bytes) -> None:
        """Let the file, open as *handle*, have its name."""
        if self.inherits:
            for change in (c.Attributes(owner=self.owner), c.Attributes(mode=self.mode)):
                with contextlib.suppress(StorageError):  # as far as we may
                    if change.owner is not None or change.mode is not None:
                        session.ask(c.FSETSTAT, handle, change.pack())
        try:
            remote.rename(session, self.temporary, self.target, replace=self._replaces)
        except StorageError:
            # Servers do not say that the name is taken: it is asked, where that may be why.
            if not self._replaces and remote.attributes_of(session, self.target, follow=False) is not None:
                raise StorageError("File exists", errno=errno.EEXIST) from None
            raise


def _real_target(session: Session, path: str) -> str:
    """*path* without links; only its folder need be there."""
    try:
        return remote.real_path(session, path)
    except StorageError as error:
        if error.errno != errno.ENOENT:  # some servers resolve nothing but what is there
            raise
    folder, name = posixpath.split(path)
    return posixpath.join(remote.real_path(session, folder), name)


class SshStorage(Storage):
    """A file of another machine, open in *session* as *handle*, a string field."""

    requests = Requests(best=1 << 20, at_once=4)

    def __init__(
        self,
        driver: ProtocolDriver,
        place: SshPlace,
        session: Session,
        handle: bytes,
        *,
        writable: bool,
        context: Context,
    ) -> None:
        self.driver = driver
        self.name = place.display()
        self.place = place
        self.real = place.path
        """Its path on the other machine, without links."""
        self.size = 0
        self.writable = writable
        self.output: _Output | None = None
        """Its way to its name, where it has that not yet."""
        self._context = context
        self._cache = context.cache
        self._session = session
        self._server = place.server
        self._handle = handle
        self._open = True
        self._growing = threading.Lock()
        self._reaching: list[int] = []
        """The ends of writes at work that make the file longer."""
        self._changed = False
        self._lost: StorageError | None = None
        self._warned = False

    # -- reading ------------------------------------------------------------------------------------------------

    def read_into(self, offset: int, buffer: Buffer) -> None:
        target = memoryview(buffer).cast("B")
        inside = max(min(self.size - offset, len(target)), 0)
        if inside < len(target):
            target[inside:] = bytes(len(target) - inside)
        if not inside:
            return
        with self._telling(f"read at offset {offset}"):
            self._session.read(self._handle, offset, target[:inside], pad=self.writable)

    # -- writing ------------------------------------------------------------------------------------------------

    def write(self, offset: int, data: ReadBuffer) -> None:
        self.write_vector(offset, [data])

    def write_vector(self, offset: int, buffers: Sequence[ReadBuffer]) -> None:
        end = offset + sum(memoryview(buffer).nbytes for buffer in buffers)
        if end == offset:
            return
        with self._reach(end), self._telling(f"write at offset {offset}"):
            self._changed = True
            self._session.write(self._handle, offset, buffers)
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
            size = remote.attributes_of_open(self._session, self._handle).size or 0
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
        zeros = memoryview(bytes(min(max(end - offset, 0), _ZEROS)))
        for at in range(offset, end, _ZEROS):
            self.write(at, zeros[: end - at])

    def allocate(self, offset: int, length: int, mode: str) -> None:
        """By writing zeros: to all of the range (``full``), or, as what is there is to stay, behind the end."""
        end = offset + length
        self._write_zeros(offset if mode == "full" else max(offset, self.size), end)
        self.flush()

    def truncate(self, size: int) -> None:
        with self._growing, self._telling(f"set the size to {size} bytes"):
            self._changed = True
            self._session.ask(c.FSETSTAT, self._handle, c.Attributes(size=size).pack())
            self.size = size
        if self._cache in _SYNC:
            self.flush()

    def flush(self) -> None:
        if not self.writable or not self._open or not self._changed or self._cache == "unsafe":
            return
        if c.FSYNC not in self._session.extensions:
            if not self._warned:
                self._warned = True
                self._context.warn(
                    f"'{self.name}': the server has no fsync@openssh.com: nobody knows when data is on its disk"
                )
            return
        with self._telling("flush"):
            if self._lost is not None:
                raise copy(self._lost)
            self._changed = False
            try:
                self._session.ask(c.EXTENDED, c.string(c.FSYNC), self._handle)
            except StorageError as error:
                self._changed, self._lost = True, error  # what could not be written is forgotten there, too
                raise

    # -- what it is ---------------------------------------------------------------------------------------------

    def attributes(self) -> c.Attributes:
        """What the server says of the open file."""
        return remote.attributes_of_open(self._session, self._handle)

    def identity(self) -> object | None:
        return "ssh", self._server.host.lower(), self._server.port or 22, self.real

    # -- the end ------------------------------------------------------------------------------------------------

    def settle(self, others: Sequence[Storage] = ()) -> None:
        super().settle(others)  # the protocol names one file at a time: the main one last
        output = self.output
        if output is None:
            return
        self.flush()
        with self._telling("give the finished output its name"):
            output.settle(self._session, self._handle)
        self.output = None

    @property
    def settled(self) -> bool:
        return self.output is None

    def remove(self) -> None:
        with self._telling("remove"):
            remote.remove(self._session, self.real if self.output is None else self.output.temporary)
            self.output = None

    def interrupt(self) -> None:
        self._session.interrupt()

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
            if self._session.alive:
                with self._telling("close"):
                    self._session.ask(c.CLOSE, self._handle)
        finally:
            release(self._session)

    def _tidy(self, output: _Output) -> None:
        """Remove the file, which did not get its name; by a new connection where the old one is lost."""
        try:
            if self._session.alive:
                with contextlib.suppress(StorageError):
                    remote.remove(self._session, output.temporary)
                    return
            session = connect(self._server, ask=False, timeout=_TIDYING)
            try:
                remote.remove(session, output.temporary)
            finally:
                release(session)
        except StorageError as error:
            if error.errno != errno.ENOENT:
                self._context.warn(
                    f"'{self.name}': the unfinished file '{output.temporary}' is left on the other machine"
                )

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


@contextlib.contextmanager
def _session(place: SshPlace, context: Context, timeout: int) -> Iterator[Session]:
    """A session for the file at *place*, which is given back if that fails to be opened."""
    with _told(place.display()):
        session = connect(place.server, ask=context.ask is not None, timeout=max(timeout, 1))
    try:
        yield session
    except BaseException:
        release(session)
        raise


def _asked(place: object) -> SshPlace:
    assert isinstance(place, SshPlace)
    return place


def _warn_of_locks(name: str, session: Session, context: Context) -> None:
    """Tell once that nobody is kept from the file."""
    if not session.warned:
        session.warned = True
        context.warn(f"'{name}': files there cannot be locked over SSH: see to it that nothing else uses it meanwhile")
