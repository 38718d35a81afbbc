"""Places of the protocol ``ssh``: absolute paths on another machine."""

from __future__ import annotations

import errno
import posixpath
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from diskmill.contract.place import Place
from diskmill.errors import StorageError, UsageError

from .c_sftp import MAX_NAME
from .server import Server, server_of

if TYPE_CHECKING:
    from diskmill.contract.drivers import ProtocolDriver

_WHERE = ("host", "port", "server.host", "server.port", "path", "user")
_PLAIN = "/:@!$&'()*+,;=~"
"""Characters that may stand in the path of a URL as they are, beside letters and digits."""


class SshPlace(Place):
    """The absolute path *path* on *server*.

    :param follow: whether symbolic links on it are followed when it is opened; otherwise they are an error.
    :param base: of a file that is open: the folder, links followed, that its name stands in.
    :param opened_in: of a file that is open: the folder, links followed, that the file itself lies in.
    """

    def __init__(
        self,
        driver: ProtocolDriver,
        server: Server,
        path: str,
        *,
        follow: bool = True,
        base: str | None = None,
        opened_in: str | None = None,
    ) -> None:
        self.driver = driver
        self.server = server
        self.path = path
        self.follow = follow
        self._base = base
        self._opened_in = opened_in

    def display(self) -> str:
        """Without how the machine's key is checked: who opens it by this name checks it as strictly as by default."""
        return self.server.display() + quote(self.path, safe=_PLAIN, errors="surrogateescape")

    def beside(self, reference: str) -> SshPlace:
        folder = self._base or posixpath.dirname(self.path)
        return SshPlace(self.driver, self.server, posixpath.join(folder, reference))

    def inside(self, name: str) -> SshPlace:
        return SshPlace(self.driver, self.server, posixpath.join(self.path, name), follow=False)

    def resolved(self) -> SshPlace:
        """Without ``..``, and, since nothing can be asked of the other machine here, with no link allowed on it: when
        it is opened, the machine must call it by this very name."""
        if "\0" in self.path or len(self.path) > MAX_NAME:
            raise StorageError("it is not a possible file name", file=self.display(), errno=errno.EINVAL)
        return SshPlace(self.driver, self.server, _normal(self.path), follow=False)

    def folder(self) -> SshPlace | None:
        path = self._opened_in or posixpath.dirname(_normal(self.path))
        return None if path == self.path else SshPlace(self.driver, self.server, path, follow=False)

    def within(self, folder: Place) -> bool:
        if not isinstance(folder, SshPlace) or not self.server.is_part_of(folder.server):
            return False
        return self.path == folder.path or self.path.startswith(folder.path.rstrip("/") + "/")

    def identity(self) -> object | None:
        """By machine and path: what is reached by two names, or two paths, counts as two."""
        return "ssh", self.server.host.lower(), self.server.port or 22, _normal(self.path)


def _normal(path: str) -> str:
    return "/" + posixpath.normpath(path).lstrip("/")


def place_of(driver: ProtocolDriver, options: Mapping[str, Any]) -> SshPlace:
    """Where the flat *options*, which are those of a node, say that it is.

    :raises UsageError: they name no possible place.
    """
    name = options.get("filename")
    if name is not None:
        if any(key in options for key in _WHERE):
            raise UsageError("a name says where it is, and so do options: give one of them", file=_safe(str(name)))
        found = _parse(str(name))
        if not options.keys().isdisjoint(found):
            raise UsageError("a name says how its key is checked, and so do options: give one", file=_safe(str(name)))
        options = {**options, **found}
    path = str(options.get("path", ""))
    if not path.startswith("/") or "\0" in path:
        shown = _safe(str(name)) if name is not None else path
        raise UsageError("it does not name an absolute path on the other machine", file=shown or None)
    try:
        return SshPlace(driver, server_of(options), path)
    except UsageError as error:
        error.file = _safe(str(name)) if name is not None else None
        raise


def _parse(name: str) -> dict[str, Any]:
    """The options that *name*, ``ssh://[user@]host[:port]/path[?host_key_check=…]``, stands for."""
    scheme, slashes, rest = name.partition("://")
    if not slashes or scheme not in ("ssh", "sftp"):
        raise UsageError("a name of this protocol is ssh://[user@]host[:port]/path", file=_safe(name))
    rest, hash_sign, _ = rest.partition("#")
    if hash_sign:
        raise UsageError("a '#' in a path is written '%23'", file=_safe(name))
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    user, at, where = authority.rpartition("@")
    if ":" in user:
        raise UsageError("a password cannot stand in a name: use a key, or let ssh ask for it", file=_safe(name))
    if where.startswith("["):
        host, _, tail = where[1:].partition("]")
        colon, port = tail[:1], tail[1:]
        if colon not in ("", ":") or ":" not in host:
            raise UsageError("an address in brackets is one of IPv6, and a port follows a colon", file=_safe(name))
    else:
        host, colon, port = where.partition(":")
    found: dict[str, Any] = {"host": unquote(host), "path": unquote(slash + path, errors="surrogateescape")}
    if colon:
        found["port"] = port
    if at:
        found["user"] = unquote(user)
    for pair in filter(None, query.split("&")):
        key, _, value = pair.partition("=")
        if key != "host_key_check":
            raise UsageError(f"a name of this protocol has no parameter '{key[:80]}'", file=_safe(name))
        found["host_key_check"] = unquote(value)
    return found


def _safe(name: str) -> str:
    """*name*, which may be malformed, without what could be a password."""
    scheme, slashes, rest = name.partition("://")
    if not slashes:
        return f"{name.partition(':')[0]}:…"
    authority, slash, path = rest.partition("/")
    _, at, host = authority.rpartition("@")
    return f"{scheme}{slashes}{'…@' if at else ''}{host}{slash}{path}"
