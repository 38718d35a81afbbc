"""One connection in its transmission phase: requests of several threads in flight, replies in any order.

Source: doc/proto.md, "Transmission". There is no thread that reads: of the threads that wait for a reply, one reads
whatever comes next, for whomever it is, straight into that one's buffer.
"""

from __future__ import annotations

import errno
import os
import threading
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from copy import copy

from diskmill.errors import StorageError

from . import c_nbd as c
from .handshake import Export
from .transport import ConnectionLost, ReadBuffer, Transport

_MAX_STATUS = 16 << 20
"""Bytes of the payload of a block status: more descriptors than servers send."""
_KEPT_STATUS = 1 << 16
"""Descriptors that are kept of it; what is behind them is asked for again."""
_SLOW = 10
"""Time limits that a flush, and what may make the server write much, has."""
_MAX_ERROR = 8 + 6 + c.MAX_STRING
_SLOW_COMMANDS = (c.NBD_CMD_FLUSH, c.NBD_CMD_TRIM, c.NBD_CMD_WRITE_ZEROES)
_ERRNOS = {
    c.NBD_EPERM: errno.EPERM,
    c.NBD_EIO: errno.EIO,
    c.NBD_ENOMEM: errno.ENOMEM,
    c.NBD_EINVAL: errno.EINVAL,
    c.NBD_ENOSPC: errno.ENOSPC,
    c.NBD_EOVERFLOW: errno.EOVERFLOW,
    c.NBD_ENOTSUP: errno.ENOTSUP,
    c.NBD_ESHUTDOWN: errno.ESHUTDOWN,
}


class Request:
    """A request, and what came back for it so far.

    :param data: what is to be written.
    :param into: where what is read lands.
    """

    __slots__ = (
        "_got",
        "command",
        "data",
        "done",
        "error",
        "flags",
        "into",
        "length",
        "message",
        "offset",
        "slow",
        "statuses",
    )

    def __init__(
        self,
        command: int,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        data: ReadBuffer | None = None,
        into: memoryview | None = None,
    ) -> None:
        self.command = command
        self.flags = flags
        self.data = data
        self.slow = bool(flags & c.NBD_CMD_FLAG_FUA) or command in _SLOW_COMMANDS
        self.offset = offset
        self.length = length
        self.into = into
        self.statuses: dict[int, list[tuple[int, int]]] = {}
        self.error = 0
        self.message = ""
        self.done = False
        self._got: list[tuple[int, int]] = []

    def again(self) -> Request:
        """The same, not sent yet."""
        return Request(self.command, self.offset, self.length, flags=self.flags, data=self.data, into=self.into)

    def take(self, start: int, length: int) -> bool:
        """Note that bytes *start* to *start + length* came; False where they are not asked for, or came before."""
        start -= self.offset
        end = start + length
        if start < 0 or length <= 0 or end > self.length:
            return False
        at = bisect_left(self._got, (start, end))
        if at and self._got[at - 1][1] > start or at < len(self._got) and self._got[at][0] < end:
            return False
        if at and self._got[at - 1][1] == start:
            start = self._got[at - 1][0]
            at -= 1
            del self._got[at]
        if at < len(self._got) and self._got[at][0] == end:
            end = self._got[at][1]
            del self._got[at]
        self._got.insert(at, (start, end))
        return True

    @property
    def whole(self) -> bool:
        """Whether every byte came that was asked for."""
        return self._got == [(0, self.length)]


