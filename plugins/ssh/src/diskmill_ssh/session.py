"""An SFTP session: requests over one channel, many in flight, from several threads at once.

A thread of the session takes the answers, and puts data where it is wanted. Whatever the server sends is bounded and
checked: it can fail a session, or slow it down, and nothing else. Requests for up to :data:`WINDOW` bytes are in
flight, so that the time that an answer takes costs little.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
from collections.abc import Sequence
from copy import copy

from diskmill.contract.node import ReadBuffer
from diskmill.errors import StorageError

from . import c_sftp as c
from .channel import Channel
from .server import Server

WINDOW = 2 << 20
"""Bytes in flight: as many as OpenSSH lets a channel have under way; 64 requests of 32 KiB."""
_BATCH = 8
"""So many times per window, requests are sent: several with one call."""
_BUFFER = 2 * c.MAX_PACKET
_PATIENCE = 10
"""How many times longer than for other answers a flush of the other machine's disk is waited for."""
_ASKING = 600.0
"""Seconds that a person has to answer what ``ssh`` asks."""


class _Job:
    """What one caller waits for: *left* answers."""

    __slots__ = ("again", "answer", "error", "left")

    def __init__(self) -> None:
        self.left = 0
        self.error: StorageError | None = None
        self.answer: tuple[int, bytes] | None = None
        self.again: list[tuple[int, memoryview]] = []
        """Of a read: pieces that came shorter than was asked, where the rest goes."""


class _Request:
    """A request in flight. *into*: of a read, where the bytes from *offset* on go; *pad*: or zeros, at the end."""

    __slots__ = ("into", "job", "kind", "offset", "pad")

    def __init__(
        self, kind: int, job: _Job, offset: int = 0, into: memoryview | None = None, pad: bool = False
    ) -> None:
        self.kind = kind
        self.job = job
        self.offset = offset
        self.into = into
        self.pad = pad


