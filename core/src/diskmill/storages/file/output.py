"""New output files: without a name, or under a temporary one, until they are whole.

Where the file system can (``O_TMPFILE``), the file has no name at all, so that nothing is left even when the process
is killed. Elsewhere it lies beside the output under a name of its own. What bears the output's name already is kept,
and locked against writers, until the new file takes its place.

Several files that make one image get their names together (:func:`settle_together`): the old main file goes aside first
and the new one gets its name last, so that whatever is found under that name stands on files of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Sequence

from ...errors import StorageError, UnsupportedError
from .inheritance import inherit
from .locks import lock
from .paths import let_go, open_resolved

IN_PLACE = "--in-place"
_MODE = 0o644
_OFFER = f"(write into it with {IN_PLACE})"


class Output:
    """The way of a new file to its name.

    :param name: what the user calls the output.
    :param like: an open file, or a path, that the new one gets owner, mode and attributes of; it alone may be replaced,
        where it bears *name*.
    :param clobber: whether a file that bears the name may be replaced.
    :param kept: until it has its name it has this one with ``.part``, and stays when it is forgotten: for who goes on
        with it later.
    """

    def __init__(
        self, name: str, flags: int, like: int | str | None = None, *, clobber: bool = True, kept: bool = False
    ) -> None:
        self.name = name
        self.named = False
        """Whether the file has got its name."""
        self._like = like
        self._replaces = like is None and clobber
        self._temporary: str | None = None
        self._stays = kept
        self._aside: str | None = None
        """The name that the old file has while others of its image are replaced."""
        self._old = -1
        self._folder = -1
        target = os.path.realpath(name)  # a symbolic link stays: the file that it names is replaced
        if like is not None:
            target = self._place(target, os.stat(like))
        folder, self._base = os.path.split(target)
        try:
            if not name or name.endswith("/"):
                code = errno.EISDIR if name else errno.ENOENT
                raise OSError(code, os.strerror(code))
            if not self._replaces and os.path.lexists(target):
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
            if like is None:
                self._keep(target)
            try:
                self._folder = open_resolved(folder, os.O_PATH | os.O_DIRECTORY)
                if self._old >= 0:
                    self._expect_replaceable()
                self.fd = self._make(flags)
            except StorageError:
                raise
            except OSError as error:
                if error.errno == errno.EINVAL and flags & os.O_DIRECT:
                    raise
                cause = error.strerror or str(error)
                offer = f" {_OFFER}" if self._old >= 0 else ""
                raise StorageError(
                    f"cannot make a file in the folder '{folder}': {cause}{offer}", file=name, errno=error.errno
                ) from None
            if self._old >= 0:
                self._try_inheriting()
        except BaseException:
            self.forget()
            raise

    @property
    def replaces(self) -> bool:
        """Whether a file bears the name that this one will take the place of."""
        return self._old >= 0

    def places(self) -> frozenset[object]:
        """What it takes the place of: an entry in a folder, and the file there."""
        folder = os.fstat(self._folder)
        found: set[object] = {(folder.st_dev, folder.st_ino, self._base)}
        if self._old >= 0:
            old = os.fstat(self._old)
            found.add((old.st_dev, old.st_ino))
        return frozenset(found)

    def _expect_replaceable(self) -> None:
        """See, before anything is copied, that the old file can be replaced.

        :raises StorageError: it cannot.
        """
        old, folder = os.fstat(self._old), os.fstat(self._folder)
        why, code = "", errno.EPERM
        if old.st_nlink > 1:
            why = f"it has {old.st_nlink} names (hard links), and the others would keep the old contents"
            code = errno.EMLINK
        elif _mount(self._old) != _mount(self._folder):
            why, code = "it is a mount point", errno.EBUSY
        elif folder.st_mode & stat.S_ISVTX and os.geteuid() not in (0, old.st_uid, folder.st_uid):
            why = "it is another user's, and so is its folder, which is sticky"
        if why:
            raise StorageError(f"it cannot be replaced: {why} {_OFFER}", file=self.name, errno=code)

    def _try_inheriting(self) -> None:
        """Give the file now what it will have when it is settled.

        :raises StorageError: something cannot be carried over.
        """
        try:
            lost = inherit(self.fd, self._old)
        except OSError as error:
            os.close(self.fd)
            cause = error.strerror or str(error)
            raise StorageError(f"it cannot be replaced: {cause} {_OFFER}", file=self.name, errno=error.errno) from None
        if lost:
            os.close(self.fd)
            what = ", ".join(sorted(lost))
            text = f"it cannot be replaced: a new file cannot have its extended attributes ({what}) {_OFFER}"
            raise StorageError(text, file=self.name, errno=errno.EPERM)

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
        if self._stays:
            self._temporary = f"{self._base}.part"
            flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            return os.open(self._temporary, flags, _MODE if self._old < 0 else 0o600, dir_fd=self._folder)
        fd = _unnamed(self._folder, flags)
        if fd is None:
            temporary = _fresh_name()
            # Who may not read the old file reads nothing of the new one either, before it inherits the mode.
            mode = _MODE if self._old < 0 and self._like is None else 0o600
            fd = os.open(temporary, flags | os.O_CREAT | os.O_EXCL, mode, dir_fd=self._folder)
            self._temporary = temporary
        return fd

    def settle(self, durable: bool) -> None:
        """Let the file have the output's name.

        :param durable: the name, too, reaches the disk.
        :raises OSError: it cannot be; the file is still there to be forgotten.
        """
        old = self._stat_old()
        mine = self._replaces
        if self._like is not None:
            mine = mine and old is not None and os.path.samestat(old, os.stat(self._like))
        if not mine:
            if self._like is not None:
                inherit(self.fd, self._like)
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
            try:
                os.rename(self._temporary, self._base, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(self._base, dir_fd=self._folder)
                raise
            self._temporary = None

    def _stat_old(self) -> os.stat_result | None:
        try:
            return os.stat(self._base, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _inherit(self, old: os.stat_result) -> None:
        """Take after what bears the name now, as far as we may."""
        if not stat.S_ISREG(old.st_mode):
            return  # it appeared meanwhile
        fd = os.open(self._base, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            inherit(self.fd, fd)
        finally:
            os.close(fd)

    # -- together with others -----------------------------------------------------------------------------------

    def step_aside(self) -> None:
        """Let the old file have another name."""
        old = self._stat_old()
        if old is None:
            return
        if not self._replaces:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        self._inherit(old)
        aside = f".diskmill-{os.urandom(8).hex()}.old"
        os.rename(self._base, aside, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        self._aside = aside

    def claim(self) -> None:
        """Give the file its name, which nothing bears any more.

        :raises OSError: something does, or it cannot be.
        """
        if self._temporary is None:
            self._link(self._base)
        elif self._stat_old() is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        else:
            os.rename(self._temporary, self._base, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._temporary = None
        self.named = True

    def let_go(self) -> None:
        """Take the name away from the new file, if it has it.

        :raises OSError: it cannot be.
        """
        if self.named:
            there = self._stat_old()
            if there is not None and os.path.samestat(there, os.fstat(self.fd)):
                os.unlink(self._base, dir_fd=self._folder)
            self.named = False

    def step_back(self) -> None:
        """Let the old file have its name again.

        :raises OSError: it cannot be.
        """
        if self._aside is not None:
            if self._stat_old() is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            os.rename(self._aside, self._base, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._aside = None

    @property
    def kept(self) -> str | None:
        """The name of the old file while it is aside."""
        return self._aside

    def _link(self, name: str) -> None:
        # With a folder's descriptor this is linkat(2), which follows the link in /proc to the file without a name.
        os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=self._folder, follow_symlinks=True)

    def _done(self, durable: bool) -> None:
        self.named = True
        if durable:
            self.synchronise()
        self.forget()

    def synchronise(self) -> None:
        """The folder's names reach the disk."""
        try:
            folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._folder)
        except PermissionError:
            return  # a folder that may be written but not read
        try:
            os.fsync(folder)
        finally:
            let_go(folder)

    def _has_bytes(self) -> bool:
        with contextlib.suppress(OSError):
            return os.fstat(self.fd).st_size > 0
        return True

    def forget(self) -> None:
        """Remove the file, if it has not got its name, or else the old one, and let go of that. The descriptor is not
        closed.
        """
        gone = [] if self._stays and self._has_bytes() else [self._temporary]
        self._temporary = None
        if self.named:
            gone.append(self._aside)
            self._aside = None
        for name in gone:
            if name is not None:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self._folder)
        for fd in (self._old, self._folder):
            if fd >= 0:
                let_go(fd)
        self._old = self._folder = -1


