"""A client: an export's bytes for any number of threads, over as many connections as pay, made anew when they break."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING

from diskmill.errors import StorageError, UnsupportedError
from diskmill.records import record
from diskmill.sizes import KiB, MiB, round_down, round_up

from . import c_nbd as c
from .connection import Connection, Request
from .handshake import Export, Handshake
from .location import Location
from .tls import Credentials, client_context
from .transport import ConnectionLost, ReadBuffer, Stalled, Transport, connect

if TYPE_CHECKING:
    import ssl

_READ_PIECE = 2 * MiB
"""Bytes that one request reads at most. Each reply costs two calls to the system and as many turns of the threads, so
few large ones take about a tenth less processor time than ones of 256 KiB."""
_WRITE_PIECE = 512 * KiB
"""Bytes that one request writes at most. A server works on one while the next is on its way."""
_AT_ONCE = 16
"""Requests that are sent before the first reply is waited for. Their replies, without data, fit into any socket."""
MAX_CONNECTIONS = 4
"""More pay nowhere: a server's threads, and ours, share the processors."""
_ZERO_PIECE = 128 * MiB
"""Bytes that one request zeroes or trims at most: the server may have to write them, within our time limit."""
_STATUS_PIECE = 2 * 1024 * MiB
_EXTENDED_PIECE = 1 << 50
_JOURNAL = 32 * MiB
"""Bytes written that are remembered until they are flushed, where a server may come back without them."""
_CHANGES = (c.NBD_CMD_WRITE, c.NBD_CMD_WRITE_ZEROES, c.NBD_CMD_TRIM)
_PAUSE = 0.2
"""Seconds between attempts to reach a server that is away."""


@record(frozen=True)
class Settings:
    """How a client behaves. Times are seconds.

    :param timeout: that a server may take for an answer before it counts as stalled; 0: for ever.
    :param open_timeout: for which a server that is not there yet is tried again.
    :param reconnect_delay: for which a server that was lost is tried again, and its requests wait.
    :param retries: how often a request that the server answered with an input/output error is repeated.
    :param connections: how many there are at most.
    :param contexts: metadata contexts to ask for.
    :param credentials: for TLS; None: there is none, unless the location asks for it.
    :param tls_hostname: whom the server's certificate must name; empty: the host.
    """

    timeout: float = 60
    open_timeout: float = 0
    reconnect_delay: float = 0
    retries: int = 0
    connections: int = MAX_CONNECTIONS
    contexts: tuple[str, ...] = (c.BASE_ALLOCATION,)
    credentials: Credentials | None = None
    tls_hostname: str = ""


class _Written:
    """A change that was sent and that nobody flushed yet. *data* None: *command* needs none."""

    def __init__(self, command: int, offset: int, length: int, flags: int, data: bytes | None) -> None:
        self.command = command
        self.offset = offset
        self.length = length
        self.flags = flags
        self.data = data
        self.acknowledged = False


