"""Where an export is: every way to name one, as one value.

URIs are those of doc/uri.md of https://github.com/NetworkBlockDevice/nbd; the older ``nbd:host:port`` and
``nbd:unix:path`` forms, and the options, those of the QEMU manual (qemu-block-drivers(7), QAPI ``BlockdevOptionsNbd``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from diskmill.errors import UsageError
from diskmill.records import record, replace

from .c_nbd import DEFAULT_PORT

SCHEMES = ("nbd", "nbds", "nbd+unix", "nbds+unix", "nbd+vsock", "nbds+vsock")
_EXPORTNAME = re.compile(r":exportname=(.*)\Z", re.DOTALL)
_MAX_NAME = 4096


@record(frozen=True)
class Location:
    """An export of a server.

    :param kind: ``inet``, ``unix`` or ``vsock``.
    :param host: of ``inet``, a name or address; of ``vsock``, the context identifier.
    :param path: of ``unix``, the socket; a name that begins with a NUL is an abstract one.
    :param tls: whether nothing but an encrypted connection will do.
    :param user: the name that goes with a pre-shared key.
    :param certificates: the folder of X.509 files of a URI's ``tls-certificates``.
    :param psk_file: the file of pre-shared keys of a URI's ``tls-psk-file``.
    :param hostname: whom the server's certificate must name, where that is not the host.
    """

    kind: str
    host: str = ""
    port: str = str(DEFAULT_PORT)
    path: str = ""
    export: str = ""
    tls: bool = False
    user: str = ""
    certificates: str = ""
    psk_file: str = ""
    hostname: str = ""

    @property
    def uri(self) -> str:
        """The name as a URI, without keys, certificates and users: for messages, and to compare servers by."""
        from urllib.parse import quote

        scheme = "nbds" if self.tls else "nbd"
        export = quote(self.export, safe="/", errors="surrogateescape")
        if self.kind == "unix":
            socket = quote(self.path, safe="/", errors="surrogateescape")
            return f"{scheme}+unix:///{export}?socket={socket}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == str(DEFAULT_PORT) else f":{self.port}"
        return f"{scheme}{'+vsock' if self.kind == 'vsock' else ''}://{host}{port}/{export}"

    @property
    def server(self) -> str:
        """The server alone, as messages name it."""
        return f"'{self.path}'" if self.kind == "unix" else f"'{self.host}' port {self.port}"

    def __str__(self) -> str:
        return self.uri


def parse_location(name: str) -> Location:
    """The location that *name* says: a URI, ``nbd:unix:PATH[:exportname=X]`` or ``nbd:HOST:PORT[:exportname=X]``.

    :raises UsageError: it is none of these, or lacks something.
    """
    scheme, colon, rest = name.partition(":")
    if colon and scheme in SCHEMES and rest.startswith("//"):
        location = _from_uri(name, scheme)
    elif colon and scheme == "nbd":
        location = _from_old(name, rest)
    else:
        raise UsageError("not the name of an NBD export", file=name[:200])
    return _checked(location, name)


def from_options(options: Mapping[str, Any]) -> Location:
    """The location that flattened QAPI options say: ``server.type``, ``server.host``, ``export``; the older ``host``,
    ``port`` and ``path`` mean the same.

    :raises UsageError: they contradict each other, or lack something.
    """
    given = {key: str(value) for key, value in options.items() if value is not None}
    kind = given.get("server.type")
    if kind is None:
        kind = "unix" if "path" in given or "server.path" in given else "inet"
    host, port, path = (given.get(f"server.{key}", given.get(key)) for key in ("host", "port", "path"))
    if kind == "unix":
        if path is None or host is not None:
            raise UsageError("an NBD server on a Unix socket takes 'server.path', and no host")
        location = Location("unix", path=path)
        if given.get("server.abstract") in ("True", "on", "true", "yes"):
            location = replace(location, path="\0" + path)
    elif kind in ("inet", "vsock"):
        host = given.get("server.cid", host) if kind == "vsock" else host
        if host is None or path is not None:
            raise UsageError(f"an NBD server of type '{kind}' takes 'server.host' and 'server.port', and no path")
        location = Location(kind, host=host, port=port or str(DEFAULT_PORT))
    else:
        raise UsageError(f"'server.type' of an NBD server is inet, unix or vsock, not '{kind}'")
    return _checked(replace(location, export=given.get("export", "")), location.uri)


def _from_uri(name: str, scheme: str) -> Location:
    from urllib.parse import parse_qsl, unquote, urlsplit

    try:
        parts = urlsplit(name)
        port = parts.port
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise UsageError(f"malformed URI: {error}", file=name[:200]) from None
    tls = scheme.startswith("nbds")
    export = unquote(parts.path.removeprefix("/"), errors="surrogateescape")
    unknown = sorted(set(query) - {"socket", "tls-certificates", "tls-psk-file", "tls-hostname"})
    if unknown:
        raise UsageError(f"an NBD URI has no parameter '{unknown[0]}'", file=name[:200])
    common: dict[str, Any] = {
        "export": export,
        "tls": tls,
        "user": unquote(parts.username or ""),
        "certificates": query.get("tls-certificates", ""),
        "psk_file": query.get("tls-psk-file", ""),
        "hostname": query.get("tls-hostname", ""),
    }
    if scheme.endswith("+unix"):
        if "socket" not in query or parts.hostname or port is not None:
            raise UsageError("a URI of a Unix socket has the parameter 'socket', and no host", file=name[:200])
        return Location("unix", path=query["socket"], **common)
    if "socket" in query:
        raise UsageError(f"the parameter 'socket' goes with {scheme}+unix", file=name[:200])
    host = parts.hostname or ""
    if scheme.endswith("+vsock"):
        return Location("vsock", host=host, port=str(port or DEFAULT_PORT), **common)
    return Location("inet", host=host or "localhost", port=str(DEFAULT_PORT if port is None else port), **common)


def _from_old(name: str, rest: str) -> Location:
    export = ""
    match = _EXPORTNAME.search(rest)
    if match is not None:
        rest, export = rest[: match.start()], match[1]
    if rest.startswith("unix:"):
        return Location("unix", path=rest.removeprefix("unix:"), export=export)
    host, colon, port = rest.rpartition(":")
    if not colon or not host or not port:
        raise UsageError("nbd:HOST:PORT or nbd:unix:PATH is needed", file=name[:200])
    return Location("inet", host=host.removeprefix("[").removesuffix("]"), port=port, export=export)


def _checked(location: Location, name: str) -> Location:
    def wrong(why: str) -> UsageError:
        return UsageError(why, file=name[:200])

    if len(location.export.encode("utf-8", "surrogateescape")) > _MAX_NAME or "\0" in location.export:
        raise wrong(f"the export's name has a NUL, or more than {_MAX_NAME} bytes")
    if location.kind == "unix":
        if not location.path or "\0" in location.path[1:]:
            raise wrong("the socket's path is empty, or has a NUL")
        return location
    if "\0" in location.host or not location.host:
        raise wrong("the host's name is empty, or has a NUL")
    largest = 65535 if location.kind == "inet" else 2**32 - 1
    if location.port.isascii() and location.port.isdigit() and not 0 < int(location.port[:12]) <= largest:
        raise wrong(f"the port {location.port[:12]} is not from 1 to {largest}")
    if location.kind == "vsock" and not (location.host.isascii() and location.host.isdigit()):
        raise wrong("a vsock address is a number, the context identifier")
    return location
