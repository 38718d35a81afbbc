"""What Linux offers to give file space back, or to make it zeros, without writing: fallocate(2) and block ioctls."""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Callable
from functools import cache

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10
_BLKDISCARD, _BLKZEROOUT, _BLKSSZGET = 0x1277, 0x127F, 0x1268
_FICLONERANGE = 0x4020940D
_FS_IOC_GETFLAGS, _FS_IOC_SETFLAGS, _FS_NOCOW = 0x80086601, 0x40086602, 0x00800000

UNSUPPORTED = frozenset((errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY, errno.ENODEV, errno.EPERM))
"""Errors that mean: this file system (or device) has no such operation, do it another way."""


@cache
def _fallocate() -> Callable[[int, int, int, int], int]:
    import ctypes  # only what zeroes or discards pays for it

    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

    def call(fd: int, mode: int, offset: int, length: int) -> int:
        while function(fd, mode, offset, length):
            if ctypes.get_errno() != errno.EINTR:
                return ctypes.get_errno()
        return 0

    return call


def _ask(fd: int, mode: int, offset: int, length: int) -> bool:
    """One fallocate; False: there is no such mode here.

    :raises OSError: it failed for another reason, a full disk say.
    """
    code = _fallocate()(fd, mode, offset, length)
    if code and code not in UNSUPPORTED:
        raise OSError(code, os.strerror(code))
    return not code


def punch(fd: int, offset: int, length: int) -> bool:
    """Make the range of a regular file a hole; False: not possible here. Bytes of partial blocks become zeros."""
    return _ask(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)


def zero_range(fd: int, offset: int, length: int) -> bool:
    """Make the range of a regular file zeros that keep their space; False: not possible here."""
    return _ask(fd, _ZERO_RANGE | _KEEP_SIZE, offset, length)


def copy_range(source: int, start: int, target: int, offset: int, length: int) -> bool:
    """Let the kernel copy from file to file (copy_file_range(2)); False where it, or a file system, will not."""
    while length:
        try:
            count = os.copy_file_range(source, target, length, start, offset)
        except OSError:
            return False  # reading and writing tells what is wrong, or does it
        if count == 0:
            return False
        start, offset, length = start + count, offset + count, length - count
    return True


def clone_range(source: int, start: int, target: int, offset: int, length: int) -> None:
    """Let two files share blocks (FICLONERANGE, see ioctl_ficlonerange(2)).

    :raises OSError: they cannot.
    """
    import fcntl

    fcntl.ioctl(target, _FICLONERANGE, struct.pack("@qQQQ", source, start, length, offset))


def clone_block(source: int, target: int) -> int:
    """Bytes of a block that the two files can share; 0: they cannot share any.

    A byte by itself is never shared. File systems that could share blocks say that it does not fit (EINVAL), others
    that there is no such operation, or that the files are on two of them.
    """
    try:
        clone_range(source, 1, target, 1, 1)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return os.fstatvfs(target).f_bsize
    return 0


def _block_ioctl(fd: int, request: int, offset: int, length: int) -> bool:
    import fcntl

    try:
        fcntl.ioctl(fd, request, struct.pack("@QQ", offset, length))
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        raise
    return True


def device_zero(fd: int, offset: int, length: int) -> bool:
    """Make whole sectors of a block device zeros; False: not possible here."""
    return _block_ioctl(fd, _BLKZEROOUT, offset, length)


def device_discard(fd: int, offset: int, length: int) -> bool:
    """Tell a block device that whole sectors are not needed; False: it does not care."""
    return _block_ioctl(fd, _BLKDISCARD, offset, length)


def device_sector(fd: int) -> int:
    """Bytes in a logical sector of a block device."""
    import fcntl

    (size,) = struct.unpack("@I", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))
    return int(size)


def no_copy_on_write(fd: int) -> None:
    """Ask the file system (btrfs) to overwrite the file's blocks in place. Others ignore it."""
    import fcntl

    with contextlib.suppress(OSError):
        (flags,) = struct.unpack_from("@i", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)))
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("@ii", flags | _FS_NOCOW, 0))


def gains_by_allocation(fd: int) -> bool:
    """Whether writes to a new regular file get faster by allocating their blocks first.

    On ext4 they do. On xfs it makes no difference, tmpfs gets slower, btrfs no longer compresses what was allocated.
    """
    device = os.fstat(fd).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
            for line in mounts:
                mount, _, system = line.partition(" - ")
                if mount.split(" ", 3)[2] == number:
                    return system.startswith("ext4 ")
    except OSError:
        pass
    return False
