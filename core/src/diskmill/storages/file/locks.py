"""The byte-range locks with which processes that use one disk image find out about each other.

They are QEMU's, so that a running virtual machine and diskmill see each other. A process holds a read lock on byte
100 + *n* for each permission *n* that it uses, and on byte 200 + *n* for each one that it does not share. Read locks
never collide; what excludes is looking: nobody may hold the byte that says "not shared" for what we use, nor the byte
that says "in use" for what we do not share. The locks are of the kind that belongs to the open file description
(``F_OFD_SETLK``), so two opens in one process exclude each other as well. The bytes need not exist in the file.

Facts: QEMU's documentation of image locking (docs/system/images.rst, "Disk image file locking") and the locks that
qemu-img and qemu-io can be seen to take.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from ...errors import LockedError, StorageError

READ, WRITE, RESIZE = 0, 1, 3
"""Numbers of permissions (2, writing what is there already, is never asked for here)."""

_USED, _UNSHARED = 100, 200
_NAMES = {READ: "consistent read", WRITE: "write", RESIZE: "resize"}
_FLOCK = struct.Struct("@hhqqi4x")
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


def lock(fd: int, name: str, *, writable: bool, share: bool = False, hold: bool = True) -> None:
    """Take the locks of a reader, or of a writer, until *fd* is closed; do without on file systems that have none.

    :param share: a reader that does not mind writers.
    :param hold: False: only see whether they could be had.
    :raises LockedError: another process uses the file in a way that excludes this.
    """
    used = (READ, WRITE, RESIZE) if writable else (READ,)
    unshared = () if share and not writable else (WRITE, RESIZE)
    try:
        if hold:
            for number in used:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _request(fcntl.F_RDLCK, _USED + number))
            for number in unshared:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _request(fcntl.F_RDLCK, _UNSHARED + number))
        for number in used:
            if _taken(fd, _UNSHARED + number):
                raise _locked(fd, name, f'Failed to get "{_NAMES[number]}" lock')
        for number in unshared:
            if _taken(fd, _USED + number):
                raise _locked(fd, name, f'Failed to get shared "{_NAMES[number]}" lock')
    except LockedError:
        raise
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):  # somebody holds a write lock there: not QEMU, but in use
            raise _locked(fd, name, "Failed to lock it") from None
        if error.errno not in _UNSUPPORTED:
            raise StorageError.from_os(error, name, "lock") from None


def _request(kind: int, at: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, at, 1, 0)


def _taken(fd: int, at: int) -> bool:
    """Whether anyone else holds a lock on the byte *at*."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _request(fcntl.F_WRLCK, at))
    assert isinstance(answer, bytes)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _locked(fd: int, name: str, cause: str) -> LockedError:
    _release(fd)
    return LockedError(f"{cause}: is another process using the image [{name}]?", file=name, errno=errno.EAGAIN)


def _release(fd: int) -> None:
    """Give back all of *fd*'s locks: it may stay open for one who only wants to look."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, _USED, _UNSHARED, 0))
