"""Opening files and devices, and making new ones: which class of storage they get, and the locks."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from ...contract.node import Storage
from ...errors import LockedError, StorageError
from .locks import lock
from .paths import let_go, open_named, open_resolved
from .place import FilePlace
from .storage import SYNC, FileStorage

if TYPE_CHECKING:
    from ...contract.drivers import ProtocolDriver
    from ...contract.requests import CreateRequest, OpenRequest

_DIRECT = ("none", "directsync")
_NULL = os.makedev(1, 3)


def open_file(driver: ProtocolDriver, request: OpenRequest) -> FileStorage:
    """Open what exists: a regular file or a block device, never anything that waits or acts when opened.

    :raises StorageError: it cannot be opened. LockedError: another process uses it in a way that excludes this.
    """
    name, context = request.name, request.context
    flags = _flags(context.cache) | os.O_NONBLOCK | (os.O_RDWR if request.writable else os.O_RDONLY)
    place = request.place
    follow = place.follow if isinstance(place, FilePlace) else request.options.get("follow") is not False
    try:
        expect = _expect_regular if not follow else _expect_file if request.writable else _expect_readable
        expect(os.stat(name, follow_symlinks=follow), name)
        if follow:
            fd, folder = open_named(name, flags)
        else:
            path = os.path.abspath(name)
            fd, folder = open_resolved(path, flags), os.path.dirname(path)
    except (OSError, ValueError) as error:
        raise _open_error(error, name, flags) from None
    conflict = None
    try:
        expect(os.fstat(fd), name)  # what was looked at may have been exchanged
        try:
            if request.options.get("locking") != "off":
                lock(fd, name, writable=request.writable, share=context.share, hold=not request.shallow)
        except LockedError as error:
            if not request.shallow or request.writable:
                raise
            conflict = error
        storage = _class(context.cache)(driver, name, fd, writable=request.writable, cache=context.cache)
    except BaseException:
        let_go(fd)
        raise
    storage.conflict = conflict
    storage.place = FilePlace(driver, name, follow=follow, opened_in=folder)
    return storage


def create_file(driver: ProtocolDriver, request: CreateRequest) -> Storage:
    """A new, empty file, which gets its name when it is settled; or the block device, or the file where the context
    says so, that bears the name, emptied at the first write.

    :raises StorageError: it cannot be made. LockedError: another process uses what bears the name.
    """
    from .output import Output

    name, context = request.name, request.context
    flags = _flags(context.cache) | os.O_RDWR
    output = None
    try:
        if request.like is None and (_is_device(name) or context.overwrite == "in-place" and os.path.exists(name)):
            fd = os.open(name, flags | os.O_NONBLOCK)
        else:
            clobber = context.overwrite != "refuse"
            like = None if request.like is None else _place_of(request.like)
            output = Output(name, flags, like, clobber=clobber, kept=request.unfinished)
            fd = output.fd
    except (OSError, ValueError) as error:
        raise _open_error(error, name, flags) from None
    try:
        _expect_file(os.fstat(fd), name)
        lock(fd, name, writable=True)
        storage = _class(context.cache)(driver, name, fd, writable=True, cache=context.cache)
        storage._output = output
        if not storage.is_device:
            from . import space

            storage._ahead = space.gains_by_allocation(fd)
            if request.options.get("nocow"):
                space.no_copy_on_write(fd)
    except BaseException:
        let_go(fd)
        if output is not None:
            output.forget()
        raise
    if output is not None or request.unfinished:
        return storage
    from .inplace import InPlace

    return InPlace(storage)


def _place_of(storage: Storage) -> int | str:
    fd = storage.fileno()
    return storage.name if fd is None else fd


def _flags(cache: str) -> int:
    flags = os.O_CLOEXEC
    if cache in _DIRECT:
        flags |= os.O_DIRECT
    if cache in SYNC:
        flags |= os.O_DSYNC
    return flags


def _class(cache: str) -> type[FileStorage]:
    if cache not in _DIRECT:
        return FileStorage
    from .direct import DirectStorage

    return DirectStorage


def _expect_file(info: os.stat_result, name: str) -> None:
    if not (stat.S_ISREG(info.st_mode) or stat.S_ISBLK(info.st_mode)):
        raise StorageError("it is neither a regular file nor a block device", file=name)


def _expect_readable(info: os.stat_result, name: str) -> None:
    """As for what is written; and ``/dev/null`` is an empty device."""
    if not (stat.S_ISCHR(info.st_mode) and info.st_rdev == _NULL):
        _expect_file(info, name)


def _expect_regular(info: os.stat_result, name: str) -> None:
    if stat.S_ISLNK(info.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if not stat.S_ISREG(info.st_mode):
        raise StorageError("it is not a regular file", file=name)


def _is_device(name: str) -> bool:
    try:
        info = os.stat(name)
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(info.st_mode):
        _expect_file(info, name)
    return stat.S_ISBLK(info.st_mode)


def _open_error(error: OSError | ValueError, name: str, flags: int) -> StorageError:
    if not isinstance(error, OSError):  # a NUL character, or one that no file name can hold
        return StorageError("it is not a possible file name", file=name, errno=errno.EINVAL)
    if error.errno == errno.EINVAL and not isinstance(error, StorageError) and flags & os.O_DIRECT:
        return StorageError(
            "its file system does not support O_DIRECT, which the cache modes none and directsync need",
            file=name,
            errno=error.errno,
        )
    return StorageError.from_os(error, name)
