"""Constants and structures of the NBD protocol, in the specification's names.

Source: doc/proto.md of https://github.com/NetworkBlockDevice/nbd (extended headers included). All integers are
big-endian. Contexts under ``qemu:`` are those of docs/interop/nbd in the QEMU sources.
"""

from __future__ import annotations

from struct import Struct

DEFAULT_PORT = 10809

# Handshake: magic numbers, and the flags of the server (NBD_FLAG_*) and of the client (NBD_FLAG_C_*).

INIT_PASSWD = 0x4E42444D41474943
CLISERV_MAGIC = 0x00420281861253
IHAVEOPT = 0x49484156454F5054
REP_MAGIC = 0x3E889045565A9

NBD_FLAG_FIXED_NEWSTYLE = 1 << 0
NBD_FLAG_NO_ZEROES = 1 << 1
NBD_FLAG_C_FIXED_NEWSTYLE = 1 << 0
NBD_FLAG_C_NO_ZEROES = 1 << 1

NBD_OPT_EXPORT_NAME = 1
NBD_OPT_ABORT = 2
NBD_OPT_LIST = 3
NBD_OPT_STARTTLS = 5
NBD_OPT_INFO = 6
NBD_OPT_GO = 7
NBD_OPT_STRUCTURED_REPLY = 8
NBD_OPT_LIST_META_CONTEXT = 9
NBD_OPT_SET_META_CONTEXT = 10
NBD_OPT_EXTENDED_HEADERS = 11

NBD_REP_ACK = 1
NBD_REP_SERVER = 2
NBD_REP_INFO = 3
NBD_REP_META_CONTEXT = 4
NBD_REP_FLAG_ERROR = 1 << 31
NBD_REP_ERR_UNSUP = NBD_REP_FLAG_ERROR + 1
NBD_REP_ERR_POLICY = NBD_REP_FLAG_ERROR + 2
NBD_REP_ERR_INVALID = NBD_REP_FLAG_ERROR + 3
NBD_REP_ERR_TLS_REQD = NBD_REP_FLAG_ERROR + 5
NBD_REP_ERR_UNKNOWN = NBD_REP_FLAG_ERROR + 6
NBD_REP_ERR_SHUTDOWN = NBD_REP_FLAG_ERROR + 7
NBD_REP_ERR_BLOCK_SIZE_REQD = NBD_REP_FLAG_ERROR + 8
NBD_REP_ERR_TOO_BIG = NBD_REP_FLAG_ERROR + 9

REPLY_ERRORS = {
    NBD_REP_ERR_UNSUP: "the server does not know the option",
    NBD_REP_ERR_POLICY: "the server's policy forbids it",
    NBD_REP_ERR_INVALID: "the server calls the request invalid",
    NBD_REP_FLAG_ERROR + 4: "the server's platform does not support it",
    NBD_REP_ERR_TLS_REQD: "the server insists on TLS",
    NBD_REP_ERR_UNKNOWN: "the server has no such export",
    NBD_REP_ERR_SHUTDOWN: "the server is shutting down",
    NBD_REP_ERR_BLOCK_SIZE_REQD: "the server insists on block sizes",
    NBD_REP_ERR_TOO_BIG: "the server calls the request too large",
    NBD_REP_FLAG_ERROR + 10: "the server insists on extended headers",
}

NBD_INFO_EXPORT = 0
NBD_INFO_NAME = 1
NBD_INFO_DESCRIPTION = 2
NBD_INFO_BLOCK_SIZE = 3

MAX_STRING = 4096
"""Bytes in a string (an export's name, a message) at most."""
RESERVED_ZEROES = 124
"""Bytes of zeros at the end of an old handshake."""

GREETING = Struct(">QQ")
"""``INIT_PASSWD``, then ``IHAVEOPT`` (newstyle) or ``CLISERV_MAGIC`` (oldstyle)."""
OLDSTYLE = Struct(">QI")
"""Size of the export, flags."""
HANDSHAKE_FLAGS = Struct(">H")
CLIENT_FLAGS = Struct(">I")
OPTION = Struct(">QII")
"""``IHAVEOPT``, option, length of its data."""
OPTION_REPLY = Struct(">QIII")
"""``REP_MAGIC``, option, reply type, length of its data."""
EXPORT = Struct(">QH")
"""Size of the export, transmission flags: the answer to ``NBD_OPT_EXPORT_NAME``."""
INFO_EXPORT = Struct(">HQH")
INFO_BLOCK_SIZE = Struct(">HIII")
"""``NBD_INFO_BLOCK_SIZE``, minimum, preferred and maximum block size."""
UINT16 = Struct(">H")
UINT32 = Struct(">I")

# Transmission.