class Session:
    """A session with the SFTP server of *server*.

    :param ask: whether ``ssh`` may ask a person at the terminal.
    :param timeout: seconds without any answer that are taken for the end of the connection.
    :raises StorageError: there is no connection, or no SFTP server.
    """

    def __init__(self, server: Server, *, ask: bool, timeout: float) -> None:
        self.server = server
        self.users = 0
        self.warned = False
        """Whether the user was told that nothing can be locked."""
        self.timeout = timeout
        self.extensions: frozenset[bytes] = frozenset()
        self._piece = c.PIECE
        self._channel = Channel(server, ask=ask)
        self._asking = threading.Lock()
        """Held by who sends requests until all of its own are sent, so that one thread at most waits for room: to wake
        those that could not go on yet cost more than all else."""
        self._state = threading.Lock()
        self._room = threading.Condition(self._state)
        """Who waits for room is told when no more than ``_few`` requests are in flight."""
        self._few = -1
        self._done = threading.Condition(self._state)
        """Those who wait for answers are told when a job is complete."""
        self._completed = False
        self._pending: dict[int, _Request] = {}
        self._number = 0
        self._flushing = 0
        self._greeted = False
        self._failure: StorageError | None = None
        self._heard = time.monotonic()
        self._hello_within = max(timeout, _ASKING) if ask else timeout
        self._reader = threading.Thread(target=self._receive, daemon=True)
        try:
            self._reader.start()
            self._send([c.LENGTH.pack(5) + bytes([c.INIT]) + c.LENGTH.pack(c.VERSION)])
            with self._state:
                while not self._greeted:
                    self._check()
                    self._done.wait(1)
            if c.LIMITS in self.extensions:
                self._piece = self._largest_piece()
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether it has not failed."""
        return self._failure is None

    def _largest_piece(self) -> int:
        """How many bytes a request may have."""
        (answer,) = self.ask_all([(c.EXTENDED, c.string(c.LIMITS))])
        if isinstance(answer, StorageError) or answer[0] != c.EXTENDED_REPLY:
            return c.PIECE
        fields = answer[1]
        _, *most = fields.large(), fields.large(), fields.large()
        told = [limit for limit in most if limit]  # 0: the server does not tell
        return min(max(min(told), c.PIECE), c.LARGE_PIECE) if len(told) == 2 else c.PIECE

    @property
    def _depth(self) -> int:
        """How many requests may be in flight."""
        return WINDOW // self._piece

    # -- what callers ask ---------------------------------------------------------------------------------------

    def ask(self, kind: int, *fields: bytes) -> tuple[int, c.Fields]:
        """The answer to one request: its type, and its fields behind the request's number.

        :raises StorageError: the server refuses (``errno`` says why), or the connection failed.
        """
        (answer,) = self.ask_all([(kind, *fields)])
        if isinstance(answer, StorageError):
            raise answer
        return answer

    def ask_all(self, requests: Sequence[tuple[int, *tuple[bytes, ...]]]) -> list[tuple[int, c.Fields] | StorageError]:
        """The answers to a few requests that are sent at once; for what the server refuses, the error.

        :raises StorageError: the connection failed.
        """
        jobs = []
        packets = []
        flushes = sum(fields[:1] == [c.string(c.FSYNC)] for _, *fields in requests)
        try:
            with self._asking:
                with self._state:
                    self._flushing += flushes
                    self._wait_for_room(len(requests))
                    for kind, *fields in requests:
                        job = _Job()
                        jobs.append(job)
                        packets.append(c.packet(kind, self._enter(_Request(kind, job)), *fields))
                self._send(packets)
            self._wait_for(jobs)
        finally:
            with self._state:
                self._flushing -= flushes
        found: list[tuple[int, c.Fields] | StorageError] = []
        for job in jobs:
            if job.error is not None:
                found.append(job.error)
            else:
                assert job.answer is not None
                found.append((job.answer[0], c.Fields(job.answer[1])))
        return found

    def read(self, handle: bytes, offset: int, target: memoryview, *, pad: bool) -> None:
        """Fill *target* from *offset* of the open file *handle*, a string field.

        :param pad: what lies beyond the end reads as zeros (somebody is about to write behind it).
        :raises StorageError: it cannot be read, or it ends before and *pad* is not set.
        """
        job = _Job()
        pieces = [(offset + at, target[at : at + self._piece]) for at in range(0, len(target), self._piece)]
        while pieces:
            self._transfer(job, c.READ, handle, pieces, pad=pad)
            pieces, job.again = job.again, []

    def write(self, handle: bytes, offset: int, buffers: Sequence[ReadBuffer]) -> None:
        """Put *buffers* one after the other at *offset* of the open file *handle*, a string field.

        :raises StorageError: something of it could not be written.
        """
        pieces = []
        for piece in _pieces(buffers, self._piece):
            pieces.append((offset, piece))
            offset += len(piece)
        self._transfer(_Job(), c.WRITE, handle, pieces)

    def _transfer(
        self, job: _Job, kind: int, handle: bytes, pieces: Sequence[tuple[int, memoryview]], *, pad: bool = False
    ) -> None:
        """Read, or write, *pieces*: each with its offset.

        :raises StorageError: something of it failed; nobody uses the pieces any more.
        """
        with self._asking:
            at = 0
            while at < len(pieces):
                parts: list[ReadBuffer] = []
                with self._state:
                    self._wait_for_room(min(len(pieces) - at, self._depth // _BATCH))
                    if job.error is not None:
                        break
                    for offset, piece in pieces[at : at + self._depth - len(self._pending)]:
                        if kind == c.READ:
                            number = self._enter(_Request(kind, job, offset, piece, pad))
                            parts.append(c.read_packet(number, handle, offset, len(piece)))
                        else:
                            number = self._enter(_Request(kind, job))
                            parts += [c.write_head(number, handle, offset, len(piece)), piece]
                        at += 1
                self._send(parts)
        self._wait_for([job])
        if job.error is not None:
            raise job.error

    # -- the end ------------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Let everyone who waits leave with an error; nothing more can be asked."""
        self._fail(StorageError("the connection was given up", errno=errno.ECANCELED))

    def close(self) -> None:
        """End it. Nobody asks anything any more."""
        self._fail(StorageError("the connection was closed"), kill=False)
        self._channel.finish()
        self._reader.join(5)
        if not self._reader.is_alive():  # else it may still read from them
            self._channel.release()

    # -- sending ------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """:raises StorageError: the session failed."""
        if self._failure is not None:
            raise copy(self._failure)  # what is raised twice would gather both tracebacks

    def _wait_for_room(self, wanted: int) -> None:
        """Wait until *wanted* more requests may be sent. Asking and the state are held.

        :raises StorageError: the session failed.
        """
        self._check()
        while len(self._pending) > self._depth - wanted:
            self._few = self._depth - wanted
            self._room.wait(1)
            self._few = -1
            self._check()

    def _wait_for(self, jobs: Sequence[_Job]) -> None:
        """Wait until all answers of *jobs* have come.

        :raises StorageError: the session failed.
        """
        with self._state:
            while any(job.left for job in jobs):
                self._check()
                self._done.wait(1)

    def _enter(self, request: _Request) -> int:
        """The number of *request*, which is in flight from now on."""
        if not self._pending:
            self._heard = time.monotonic()
        self._number = number = (self._number + 1) & 0xFFFFFFFF
        request.job.left += 1
        self._pending[number] = request
        return number

    def _send(self, parts: Sequence[ReadBuffer]) -> None:
        """Send *parts*, whole packets, one after the other. Asking is held."""
        views = [memoryview(part).cast("B") for part in parts]
        try:
            self._send_all(views)
        except BaseException:
            # A packet may have been sent in part: what comes behind it would be taken for the rest of it.
            self._fail(StorageError("the connection was given up", errno=errno.ECANCELED))
            raise

    def _send_all(self, views: list[memoryview]) -> None:
        first = 0
        while first < len(views):
            try:
                sent = os.writev(self._channel.to, views[first : first + 512])
            except BlockingIOError:
                self._wait_until_writable()
                continue
            except OSError:  # it has ended: why is about to be known
                until = time.monotonic() + 5
                with self._state:
                    while self._failure is None and time.monotonic() < until:
                        self._done.wait(1)
                    self._check()
                raise StorageError("the connection ended", errno=errno.EPIPE) from None
            while first < len(views) and sent >= len(views[first]):
                sent -= len(views[first])
                first += 1
            if sent:
                views[first] = views[first][sent:]

    def _wait_until_writable(self) -> None:
        poll = select.poll()
        poll.register(self._channel.to, select.POLLOUT)
        while not poll.poll(500):
            with self._state:
                self._check()

    # -- receiving, by a thread ---------------------------------------------------------------------------------

    def _receive(self) -> None:
        try:
            self._receive_all()
        except StorageError as error:
            self._fail(error)
        except OSError as error:
            self._fail(StorageError(f"the connection failed: {error.strerror}", errno=error.errno))
        except BaseException as error:
            self._fail(StorageError(f"the connection failed: {type(error).__name__}: {error}"))

    def _receive_all(self) -> None:
        poll = select.poll()
        out, errors = self._channel.out, self._channel.errors
        poll.register(out, select.POLLIN)
        poll.register(errors, select.POLLIN)
        buffer = memoryview(bytearray(_BUFFER))
        end = 0
        while self._failure is None:
            ready = poll.poll(500)
            self._expect_answers()
            for fd, _ in ready:
                if fd == errors:
                    if not self._channel.hear():
                        poll.unregister(errors)
                    continue
                count = os.readv(out, [buffer[end:]])
                if count == 0:
                    if self._failure is not None:
                        return
                    # Before the first answer it is the program that ended: wrong keys, say, which no other try mends.
                    raise StorageError(self._channel.why(), errno=errno.ECONNRESET, transient=self._greeted)
                end = self._parse(buffer, end + count)

    def _expect_answers(self) -> None:
        """:raises StorageError: there has been none for too long."""
        with self._state:
            if self._greeted and not self._pending:
                return
            patience = self.timeout * (_PATIENCE if self._flushing else 1) if self._greeted else self._hello_within
            if time.monotonic() - self._heard > patience:
                raise StorageError(f"the server has not answered for {patience:g} s", errno=errno.ETIMEDOUT)

    def _parse(self, buffer: memoryview, end: int) -> int:
        """Take the whole packets in *buffer* up to *end*; gives the new end, with the rest moved to the front."""
        at = 0
        with self._state:
            while end - at >= 4:
                length = int.from_bytes(buffer[at : at + 4], "big")
                if not 5 <= length <= c.MAX_PACKET:
                    c.malformed(f"a message of {length} bytes")
                if end - at < 4 + length:
                    break
                self._take(buffer[at + 4 : at + 4 + length])
                at += 4 + length
            if at:
                self._heard = time.monotonic()
                if len(self._pending) <= self._few:
                    self._room.notify()
                if self._completed:
                    self._completed = False
                    self._done.notify_all()
        if at:
            buffer[: end - at] = bytes(buffer[at:end])
        return end - at

    def _take(self, data: memoryview) -> None:
        """Let who asked have the answer *data*, a packet from its type on. The state is held."""
        kind = data[0]
        if not self._greeted:
            self._greet(kind, data)
            return
        if len(data) < 9:
            c.malformed("an answer that is too short")
        number = int.from_bytes(data[1:5], "big")
        request = self._pending.pop(number, None)
        if request is None:
            c.malformed("an answer that nobody asked for")
        job = request.job
        if kind == c.DATA and request.into is not None:
            into = request.into
            count = int.from_bytes(data[5:9], "big")
            if count != len(data) - 9 or not 0 < count <= len(into):
                c.malformed(f"{count} bytes where {len(into)} were asked for")
            into[:count] = data[9:]
            if count < len(into):
                job.again.append((request.offset + count, into[count:]))
        elif kind == c.STATUS:
            self._judge(request, c.Fields(bytes(data[5:])))
        elif kind == _ANSWERS.get(request.kind):
            job.answer = kind, bytes(data[5:])
        else:
            c.malformed(f"an answer of type {kind} to a request of type {request.kind}")
        job.left -= 1
        if not job.left:
            self._completed = True

    def _greet(self, kind: int, data: memoryview) -> None:
        fields = c.Fields(bytes(data[1:]))
        if kind != c.ANSWER_VERSION:
            c.malformed(f"a message of type {kind} instead of its version")
        version = fields.number()
        if version < c.VERSION:
            raise StorageError(f"the server speaks SFTP {version}, and {c.VERSION} is needed", errno=errno.EPROTO)
        names = set()
        while fields.left:
            names.add(fields.string())
            fields.string()
        self.extensions = frozenset(names)
        self._greeted = self._completed = True

    def _judge(self, request: _Request, fields: c.Fields) -> None:
        code = fields.number()
        message = fields.string() if fields.left else b""
        if code == c.STATUS_EOF and request.pad and request.into is not None:
            request.into[:] = bytes(len(request.into))
        elif code != c.STATUS_OK:
            request.job.error = request.job.error or c.refusal(code, message)
        elif request.kind == c.READ or request.kind in _ANSWERS and request.kind != c.EXTENDED:
            c.malformed("no answer but 'OK'")
        else:
            request.job.answer = c.STATUS, b""

    def _fail(self, error: StorageError, *, kill: bool = True) -> None:
        with self._state:
            if self._failure is None:
                self._failure = error
            self._pending.clear()
            self._room.notify_all()
            self._done.notify_all()
        if kill:
            with contextlib.suppress(OSError):
                self._channel.kill()


