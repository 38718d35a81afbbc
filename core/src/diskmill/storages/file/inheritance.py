"""What a file that takes another's place inherits: owner, group, mode, access control list, extended attributes.

Nobody gets more access than the old file gave. Where owner or group cannot be handed on, or the file system takes no
access control list, what is left is the narrower of both.

Facts: acl(5) and the kernel's ``posix_acl_xattr.h`` for the attribute that holds a list, xattr(7) for the others.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Sequence

ACL = "system.posix_acl_access"
LABEL = "security.selinux"

_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NONE = (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOSYS)

Entries = Sequence[tuple[int, int, int]]
"""An access control list: (tag, permissions, id) each."""


def inherit(fd: int, old: int | str) -> list[str]:
    """Let the new file *fd* have what *old*, a descriptor or a path, has, as far as we may.

    :return: which of the list (:data:`ACL`) and the extended attributes the new file could not get.
    :raises OSError: *old* cannot be looked at, or the new file would give more access than it.
    """
    info = os.stat(old)
    lost = [name for name in _names(old) if not _carry(fd, old, name)]
    same_group = _own(fd, info)
    mode = stat.S_IMODE(info.st_mode)
    text = _get(old, ACL)
    if text is None:
        if not same_group:
            mode = mode & ~0o070 | (mode & mode << 3 & 0o070)
        try:
            os.removexattr(fd, ACL)  # what the folder gives to new files
        except OSError as error:
            if error.errno not in _NONE:
                mode &= ~0o070  # the mask of a list that stays
    else:
        entries = _parse(text)
        if not same_group:
            other = min((one[1] for one in entries if one[0] == _OTHER), default=0)
            entries = [(tag, perm & other if tag == _GROUP_OBJ else perm, who) for tag, perm, who in entries]
        try:
            os.setxattr(fd, ACL, _pack(entries))
        except OSError:
            lost.append(ACL)
            mode = mode & ~0o777 | narrowed(entries)
            with contextlib.suppress(OSError):
                os.removexattr(fd, ACL)
    if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
        try:
            os.fchmod(fd, mode)
        except OSError:
            if os.fstat(fd).st_mode & ~mode & 0o777:  # more than the old file gave
                raise
    return lost


def _own(fd: int, old: os.stat_result) -> bool:
    """Give the file to the old one's owner and group, as far as we may; whether the group is the same now."""
    new = os.fstat(fd)
    for uid, gid in ((old.st_uid, old.st_gid), (-1, old.st_gid)):
        if (new.st_uid, new.st_gid) == (old.st_uid, old.st_gid):
            break
        try:
            os.fchown(fd, uid, gid)
            break
        except OSError:
            continue
    return os.fstat(fd).st_gid == old.st_gid


def _names(old: int | str) -> list[str]:
    """The attributes that belong to the file's owner, and its label.

    Others describe the contents (checksums), or belong to a file system below.
    """
    try:
        return [name for name in os.listxattr(old) if name.startswith("user.") or name == LABEL]
    except OSError as error:
        if error.errno in _NONE:
            return []
        raise


def _get(file: int | str, name: str) -> bytes | None:
    try:
        return os.getxattr(file, name)
    except OSError as error:
        if error.errno in _NONE:
            return None
        raise


def _carry(fd: int, old: int | str, name: str) -> bool:
    """Let the file have *old*'s attribute *name*; False: it cannot."""
    value = _get(old, name)
    try:
        if value is not None and _get(fd, name) != value:
            os.setxattr(fd, name, value)
    except OSError:
        return False
    return True


def _parse(text: bytes) -> Entries:
    return list(_ENTRY.iter_unpack(text[_VERSION.size :]))


def _pack(entries: Entries) -> bytes:
    return _VERSION.pack(2) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def narrowed(entries: Entries) -> int:
    """The mode that gives nobody more than the access control list *entries*."""
    mask = next((perm for tag, perm, _ in entries if tag == _MASK), 0o7)
    owner = group = other = 0o7
    for tag, perm, _ in entries:
        if tag == _USER_OBJ:
            owner &= perm
        elif tag == _GROUP_OBJ:
            group &= perm & mask
        elif tag == _OTHER:
            other &= perm
        elif tag in (_USER, _GROUP):  # they may be in the file's group, or not
            group &= perm & mask
            other &= perm & mask
    return owner << 6 | group << 3 | other