def settle_together(outputs: Sequence[Output], durable: bool) -> None:
    """Let the files of one image, the main one first, have their names: all of them, or none.

    Who is killed in between leaves the old image whole, the new one, or nothing under the main file's name: then the
    old files lie beside it, as ``.diskmill-….old``.

    :param durable: the names, too, reach the disk, each step before the next.
    :raises OSError: it cannot be; the old files have their names again.
    :raises StorageError: and some of those have not.
    """
    main, others = outputs[0], outputs[1:]
    folders = {os.fstat(one._folder)[1:3]: one for one in others}
    try:
        main.step_aside()
        if durable and main.kept is not None:
            main.synchronise()
        for one in others:
            one.step_aside()
        for one in reversed(others):
            one.claim()
        for one in folders.values() if durable else ():
            one.synchronise()
        main.claim()
    except BaseException as error:
        one = main
        try:
            for one in outputs:
                one.let_go()
            for one in others:
                one.step_back()
            for one in folders.values() if durable else ():
                one.synchronise()
            one = main
            main.step_back()
        except OSError as worse:
            kept = ", ".join(f"'{each.kept}' ({each.name})" for each in outputs if each.kept is not None)
            raise StorageError(
                f"{_cause(error)}; then the old files could not get their names back ({_cause(worse)}): "
                f"they are beside it, as {kept}",
                file=one.name,
                errno=worse.errno,
            ) from None
        raise
    try:
        if durable:
            main.synchronise()
    finally:
        for one in outputs:
            one.forget()


def _cause(error: BaseException) -> str:
    if isinstance(error, OSError) and not isinstance(error, StorageError):
        return error.strerror or str(error)
    return str(error) or type(error).__name__


def _mount(fd: int) -> str | None:
    """What tells the mount that *fd* is on from others; None where the kernel does not say."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="utf-8") as info:  # plain letters; ASCII would be one more import
            return next((line for line in info if line.startswith("mnt_id:")), None)
    except OSError:
        return None


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
