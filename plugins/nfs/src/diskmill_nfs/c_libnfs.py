"""The part of libnfs that is used, as ctypes sees it (``nfsc/libnfs.h`` of its versions 4 and 5).

ctypes lets go of the interpreter's lock during each call. A context is used by one thread at a time.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_char_p, c_int, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import TYPE_CHECKING, Any

from diskmill.errors import StorageError

_NAMES = ("libnfs.so.13", "libnfs.so.14")
"""Versions 4 and 5. In version 6 the arguments of reads and writes have another order: it is not tried."""


class Stat(Structure):
    """``struct nfs_stat_64``."""

    _fields_ = [
        (name, c_uint64)
        for name in (
            "dev", "ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blksize", "blocks",
            "atime", "mtime", "ctime", "atime_nsec", "mtime_nsec", "ctime_nsec", "used",
        )
    ]  # fmt: skip

    if TYPE_CHECKING:
        dev: int
        ino: int
        mode: int
        uid: int
        gid: int
        size: int
        used: int


_CALLS: dict[str, tuple[Any, ...]] = {
    "nfs_mount": (c_char_p, c_char_p),
    "nfs_open2": (c_char_p, c_int, c_int, POINTER(c_void_p)),
    "nfs_close": (c_void_p,),
    "nfs_pread": (c_void_p, c_uint64, c_uint64, c_void_p),
    "nfs_pwrite": (c_void_p, c_uint64, c_uint64, c_void_p),
    "nfs_fsync": (c_void_p,),
    "nfs_ftruncate": (c_void_p, c_uint64),
    "nfs_fstat64": (c_void_p, POINTER(Stat)),
    "nfs_lstat64": (c_char_p, POINTER(Stat)),
    "nfs_fchmod": (c_void_p, c_int),
    "nfs_fchown": (c_void_p, c_int, c_int),
    "nfs_rename": (c_char_p, c_char_p),
    "nfs_link": (c_char_p, c_char_p),
    "nfs_unlink": (c_char_p,),
    "nfs_get_fd": (),
}
"""The arguments behind the context of what gives an ``int``, negative for an error."""
_SETTINGS: dict[str, tuple[Any, ...]] = {
    "nfs_destroy_context": (),
    "nfs_set_uid": (c_int,),
    "nfs_set_gid": (c_int,),
    "nfs_set_tcp_syncnt": (c_int,),
    "nfs_set_readahead": (c_uint32,),
    "nfs_set_pagecache": (c_uint32,),
    "nfs_set_debug": (c_int,),
    "nfs_set_timeout": (c_int,),
    "nfs_set_autoreconnect": (c_int,),
    "nfs_set_dircache": (c_int,),
}


@cache
def library() -> ctypes.CDLL:
    """libnfs.

    :raises StorageError: it is not installed.
    """
    for name in _NAMES:
        try:
            found = ctypes.CDLL(name)
        except OSError:
            continue
        found.nfs_init_context.argtypes = ()
        found.nfs_init_context.restype = c_void_p
        found.nfs_get_error.argtypes = (c_void_p,)
        found.nfs_get_error.restype = c_char_p
        for call, arguments in _CALLS.items():
            function = getattr(found, call)
            function.argtypes, function.restype = (c_void_p, *arguments), c_int
        for call, arguments in _SETTINGS.items():
            function = getattr(found, call)
            function.argtypes, function.restype = (c_void_p, *arguments), None
        return found
    raise StorageError(
        "the library libnfs is not installed", hint="its Debian package is 'libnfs13' ('libnfs14' from Debian 13 on)"
    )
