"""One client of a server: the handshake, then its requests, one after the other, by one thread.

Source: doc/proto.md. What a client sends is checked before it sizes anything. A client that does what it must not loses
its connection, and nobody else notices.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from diskmill.errors import CancelledError, DiskmillError, StorageError, UnsupportedError
from diskmill.sizes import GiB, KiB

from . import c_nbd as c
from .ahead import Job
from .export import PIECE, Export, Piece
from .transport import ConnectionLost, Transport

if TYPE_CHECKING:
    import struct

    from .server import Server

_AHEAD = 3
"""Requests of a client that are read for before their turn, at most: each has a buffer of its own."""
_MAX_OPTION = 64 * KiB
_INPUT = 4 * KiB
"""Bytes of requests that are received at once, where a client sends several."""
_MAX_STATUS = 8192
"""Descriptors in a reply for each context."""
_MAX_STATUS_RANGE = 16 * GiB
_ZEROS = bytes(PIECE)

_ERRORS = {
    errno.EPERM: c.NBD_EPERM,
    errno.EROFS: c.NBD_EPERM,
    errno.ENOMEM: c.NBD_ENOMEM,
    errno.EINVAL: c.NBD_EINVAL,
    errno.ENOSPC: c.NBD_ENOSPC,
    errno.EDQUOT: c.NBD_ENOSPC,
    errno.EFBIG: c.NBD_ENOSPC,
    errno.EOVERFLOW: c.NBD_EOVERFLOW,
    errno.ESHUTDOWN: c.NBD_ESHUTDOWN,
}


class _Broken(Exception):
    """The client broke the protocol, or left: there is nobody to tell."""


class _Failed(Exception):
    """A request fails with an error of the protocol."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number
        self.message = message


