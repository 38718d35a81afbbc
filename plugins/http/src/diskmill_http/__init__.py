"""The protocols ``http``, ``https``, ``ftp`` and ``ftps``: images on web and FTP servers, read by ranges; uploads to
web servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diskmill.contract.drivers import ProtocolDriver, hookimpl
from diskmill.contract.options import Option

if TYPE_CHECKING:
    from diskmill.contract.node import Storage
    from diskmill.contract.place import Place
    from diskmill.contract.requests import CreateRequest, OpenRequest


_BOTH = ("open", "create")


def _option(
    name: str, type: str, help: str, *, when: tuple[str, ...] = ("open",), runtime: bool = False, secret: bool = False
) -> Option:
    return Option(name, type, help, when=when, runtime=runtime, secret=secret)


_ALL = (
    _option("url", "str", "the URL, where no name gives it", secret=True),
    _option("readahead", "size", "bytes that are asked for at least, and kept (256k)", runtime=True),
    _option("timeout", "int", "seconds that the server may be silent (30)", runtime=True, when=_BOTH),
    _option("retries", "int", "failures in a row that are borne (5)", runtime=True),
    _option("connections", "int", "how many connections are used at once (4)", runtime=True),
    _option("username", "str", "who to log in as", when=_BOTH),
    _option("password-secret", "str", "id of the secret with the password", when=_BOTH),
)
_HTTP = (
    _option("cookie", "str", "what is sent as Cookie", secret=True, when=_BOTH),
    _option("cookie-secret", "str", "id of the secret with what is sent as Cookie", when=_BOTH),
    _option("header", "str", "a header that is sent, as 'Name: value'; several: a line each", secret=True, when=_BOTH),
    _option("header-secret", "str", "id of the secret with headers that are sent", when=_BOTH),
    _option("netrc", "bool", "take user and password from ~/.netrc where there are no others (off)", when=_BOTH),
    _option("proxy-username", "str", "who to log in as at the proxy", when=_BOTH),
    _option("proxy-password-secret", "str", "id of the secret with the password for the proxy", when=_BOTH),
)
_TLS = (
    _option("sslverify", "bool", "verify the server's certificate (on)", when=_BOTH),
    _option(
        "cafile",
        "str",
        "file with the certificates of the authorities that are believed, instead of the system's",
        when=_BOTH,
    ),
)
INHERITED = ("readahead", "timeout", "retries", "connections", "sslverify", "cafile")
"""Options that hold for a file beside a place, too: how its server is used. None of them is a credential."""


class UrlDriver(ProtocolDriver):
    """Of one scheme: its name is the scheme's."""

    contract = 1

    def __init__(self, name: str, title: str, options: tuple[Option, ...]) -> None:
        self.name = name
        self.title = title
        self.prefixes = (name,)
        self.options = options

    def place(self, options: Mapping[str, Any]) -> Place:
        """The URL, which is option ``url`` or the name."""
        from .place import UrlPlace

        kept = {name: options[name] for name in INHERITED if name in options}
        return UrlPlace.parse(self, str(options.get("url", options.get("filename", ""))), kept)

    @hookimpl
    def open(self, request: OpenRequest) -> Storage:
        """What the server has there, by ranges; from a web server that has none, from the first byte to the last."""
        from .opening import open_url

        return open_url(self, request)


class WebDriver(UrlDriver):
    """Of a web server, which may take files, too."""

    capabilities = frozenset({"create"})

    @hookimpl
    def create(self, request: CreateRequest) -> Storage:
        """A new file, sent by one PUT."""
        from .upload import create_file

        return create_file(self, request)


http_driver = WebDriver("http", "web servers", (*_ALL, *_HTTP))
https_driver = WebDriver("https", "web servers, over TLS", (*_ALL, *_HTTP, *_TLS))
ftp_driver = UrlDriver("ftp", "FTP servers", _ALL)
ftps_driver = UrlDriver("ftps", "FTP servers, over TLS from the first byte on", (*_ALL, *_TLS))
