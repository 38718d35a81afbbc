"""The parts of librados and librbd that are used, as ctypes sees them (``rados/librados.h``, ``rbd/librbd.h``).

ctypes lets go of the interpreter's lock during each call, and an open image may be used by several threads at once.
"""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_size_t, c_ssize_t, c_uint8, c_uint64, c_void_p
from functools import cache
from typing import Any

from diskmill.errors import StorageError

DIFF = CFUNCTYPE(c_int, c_uint64, c_size_t, c_int, c_void_p)
"""What :c:func:`rbd_diff_iterate2` calls: offset, length, whether there is something."""
THICK = 1
"""``RBD_WRITE_ZEROES_FLAG_THICK_PROVISION``."""

_RADOS: dict[str, tuple[Any, ...]] = {
    "rados_create": (POINTER(c_void_p), c_char_p),
    "rados_conf_read_file": (c_void_p, c_char_p),
    "rados_conf_set": (c_void_p, c_char_p, c_char_p),
    "rados_connect": (c_void_p,),
    "rados_ioctx_create": (c_void_p, c_char_p, POINTER(c_void_p)),
}
_VOID: dict[str, tuple[Any, ...]] = {
    "rados_ioctx_set_namespace": (c_void_p, c_char_p),
    "rados_ioctx_destroy": (c_void_p,),
    "rados_shutdown": (c_void_p,),
}
_RBD: dict[str, tuple[Any, ...]] = {
    "rbd_create": (c_void_p, c_char_p, c_uint64, POINTER(c_int)),
    "rbd_open": (c_void_p, c_char_p, POINTER(c_void_p), c_char_p),
    "rbd_open_read_only": (c_void_p, c_char_p, POINTER(c_void_p), c_char_p),
    "rbd_close": (c_void_p,),
    "rbd_get_size": (c_void_p, POINTER(c_uint64)),
    "rbd_resize": (c_void_p, c_uint64),
    "rbd_rename": (c_void_p, c_char_p, c_char_p),
    "rbd_remove": (c_void_p, c_char_p),
    "rbd_flush": (c_void_p,),
    "rbd_discard": (c_void_p, c_uint64, c_uint64),
    "rbd_diff_iterate2": (c_void_p, c_char_p, c_uint64, c_uint64, c_uint8, c_uint8, DIFF, c_void_p),
}
_LONG: dict[str, tuple[Any, ...]] = {
    "rbd_read": (c_void_p, c_uint64, c_size_t, c_void_p),
    "rbd_write": (c_void_p, c_uint64, c_size_t, c_void_p),
    "rbd_write_zeroes": (c_void_p, c_uint64, c_size_t, c_int, c_int),
}


def _loaded(name: str, package: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError:
        what = name.partition(".")[0]
        raise StorageError(f"the library {what} is not installed", hint=f"its Debian package is '{package}'") from None


@cache
def functions() -> dict[str, Any]:
    """The functions, by name.

    :raises StorageError: a library is not installed.
    """
    rados, rbd = _loaded("librados.so.2", "librados2"), _loaded("librbd.so.1", "librbd1")
    found: dict[str, Any] = {}
    for library, calls, result in (
        (rados, _RADOS, c_int),
        (rados, _VOID, None),
        (rbd, _RBD, c_int),
        (rbd, _LONG, c_ssize_t),
    ):
        for name, arguments in calls.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, result
            found[name] = function
    return found


def call(name: str, *arguments: Any) -> int:
    """What the function *name* gives.

    :raises StorageError: an error, with its number.
    """
    answer = functions()[name](*arguments)
    if answer is None:
        return 0
    if answer < 0:
        number = int(-answer)
        text = "the cluster does not answer" if number == errno.ETIMEDOUT else os.strerror(number)
        raise StorageError(text, errno=number)
    return int(answer)
