"""Places of the protocol ``fsspec``: a protocol of fsspec's, and a path in its words."""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING

from diskmill.contract.place import Place
from diskmill.errors import StorageError, UsageError

if TYPE_CHECKING:
    from diskmill.contract.drivers import ProtocolDriver

_PREFIX = "fsspec+"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9.+_-]{0,63}")


class FsspecPlace(Place):
    """What *protocol* has at *path*, which is what follows ``://``.

    :param judged: whether it was resolved to be judged: no option of a reference is for it.
    """

    def __init__(self, driver: ProtocolDriver, protocol: str, path: str, *, judged: bool = False) -> None:
        self.driver = driver
        self.protocol = protocol
        self.path = path
        self.judged = judged

    @classmethod
    def parse(cls, driver: ProtocolDriver, text: str) -> FsspecPlace:
        """The place that *text* names.

        :raises UsageError: it names none.
        """
        scheme, slashes, path = text.partition("://")
        protocol = scheme.removeprefix(_PREFIX)
        if not slashes or not scheme.startswith(_PREFIX) or not _NAME.fullmatch(protocol):
            raise UsageError("a name of protocol 'fsspec' is fsspec+PROTOCOL://PATH")
        if "::" in path:
            raise UsageError("a name of protocol 'fsspec' is one URL, not a chain of them ('::')")
        return cls(driver, protocol, path)

    @property
    def url(self) -> str:
        """As fsspec takes it."""
        return f"{self.protocol}://{self.path}"

    def display(self) -> str:
        """Without what stands before an ``@`` in the first part, which may be a password, and without a query."""
        host, slash, path = self.path.partition("/")
        path, mark, _ = path.partition("?")
        return f"{_PREFIX}{self.protocol}://{host.rpartition('@')[2]}{slash}{path}{'?…' if mark else ''}"

    def beside(self, reference: str) -> FsspecPlace:
        return self._at(posixpath.join(posixpath.dirname(self.path), reference))

    def inside(self, name: str) -> FsspecPlace:
        return self._at(posixpath.join(self.path, name))

    def _at(self, path: str) -> FsspecPlace:
        return FsspecPlace(self.driver, self.protocol, posixpath.normpath(path))

    def resolved(self) -> FsspecPlace:
        if ".." in self.path.split("/") or "\0" in self.path or "%" in self.path:
            raise StorageError("the file system may read this name in several ways", file=self.display())
        return FsspecPlace(self.driver, self.protocol, self.path, judged=True)

    def folder(self) -> FsspecPlace | None:
        folder = posixpath.dirname(self.path.rstrip("/"))
        return None if folder == self.path else FsspecPlace(self.driver, self.protocol, folder)

    def within(self, folder: Place) -> bool:
        if not isinstance(folder, FsspecPlace) or self.protocol != folder.protocol or not folder.path.strip("/"):
            return False
        return self.path.startswith(folder.path.rstrip("/") + "/")

    def identity(self) -> object | None:
        return "fsspec", self.protocol, self.path
