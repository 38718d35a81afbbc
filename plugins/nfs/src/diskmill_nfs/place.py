"""Places of the protocol ``nfs``: absolute paths of a server, with who one is to it.

Names are those of QEMU (``nfs://host/path?uid=…``), which are those of libnfs.
"""

from __future__ import annotations

import errno
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from diskmill.contract.place import Place
from diskmill.errors import StorageError, UsageError

if TYPE_CHECKING:
    from diskmill.contract.drivers import ProtocolDriver

_WHERE = ("server.type", "server.host", "path", "user", "group")
_PARAMETERS = {
    "uid": "user",
    "gid": "group",
    "tcp-syncnt": "tcp-syn-count",
    "readahead": "readahead-size",
    "pagecache": "page-cache-size",
    "debug": "debug",
}
"""What a URL's parameters are called as options."""
_PLAIN = "/:@!$&'()*+,;=~"
"""Characters that may stand in the path of a URL as they are, beside letters and digits."""
_MAX_PATH = 1024
"""Bytes of a path that the mount protocol takes (RFC 1813, MNTPATHLEN)."""
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")


@dataclass(frozen=True)
class Server:
    """A server, who one is to it, and how libnfs speaks with it. None: libnfs's own default."""

    host: str
    user: int | None = None
    group: int | None = None
    syn_count: int | None = None
    readahead: int | None = None
    pages: int | None = None
    debug: int | None = None


class NfsPlace(Place):
    """The absolute path *path* on *server*.

    :param follow: whether it may be a symbolic link.
    :param linked: of a file that is open: whether its name is a symbolic link, so that nobody knows its folder.
    """

    def __init__(
        self, driver: ProtocolDriver, server: Server, path: str, *, follow: bool = True, linked: bool = False
    ) -> None:
        self.driver = driver
        self.server = server
        self.path = path
        self.follow = follow
        self._linked = linked

    def display(self) -> str:
        server = self.server
        told = {"uid": server.user, "gid": server.group}
        query = "&".join(f"{key}={value}" for key, value in told.items() if value is not None)
        path = quote(self.path, safe=_PLAIN, errors="surrogateescape")
        return f"nfs://{server.host}{path}{'?' if query else ''}{query}"

    def at(self, path: str, *, follow: bool = True, linked: bool = False) -> NfsPlace:
        """The absolute path *path* on the same server."""
        return NfsPlace(self.driver, self.server, path, follow=follow, linked=linked)

    def beside(self, reference: str) -> NfsPlace:
        return self.at(posixpath.join(posixpath.dirname(self.path), reference))

    def inside(self, name: str) -> NfsPlace:
        return self.at(posixpath.join(self.path, name), follow=False)

    def resolved(self) -> NfsPlace:
        """Without ``..``, and, since nothing can be asked of the server here, itself no link."""
        if "\0" in self.path or len(self.path) > _MAX_PATH:
            raise StorageError("it is not a possible file name", file=self.display(), errno=errno.EINVAL)
        return self.at(_normal(self.path), follow=False)

    def folder(self) -> NfsPlace | None:
        path = _normal(self.path)
        return None if self._linked or path == "/" else self.at(posixpath.dirname(path), follow=False)

    def within(self, folder: Place) -> bool:
        """Only right in *folder*: what lies deeper may be reached by a link, which the server follows unasked."""
        if not isinstance(folder, NfsPlace):
            return False
        ours, theirs = self.server, folder.server
        if (ours.host.lower(), ours.user, ours.group) != (theirs.host.lower(), theirs.user, theirs.group):
            return False
        return folder.path in (self.path, posixpath.dirname(self.path))

    def identity(self) -> object | None:
        """By server and path: what is reached by two names, or two paths, counts as two."""
        return "nfs", self.server.host.lower(), _normal(self.path)


def _normal(path: str) -> str:
    return "/" + posixpath.normpath(path).lstrip("/")


def place_of(driver: ProtocolDriver, options: Mapping[str, Any]) -> NfsPlace:
    """Where the flat *options*, which are those of a node, say that it is.

    :raises UsageError: they name no possible place.
    """
    name = options.get("filename")
    shown = None if name is None else str(name)
    if name is not None:
        if any(key in options for key in _WHERE):
            raise UsageError("a name says where it is, and so do options: give one of them", file=shown)
        found = _parse(str(name))
        if not options.keys().isdisjoint(found):
            raise UsageError("a name has a parameter that is an option as well: give one", file=shown)
        options = {**options, **found}
    host = options.get("server.host")
    if host is None:
        raise UsageError("the option 'server.host' is missing: it names the NFS server", file=shown)
    if not _HOST.fullmatch(str(host)):
        raise UsageError(f"'{str(host).rpartition('@')[2][:80]}' is no name or IPv4 address of a server", file=shown)
    path = str(options.get("path", ""))
    if not path.startswith("/") or "\0" in path or posixpath.basename(path) in ("", ".", ".."):
        raise UsageError("it does not name an absolute path of a file on the server", file=shown or path or None)
    numbers = [_number(options, key, shown) for key in _PARAMETERS.values()]
    return NfsPlace(driver, Server(str(host), *numbers), path)


def _number(options: Mapping[str, Any], key: str, shown: str | None) -> int | None:
    value = options.get(key)
    if value is None:
        return None
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UsageError(f"'{text[:80]}' is no number for '{key}'", file=shown)
    return int(text)


def _parse(name: str) -> dict[str, Any]:
    """The options that *name*, ``nfs://host/path[?parameter=…]``, stands for."""
    scheme, slashes, rest = name.partition("://")
    if not slashes or scheme != "nfs":
        raise UsageError("a name of this protocol is nfs://host/path", file=name)
    if "#" in rest:
        raise UsageError("a '#' in a path is written '%23'", file=name)
    rest, _, query = rest.partition("?")
    host, slash, path = rest.partition("/")
    found: dict[str, Any] = {"server.host": unquote(host), "path": unquote(slash + path, errors="surrogateescape")}
    for pair in filter(None, query.split("&")):
        key, _, value = pair.partition("=")
        if key not in _PARAMETERS:
            raise UsageError(f"a name of this protocol has no parameter '{key[:80]}'", file=name)
        found[_PARAMETERS[key]] = unquote(value)
    return found