class Client:
    """The export at *location*, connected.

    :raises StorageError: the server cannot be reached, or does not give the export.
    """

    def __init__(self, location: Location, settings: Settings | None = None, *, writable: bool = False) -> None:
        self.location = location
        self.settings = settings or Settings()
        self.name = location.uri
        self.writable = writable
        self._tls = _tls_context(location, self.settings)
        self._hostname = self.settings.tls_hostname or location.hostname or location.host or "localhost"
        self._lock = threading.Condition()
        self._idle: list[Connection] = []
        self._all: list[Connection] = []
        self._opening = 0
        self._generation = 0
        self._restoring = False
        self._dead: StorageError | None = None
        self._closed = False
        self._journal: list[_Written] = []
        self._journaled = 0
        self._partial = threading.RLock()
        self._flushing = threading.Lock()
        first = self._reach(self.settings.open_timeout)
        self.export = first.export
        self._all.append(first)
        self._idle.append(first)
        if writable and self.export.can(c.NBD_FLAG_READ_ONLY):
            self.close()
            raise StorageError("the server exports it for reading only", file=self.name, errno=errno.EROFS)
        several = self.export.can(c.NBD_FLAG_CAN_MULTI_CONN) and self.settings.connections > 1
        self._limit = self.settings.connections if several else 1
        if writable:
            others = self._others()
            self._all += others
            self._idle += others

    @property
    def size(self) -> int:
        """Bytes of the export."""
        return self.export.size

    @property
    def alignment(self) -> int:
        """What offsets and lengths of requests must be multiples of, in bytes; others cost a copy here."""
        return self.export.minimum

    def _piece(self, most: int) -> int:
        """Bytes that one request reads or writes at most, where *most* would be best."""
        return max(min(most, self.export.maximum), self.alignment)

    # -- connections --------------------------------------------------------------------------------------------

    def _connect(self) -> Connection:
        timeout = self.settings.timeout
        transport = Transport(connect(self.location, timeout), self.name, timeout)
        try:
            transport.until(time.monotonic() + timeout if timeout else None)
            handshake = Handshake(transport, context=self._tls, hostname=self._hostname)
            handshake.upgrade()
            contexts = handshake.contexts(self.location.export, self.settings.contexts)
            export = handshake.info(self.location.export, go=True)
            export.contexts = contexts
            transport.until(None)
        except BaseException:
            transport.close()
            raise
        return Connection(transport, export)

    def _others(self) -> list[Connection]:
        """All connections beside the first, for a client that writes: they are made before anything is written.

        One that came later could lead to a server that was started anew meanwhile, and has never seen what was
        acknowledged on the others, which nobody has found broken yet.
        """
        made: list[Connection] = []
        while len(made) + 1 < self._limit:
            one = self._alike()
            if one is None:
                self._limit = len(made) + 1
                break
            made.append(one)
        return made

    def _alike(self) -> Connection | None:
        """One more connection to the same export; None: the server gives no more, or something else."""
        try:
            made = self._connect()
        except StorageError:
            return None
        if (made.export.size, made.export.flags) == (self.export.size, self.export.flags):
            return made
        made.disconnect()
        return None

    def _reach(self, patience: float) -> Connection:
        """A new connection; a server that is not there is tried for *patience* seconds."""
        end = time.monotonic() + patience
        while True:
            try:
                return self._connect()
            except StorageError as error:
                if time.monotonic() + _PAUSE >= end or self._closed or not _passing(error):
                    raise
            time.sleep(_PAUSE)

    def _take(self) -> Connection:
        """A connection for one request. With several, nobody else has it meanwhile."""
        with self._lock:
            while True:
                if self._dead is not None:
                    raise copy(self._dead)
                if self._closed:
                    raise StorageError("it is closed", file=self.name)
                if not self._restoring:
                    if self._limit == 1:
                        return self._all[0]
                    if self._idle:
                        return self._idle.pop()
                    if len(self._all) + self._opening < self._limit and not self.writable:
                        self._opening += 1
                        generation = self._generation
                        break
                self._lock.wait()
        made = self._alike()
        with self._lock:
            self._opening -= 1
            if made is not None and generation == self._generation and not self._closed:
                self._all.append(made)
                self._lock.notify_all()
                return made
            if made is not None:
                made.disconnect()
            else:
                self._limit = max(len(self._all), 1)  # the server gives no more, or not of the same
            self._lock.notify_all()
        return self._take()

    def _give_back(self, connection: Connection) -> None:
        with self._lock:
            if self._limit > 1 or connection not in self._idle:
                if connection in self._all and connection.lost is None and connection not in self._idle:
                    self._idle.append(connection)
                self._lock.notify()

    def _broken(self, connection: Connection, error: ConnectionLost) -> None:
        """*connection* was lost: connect anew and write again what may be lost with it; or raise.

        :raises StorageError: that did not work within the ``reconnect_delay``, and will not any more.
        """
        with self._lock:
            if connection not in self._all:  # another thread has seen to it already, or does so now
                return
            if self.settings.reconnect_delay <= 0 or self._closed:
                self._dead = self._dead or error
                self._lock.notify_all()
                raise copy(self._dead)
            old, self._all, self._idle = self._all, [], []
            self._generation += 1
            self._restoring = True
        for one in old:
            one.fail(error)
            one.transport.close()
        made: Connection | None = None
        others: list[Connection] = []
        dead: StorageError = error
        end = time.monotonic() + self.settings.reconnect_delay
        try:
            while made is None:
                try:
                    made = self._reach(end - time.monotonic())
                    self._same(made)
                    for one in others:
                        one.disconnect()
                    others = self._others() if self.writable else []
                    self._replay(made)
                except ConnectionLost as again:
                    made, dead = None, again
                    if time.monotonic() >= end:
                        break
                except StorageError as final:
                    made, dead = None, final
                    break
        finally:
            with self._lock:
                self._restoring = False
                if made is None:
                    self._dead = dead
                else:
                    self._all += [made, *others]
                    self._idle += [made, *others]
                self._lock.notify_all()
        if made is None:
            raise copy(dead)

    def _same(self, made: Connection) -> None:
        new, old = made.export, self.export
        if (new.size, new.flags, new.minimum) != (old.size, old.flags, old.minimum):
            raise StorageError("the server came back with another export under that name", file=self.name)
        new.name = old.name
        self.export = new

    def _replay(self, made: Connection) -> None:
        """Write again what the lost server may not have kept."""
        with self._lock:
            journal = list(self._journal)
        made.unflushed = bool(journal)
        for one in journal:
            made.call(Request(one.command, one.offset, one.length, flags=one.flags, data=one.data))

    def interrupt(self) -> None:
        """Let all that is waited for fail at once, in whatever thread."""
        error = ConnectionLost("interrupted", file=self.name)
        with self._lock:
            self._dead = self._dead or error
            connections = list(self._all)
            self._lock.notify_all()
        for one in connections:
            one.fail(error)

    def close(self) -> None:
        """Disconnect; nothing is flushed. Calling it twice is harmless."""
        with self._lock:
            self._closed = True
            connections, self._all, self._idle = self._all, [], []
            self._lock.notify_all()
        for one in connections:
            one.disconnect()

    # -- requests -----------------------------------------------------------------------------------------------

    def _call(self, *requests: Request) -> tuple[Request, Export]:
        """Requests that are repeated when their connection breaks, as long as the settings allow that.

        :return: the last of them, as it was answered, and the export as the connection which did so has it.
        """
        tries = self.settings.retries
        left: Sequence[Request] = requests
        while True:
            connection = self._take()
            try:
                connection.exchange(left)
                failed = [one for one in left if one.error]
                if left[0].command in _CHANGES and len(failed) < len(left):
                    connection.unflushed = True
                if failed:
                    raise connection.refused(failed[0])
                return left[-1], connection.export
            except StorageError as error:
                if self._overcome(connection, error, tries):
                    tries -= 1
                left = [one.again() for one in left if one.error or not one.done]
            finally:
                self._give_back(connection)

    def _overcome(self, connection: Connection, error: StorageError, tries: int) -> bool:
        """Whether what failed shall be tried on the same connection; False: on another, for this one was lost.

        :raises StorageError: neither.
        """
        if error.errno == errno.ESHUTDOWN and not isinstance(error, ConnectionLost):
            error = ConnectionLost(error.cause, file=self.name, errno=error.errno)
            connection.fail(error)
        if isinstance(error, ConnectionLost):
            self._broken(connection, error)
            return False
        if error.errno != errno.EIO or tries <= 0:
            raise error
        time.sleep(min(0.01 * (self.settings.retries - tries + 1), 1))
        return True

    def read_into(self, offset: int, buffer: bytearray | memoryview) -> None:
        """Fill *buffer*; beyond the end it is zeros.

        :raises StorageError: the server answers with an error, stalls, or is lost.
        """
        self.read_pieces(((offset, buffer),))

    def read_pieces(self, pieces: Sequence[tuple[int, bytearray | memoryview]]) -> None:
        """Fill each of the buffers from its offset on; see :meth:`read_into`. All are asked for before they come."""
        align, most = self.alignment, self._piece(_READ_PIECE)
        batch: list[Request] = []
        for offset, buffer in pieces:
            view = memoryview(buffer).cast("B")
            inside = max(min(len(view), self.size - offset), 0)
            if inside < len(view):
                view[inside:] = bytes(len(view) - inside)
            at = 0
            while at < inside:
                start = offset + at
                count = min(most, inside - at)
                if start % align or count % align:
                    low = round_down(start, align)
                    high = min(round_up(start + count, align), low + most)
                    whole = memoryview(bytearray(high - low))
                    self._call(Request(c.NBD_CMD_READ, low, high - low, into=whole))
                    count = min(count, high - start)
                    view[at : at + count] = whole[start - low : start - low + count]
                else:
                    batch.append(Request(c.NBD_CMD_READ, start, count, into=view[at : at + count]))
                at += count
                if len(batch) == _AT_ONCE:
                    self._call(*batch)
                    batch = []
        if batch:
            self._call(*batch)

    def write(self, offset: int, data: ReadBuffer, *, fua: bool = False) -> None:
        """Put *data* at *offset*.

        :param fua: it is on the disk when this returns.
        :raises StorageError: see :meth:`read_into`; also, beyond the end.
        """
        self.write_pieces(((offset, data),), fua=fua)

    def write_pieces(self, pieces: Sequence[tuple[int, ReadBuffer]], *, fua: bool = False) -> None:
        """Put each of the buffers at its offset; see :meth:`write`. All are sent before the first is answered."""
        flags, after = self._fua(fua)
        align = self.alignment
        whole: list[tuple[int, memoryview]] = []
        for offset, data in pieces:
            view = memoryview(data).cast("B")
            self._inside(offset, len(view))
            end = offset + len(view)
            low, high = round_up(offset, align), round_down(end, align)
            if low >= high:
                self._write_partly(offset, view, flags)
            else:
                self._write_partly(offset, view[: low - offset], flags)
                whole.append((low, view[low - offset : high - offset]))
                self._write_partly(high, view[high - offset :], flags)
        self._write_whole(whole, flags)
        if after:
            self.flush()

    def _write_whole(self, pieces: Sequence[tuple[int, memoryview]], flags: int) -> None:
        """Bytes that are whole blocks."""
        most = self._piece(_WRITE_PIECE)
        batch: list[Request] = []
        for offset, view in pieces:
            for at in range(0, len(view), most):
                part = view[at : at + most]
                batch.append(Request(c.NBD_CMD_WRITE, offset + at, len(part), flags=flags, data=part))
                if len(batch) == _AT_ONCE:
                    self._change(*batch)
                    batch = []
        if batch:
            self._change(*batch)

    def _write_partly(self, offset: int, view: memoryview, flags: int) -> None:
        """Bytes that are not whole blocks: the blocks are read, and written whole."""
        if not len(view):
            return
        align = self.alignment
        if align == 1:
            self._write_whole(((offset, view),), flags)
            return
        low, high = round_down(offset, align), round_up(offset + len(view), align)
        with self._partial:
            whole = bytearray(high - low)
            self.read_into(low, whole)
            whole[offset - low : offset - low + len(view)] = view
            self._write_whole(((low, memoryview(whole)),), flags)

    def zero(self, offset: int, length: int, *, hole: bool = True, fast: bool = False, fua: bool = False) -> None:
        """Make the range read as zeros.

        :param hole: the server may give its space back.
        :param fast: only if that is faster than to write zeros.
        :raises UnsupportedError: with *fast*: it is not.
        :raises StorageError: see :meth:`read_into`.
        """
        self._inside(offset, length)
        end = offset + length
        low, high = round_up(offset, self.alignment), round_down(end, self.alignment)
        if not self.export.can(c.NBD_FLAG_SEND_WRITE_ZEROES) or low >= high:
            if fast:
                raise UnsupportedError("the server has no fast zeroing", file=self.name)
            self._write_zeros(offset, end, fua)
            return
        flags, after = self._fua(fua)
        if not hole:
            flags |= c.NBD_CMD_FLAG_NO_HOLE
        if fast:
            if not self.export.can(c.NBD_FLAG_SEND_FAST_ZERO):
                raise UnsupportedError("the server has no fast zeroing", file=self.name)
            flags |= c.NBD_CMD_FLAG_FAST_ZERO
        self._write_zeros(offset, low, fua)
        for at in range(low, high, _ZERO_PIECE):
            try:
                self._change(Request(c.NBD_CMD_WRITE_ZEROES, at, min(_ZERO_PIECE, high - at), flags=flags))
            except StorageError as error:
                if fast and error.errno == errno.ENOTSUP:
                    raise UnsupportedError("the server has no fast zeroing there", file=self.name) from None
                if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP) or isinstance(error, Stalled):
                    raise
                self._write_zeros(at, min(at + _ZERO_PIECE, high), fua)
        self._write_zeros(high, end, fua)
        if after:
            self.flush()

    def _write_zeros(self, offset: int, end: int, fua: bool) -> None:
        zeros = memoryview(bytes(min(end - offset, 256 * KiB)))
        while offset < end:
            count = min(len(zeros), end - offset)
            self.write(offset, zeros[:count], fua=fua)
            offset += count

    def trim(self, offset: int, length: int) -> None:
        """The range's contents no longer matter."""
        low, high = round_up(offset, self.alignment), round_down(min(offset + length, self.size), self.alignment)
        if not self.export.can(c.NBD_FLAG_SEND_TRIM):
            return
        for at in range(low, high, _ZERO_PIECE):
            self._change(Request(c.NBD_CMD_TRIM, at, min(_ZERO_PIECE, high - at)))

    def cache(self, offset: int, length: int) -> None:
        """The range will be read soon."""
        low, high = round_up(offset, self.alignment), round_down(min(offset + length, self.size), self.alignment)
        if self.export.can(c.NBD_FLAG_SEND_CACHE):
            for at in range(low, high, self.export.maximum):
                self._call(Request(c.NBD_CMD_CACHE, at, min(self.export.maximum, high - at)))

    def flush(self) -> None:
        """What was written, and acknowledged, reaches the disk."""
        if not self.writable or not self.export.can(c.NBD_FLAG_SEND_FLUSH):
            return
        with self._flushing:  # whoever comes meanwhile must not return before what is under way is known to be done
            self._flush_all()

    def _flush_all(self) -> None:
        while True:
            with self._lock:
                while self._restoring:
                    self._lock.wait()
                done = [one for one in self._journal if one.acknowledged]
                # Each that has acknowledged something: one that is broken by now, unnoticed, may have led to a server
                # which took that with it, and what another server flushes says nothing of it.
                connections = [one for one in self._all if one.unflushed] or self._all[:1]
                generation = self._generation
            for connection in connections:
                self._flush(connection)
            with self._lock:
                if self._dead is not None:
                    raise copy(self._dead)
                if not connections:
                    raise StorageError("it is closed", file=self.name)
                if generation == self._generation:
                    break
        for one in done:
            self._forget(one)

    def _flush(self, connection: Connection) -> None:
        """Flush through one connection. A flush that fails is never repeated: a second one may succeed only because the
        system has forgotten what it could not write.
        """
        connection.unflushed = False  # what is acknowledged from here on, the next one is for
        try:
            connection.call(Request(c.NBD_CMD_FLUSH))
        except StorageError as error:
            connection.unflushed = True
            self._overcome(connection, error, 0)

    def _forget(self, one: _Written) -> None:
        with self._lock:
            if one in self._journal:
                self._journal.remove(one)
                self._journaled -= _weight(one)

    def statuses(self, context: str, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Length and flags of each stretch of the range, as *context*, one of the settings', has them, in order.

        :raises UnsupportedError: the server does not have that context.
        """
        if not self.has(context):
            raise UnsupportedError(f"the server does not have the metadata context '{context}'", file=self.name)
        align = self.alignment
        most = _EXTENDED_PIECE if self.export.extended else _STATUS_PIECE
        end = min(offset + length, self.size)
        at = offset
        while at < end:
            low = round_down(at, align)
            high = min(round_up(end, align), low + most)
            request, export = self._call(Request(c.NBD_CMD_BLOCK_STATUS, low, high - low))
            number = next((number for number, name in export.contexts.items() if name == context), None)
            if number is None or number not in request.statuses:
                raise StorageError(
                    f"no status of context '{context}' in the reply", file=self.name, place="block status"
                )
            start = low
            for count, flags in request.statuses[number]:
                stop = min(start + count, end)
                if stop > at:
                    yield stop - at, flags
                    at = stop
                start += count

    def has(self, context: str) -> bool:
        """Whether the server has the metadata context, and it was asked for."""
        return context in self.export.contexts.values()

    def _change(self, *requests: Request) -> None:
        """Requests that change the export."""
        if self.settings.reconnect_delay <= 0 or not self.export.can(c.NBD_FLAG_SEND_FLUSH):
            self._call(*requests)
            return
        written = [
            _Written(one.command, one.offset, one.length, one.flags, None if one.data is None else bytes(one.data))
            for one in requests
        ]
        with self._lock:
            self._journal += written
            self._journaled += sum(map(_weight, written))
            full = self._journaled > _JOURNAL
        try:
            self._call(*requests)
        except BaseException:
            for change in written:
                self._forget(change)
            raise
        for change in written:
            change.acknowledged = True
        if full:
            self.flush()

    def _fua(self, wanted: bool) -> tuple[int, bool]:
        """The flag for a write that shall be on the disk, and whether a flush must do it instead."""
        if not wanted:
            return 0, False
        return (c.NBD_CMD_FLAG_FUA, False) if self.export.can(c.NBD_FLAG_SEND_FUA) else (0, True)

    def _inside(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            why = f"bytes {offset} to {offset + length} are not all inside the export"
            raise StorageError(why, file=self.name, errno=errno.ENOSPC)


def _weight(one: _Written) -> int:
    return 4 * KiB + len(one.data or b"")


def _passing(error: StorageError) -> bool:
    """Whether a server that fails so may be there a moment later."""
    return error.transient or error.errno == errno.ENOENT  # a socket that is not there yet


def _tls_context(location: Location, settings: Settings) -> ssl.SSLContext | None:
    credentials = settings.credentials
    if credentials is None:
        if not location.tls:
            return None
        user = location.user or "qemu"
        credentials = Credentials(location.certificates, psk_file=location.psk_file, user=user)
    return client_context(credentials)


@contextmanager
def _asking(location: Location, settings: Settings) -> Iterator[Handshake]:
    """A connection that gets no further than the handshake."""
    timeout = settings.timeout
    tls = _tls_context(location, settings)
    transport = Transport(connect(location, timeout), location.uri, timeout)
    try:
        transport.until(time.monotonic() + timeout if timeout else None)
        hostname = settings.tls_hostname or location.hostname or location.host or "localhost"
        handshake = Handshake(transport, context=tls, hostname=hostname)
        handshake.upgrade()
        yield handshake
        handshake.abort()
    finally:
        transport.close()


def list_exports(location: Location, settings: Settings | None = None) -> list[tuple[Export, list[str]]]:
    """What the server has: each export, with the names of its metadata contexts.

    :raises StorageError: it cannot be reached, or does not tell.
    """
    with _asking(location, settings or Settings()) as handshake:
        found = []
        for name, description in handshake.list_exports():
            export = handshake.info(name)
            export.description = export.description or description
            found.append((export, handshake.list_contexts(name)))
        return found


def contexts_of(location: Location, settings: Settings | None = None) -> list[str]:
    """The names of the export's metadata contexts.

    :raises StorageError: the server cannot be reached.
    """
    with _asking(location, settings or Settings()) as handshake:
        return handshake.list_contexts(location.export)
