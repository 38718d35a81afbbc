"""Names of files, and opening them so that what was judged is what is opened.

A path is resolved once. What stands there then has no symbolic link in it, and is opened one component after the other
without following any (``O_NOFOLLOW``, open(2)): whoever puts a link into the way meanwhile, of the last component or of
a folder, gets an error and never a file elsewhere. openat2(2) with ``RESOLVE_NO_SYMLINKS`` does the same in one call,
but Python cannot reach it without loading a foreign-function library, and kernels before 5.6 do not have it.
"""

from __future__ import annotations

import contextlib
import os

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def resolved(name: str) -> str:
    """The absolute path that *name* leads to now, without links.

    :raises ValueError: it has a NUL character, or one that no file name can hold.
    """
    os.fsencode(name)  # where a part before it is missing, nobody else looks at such a character
    return os.path.realpath(name)


def within(folder: str, path: str) -> bool:
    """Whether the resolved *path* lies in the resolved *folder*, or below it."""
    return os.path.commonpath((folder, path)) == folder


def open_resolved(path: str, flags: int) -> int:
    """Open the resolved *path*; a symbolic link anywhere on it is an error.

    :raises OSError: it cannot be opened. ``errno`` is ELOOP or ENOTDIR where a link has been put into the way.
    """
    *above, last = [part for part in path.split("/") if part] or ["."]
    folder = os.open("/", _FOLDER)
    for part in above:
        try:
            following = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
        finally:
            let_go(folder)
        folder = following
    try:
        return os.open(last, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    finally:
        let_go(folder)


def open_named(name: str, flags: int) -> tuple[int, str | None]:
    """Open what a user calls *name*, links and all, and tell in which folder it lies: a path without links.

    None: nobody knows.

    :raises OSError: it cannot be opened.
    """
    above, last = os.path.split(name)
    if last in ("", ".", ".."):
        return os.open(name, flags | os.O_CLOEXEC), None
    folder = os.open(above or ".", _FOLDER)
    try:
        fd = os.open(name, flags | os.O_CLOEXEC)
        try:
            same = os.path.samestat(os.fstat(fd), os.stat(last, dir_fd=folder))
            path = _path_of(folder, above)
        except BaseException:
            let_go(fd)
            raise
        if not same:  # the folder, or the file, was exchanged between the two: what counts is what lies in the folder
            let_go(fd)
            fd = os.open(last, flags | os.O_CLOEXEC, dir_fd=folder)
        return fd, path
    finally:
        let_go(folder)


def _path_of(folder: int, name: str) -> str:
    """Where the open *folder*, which was called *name*, lies."""
    try:
        return os.readlink(f"/proc/self/fd/{folder}")
    except OSError:  # without /proc
        return os.path.realpath(name)


def let_go(fd: int) -> None:
    """Close what nothing was written through: the descriptor is gone whatever is answered, and there is nothing to
    lose.
    """
    with contextlib.suppress(OSError):
        os.close(fd)
