"""HTTP connections: a bounded number, used again, directly or through a proxy (RFC 9112, section 9)."""

from __future__ import annotations

import os
import threading
from base64 import b64encode
from http.client import HTTPConnection, HTTPSConnection
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from diskmill.errors import StorageError, UsageError

from .settings import Settings
from .sockets import Sockets
from .url import Origin, Url

if TYPE_CHECKING:
    import socket
    import ssl


class Connection:
    """To *origin*, or to the proxy for it.

    :ivar used: whether a request was answered on it: the server may have closed it since.
    """

    def __init__(self, origin: Origin, http: HTTPConnection, proxied: bool) -> None:
        self.origin = origin
        self.http = http
        self.proxied = proxied
        self.used = False
        self.numbers: list[int] = []


class Connections:
    """At most as many at once as the settings say, each used by one thread at a time; the last one used comes first.

    :param stopped: set where nothing is to be waited for any more.
    """

    def __init__(self, settings: Settings, stopped: threading.Event, name: str) -> None:
        self._settings = settings
        self._stopped = stopped
        self._name = name
        self._sockets = Sockets()
        self._free = threading.Condition()
        self._idle: list[Connection] = []
        self._taken = 0
        self._tls: ssl.SSLContext | None = None

    def take(self, origin: Origin) -> Connection:
        """One to *origin*, which may not be connected yet; waits while too many are in use.

        :raises StorageError: it was interrupted, or the proxy that the environment names cannot be used.
        """
        with self._free:
            while self._taken >= self._settings.connections and not self._stopped.is_set():
                self._free.wait(0.5)
            if self._stopped.is_set():
                raise StorageError("interrupted", file=self._name)
            self._taken += 1
            for at in reversed(range(len(self._idle))):
                if self._idle[at].origin == origin:
                    return self._idle.pop(at)
        try:
            return self._new(origin)
        except BaseException:
            self._returned()
            raise

    def give(self, connection: Connection) -> None:
        """It can take another request."""
        connection.used = True
        with self._free:
            if self._stopped.is_set() or len(self._idle) >= self._settings.connections:
                self._close(connection)
            else:
                self._idle.append(connection)
        self._returned()

    def drop(self, connection: Connection) -> None:
        """It cannot, or it is not known whether it can."""
        self._close(connection)
        self._returned()

    def stop(self) -> None:
        """Wake whoever waits."""
        self._sockets.stop()
        with self._free:
            self._free.notify_all()

    def close(self) -> None:
        """Close those that nobody uses."""
        with self._free:
            idle, self._idle = self._idle, []
        for connection in idle:
            self._close(connection)

    def _returned(self) -> None:
        with self._free:
            self._taken -= 1
            self._free.notify()

    def _close(self, connection: Connection) -> None:
        connection.http.close()
        for number in connection.numbers:
            self._sockets.forget(number)

    def _new(self, origin: Origin) -> Connection:
        timeout, proxy = self._settings.timeout, _proxy(origin, self._name)
        host, port = (origin.host, origin.port) if proxy is None else proxy.origin[1:]
        http: HTTPConnection
        if origin.scheme == "https":
            http = HTTPSConnection(host, port, timeout=timeout, context=self._context())
        else:
            http = HTTPConnection(host, port, timeout=timeout)
        if proxy is not None and origin.scheme == "https":
            http.set_tunnel(origin.host, origin.port, headers=self.proxy_headers(proxy))
        connection = Connection(origin, http, proxy is not None and origin.scheme == "http")

        def dial(address: tuple[str, int], *_: Any) -> socket.socket:
            for number in connection.numbers:
                self._sockets.forget(number)
            sock, number = self._sockets.dial(*address, timeout)
            connection.numbers[:] = [number]
            return sock

        http._create_connection = dial  # type: ignore[attr-defined]  # so that a dial, and TLS, can be woken
        return connection

    def proxy_headers(self, proxy: Url | None) -> dict[str, str]:
        """What the proxy wants to know; *proxy* may hold user and password itself."""
        login = self._settings.proxy_login
        if login is None and proxy is not None and proxy.user is not None:
            login = (proxy.user, proxy.password or "")
        return {} if login is None else {"Proxy-Authorization": basic(*login)}

    def headers_for(self, connection: Connection) -> dict[str, str]:
        """What requests on *connection* tell the proxy."""
        return self.proxy_headers(_proxy(connection.origin, self._name)) if connection.proxied else {}

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = self._settings.tls()
        return self._tls


def basic(user: str, password: str) -> str:
    """The credentials of HTTP's basic authentication (RFC 7617)."""
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


def _proxy(origin: Origin, name: str) -> Url | None:
    """The proxy that the environment (``http_proxy``, ``https_proxy``, ``all_proxy``, ``no_proxy``) names for *origin*.

    :raises UsageError: it is none that is known here.
    """
    if not any(key.lower().endswith("_proxy") for key in os.environ):
        return None
    from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

    proxies = getproxies_environment()
    text = proxies.get(origin.scheme) or proxies.get("all")
    if not text or proxy_bypass_environment(f"{origin.host}:{origin.port}", proxies):
        return None
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
        parts = urlsplit("")
    if parts.scheme != "http" or not host:
        variable = f"{origin.scheme}_proxy"
        raise UsageError(f"only http:// proxies can be used, and {variable} or all_proxy names another", file=name)
    user = None if parts.username is None else unquote(parts.username)
    password = None if parts.password is None else unquote(parts.password)
    return Url(Origin("http", host, port or 80), "/", None, user, password)
