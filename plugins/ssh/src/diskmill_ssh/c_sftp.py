"""Messages of the SSH File Transfer Protocol, version 3.

Facts from draft-ietf-secsh-filexfer-02 (sections 3 to 7),
https://datatracker.ietf.org/doc/html/draft-ietf-secsh-filexfer-02, and, for the extensions
``posix-rename@openssh.com``, ``fsync@openssh.com`` and ``limits@openssh.com``, from the file PROTOCOL of OpenSSH
(sections 4.3, 4.6 and 4.8). All numbers are big-endian; a string is its length (32 bits) and its bytes.
"""

from __future__ import annotations

import errno
import struct
from typing import NamedTuple, NoReturn

from diskmill.errors import StorageError

VERSION = 3

INIT = 1
ANSWER_VERSION = 2
OPEN = 3
CLOSE = 4
READ = 5
WRITE = 6
LSTAT = 7
FSTAT = 8
FSETSTAT = 10
REMOVE = 13
REALPATH = 16
STAT = 17
RENAME = 18
STATUS = 101
HANDLE = 102
DATA = 103
NAME = 104
ATTRS = 105
EXTENDED = 200
EXTENDED_REPLY = 201

POSIX_RENAME = b"posix-rename@openssh.com"
FSYNC = b"fsync@openssh.com"
LIMITS = b"limits@openssh.com"

# Flags of OPEN.
FOR_READING = 0x01
FOR_WRITING = 0x02
CREATE = 0x08
EXCLUSIVE = 0x20

# Flags of attributes.
HAS_SIZE = 0x01
HAS_OWNER = 0x02
HAS_MODE = 0x04
HAS_TIMES = 0x08
HAS_EXTENDED = 0x80000000

STATUS_OK = 0
STATUS_EOF = 1

MAX_PACKET = 256 * 1024
"""Bytes of the longest packet that is taken. The draft asks for 34,000 at least; OpenSSH's limit is this."""
PIECE = 32768
"""Bytes of one READ or WRITE: what the draft lets every server take."""
LARGE_PIECE = 131072
"""Bytes of one READ or WRITE, where the server says that it takes so many: less work a byte, for both sides."""
MAX_NAME = 4096
"""Bytes of the longest path that a server may tell us."""

_ERRNOS = {
    2: errno.ENOENT,
    3: errno.EACCES,
    4: errno.EIO,
    5: errno.EPROTO,
    6: errno.ENOTCONN,
    7: errno.ECONNRESET,
    8: errno.EOPNOTSUPP,
}
"""What the codes of a STATUS mean (section 7)."""
_PHRASES = {
    1: "the end of the file was reached",
    2: "No such file or directory",
    3: "Permission denied",
    4: "the server failed, and does not say why",
    5: "the server calls a message malformed",
    8: "the server does not support it",
}

HEAD = struct.Struct(">IBI")
"""What begins each packet but the first two: the length of the rest behind this field, type, request number."""
LENGTH = struct.Struct(">I")
_WHERE = struct.Struct(">QI")


class Attributes(NamedTuple):
    """Attributes of a file (section 5); None: the server did not tell."""

    size: int | None = None
    owner: tuple[int, int] | None = None
    mode: int | None = None
    modified: int | None = None

    def pack(self) -> bytes:
        """As they are sent: size, owner and mode."""
        flags, parts = 0, b""
        if self.size is not None:
            flags, parts = flags | HAS_SIZE, parts + struct.pack(">Q", self.size)
        if self.owner is not None:
            flags, parts = flags | HAS_OWNER, parts + struct.pack(">II", *self.owner)
        if self.mode is not None:
            flags, parts = flags | HAS_MODE, parts + LENGTH.pack(self.mode)
        return LENGTH.pack(flags) + parts


class Fields:
    """The fields of a packet, one after the other. Nothing is believed that does not fit into it.

    :param data: the packet, from its type on.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next *count* bytes.

        :raises StorageError: the packet ends before.
        """
        if count > len(self._data) - self._at:
            malformed("a message that ends before its fields do")
        self._at += count
        return self._data[self._at - count : self._at]

    def byte(self) -> int:
        """A number of 8 bits."""
        return self.take(1)[0]

    def number(self) -> int:
        """A number of 32 bits."""
        return int.from_bytes(self.take(4), "big")

    def large(self) -> int:
        """A number of 64 bits."""
        return int.from_bytes(self.take(8), "big")

    def string(self) -> bytes:
        """A string."""
        return self.take(self.number())

    @property
    def left(self) -> int:
        """How many bytes are left."""
        return len(self._data) - self._at

    def attributes(self) -> Attributes:
        """Attributes of a file. What is extended is passed over."""
        flags = self.number()
        size = self.large() if flags & HAS_SIZE else None
        owner = (self.number(), self.number()) if flags & HAS_OWNER else None
        mode = self.number() if flags & HAS_MODE else None
        modified = (self.number(), self.number())[1] if flags & HAS_TIMES else None
        if size is not None and size >= 1 << 63:
            malformed("a file size that no file has")
        return Attributes(size, owner, mode, modified)


def malformed(what: str) -> NoReturn:
    """:raises StorageError: the server sent *what*."""
    raise StorageError(f"the server sent {what}: this is not SFTP, or the server is broken", errno=errno.EPROTO)


def string(data: bytes) -> bytes:
    """*data* as a string field."""
    return LENGTH.pack(len(data)) + data


def packet(kind: int, number: int, *fields: bytes) -> bytes:
    """The packet of type *kind* with the request *number*."""
    return HEAD.pack(5 + sum(map(len, fields)), kind, number) + b"".join(fields)


def read_packet(number: int, handle: bytes, offset: int, length: int) -> bytes:
    """READ; *handle* is a string field."""
    return HEAD.pack(17 + len(handle), READ, number) + handle + _WHERE.pack(offset, length)


def write_head(number: int, handle: bytes, offset: int, length: int) -> bytes:
    """What stands before the *length* bytes of a WRITE; *handle* is a string field."""
    return HEAD.pack(17 + len(handle) + length, WRITE, number) + handle + _WHERE.pack(offset, length)


def refusal(code: int, message: bytes) -> StorageError:
    """What a STATUS other than OK means, as an error."""
    said = message[:200].decode("utf-8", "replace").strip().rstrip(".")
    cause = _PHRASES.get(code) or said or f"the server answers with status {code}"
    if code == 4 and said and said.lower() != "failure":
        cause = said
    return StorageError(cause, errno=_ERRNOS.get(code, errno.EIO))