class Connection:
    """A connection to *export*, for any number of threads."""

    def __init__(self, transport: Transport, export: Export) -> None:
        self.transport = transport
        self.export = export
        self.lost: ConnectionLost | None = None
        self.unflushed = False
        """Whether a change was acknowledged here and not flushed since; its owner keeps it."""
        self._cookie = 0
        self._ahead = b""
        """The first bytes of the next reply, where they came with the one before."""
        self._pending: dict[int, Request] = {}
        self._sending = threading.Lock()
        self._turn = threading.Condition()
        self._reading = False
        self._waiting = 0
        """Threads that wait while another one reads."""
        # OpenSSL lets one thread at a time use a connection, be it to send or to receive.
        self._alone: AbstractContextManager[object] = threading.Lock() if transport.encrypted else nullcontext()

    def call(self, request: Request) -> Request:
        """Send *request* and wait for its reply.

        :raises ConnectionLost: the connection is of no use any more.
        :raises StorageError: the server answered with an error.
        """
        self.exchange((request,))
        if request.error:
            raise self.refused(request)
        return request

    def exchange(self, requests: Sequence[Request]) -> None:
        """Send *requests*, one after the other, and wait for the replies to all. Errors are left in them.

        They are few enough that the server can take them all while nobody reads its replies.

        :raises ConnectionLost: the connection is of no use any more; what was *done* before is whole.
        """
        with self._alone:
            cookies = []
            with self._turn:
                self._check()
                for request in requests:
                    self._cookie += 1
                    self._pending[self._cookie] = request
                    cookies.append(self._cookie)
            try:
                with self._sending:
                    self._send(requests, cookies)
                for request in requests:
                    if not request.done:
                        self._wait(request)
            except ConnectionLost as error:
                self.fail(error)
                raise
            except BaseException as error:  # interrupted amid a message: what comes next has no beginning
                why = f"the connection was given up: {type(error).__name__}"
                self.fail(ConnectionLost(why, file=self.transport.name))
                raise

    def _check(self) -> None:
        if self.lost is not None:
            raise copy(self.lost)  # what is raised twice would gather both tracebacks

    def fail(self, error: ConnectionLost) -> None:
        """Give the connection up: all who wait for replies get *error*."""
        with self._turn:
            if self.lost is None:
                self.lost = error
            self._pending.clear()
            self._turn.notify_all()
        self.transport.shut_down()

    def disconnect(self) -> None:
        """Tell the server that nothing more comes, and close."""
        if self.lost is None:
            with suppress(StorageError):
                self._send((Request(c.NBD_CMD_DISC),), (0,))
            self.lost = ConnectionLost("it is closed", file=self.transport.name)
        self.transport.close()

    def _send(self, requests: Sequence[Request], cookies: Sequence[int]) -> None:
        parts: list[ReadBuffer] = []
        for request, cookie in zip(requests, cookies, strict=True):
            parts.append(self._header(request, cookie))
            if request.data is not None:
                parts.append(request.data)
        if len(parts) == len(requests):
            parts = [b"".join(parts)]
        self.transport.send(*parts)

    def _header(self, request: Request, cookie: int) -> bytes:
        flags = request.flags
        if self.export.extended:
            if request.data is not None:
                flags |= c.NBD_CMD_FLAG_PAYLOAD_LEN
            magic, layout = c.NBD_EXTENDED_REQUEST_MAGIC, c.EXTENDED_REQUEST
        else:
            magic, layout = c.NBD_REQUEST_MAGIC, c.REQUEST
        return layout.pack(magic, flags, request.command, cookie, request.offset, request.length)

    def refused(self, request: Request) -> StorageError:
        """What the server answered *request* with, as an exception."""
        number = _ERRNOS.get(request.error, errno.EIO)
        why = os.strerror(number)
        if request.message:
            why = f"{why} ({request.message})"
        what = c.COMMANDS[request.command]
        place = what if request.command == c.NBD_CMD_FLUSH else f"{what} at offset {request.offset}"
        return StorageError(why, file=self.transport.name, place=place, errno=number)

    # -- replies ------------------------------------------------------------------------------------------------

    def _wait(self, request: Request) -> None:
        """Until *request* is done: another thread reads its reply, or this one reads what comes, up to that."""
        with self._turn:
            # Counted before it looks: whoever finishes a request looks at the count afterwards, so one of them sees.
            self._waiting += 1
            try:
                # Whoever reads may be filling our buffer, so it is waited for even where the connection is lost.
                while self._reading and not request.done:
                    self._turn.wait()
            finally:
                self._waiting -= 1
            if request.done:
                return
            self._check()
            self._reading = True
        try:
            while not request.done:
                self._receive()
        finally:
            with self._turn:
                self._reading = False
                self._turn.notify_all()

    def _wrong(self, why: str) -> ConnectionLost:
        return ConnectionLost(f"the server breaks the protocol: {why}", file=self.transport.name)

    def _patience(self) -> int:
        """How many time limits may pass before a reply begins: a disk may take long to empty its caches."""
        with self._turn:
            return _SLOW if any(one.slow for one in self._pending.values()) else 1

    def _structured_header(self) -> bytes:
        """The header of a structured reply, or as much as came of it, and at least one of a simple reply, which is
        shorter and may come as well. It has no payload here, so what came behind it begins the next header.
        """
        buffer = bytearray(c.STRUCTURED_REPLY.size)
        buffer[: len(self._ahead)] = self._ahead
        had, self._ahead = len(self._ahead), b""
        more = memoryview(buffer)[had:]
        least = c.SIMPLE_REPLY.size - had
        return bytes(buffer[: had + self.transport.receive_into(more, self._patience, least)])

    def _receive(self) -> None:
        """One message, for whomever it is."""
        if self.export.extended:
            magic, flags, kind, cookie, _, length = c.EXTENDED_REPLY.unpack(
                self.transport.receive(c.EXTENDED_REPLY.size, self._patience)
            )
            if magic != c.NBD_EXTENDED_REPLY_MAGIC:
                raise self._wrong("bad magic of a reply")
            self._chunk(flags, kind, cookie, length)
            return
        if not self.export.structured:
            first = self.transport.receive(c.SIMPLE_REPLY.size, self._patience)
            (magic,) = c.UINT32.unpack_from(first)
        else:
            first = self._structured_header()
            (magic,) = c.UINT32.unpack_from(first)
            if magic == c.NBD_STRUCTURED_REPLY_MAGIC:
                if len(first) < c.STRUCTURED_REPLY.size:
                    first += self.transport.receive(c.STRUCTURED_REPLY.size - len(first))
                _, flags, kind, cookie, length = c.STRUCTURED_REPLY.unpack(first)
                self._chunk(flags, kind, cookie, length)
                return
            self._ahead, first = first[c.SIMPLE_REPLY.size :], first[: c.SIMPLE_REPLY.size]
        if magic == c.NBD_SIMPLE_REPLY_MAGIC:
            _, error, cookie = c.SIMPLE_REPLY.unpack(first)
            self._simple(error, cookie)
        else:
            raise self._wrong("bad magic of a reply")

    def _request(self, cookie: int) -> Request:
        request = self._pending.get(cookie)
        if request is None:
            self._check()
            raise self._wrong("a reply to nothing that was asked")
        return request

    def _finish(self, request: Request, cookie: int) -> None:
        self._pending.pop(cookie, None)
        request.done = True
        if self._waiting:
            with self._turn:
                self._turn.notify_all()

    def _simple(self, error: int, cookie: int) -> None:
        request = self._request(cookie)
        if self.export.structured and request.command in (c.NBD_CMD_READ, c.NBD_CMD_BLOCK_STATUS):
            raise self._wrong("a simple reply where a structured one is due")
        request.error = error
        if request.command == c.NBD_CMD_READ and not error:
            assert request.into is not None
            self.transport.receive_into(request.into)
        self._finish(request, cookie)

    def _chunk(self, flags: int, kind: int, cookie: int, length: int) -> None:
        request = self._request(cookie)
        if kind == c.NBD_REPLY_TYPE_OFFSET_DATA:
            self._data(request, length)
        elif kind == c.NBD_REPLY_TYPE_OFFSET_HOLE:
            self._hole(request, length)
        elif kind in (c.NBD_REPLY_TYPE_BLOCK_STATUS, c.NBD_REPLY_TYPE_BLOCK_STATUS_EXT):
            self._status(request, kind, length)
        elif kind & c.NBD_REPLY_TYPE_FLAG_ERROR:
            self._error(request, length)
        elif kind != c.NBD_REPLY_TYPE_NONE or length or not flags & c.NBD_REPLY_FLAG_DONE:
            raise self._wrong(f"a chunk of type {kind} with {length} bytes")
        if flags & c.NBD_REPLY_FLAG_DONE:
            if not request.error:
                if request.command == c.NBD_CMD_READ and not request.whole:
                    raise self._wrong("a reply without all the data that was asked for")
                if request.command == c.NBD_CMD_BLOCK_STATUS and not request.statuses:
                    raise self._wrong("a block status without any")
            self._finish(request, cookie)

    def _data(self, request: Request, length: int) -> None:
        count = length - c.OFFSET.size
        if request.command != c.NBD_CMD_READ or count <= 0 or count > request.length:
            raise self._wrong(f"data of {length} bytes that nobody asked for")
        assert request.into is not None
        if count == request.length:  # all of it: so there is but one place for it, and both come at once
            head = bytearray(c.OFFSET.size)
            self.transport.receive_both(head, request.into)
            (offset,) = c.OFFSET.unpack(head)
        else:
            (offset,) = c.OFFSET.unpack(self.transport.receive(c.OFFSET.size))
        if not request.take(offset, count):
            raise self._wrong("data that nobody asked for, or that came before")
        if count < request.length:
            start = offset - request.offset
            self.transport.receive_into(request.into[start : start + count])

    def _hole(self, request: Request, length: int) -> None:
        if request.command != c.NBD_CMD_READ or length != c.OFFSET_HOLE.size:
            raise self._wrong("a hole that nobody asked for")
        offset, count = c.OFFSET_HOLE.unpack(self.transport.receive(length))
        if not request.take(offset, count):
            raise self._wrong("a hole that nobody asked for, or that came before")
        assert request.into is not None
        start = offset - request.offset
        request.into[start : start + count] = bytes(count)

    def _status(self, request: Request, kind: int, length: int) -> None:
        extended = kind == c.NBD_REPLY_TYPE_BLOCK_STATUS_EXT
        descriptor = c.BLOCK_STATUS_EXT if extended else c.BLOCK_STATUS
        head = 8 if extended else 4
        count, odd = divmod(length - head, descriptor.size)
        good = request.command == c.NBD_CMD_BLOCK_STATUS and extended == self.export.extended
        if not good or count < 1 or odd or length > _MAX_STATUS:
            raise self._wrong(f"a block status of {length} bytes")
        payload = self.transport.receive(length)
        (context,) = c.UINT32.unpack_from(payload)
        if extended and c.UINT32.unpack_from(payload, 4)[0] not in (0, count):
            raise self._wrong("a block status with a wrong count")
        if context not in self.export.contexts or context in request.statuses:
            raise self._wrong("a block status of something that nobody asked for")
        kept: list[tuple[int, int]] = []
        left = request.length
        for size, status in descriptor.iter_unpack(memoryview(payload)[head:]):
            if not size:
                raise self._wrong("a block status of no bytes")
            kept.append((min(size, left), status))
            left -= size
            if left <= 0 or len(kept) == _KEPT_STATUS:
                break
        request.statuses[context] = kept

    def _error(self, request: Request, length: int) -> None:
        if not c.ERROR.size <= length <= _MAX_ERROR:
            raise self._wrong(f"an error of {length} bytes")
        payload = self.transport.receive(length)
        error, told = c.ERROR.unpack_from(payload)
        if told > length - c.ERROR.size:
            raise self._wrong("an error whose message is longer than it")
        if not request.error:
            request.error = error or c.NBD_EIO
            request.message = payload[c.ERROR.size : c.ERROR.size + told].decode("utf-8", "replace").strip()[:500]