_ANSWERS = {
    c.OPEN: c.HANDLE,
    c.LSTAT: c.ATTRS,
    c.FSTAT: c.ATTRS,
    c.STAT: c.ATTRS,
    c.REALPATH: c.NAME,
    c.EXTENDED: c.EXTENDED_REPLY,
}
"""What answers a request that is not answered by a status alone; an extension may be answered by either."""


def _pieces(buffers: Sequence[ReadBuffer], size: int) -> list[memoryview]:
    """*buffers* in pieces of up to *size* bytes."""
    pieces = []
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        pieces += [view[at : at + size] for at in range(0, len(view), size)]
    return pieces


_lock = threading.Lock()
_sessions: dict[tuple[Server, bool], Session] = {}


def connect(server: Server, *, ask: bool, timeout: float) -> Session:
    """A session with *server*, shared by all files there. Who asks for it gives it back by :func:`release`.

    :raises StorageError: there is no connection.
    """
    with _lock:
        session = _sessions.get((server, ask))
        if session is None or not session.alive:
            session = _sessions[server, ask] = Session(server, ask=ask, timeout=timeout)
        session.users += 1
        session.timeout = max(session.timeout, timeout)
        return session


def release(session: Session) -> None:
    """*session* is not needed any more; the last one to say so ends it."""
    with _lock:
        session.users -= 1
        if session.users:
            return
        for key, one in list(_sessions.items()):
            if one is session:
                del _sessions[key]
    session.close()
