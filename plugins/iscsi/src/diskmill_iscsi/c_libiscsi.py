"""The part of libiscsi that is used, as ctypes sees it (``iscsi/iscsi.h`` and ``iscsi/scsi-lowlevel.h``, 1.13 to 1.20).

ctypes lets go of the interpreter's lock during each call. A context is used by one thread at a time.
"""

from __future__ import annotations

import ctypes
from ctypes import CFUNCTYPE, POINTER, Structure, c_char_p, c_int, c_size_t, c_ubyte, c_uint32, c_void_p
from functools import cache
from typing import TYPE_CHECKING, Any

from diskmill.errors import StorageError

_NAME = "libiscsi.so.7"

SCSI_STATUS_GOOD = 0
SCSI_STATUS_CHECK_CONDITION = 2
SCSI_STATUS_BUSY = 8
SCSI_STATUS_RESERVATION_CONFLICT = 0x18
SCSI_STATUS_TASK_SET_FULL = 0x28

SCSI_XFER_NONE = 0
SCSI_XFER_READ = 1
SCSI_XFER_WRITE = 2

ISCSI_SESSION_NORMAL = 2
HEADER_DIGESTS = {"none": 0, "none-crc32c": 1, "crc32c-none": 2, "crc32c": 3}
"""``enum iscsi_header_digest`` by QEMU's words."""

CALLBACK = CFUNCTYPE(None, c_void_p, c_int, c_void_p, c_void_p)
"""``iscsi_command_cb``: context, status, the command's data, one's own."""


class Sense(Structure):
    """``struct scsi_sense``, with what later versions may add."""

    _fields_ = [("error_type", c_ubyte), ("key", c_int), ("ascq", c_int), ("rest", c_ubyte * 52)]

    if TYPE_CHECKING:
        key: int
        ascq: int


class Task(Structure):
    """The beginning of ``struct scsi_task``."""

    _fields_ = [
        ("status", c_int),
        ("cdb_size", c_int),
        ("xfer_dir", c_int),
        ("expxferlen", c_int),
        ("cdb", c_ubyte * 16),
        ("residual_status", c_int),
        ("residual", c_size_t),
    ]

    if TYPE_CHECKING:
        cdb_size: int
        expxferlen: int
        residual_status: int
        residual: int


class Data(Structure):
    """``struct iscsi_data``: what is sent with a command."""

    _fields_ = [("size", c_size_t), ("data", c_char_p)]


_CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "iscsi_create_context": (c_void_p, (c_char_p,)),
    "iscsi_destroy_context": (c_int, (c_void_p,)),
    "iscsi_get_error": (c_char_p, (c_void_p,)),
    "iscsi_set_targetname": (c_int, (c_void_p, c_char_p)),
    "iscsi_set_session_type": (c_int, (c_void_p, c_int)),
    "iscsi_set_header_digest": (c_int, (c_void_p, c_int)),
    "iscsi_set_initiator_username_pwd": (c_int, (c_void_p, c_char_p, c_char_p)),
    "iscsi_set_isid_random": (c_int, (c_void_p, c_uint32, c_uint32)),
    "iscsi_set_noautoreconnect": (None, (c_void_p, c_int)),
    "iscsi_full_connect_async": (c_int, (c_void_p, c_char_p, c_int, CALLBACK, c_void_p)),
    "iscsi_logout_async": (c_int, (c_void_p, CALLBACK, c_void_p)),
    "iscsi_get_fd": (c_int, (c_void_p,)),
    "iscsi_which_events": (c_int, (c_void_p,)),
    "iscsi_service": (c_int, (c_void_p, c_int)),
    "iscsi_scsi_command_async": (c_int, (c_void_p, c_int, c_void_p, CALLBACK, POINTER(Data), c_void_p)),
    "scsi_create_task": (c_void_p, (c_int, c_char_p, c_int, c_int)),
    "scsi_free_scsi_task": (None, (c_void_p,)),
    "scsi_task_add_data_in_buffer": (c_int, (c_void_p, c_int, c_void_p)),
    "scsi_task_get_status": (c_int, (c_void_p, POINTER(Sense))),
}


@cache
def library() -> ctypes.CDLL:
    """libiscsi.

    :raises StorageError: it is not installed, or another one than is known here.
    """
    try:
        found = ctypes.CDLL(_NAME)
    except OSError:
        hint = "its Debian package is 'libiscsi7'"
        raise StorageError("the library libiscsi is not installed", hint=hint) from None
    for name, (result, arguments) in _CALLS.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    made = found.scsi_create_task(10, bytes(range(10)), SCSI_XFER_READ, 12345)
    task = Task.from_address(made)
    known = task.cdb_size == 10 and task.expxferlen == 12345 and bytes(task.cdb)[:10] == bytes(range(10))
    found.scsi_free_scsi_task(made)
    if not known:
        raise StorageError(f"'{_NAME}' is of a version that is not known here")
    return found
