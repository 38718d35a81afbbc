"""New output files: without a name, or under a temporary one, until they are whole.

Where the file system can (``O_TMPFILE``), the file has no name at all, so that nothing is left even when the process
is killed. Elsewhere it lies beside the output under a name of its own. What bears the output's name already is kept,
and locked against writers, until the new file takes its place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from ...errors import StorageError, UnsupportedError
from .locks import lock
from .paths import let_go, open_resolved

_MODE = 0o644


class Output:
    """The way of a new file to its name.

    :param name: what the user calls the output.
    :param like: an open file that the new one gets owner and mode of; it alone may be replaced, where it bears *name*.
    """

    def __init__(self, name: str, flags: int, like: os.stat_result | None = None) -> None:
        self.name = name
        self.named = False
        """Whether the file has got its name."""
        self._like = like
        self._replaces = like is None
        self._temporary: str | None = None
        self._old = -1
        self._folder = -1
        target = os.path.realpath(name)  # a symbolic link stays: the file that it names is replaced
        if like is not None:
            target = self._place(target, like)
        folder, self._base = os.path.split(target)
        try:
            if not name or name.endswith("/"):
                code = errno.EISDIR if name else errno.ENOENT
                raise OSError(code, os.strerror(code))
            if like is None:
                self._keep(target)
            elif not self._replaces and os.path.lexists(target):
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            try:
                self._folder = open_resolved(folder, os.O_PATH | os.O_DIRECTORY)
                self.fd = self._make(flags)
            except OSError as error:
                if error.errno == errno.EINVAL and flags & os.O_DIRECT:
                    raise
                cause = error.strerror or str(error)
                raise StorageError(
                    f"cannot make a file in the folder '{folder}': {cause}", file=name, errno=error.errno
                ) from None
        except BaseException:
            self.forget()
            raise

    def _place(self, target: str, like: os.stat_result) -> str:
        """The place of *like*, where that is what the name leads to; else that of the very name, link or not."""
        with contextlib.suppress(OSError):
            self._replaces = os.path.samestat(os.stat(target), like)
        if self._replaces:
            if not stat.S_ISREG(like.st_mode):
                raise UnsupportedError("a device cannot be replaced by a file", file=self.name)
            return target
        return os.path.abspath(self.name)  # its folder comes resolved (siblings); a link put there since is an error

    def _keep(self, target: str) -> None:
        """See that what bears the name may be replaced, and keep others off it until then."""
        try:
            info = os.stat(target)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(info.st_mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(info.st_mode):
            raise StorageError("it is neither a regular file nor a block device", file=self.name)
        self._old = os.open(target, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        lock(self._old, self.name, writable=True, hold=False)  # nobody uses it now ...
        lock(self._old, self.name, writable=False)  # ... and until it goes, others may read it

    def _make(self, flags: int) -> int:
        fd = _unnamed(self._folder, flags)
        if fd is None:
            temporary = _fresh_name()
            # Who may not read the old file reads nothing of the new one either, before it inherits the mode.
            old = os.fstat(self._old) if self._old >= 0 else self._like
            mode = _MODE if old is None else stat.S_IMODE(old.st_mode) & 0o600
            fd = os.open(temporary, flags | os.O_CREAT | os.O_EXCL, mode, dir_fd=self._folder)
            self._temporary = temporary
        return fd

    def settle(self, durable: bool) -> None:
        """Let the file have the output's name.

        :param durable: the name, too, reaches the disk.
        :raises OSError: it cannot be; the file is still there to be forgotten.
        """
        old = self._stat_old()
        if self._like is not None and not (old is not None and self._replaces and os.path.samestat(old, self._like)):
            self._inherit(self._like)
            self._claim()
            self._done(durable)
            return
        if old is not None:
            self._inherit(old)
        if self._temporary is None:
            if old is None:
                try:
                    self._link(self._base)
                except FileExistsError:  # somebody was quicker
                    pass
                else:
                    self._done(durable)
                    return
            temporary = _fresh_name()
            self._link(temporary)
            self._temporary = temporary
        os.rename(self._temporary, self._base, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._temporary = None
        self._done(durable)

    def _claim(self) -> None:
        """Give the file its name, if nothing bears that.

        :raises FileExistsError: something does.
        """
        if self._temporary is None:
            self._link(self._base)
            return
        try:
            os.link(self._temporary, self._base, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except FileExistsError:
            raise
        except OSError:  # no hard links here: an empty file holds the name
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(self._base, flags, 0o600, dir_fd=self._folder))
            os.rename(self._temporary, self._base, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._temporary = None

    def _stat_old(self) -> os.stat_result | None:
        try:
            return os.stat(self._base, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _inherit(self, old: os.stat_result) -> None:
        """The replaced file's owner, group and mode, as far as we may."""
        new = os.fstat(self.fd)
        for uid, gid in ((old.st_uid, old.st_gid), (-1, old.st_gid)):
            if (new.st_uid, new.st_gid) == (old.st_uid, old.st_gid):
                break
            try:
                os.fchown(self.fd, uid, gid)
                break
            except OSError:
                continue
        with contextlib.suppress(OSError):
            os.fchmod(self.fd, stat.S_IMODE(old.st_mode))

    def _link(self, name: str) -> None:
        # With a folder's descriptor this is linkat(2), which follows the link in /proc to the file without a name.
        os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=self._folder, follow_symlinks=True)

    def _done(self, durable: bool) -> None:
        self.named = True
        if durable:
            try:
                folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._folder)
            except PermissionError:
                pass  # a folder that may be written but not read
            else:
                try:
                    os.fsync(folder)
                finally:
                    let_go(folder)
        self.forget()

    def forget(self) -> None:
        """Remove the file, if it has not got its name, and let go of the old one. The descriptor is not closed."""
        if self._temporary is not None:
            temporary, self._temporary = self._temporary, None
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=self._folder)
        for fd in (self._old, self._folder):
            if fd >= 0:
                let_go(fd)
        self._old = self._folder = -1


def _fresh_name() -> str:
    return f".diskmill-{os.urandom(8).hex()}.part"


def _unnamed(folder: int, flags: int) -> int | None:
    """A file without a name in *folder*; None where there is no such thing, or no way to name it later."""
    try:
        fd = os.open(".", flags | os.O_TMPFILE, _MODE, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            return None
        raise
    if not os.path.exists(f"/proc/self/fd/{fd}"):
        let_go(fd)
        return None
    return fd
