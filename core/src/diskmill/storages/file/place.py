"""Places of the protocol ``file``: paths of this machine."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from ...contract.place import Place
from ...errors import StorageError
from . import paths

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ...contract.drivers import ProtocolDriver


class FilePlace(Place):
    """The path *path*.

    :param follow: whether symbolic links on it are followed when it is opened; otherwise they are an error.
    :param opened_in: of a file that is open: the folder that it was opened in, whatever its name leads to by now.
    """

    def __init__(self, driver: ProtocolDriver, path: str, *, follow: bool = True, opened_in: str | None = None) -> None:
        self.driver = driver
        self.path = path
        self.follow = follow
        self.opened_in = opened_in

    def display(self) -> str:
        return self.path

    def tidy(self) -> str:
        return os.path.normpath(self.path)

    def beside(self, reference: str) -> FilePlace:
        return FilePlace(self.driver, os.path.join(os.path.dirname(self.path), reference))

    def inside(self, name: str) -> FilePlace:
        return FilePlace(self.driver, os.path.join(self.path, name), follow=False)

    def bundled(self, names: Sequence[str]) -> FilePlace | None:
        if os.path.isdir(self.path):
            for name in names:
                path = os.path.join(self.path, name)
                if os.path.isfile(path):
                    return FilePlace(self.driver, path)
        return None

    def resolved(self) -> FilePlace:
        try:
            return FilePlace(self.driver, paths.resolved(self.path), follow=False)
        except ValueError:  # a NUL character, or one that no file name can hold
            raise StorageError("it is not a possible file name", file=self.path, errno=errno.EINVAL) from None
        except OSError as error:  # something on the way was exchanged just then
            raise StorageError(f"it cannot be found: {error.strerror}", file=self.path, errno=error.errno) from None

    def folder(self) -> FilePlace | None:
        path = self.opened_in or os.path.dirname(os.path.realpath(self.path))
        return None if path == self.path else FilePlace(self.driver, path, follow=False)

    def within(self, folder: Place) -> bool:
        return isinstance(folder, FilePlace) and paths.within(folder.path, self.path)

    def objection(self) -> str | None:
        try:
            if not stat.S_ISREG(os.stat(self.path, follow_symlinks=False).st_mode):
                return "it is not a regular file"
        except OSError as error:
            # What is missing, or cannot be reached, is for opening it to say.
            if error.errno == errno.ENAMETOOLONG:
                return "it is not a possible file name"
        return None

    def identity(self) -> object | None:
        """By the inode; of a device, by its number."""
        try:
            info = os.stat(self.path)
        except (OSError, ValueError):
            return None
        return (info.st_rdev,) if stat.S_ISBLK(info.st_mode) else (info.st_dev, info.st_ino)


def real_folder(name: str) -> str | None:
    """The folder called *name*, its links followed; None: there is none."""
    return os.path.realpath(name) if os.path.isdir(name) else None
