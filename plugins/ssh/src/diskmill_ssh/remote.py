"""Files of another machine, by name: one request each of a session, and what an answer means."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from diskmill.errors import StorageError

from . import c_sftp as c
from .session import Session


def encoded(path: str) -> bytes:
    """*path* as a string field."""
    return c.string(os.fsencode(path))


class Found(NamedTuple):
    """What a path leads to: its path without links, that of its folder, and what it is."""

    real: str
    base: str
    attributes: c.Attributes


def look(session: Session, path: str, *, follow: bool) -> Found:
    """What *path* leads to.

    :param follow: whether symbolic links may lie on it.
    :raises StorageError: there is nothing, it is no regular file, or a link lies on the way.
    """
    folder = path.rpartition("/")[0] or "/"
    asked = [
        (c.REALPATH, encoded(path)),
        (c.REALPATH, encoded(folder)),
        (c.STAT if follow else c.LSTAT, encoded(path)),
    ]
    real, base, attributes = session.ask_all(asked)
    for answer in (attributes, real, base):  # that the file is missing says more than that its path cannot be resolved
        if isinstance(answer, StorageError):
            raise answer
    assert not isinstance(real, StorageError)
    assert not isinstance(base, StorageError)
    assert not isinstance(attributes, StorageError)
    found = Found(_name(real[1]), _name(base[1]), attributes[1].attributes())
    if not follow and found.real != path:
        raise StorageError("a symbolic link lies on the way: only its real path may be opened for an image")
    expect_file(found.attributes)
    return found


def real_path(session: Session, path: str) -> str:
    """*path* without links; its last name need not be there.

    :raises StorageError: it cannot be told.
    """
    return _name(session.ask(c.REALPATH, encoded(path))[1])


def attributes_of(session: Session, path: str, *, follow: bool = True) -> c.Attributes | None:
    """What *path* is; None: there is nothing."""
    (answer,) = session.ask_all([(c.STAT if follow else c.LSTAT, encoded(path))])
    if isinstance(answer, StorageError):
        if answer.errno == 2:
            return None
        raise answer
    return answer[1].attributes()


def expect_file(attributes: c.Attributes) -> None:
    """:raises StorageError: they are not those of a regular file (as far as the server tells)."""
    mode = attributes.mode
    if mode is None or stat.S_IFMT(mode) in (0, stat.S_IFREG):
        return
    raise StorageError("it is a folder" if stat.S_ISDIR(mode) else "it is not a regular file")


def opened(session: Session, path: str, flags: int, mode: int | None = None) -> bytes:
    """The handle, a string field, of *path*, opened with *flags*; a new file gets *mode*."""
    _, fields = session.ask(c.OPEN, encoded(path), c.LENGTH.pack(flags), c.Attributes(mode=mode).pack())
    handle = fields.string()
    if not 0 < len(handle) <= 256:
        c.malformed(f"a file handle of {len(handle)} bytes")
    return c.string(handle)


def attributes_of_open(session: Session, handle: bytes) -> c.Attributes:
    """What the open file *handle* is."""
    return session.ask(c.FSTAT, handle)[1].attributes()


def remove(session: Session, path: str) -> None:
    """Take the file *path* away."""
    session.ask(c.REMOVE, encoded(path))


def rename(session: Session, old: str, new: str, *, replace: bool) -> None:
    """Let the file *old* be called *new*.

    :param replace: it takes the place of what bears that name; otherwise nothing may bear it.
    """
    if replace and c.POSIX_RENAME in session.extensions:
        session.ask(c.EXTENDED, c.string(c.POSIX_RENAME), encoded(old), encoded(new))
    else:
        session.ask(c.RENAME, encoded(old), encoded(new))


def _name(fields: c.Fields) -> str:
    if fields.number() != 1:
        c.malformed("several names for one path")
    name = fields.string()
    if not name.startswith(b"/") or len(name) > c.MAX_NAME or b"\0" in name:
        c.malformed("a path that is not absolute")
    return os.fsdecode(name)