class Session:
    """One client."""

    def __init__(self, server: Server, transport: Transport) -> None:
        self.server = server
        self.transport = transport
        self.export: Export | None = None
        self.transmitting = False
        self._fixed = False
        self._no_zeroes = False
        self._structured = False
        self._extended = False
        self._meta: tuple[str, dict[int, str]] = ("", {})
        self._contexts: dict[int, str] = {}
        self._memory: memoryview | None = None
        self._input = memoryview(bytearray(_INPUT))
        self._start = self._end = 0
        self._held = b""
        self._decodes = False
        self._jobs: deque[Job] = deque()

    def run(self) -> None:
        """Serve the client until it leaves, or is thrown out."""
        try:
            self._handshake()
            if self.export is not None:
                self.transport.until(None)
                self._transmit(self.export)
        except (ConnectionLost, _Broken):
            pass
        finally:
            self.server.readers.take_back(*self._jobs)
            self.transport.shut_down()
            self.transport.close()

    # -- handshake ----------------------------------------------------------------------------------------------

    def _handshake(self) -> None:
        self._hurry()
        self.transport.send(
            c.GREETING.pack(c.INIT_PASSWD, c.IHAVEOPT),
            c.HANDSHAKE_FLAGS.pack(c.NBD_FLAG_FIXED_NEWSTYLE | c.NBD_FLAG_NO_ZEROES),
        )
        (flags,) = c.CLIENT_FLAGS.unpack(self.transport.receive(c.CLIENT_FLAGS.size))
        if flags & ~(c.NBD_FLAG_C_FIXED_NEWSTYLE | c.NBD_FLAG_C_NO_ZEROES):
            raise _Broken
        self._fixed = bool(flags & c.NBD_FLAG_C_FIXED_NEWSTYLE)
        self._no_zeroes = bool(flags & c.NBD_FLAG_C_NO_ZEROES)
        while self.export is None:
            magic, option, length = c.OPTION.unpack(self.transport.receive(c.OPTION.size))
            if magic != c.IHAVEOPT or length > _MAX_OPTION:
                raise _Broken
            data = self.transport.receive(length) if length else b""
            if option == c.NBD_OPT_ABORT:
                self._reply(option, c.NBD_REP_ACK)
                raise _Broken
            self._option(option, data)

    def _hurry(self) -> None:
        """Give the client the time for a handshake, from now on."""
        limit = self.server.handshake_limit
        self.transport.until(time.monotonic() + limit if limit else None)

    def _option(self, option: int, data: bytes) -> None:
        if self.server.tls is not None and not self.transport.encrypted and option != c.NBD_OPT_STARTTLS:
            if option == c.NBD_OPT_EXPORT_NAME:
                raise _Broken
            self._reply(option, c.NBD_REP_ERR_TLS_REQD, b"this server insists on TLS")
            return
        action = _OPTIONS.get(option)
        if option == c.NBD_OPT_EXPORT_NAME:
            self._export_name(data)
        elif action is None:
            self._reply(option, c.NBD_REP_ERR_UNSUP)
        else:
            try:
                action(self, option, data)
            except (ValueError, IndexError):  # whatever it was, it was not what the specification says
                self._reply(option, c.NBD_REP_ERR_INVALID, b"malformed option")

    def _reply(self, option: int, kind: int, *data: bytes) -> None:
        body = b"".join(data)
        self.transport.send(c.OPTION_REPLY.pack(c.REP_MAGIC, option, kind, len(body)) + body)

    def _start_tls(self, option: int, data: bytes) -> None:
        if self.server.tls is None:
            self._reply(option, c.NBD_REP_ERR_POLICY, b"this server has no TLS")
            return
        if data or self.transport.encrypted:
            raise ValueError
        self._reply(option, c.NBD_REP_ACK)
        self.transport.start_tls(self.server.tls, server=True)
        if not self.server.authorized(self.transport):
            raise _Broken
        self._structured = self._extended = False
        self._meta = ("", {})

    def _list(self, option: int, data: bytes) -> None:
        if data:
            raise ValueError
        for export in self.server.exports.values():
            self._reply(option, c.NBD_REP_SERVER, _string(export.name), export.description.encode())
        self._reply(option, c.NBD_REP_ACK)

    def _structure(self, option: int, data: bytes) -> None:
        if data:
            raise ValueError
        if option == c.NBD_OPT_STRUCTURED_REPLY and self._extended:
            self._reply(option, c.NBD_REP_FLAG_ERROR + 10, b"extended headers were negotiated")
            return
        self._structured = True
        self._extended = option == c.NBD_OPT_EXTENDED_HEADERS
        self._reply(option, c.NBD_REP_ACK)

    def _info(self, option: int, data: bytes) -> None:
        name, at = _take_string(data, 0)
        (count,) = c.UINT16.unpack(data[at : at + 2])
        if len(data) != at + 2 + 2 * count:
            raise ValueError
        wanted = {c.UINT16.unpack_from(data, at + 2 + 2 * index)[0] for index in range(count)}
        export = self.server.exports.get(name)
        if export is None:
            self._reply(option, c.NBD_REP_ERR_UNKNOWN, b"there is no such export")
            return
        if option == c.NBD_OPT_GO and not self._admitted():
            self._reply(option, c.NBD_REP_ERR_POLICY, b"as many clients as may be are connected")
            return
        export.look()
        if c.NBD_INFO_NAME in wanted:
            self._reply(option, c.NBD_REP_INFO, c.UINT16.pack(c.NBD_INFO_NAME), name.encode("utf-8", "surrogateescape"))
        if c.NBD_INFO_DESCRIPTION in wanted and export.description:
            text = export.description.encode()
            self._reply(option, c.NBD_REP_INFO, c.UINT16.pack(c.NBD_INFO_DESCRIPTION), text)
        sizes = (c.NBD_INFO_BLOCK_SIZE, 1, export.preferred, c.MAX_PAYLOAD)
        self._reply(option, c.NBD_REP_INFO, c.INFO_BLOCK_SIZE.pack(*sizes))
        self._reply(option, c.NBD_REP_INFO, c.INFO_EXPORT.pack(c.NBD_INFO_EXPORT, export.size, self._flags(export)))
        self._reply(option, c.NBD_REP_ACK)
        if option == c.NBD_OPT_GO:
            self._take(export)

    def _export_name(self, data: bytes) -> None:
        export = self.server.exports.get(data.decode("utf-8", "surrogateescape"))
        if export is None or not self._admitted():
            raise _Broken
        export.look()
        zeroes = b"" if self._no_zeroes else bytes(c.RESERVED_ZEROES)
        self.transport.send(c.EXPORT.pack(export.size, self._flags(export)) + zeroes)
        self._take(export)

    def _admitted(self) -> bool:
        if not self.transmitting:
            self.transmitting = self.server.admit(self)
            self._hurry()  # it was us who took time
        return self.transmitting

    def _take(self, export: Export) -> None:
        self.export = export
        name, contexts = self._meta
        self._contexts = contexts if name == export.name and self._structured else {}

    def _flags(self, export: Export) -> int:
        flags = c.NBD_FLAG_HAS_FLAGS | c.NBD_FLAG_SEND_FLUSH | c.NBD_FLAG_SEND_FUA | c.NBD_FLAG_SEND_CACHE
        if self._structured:
            flags |= c.NBD_FLAG_SEND_DF
        if self.server.max_clients > 1:  # all connections share one image, with all its caches
            flags |= c.NBD_FLAG_CAN_MULTI_CONN
        if export.writable:
            flags |= c.NBD_FLAG_SEND_FAST_ZERO if export.fast_unit else 0
            return flags | c.NBD_FLAG_SEND_TRIM | c.NBD_FLAG_SEND_WRITE_ZEROES
        return flags | c.NBD_FLAG_READ_ONLY

    def _meta_context(self, option: int, data: bytes) -> None:
        name, at = _take_string(data, 0)
        (count,) = c.UINT32.unpack(data[at : at + 4])
        at += 4
        queries = []
        for _ in range(min(count, _MAX_OPTION)):
            query, at = _take_string(data, at)
            queries.append(query)
        if at != len(data) or len(queries) != count or not self._structured:
            raise ValueError
        if option == c.NBD_OPT_SET_META_CONTEXT:
            self._meta = ("", {})
        export = self.server.exports.get(name)
        if export is None:
            self._reply(option, c.NBD_REP_ERR_UNKNOWN, b"there is no such export")
            return
        listing = option == c.NBD_OPT_LIST_META_CONTEXT
        found = {}
        for number, context in enumerate(export.contexts):
            if any(context == query or (listing and _matches(context, query)) for query in queries) or (
                listing and not queries
            ):
                found[number] = context
        for number, context in found.items():
            text = context.encode("utf-8", "surrogateescape")
            self._reply(option, c.NBD_REP_META_CONTEXT, c.UINT32.pack(0 if listing else number), text)
        if not listing:
            self._meta = (name, found)
        self._reply(option, c.NBD_REP_ACK)

    # -- transmission -------------------------------------------------------------------------------------------

    def _transmit(self, export: Export) -> None:
        layout = c.EXTENDED_REQUEST if self._extended else c.REQUEST
        magic = c.NBD_EXTENDED_REQUEST_MAGIC if self._extended else c.NBD_REQUEST_MAGIC
        while True:
            if self._end - self._start < layout.size:
                self._await(layout.size)
            got, flags, command, cookie, offset, length = layout.unpack_from(self._input, self._start)
            self._start += layout.size
            job = self._jobs.popleft() if self._jobs else None
            if got != magic or command == c.NBD_CMD_DISC:
                self._release()
                return
            payload = command == c.NBD_CMD_WRITE
            if self._extended and not payload and flags & c.NBD_CMD_FLAG_PAYLOAD_LEN:
                raise _Broken  # a payload that is of no use to us, as long as the client likes
            if payload and length > c.MAX_PAYLOAD:
                raise _Broken
            try:
                if job is not None:
                    self._read_ahead(export, job, layout, cookie)
                else:
                    self._request(export, flags, command, cookie, offset, length)
                    if self._decodes:
                        self._look_ahead(export, layout)
            except _Failed as error:
                self._error(cookie, offset, error.number, error.message)
            except CancelledError:
                self._error(cookie, offset, c.NBD_ESHUTDOWN, "")
            except DiskmillError as error:
                number = c.NBD_EINVAL if isinstance(error, UnsupportedError) else c.NBD_EIO
                if isinstance(error, ConnectionLost) and error.file == self.transport.name:
                    raise
                if isinstance(error, StorageError):
                    number = _ERRORS.get(error.errno or 0, c.NBD_EIO)
                self.server.warn(str(error))
                self._error(cookie, offset, number, error.cause)
            except MemoryError:
                self._error(cookie, offset, c.NBD_ENOMEM, "")

    def _look_ahead(self, export: Export, layout: struct.Struct) -> None:
        """Let others read for the requests that came along with this one, as far as they are plain reads."""
        new = []
        while len(self._jobs) < _AHEAD:
            at = self._start + len(self._jobs) * layout.size
            if at + layout.size > self._end:
                break
            got, flags, command, _, offset, length = layout.unpack_from(self._input, at)
            plain = got == (c.NBD_EXTENDED_REQUEST_MAGIC if self._extended else c.NBD_REQUEST_MAGIC)
            if not plain or command != c.NBD_CMD_READ or flags or not 0 < length <= min(PIECE, export.size - offset):
                break
            memory = self.server.readers.lend()
            if memory is None:
                break
            job = Job(export, offset, length, memory)
            self._jobs.append(job)
            new.append(job)
        if new:
            self.server.readers.put(new)

    def _read_ahead(self, export: Export, job: Job, layout: struct.Struct, cookie: int) -> None:
        """Answer a request with what was read for it."""
        try:
            if self._decodes:
                self._look_ahead(export, layout)
            if not job.done:
                self._release()
                self.server.readers.finish(job, self._jobs)
            if job.failure is not None:
                raise job.failure
            self._send_pieces(export, job.pieces, cookie, job.offset, len(job.buffer), job.buffer)
        finally:
            self.server.readers.take_back(job)

    def _await(self, length: int) -> None:
        """Receive until *length* bytes are there, and whatever else has come."""
        self._release()
        have = self._end - self._start
        self._input[:have] = bytes(self._input[self._start : self._end])
        self._start = 0
        self._end = have + self.transport.receive_into(self._input[have:], least=length - have)

    def _receive(self, buffer: memoryview) -> None:
        """Fill *buffer* with what a request brings."""
        have = min(self._end - self._start, len(buffer))
        buffer[:have] = self._input[self._start : self._start + have]
        self._start += have
        if have < len(buffer):
            self.transport.receive_into(buffer[have:])

    def _hold(self, reply: bytes) -> None:
        """Send *reply* with the next one, where that is about to come: each message wakes the client up."""
        self._held += reply
        if self._start == self._end:
            self._release()

    def _release(self) -> None:
        """Send what was held back. Called before anything that may take a while."""
        if self._held:
            held, self._held = self._held, b""
            self.transport.send(held)

    def _request(self, export: Export, flags: int, command: int, cookie: int, offset: int, length: int) -> None:
        if command != c.NBD_CMD_READ:
            self._release()
        if command == c.NBD_CMD_WRITE:
            self._write(export, flags & ~c.NBD_CMD_FLAG_PAYLOAD_LEN, cookie, offset, length)
            return
        allowed = _FLAGS.get(command)
        if allowed is None:
            raise _Failed(c.NBD_EINVAL, "unknown command")
        if flags & ~(allowed | c.NBD_CMD_FLAG_FUA):
            raise _Failed(c.NBD_EINVAL, "a flag that the command does not have")
        if command == c.NBD_CMD_FLUSH:
            export.flush()
            self._done(cookie, offset)
            return
        changes = command in (c.NBD_CMD_TRIM, c.NBD_CMD_WRITE_ZEROES)
        if changes and not export.writable:
            raise _Failed(c.NBD_EPERM, "the export is read-only")
        if not length or offset + length > export.size:
            raise _Failed(c.NBD_ENOSPC if changes else c.NBD_EINVAL, "not all inside the export")
        if command == c.NBD_CMD_READ:
            if length > c.MAX_PAYLOAD:
                raise _Failed(c.NBD_EOVERFLOW, f"more than {c.MAX_PAYLOAD} bytes")
            self._read(export, flags, cookie, offset, length)
            return
        if command == c.NBD_CMD_BLOCK_STATUS:
            self._block_status(export, flags, cookie, offset, length)
            return
        if command == c.NBD_CMD_TRIM:
            export.trim(offset, length)
        elif command == c.NBD_CMD_WRITE_ZEROES:
            unmap = not flags & c.NBD_CMD_FLAG_NO_HOLE
            if not flags & c.NBD_CMD_FLAG_FAST_ZERO:
                export.zero(offset, length, unmap=unmap)
            elif not _units(export, offset, length) or not export.zero_fast(offset, length, unmap=unmap):
                raise _Failed(c.NBD_ENOTSUP, "not faster than to write zeros")
        if changes and flags & c.NBD_CMD_FLAG_FUA:
            export.flush()
        self._done(cookie, offset)

    def _write(self, export: Export, flags: int, cookie: int, offset: int, length: int) -> None:
        """Each piece is received before it is written, so that a client which stalls holds nothing."""
        failure: _Failed | DiskmillError | None = None
        if not export.writable:
            failure = _Failed(c.NBD_EPERM, "the export is read-only")
        elif flags & ~c.NBD_CMD_FLAG_FUA:
            failure = _Failed(c.NBD_EINVAL, "a flag that the command does not have")
        elif offset + length > export.size:
            failure = _Failed(c.NBD_ENOSPC, "not all inside the export")
        buffer = self._buffer()
        for at in range(0, length, PIECE):
            piece = buffer[: min(PIECE, length - at)]
            self._receive(piece)
            if failure is None:
                try:
                    export.write(offset + at, piece)
                except DiskmillError as error:
                    failure = error
        if failure is not None:
            raise failure
        if flags & c.NBD_CMD_FLAG_FUA:
            export.flush()
        self._done(cookie, offset)

    def _buffer(self) -> memoryview:
        if self._memory is None:
            self._memory = memoryview(bytearray(PIECE))
        return self._memory

    # -- replies ------------------------------------------------------------------------------------------------

    def _header(self, kind: int, cookie: int, offset: int, length: int, done: bool = False) -> bytes:
        flags = c.NBD_REPLY_FLAG_DONE if done else 0
        if self._extended:
            return c.EXTENDED_REPLY.pack(c.NBD_EXTENDED_REPLY_MAGIC, flags, kind, cookie, offset, length)
        return c.STRUCTURED_REPLY.pack(c.NBD_STRUCTURED_REPLY_MAGIC, flags, kind, cookie, length)

    def _done(self, cookie: int, offset: int) -> None:
        if self._extended:
            self.transport.send(self._header(c.NBD_REPLY_TYPE_NONE, cookie, offset, 0, True))
        else:
            self.transport.send(c.SIMPLE_REPLY.pack(c.NBD_SIMPLE_REPLY_MAGIC, 0, cookie))

    def _error(self, cookie: int, offset: int, number: int, message: str) -> None:
        self._release()
        if not self._structured:
            self.transport.send(c.SIMPLE_REPLY.pack(c.NBD_SIMPLE_REPLY_MAGIC, number, cookie))
            return
        text = message.encode("utf-8", "replace")[: c.MAX_STRING]
        payload = c.ERROR.pack(number, len(text)) + text
        self.transport.send(self._header(c.NBD_REPLY_TYPE_ERROR, cookie, offset, len(payload), True) + payload)

    def _read(self, export: Export, flags: int, cookie: int, offset: int, length: int) -> None:
        if not self._structured:
            self._release()
            self._read_whole(export, c.SIMPLE_REPLY.pack(c.NBD_SIMPLE_REPLY_MAGIC, 0, cookie), offset, length)
            return
        if flags & c.NBD_CMD_FLAG_DF:
            self._release()
            header = self._header(c.NBD_REPLY_TYPE_OFFSET_DATA, cookie, offset, length + 8) + c.OFFSET.pack(offset)
            self._read_whole(export, header, offset, length)
            self.transport.send(self._header(c.NBD_REPLY_TYPE_NONE, cookie, offset, 0, True))
            return
        self._send_pieces(export, export.pieces(offset, length), cookie, offset, length)

    def _send_pieces(
        self,
        export: Export,
        pieces: Iterable[Piece],
        cookie: int,
        offset: int,
        length: int,
        ready: memoryview | None = None,
    ) -> None:
        """Chunks of a structured reply. *ready* has the bytes of what must be read; None: they are read here."""
        at, end, decodes = offset, offset + length, False
        for piece in pieces:
            decodes = decodes or piece.decodes
            last = at + piece.length == end
            if piece.fd < 0 or self.transport.encrypted:
                self._release()
            if piece.zero:
                hole = c.OFFSET_HOLE.pack(at, piece.length)
                self.transport.send(self._header(c.NBD_REPLY_TYPE_OFFSET_HOLE, cookie, offset, len(hole), last) + hole)
            elif piece.fd >= 0 and not self.transport.encrypted:
                self._send_file(piece, cookie, offset, at, last)
            elif ready is not None and piece.fd < 0:
                part = ready[at - offset : at - offset + piece.length]
                header = self._header(c.NBD_REPLY_TYPE_OFFSET_DATA, cookie, offset, len(part) + 8, last)
                self.transport.send(header + c.OFFSET.pack(at), part)
            else:
                self._send_read(export, piece, cookie, offset, at, last)
            at += piece.length
        self._decodes = decodes and self.server.readers.count > 0

    def _send_read(self, export: Export, piece: Piece, cookie: int, offset: int, at: int, last: bool) -> None:
        """Chunks of what is read first, so that an error can be told instead."""
        end = at + piece.length
        while at < end:
            part = self._buffer()[: min(PIECE, end - at)]
            export.read_piece(piece, at, part)
            done = last and at + len(part) == end
            header = self._header(c.NBD_REPLY_TYPE_OFFSET_DATA, cookie, offset, len(part) + 8, done)
            self.transport.send(header + c.OFFSET.pack(at), part)
            at += len(part)

    def _send_file(self, piece: Piece, cookie: int, offset: int, at: int, last: bool) -> None:
        """A chunk that the kernel takes from the file. It can fail under way, so another one says that all is well."""
        header = self._header(c.NBD_REPLY_TYPE_OFFSET_DATA, cookie, offset, piece.length + 8)
        held, self._held = self._held, b""
        self.transport.send_more(held + header + c.OFFSET.pack(at))
        failure = self._copy_file(piece)
        if failure is not None:
            raise failure
        if last:
            self._hold(self._header(c.NBD_REPLY_TYPE_NONE, cookie, offset, 0, True))

    def _copy_file(self, piece: Piece) -> StorageError | None:
        """Send the file's bytes; what it does not give is made up by zeros, and the reason returned."""
        sock, left, place = self.transport.sock.fileno(), piece.length, piece.offset
        failure: StorageError | None = None
        while left and failure is None:
            try:
                count = os.sendfile(sock, piece.fd, place, left)
            except OSError as error:
                if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF, errno.EAGAIN):
                    raise _Broken from None
                failure = StorageError(error.strerror or "it cannot be read", errno=error.errno)
            else:
                if not count:
                    failure = StorageError("the file ends before it should", errno=errno.EIO)
                left -= count
                place += count
        while left:
            self.transport.send(memoryview(_ZEROS)[: min(left, PIECE)])
            left -= min(left, PIECE)
        return failure

    def _read_whole(self, export: Export, header: bytes, offset: int, length: int) -> None:
        """One message, of which the first piece is read before it begins; where another fails, there is nothing but
        to hang up.
        """
        for at in range(0, length, PIECE):
            part = self._buffer()[: min(PIECE, length - at)]
            try:
                export.read_into(offset + at, part)
            except DiskmillError as error:
                if not at:
                    raise
                self.server.warn(str(error))
                raise _Broken from None
            if at:
                self.transport.send(part)
            else:
                self.transport.send(header, part)

    def _block_status(self, export: Export, flags: int, cookie: int, offset: int, length: int) -> None:
        if not self._contexts:
            raise _Failed(c.NBD_EINVAL, "no metadata context was negotiated")
        most = 1 if flags & c.NBD_CMD_FLAG_REQ_ONE else _MAX_STATUS
        layout = c.BLOCK_STATUS_EXT if self._extended else c.BLOCK_STATUS
        kind = c.NBD_REPLY_TYPE_BLOCK_STATUS_EXT if self._extended else c.NBD_REPLY_TYPE_BLOCK_STATUS
        left = len(self._contexts)
        for number, name in self._contexts.items():
            found = list(_merged(export.contexts[name](offset, min(length, _MAX_STATUS_RANGE)), most))
            count = c.UINT32.pack(len(found)) if self._extended else b""
            payload = c.UINT32.pack(number) + count + b"".join(layout.pack(*one) for one in found)
            left -= 1
            self.transport.send(self._header(kind, cookie, offset, len(payload), not left) + payload)


