"""The client's side of the handshake: from a connected socket to an export, or to a list of them.

Source: doc/proto.md, "Handshake"; fixed newstyle with what older servers need: newstyle and oldstyle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from diskmill.errors import StorageError
from diskmill.records import field, record
from diskmill.sizes import MAX_SIZE

from . import c_nbd as c
from .transport import ConnectionLost, Transport

if TYPE_CHECKING:
    import ssl

_MAX_REPLY = 2 * c.MAX_STRING + 64
"""Bytes of the data of one reply to an option: a name and a description at most."""
_MAX_REPLIES = 100_000
"""Replies to one option: a server with more exports than that does not exist."""
_MAX_CONTEXTS = 1000


@record
class Export:
    """What the server says of an export.

    :param size: bytes.
    :param flags: ``NBD_FLAG_*`` of the transmission.
    :param minimum: bytes; offsets and lengths must be multiples.
    :param preferred: bytes.
    :param maximum: bytes of data that a request may carry or ask for.
    :param structured: whether replies are structured.
    :param extended: whether headers are extended, so that lengths have 64 bits.
    :param contexts: the metadata contexts that are negotiated: id → name.
    """

    name: str
    size: int = 0
    flags: int = 0
    description: str = ""
    minimum: int = 1
    preferred: int = 4096
    maximum: int = c.MAX_PAYLOAD
    structured: bool = False
    extended: bool = False
    contexts: dict[int, str] = field(default_factory=dict)

    def can(self, flag: int) -> bool:
        """Whether the server set *flag*, an ``NBD_FLAG_*``."""
        return bool(self.flags & flag)


class Refused(StorageError):
    """The server refused an option.

    :param reply: the ``NBD_REP_ERR_*``.
    """

    def __init__(self, cause: str, reply: int, *, file: str) -> None:
        super().__init__(cause, file=file)
        self.reply = reply


class Handshake:
    """One negotiation.

    :param context: what to encrypt with; None: TLS is not asked for.
    :param hostname: whom the server's certificate must name.
    """

    def __init__(
        self, transport: Transport, *, context: ssl.SSLContext | None = None, hostname: str | None = None
    ) -> None:
        self.transport = transport
        self.structured = False
        self.extended = False
        self._no_zeroes = False
        self._fixed = False
        self._old: Export | None = None
        self._greet()
        if context is not None:
            self._start_tls(context, hostname)

    def _wrong(self, why: str) -> ConnectionLost:
        return ConnectionLost(why, file=self.transport.name, place="NBD handshake")

    def _greet(self) -> None:
        transport = self.transport
        magic, kind = c.GREETING.unpack(transport.receive(c.GREETING.size))
        if magic != c.INIT_PASSWD:
            raise self._wrong("it is no NBD server")
        if kind == c.CLISERV_MAGIC:
            size, flags = c.OLDSTYLE.unpack(transport.receive(c.OLDSTYLE.size))
            transport.receive(c.RESERVED_ZEROES)
            self._old = self._export("", size, flags & 0xFFFF)
            return
        if kind != c.IHAVEOPT:
            raise self._wrong("it is no NBD server")
        (flags,) = c.HANDSHAKE_FLAGS.unpack(transport.receive(c.HANDSHAKE_FLAGS.size))
        self._fixed = bool(flags & c.NBD_FLAG_FIXED_NEWSTYLE)
        self._no_zeroes = bool(flags & c.NBD_FLAG_NO_ZEROES)
        ours = (c.NBD_FLAG_C_FIXED_NEWSTYLE if self._fixed else 0) | (c.NBD_FLAG_C_NO_ZEROES if self._no_zeroes else 0)
        transport.send(c.CLIENT_FLAGS.pack(ours))

    def _start_tls(self, context: ssl.SSLContext, hostname: str | None) -> None:
        """:raises StorageError: the server has no TLS: what was to be encrypted is never sent in plain."""
        if not self._fixed:
            raise self._wrong("the server is too old for TLS")
        try:
            for _ in self._ask(c.NBD_OPT_STARTTLS):
                raise self._wrong("an unexpected reply to STARTTLS")
        except Refused as error:
            raise StorageError(f"the server does not do TLS: {error.cause}", file=self.transport.name) from None
        self.transport.start_tls(context, hostname=hostname)

    def upgrade(self, *, extended: bool = True) -> None:
        """Negotiate extended headers, or else structured replies, as far as the server has them."""
        if not self._fixed:
            return
        if extended:
            self.extended = self.structured = self._granted(c.NBD_OPT_EXTENDED_HEADERS)
        if not self.structured:
            self.structured = self._granted(c.NBD_OPT_STRUCTURED_REPLY)

    def _granted(self, option: int) -> bool:
        try:
            for _ in self._ask(option):
                raise self._wrong("an unexpected reply to an option")
        except Refused as error:
            if error.reply in (c.NBD_REP_ERR_TLS_REQD, c.NBD_REP_ERR_SHUTDOWN):
                raise
            return False
        return True

    def contexts(self, export: str, wanted: Sequence[str]) -> dict[int, str]:
        """Select the metadata contexts *wanted*: id → name of those that the server has."""
        if not self.structured or not wanted:
            return {}
        return dict(self._contexts(c.NBD_OPT_SET_META_CONTEXT, export, wanted))

    def list_contexts(self, export: str, queries: Sequence[str] = ()) -> list[str]:
        """The names of the export's metadata contexts that *queries* match; all where there are no queries."""
        if not self.structured:
            return []
        return [name for _, name in self._contexts(c.NBD_OPT_LIST_META_CONTEXT, export, queries)]

    def _contexts(self, option: int, export: str, queries: Sequence[str]) -> list[tuple[int, str]]:
        found = []
        try:
            for kind, data in self._ask(option, _string(export), c.UINT32.pack(len(queries)), *map(_string, queries)):
                if kind != c.NBD_REP_META_CONTEXT or len(data) < 4:
                    raise self._wrong("a malformed metadata context")
                found.append((c.UINT32.unpack_from(data)[0], self._text(data[4:])))
                if len(found) > _MAX_CONTEXTS:
                    raise self._wrong(f"more than {_MAX_CONTEXTS} metadata contexts")
        except Refused as error:
            if error.reply in (c.NBD_REP_ERR_TLS_REQD, c.NBD_REP_ERR_SHUTDOWN):
                raise
            return []
        return found

    def list_exports(self) -> list[tuple[str, str]]:
        """Name and description of each export that the server tells of.

        :raises StorageError: it tells of none.
        """
        if self._old is not None:
            return [("", "")]
        if not self._fixed:
            raise StorageError("the server is too old to list its exports", file=self.transport.name)
        found = []
        for kind, data in self._ask(c.NBD_OPT_LIST):
            if kind != c.NBD_REP_SERVER or len(data) < 4:
                raise self._wrong("a malformed list of exports")
            (length,) = c.UINT32.unpack_from(data)
            if length > min(len(data) - 4, c.MAX_STRING):
                raise self._wrong("a malformed list of exports")
            found.append((self._text(data[4 : 4 + length]), self._text(data[4 + length :])))
        return found

    def info(self, name: str, *, go: bool = False) -> Export:
        """What the server says of the export *name*; with *go* the handshake ends there, and requests may follow.

        :raises StorageError: it has no such export, or does not give it.
        """
        if self._old is not None:
            if name:
                raise StorageError("the server is too old for exports with names", file=self.transport.name)
            return self._old
        if self._fixed:
            try:
                return self._info(name, c.NBD_OPT_GO if go else c.NBD_OPT_INFO)
            except Refused as error:
                if error.reply != c.NBD_REP_ERR_UNSUP or not go:
                    raise
        if not go:
            raise StorageError("the server is too old to tell of an export", file=self.transport.name)
        self._option(c.NBD_OPT_EXPORT_NAME, _encoded(name))
        try:
            size, flags = c.EXPORT.unpack(self.transport.receive(c.EXPORT.size))
        except ConnectionLost as error:
            if "closed" in error.cause:
                raise StorageError("the server does not give that export", file=self.transport.name) from None
            raise
        if not self._no_zeroes:
            self.transport.receive(c.RESERVED_ZEROES)
        return self._export(name, size, flags)

    def _info(self, name: str, option: int) -> Export:
        wanted = (c.NBD_INFO_DESCRIPTION, c.NBD_INFO_BLOCK_SIZE)
        ask = c.UINT16.pack(len(wanted)) + b"".join(map(c.UINT16.pack, wanted))
        export: Export | None = None
        sizes: tuple[int, int, int] | None = None
        description = ""
        for kind, data in self._ask(option, _string(name), ask):
            if kind != c.NBD_REP_INFO or len(data) < 2:
                raise self._wrong("a malformed reply about an export")
            (what,) = c.UINT16.unpack_from(data)
            if what == c.NBD_INFO_EXPORT:
                if len(data) != c.INFO_EXPORT.size:
                    raise self._wrong("a malformed reply about an export")
                _, size, flags = c.INFO_EXPORT.unpack(data)
                export = self._export(name, size, flags)
            elif what == c.NBD_INFO_BLOCK_SIZE:
                if len(data) != c.INFO_BLOCK_SIZE.size:
                    raise self._wrong("a malformed reply about block sizes")
                _, *three = c.INFO_BLOCK_SIZE.unpack(data)
                sizes = (three[0], three[1], three[2])
            elif what == c.NBD_INFO_DESCRIPTION:
                description = self._text(data[2:])
        if export is None:
            raise self._wrong("the server does not say how large the export is")
        export.description = description
        if sizes is not None:
            self._take_sizes(export, *sizes)
        return export

    def _take_sizes(self, export: Export, minimum: int, preferred: int, maximum: int) -> None:
        good = 1 <= minimum <= 64 * 1024 and not minimum & minimum - 1
        good = good and preferred >= minimum and not preferred & preferred - 1 and preferred <= maximum
        if not good or (maximum != 0xFFFFFFFF and maximum % minimum):
            raise self._wrong(f"impossible block sizes {minimum}, {preferred} and {maximum}")
        if export.size % minimum:
            raise self._wrong(f"a size of {export.size} bytes, which is not whole blocks of {minimum}")
        export.minimum, export.preferred = minimum, preferred
        export.maximum = min(maximum, c.MAX_PAYLOAD) // minimum * minimum

    def _export(self, name: str, size: int, flags: int) -> Export:
        if size > MAX_SIZE + 511:
            raise self._wrong(f"impossible size {size}")
        return Export(name, size, flags, structured=self.structured, extended=self.extended)

    def abort(self) -> None:
        """End the handshake without taking an export."""
        from contextlib import suppress

        if self._fixed and self._old is None:
            with suppress(StorageError):
                self._option(c.NBD_OPT_ABORT)
        self.transport.close()

    # -- options and their replies ------------------------------------------------------------------------------

    def _option(self, option: int, *data: bytes) -> None:
        body = b"".join(data)
        self.transport.send(c.OPTION.pack(c.IHAVEOPT, option, len(body)) + body)

    def _ask(self, option: int, *data: bytes) -> Iterator[tuple[int, bytes]]:
        """Type and data of each reply to *option*, up to the acknowledgement.

        :raises Refused: the server answers with an error.
        """
        self._option(option, *data)
        for _ in range(_MAX_REPLIES):
            header = self.transport.receive(c.OPTION_REPLY.size)
            magic, replied, kind, length = c.OPTION_REPLY.unpack(header)
            if magic != c.REP_MAGIC or replied != option:
                raise self._wrong("a reply that is none")
            if length > _MAX_REPLY:
                raise self._wrong(f"a reply of {length} bytes")
            body = self.transport.receive(length) if length else b""
            if kind == c.NBD_REP_ACK:
                return
            if kind & c.NBD_REP_FLAG_ERROR:
                told = body.decode("utf-8", "replace").strip()
                why = c.REPLY_ERRORS.get(kind, f"error {kind & ~c.NBD_REP_FLAG_ERROR}")
                raise Refused(f"{why} ({told[:500]})" if told else why, kind, file=self.transport.name)
            yield kind, body
        raise self._wrong(f"more than {_MAX_REPLIES} replies to one option")

    def _text(self, data: bytes) -> str:
        if len(data) > c.MAX_STRING:
            raise self._wrong(f"a text of {len(data)} bytes")
        return data.decode("utf-8", "surrogateescape")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _string(text: str) -> bytes:
    data = _encoded(text)
    return c.UINT32.pack(len(data)) + data