NBD_FLAG_HAS_FLAGS = 1 << 0
NBD_FLAG_READ_ONLY = 1 << 1
NBD_FLAG_SEND_FLUSH = 1 << 2
NBD_FLAG_SEND_FUA = 1 << 3
NBD_FLAG_ROTATIONAL = 1 << 4
NBD_FLAG_SEND_TRIM = 1 << 5
NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6
NBD_FLAG_SEND_DF = 1 << 7
NBD_FLAG_CAN_MULTI_CONN = 1 << 8
NBD_FLAG_SEND_RESIZE = 1 << 9
NBD_FLAG_SEND_CACHE = 1 << 10
NBD_FLAG_SEND_FAST_ZERO = 1 << 11

NBD_CMD_READ = 0
NBD_CMD_WRITE = 1
NBD_CMD_DISC = 2
NBD_CMD_FLUSH = 3
NBD_CMD_TRIM = 4
NBD_CMD_CACHE = 5
NBD_CMD_WRITE_ZEROES = 6
NBD_CMD_BLOCK_STATUS = 7

COMMANDS = {
    NBD_CMD_READ: "read",
    NBD_CMD_WRITE: "write",
    NBD_CMD_DISC: "disconnect",
    NBD_CMD_FLUSH: "flush",
    NBD_CMD_TRIM: "trim",
    NBD_CMD_CACHE: "cache",
    NBD_CMD_WRITE_ZEROES: "write zeroes",
    NBD_CMD_BLOCK_STATUS: "block status",
}

NBD_CMD_FLAG_FUA = 1 << 0
NBD_CMD_FLAG_NO_HOLE = 1 << 1
NBD_CMD_FLAG_DF = 1 << 2
NBD_CMD_FLAG_REQ_ONE = 1 << 3
NBD_CMD_FLAG_FAST_ZERO = 1 << 4
NBD_CMD_FLAG_PAYLOAD_LEN = 1 << 5

NBD_REQUEST_MAGIC = 0x25609513
NBD_EXTENDED_REQUEST_MAGIC = 0x21E41C71
NBD_SIMPLE_REPLY_MAGIC = 0x67446698
NBD_STRUCTURED_REPLY_MAGIC = 0x668E33EF
NBD_EXTENDED_REPLY_MAGIC = 0x6E8A278C

NBD_REPLY_FLAG_DONE = 1 << 0
NBD_REPLY_TYPE_NONE = 0
NBD_REPLY_TYPE_OFFSET_DATA = 1
NBD_REPLY_TYPE_OFFSET_HOLE = 2
NBD_REPLY_TYPE_BLOCK_STATUS = 5
NBD_REPLY_TYPE_BLOCK_STATUS_EXT = 6
NBD_REPLY_TYPE_FLAG_ERROR = 1 << 15
NBD_REPLY_TYPE_ERROR = NBD_REPLY_TYPE_FLAG_ERROR + 1
NBD_REPLY_TYPE_ERROR_OFFSET = NBD_REPLY_TYPE_FLAG_ERROR + 2

NBD_EPERM = 1
NBD_EIO = 5
NBD_ENOMEM = 12
NBD_EINVAL = 22
NBD_ENOSPC = 28
NBD_EOVERFLOW = 75
NBD_ENOTSUP = 95
NBD_ESHUTDOWN = 108

NBD_STATE_HOLE = 1 << 0
NBD_STATE_ZERO = 1 << 1
NBD_STATE_DIRTY = 1 << 0

BASE_ALLOCATION = "base:allocation"
ALLOCATION_DEPTH = "qemu:allocation-depth"
DIRTY_BITMAP = "qemu:dirty-bitmap:"
"""The start of a context's name; a bitmap's name follows."""

REQUEST = Struct(">IHHQQI")
"""``NBD_REQUEST_MAGIC``, command flags, type, cookie, offset, length."""
EXTENDED_REQUEST = Struct(">IHHQQQ")
SIMPLE_REPLY = Struct(">IIQ")
"""``NBD_SIMPLE_REPLY_MAGIC``, error, cookie."""
STRUCTURED_REPLY = Struct(">IHHQI")
"""``NBD_STRUCTURED_REPLY_MAGIC``, flags, type, cookie, length of the payload."""
EXTENDED_REPLY = Struct(">IHHQQQ")
"""``NBD_EXTENDED_REPLY_MAGIC``, flags, type, cookie, offset of the request, length of the payload."""
OFFSET = Struct(">Q")
OFFSET_HOLE = Struct(">QI")
ERROR = Struct(">IH")
"""Error, length of the message."""
BLOCK_STATUS = Struct(">II")
"""Length, status flags: a descriptor."""
BLOCK_STATUS_EXT = Struct(">QQ")

MAX_PAYLOAD = 32 << 20
"""Bytes that a request may carry, or ask for, where the server names no limit."""