_FLAGS = {
    c.NBD_CMD_READ: c.NBD_CMD_FLAG_DF,
    c.NBD_CMD_FLUSH: 0,
    c.NBD_CMD_TRIM: 0,
    c.NBD_CMD_CACHE: 0,
    c.NBD_CMD_WRITE_ZEROES: c.NBD_CMD_FLAG_NO_HOLE | c.NBD_CMD_FLAG_FAST_ZERO,
    c.NBD_CMD_BLOCK_STATUS: c.NBD_CMD_FLAG_REQ_ONE,
}
"""Command → the flags that it has beside ``NBD_CMD_FLAG_FUA``."""

_OPTIONS: dict[int, Callable[[Session, int, bytes], None]] = {
    c.NBD_OPT_LIST: Session._list,
    c.NBD_OPT_STARTTLS: Session._start_tls,
    c.NBD_OPT_INFO: Session._info,
    c.NBD_OPT_GO: Session._info,
    c.NBD_OPT_STRUCTURED_REPLY: Session._structure,
    c.NBD_OPT_EXTENDED_HEADERS: Session._structure,
    c.NBD_OPT_LIST_META_CONTEXT: Session._meta_context,
    c.NBD_OPT_SET_META_CONTEXT: Session._meta_context,
}


def _units(export: Export, offset: int, length: int) -> bool:
    """Whether the range is whole units of the export."""
    unit, end = export.fast_unit, offset + length
    return unit > 0 and not offset % unit and (not end % unit or end == export.size)


def _merged(statuses: Iterator[tuple[int, int]], most: int) -> Iterator[tuple[int, int]]:
    """At most *most* of *statuses*, neighbours with the same flags as one."""
    length, flags = 0, -1
    for count, now in statuses:
        if now == flags:
            length += count
            continue
        if length:
            yield length, flags
            most -= 1
            if not most:
                return
        length, flags = count, now
    if length:
        yield length, flags


def _matches(context: str, query: str) -> bool:
    return query.endswith(":") and context.startswith(query)


def _string(text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return c.UINT32.pack(len(data)) + data


def _take_string(data: bytes, at: int) -> tuple[str, int]:
    """The string at *at*, and where it ends.

    :raises ValueError: it is cut short, or too long.
    """
    if at + 4 > len(data):
        raise ValueError
    (length,) = c.UINT32.unpack_from(data, at)
    if length > min(c.MAX_STRING, len(data) - at - 4):
        raise ValueError
    return data[at + 4 : at + 4 + length].decode("utf-8", "surrogateescape"), at + 4 + length
