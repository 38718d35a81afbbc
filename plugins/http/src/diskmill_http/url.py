"""URLs, taken apart and in one normal form (RFC 3986, section 6.2.2), so that equal ones can be compared."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit

PORTS = {"http": 80, "https": 443, "ftp": 21, "ftps": 990}
_KEPT = "/%:@!$&'()*+,;=~-._"
"""What stands in a path as it is, besides letters and digits (``pchar``)."""
_UNRESERVED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")
_LONGEST = 8192
"""Characters of a URL; servers refuse longer ones."""


class Origin(NamedTuple):
    """Whom one talks to. Credentials for one origin are not for another."""

    scheme: str
    host: str
    port: int


class Url(NamedTuple):
    """A URL whose path is in normal form.

    :ivar query: as it stands after the question mark; None: there is none.
    """

    origin: Origin
    path: str
    query: str | None = None
    user: str | None = None
    password: str | None = None

    def display(self) -> str:
        """It, without user, password and query, any of which may be a secret."""
        scheme, host, port = self.origin
        host = f"[{host}]" if ":" in host else host
        place = host if port == PORTS[scheme] else f"{host}:{port}"
        return f"{scheme}://{place}{self.path}{'?…' if self.query is not None else ''}"

    @property
    def target(self) -> str:
        """What a request names: path and query."""
        return self.path if self.query is None else f"{self.path}?{self.query}"

    @property
    def address(self) -> str:
        """All that a server or a proxy is told, which is no user."""
        return self._replace(query=None).display() + ("" if self.query is None else f"?{self.query}")

    def redirected(self, location: str) -> Url:
        """Where a redirection to *location*, which may be relative, leads.

        :raises ValueError: nowhere.
        """
        return parse(urljoin(self.address, location))

    def within(self, folder: Url) -> bool:
        """Whether it is *folder*, or has a path below."""
        path = folder.path if folder.path.endswith("/") else f"{folder.path}/"
        return self.origin == folder.origin and (self.path == folder.path or self.path.startswith(path))

    @property
    def folder(self) -> Url | None:
        """The folder that it lies in, without query and credentials; None for the root."""
        upto = self.path.rstrip("/").rfind("/")
        return None if upto < 0 else Url(self.origin, self.path[: upto + 1])

    @property
    def ambiguous(self) -> bool:
        """Whether servers may read its path in several ways: with more slashes or steps upwards than are seen here."""
        for part in self.path.split("/"):
            for _ in range(8):
                if "/" in part or "\\" in part or "\0" in part or part.partition(";")[0] in (".", ".."):
                    return True
                plain = unquote(part)
                if plain == part:
                    break
                part = plain
            else:
                return True
        return False


def parse(text: str) -> Url:
    """*text* as a URL.

    :raises ValueError: it is none; the message says why, and shows no part of it.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"a URL has at most {_LONGEST} characters")
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise ValueError("a URL has no control characters")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError("its host or port is not valid") from None
    if parts.scheme not in PORTS or not host:
        raise ValueError("a URL is SCHEME://HOST/PATH, with one of the schemes " + ", ".join(PORTS))
    try:
        host = host if ":" in host else host.encode("idna").decode()
    except UnicodeError:  # a part of it is empty or too long, say
        raise ValueError("its host is not valid") from None
    if not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+(%[\w.-]+)?", host):
        raise ValueError("its host is not valid")
    origin = Origin(parts.scheme, host, PORTS[parts.scheme] if port is None else port)
    user = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else unquote(parts.password)
    has_query = "?" in text.partition("#")[0]
    query = _escaped(parts.query, _KEPT + "?") if has_query else None
    return Url(origin, normal_path(parts.path), query, user, password)


def normal_path(path: str) -> str:
    """*path* in normal form, from the root on: escapes only where they are needed, no ``.`` and ``..``."""
    path = _ESCAPE.sub(_normal_escape, _escaped(path, _KEPT))
    parts: list[str] = []
    *steps, last = path.removeprefix("/").split("/")
    for part in steps:
        _step(parts, part)
    if last in (".", ".."):
        _step(parts, last)
        last = ""
    return "/" + "".join(f"{part}/" for part in parts) + last


def _step(parts: list[str], part: str) -> None:
    if part == "..":
        del parts[-1:]
    elif part != ".":
        parts.append(part)


def _escaped(text: str, kept: str) -> str:
    return quote(text, safe=kept, errors="surrogateescape")


def _normal_escape(match: re.Match[str]) -> str:
    if match[1] is None:  # a percent sign by itself
        return "%25"
    char = chr(int(match[1], 16))
    return char if char in _UNRESERVED else f"%{match[1].upper()}"


def path_of_name(name: str) -> str:
    """The file name *name*, which may have folders in front, as a part of a path: nothing of it is a query."""
    return quote(name, safe=_KEPT, errors="surrogateescape")
