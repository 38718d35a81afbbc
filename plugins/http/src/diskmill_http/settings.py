"""How a server is used: options, with the secrets that they name, as one value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from diskmill.contract.options import Value
from diskmill.errors import RefusedError, StorageError, UsageError
from diskmill.kit.ranged import LARGEST_READAHEAD, READAHEAD

from . import INHERITED
from .place import UrlPlace

if TYPE_CHECKING:
    import ssl

    from diskmill import Context

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A header's name (RFC 9110, section 5.6.2)."""
_OURS = frozenset({"host", "range", "if-range", "content-length", "transfer-encoding", "connection", "accept-encoding"})
"""Headers that a user cannot set, because the driver lives by them."""


@dataclass(frozen=True)
class Settings:
    """See the options of the drivers. Headers are for the URL's own origin alone."""

    readahead: int = READAHEAD
    timeout: int = 30
    retries: int = 5
    connections: int = 4
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    proxy_login: tuple[str, str] | None = field(default=None, repr=False)
    verify: bool = True
    cafile: str | None = None

    def tls(self) -> ssl.SSLContext:
        """What connections over TLS are made with.

        :raises StorageError: the file of authorities cannot be read.
        """
        import ssl

        try:
            context = ssl.create_default_context(cafile=self.cafile)
        except OSError as error:  # ssl.SSLError is one: no certificate in it
            cause = error.strerror if not isinstance(error, ssl.SSLError) else "it holds no certificates"
            raise StorageError(str(cause), file=self.cafile, place="cafile") from None
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def settings_of(options: Mapping[str, Value], place: UrlPlace, context: Context, name: str) -> Settings:
    """What *options* ask for; what they leave open comes from the image that *place* lies beside.

    :param name: of the storage, for messages.
    :raises UsageError: a value is out of range, or is no header. SecretError: there is no such secret.
    :raises RefusedError: it is an image that sets an option: what is sent, and which files are read, is the user's.
    """
    told = sorted(key for key in options if key != "url")
    if place.judged and told:
        raise RefusedError(f"an image may not set the option '{told[0]}' (--trust=anything lets it)", file=name)
    options = dict(options)
    declared = {option.name: option for option in place.driver.options}
    for key in INHERITED:
        if key in place.kept and key in declared:
            options.setdefault(key, declared[key].parse(place.kept[key]))

    def number(key: str, default: int, low: int, high: int) -> int:
        value = int(options.get(key, default))
        if not low <= value <= high:
            raise UsageError(f"option '{key}' takes {low} to {high}", file=name)
        return value

    def secret(key: str) -> str | None:
        if key not in options:
            return None
        try:
            return context.secret(str(options[key])).decode()
        except UnicodeDecodeError:
            raise UsageError(f"the secret of option '{key}' is not UTF-8", file=name) from None

    def text(key: str) -> str | None:
        return str(options[key]) if key in options else None

    user, password = text("username"), secret("password-secret")
    if user is None and password is None and place.url.user is not None:
        user, password = place.url.user, place.url.password
    elif user is None:
        user = place.url.user
    if user is None and password is None and options.get("netrc"):
        user, password = _from_netrc(place, name)
    if user is None and password is not None:
        raise UsageError("a password goes with a username", file=name)
    headers = [*_headers(text("header"), "header", name)]
    headers += _headers(secret("header-secret"), "header-secret", name)
    cookies = [one for one in (text("cookie"), secret("cookie-secret")) if one]
    if cookies:
        headers += _headers("Cookie: " + "; ".join(cookies), "cookie", name)
    proxy_user = text("proxy-username")
    return Settings(
        readahead=number("readahead", READAHEAD, 512, LARGEST_READAHEAD),
        timeout=number("timeout", 30, 1, 3600),
        retries=number("retries", 5, 0, 1000),
        connections=number("connections", 4, 1, 64),
        user=user,
        password=password,
        headers=tuple(headers),
        proxy_login=None if proxy_user is None else (proxy_user, secret("proxy-password-secret") or ""),
        verify=bool(options.get("sslverify", True)),
        cafile=text("cafile"),
    )


def _headers(text: str | None, option: str, name: str) -> list[tuple[str, str]]:
    """The headers in *text*, a line each. What is wrong with one is told without showing it: it may be a secret."""
    result = []
    for line in (text or "").splitlines():
        key, colon, value = line.partition(":")
        value = value.strip()
        if not colon or not _TOKEN.fullmatch(key) or not value.isprintable() or not _latin(value):
            raise UsageError(f"the value of option '{option}' is no header ('Name: value')", file=name)
        if key.lower() in _OURS:
            raise UsageError(f"the header '{key}' cannot be set", file=name)
        result.append((key, value))
    return result


def _latin(text: str) -> bool:
    try:
        text.encode("latin-1")
    except UnicodeEncodeError:
        return False
    return True


def _from_netrc(place: UrlPlace, name: str) -> tuple[str | None, str | None]:
    """User and password for the place's host, from the file that curl and ftp use."""
    import netrc

    try:
        found = netrc.netrc().authenticators(place.url.origin.host)
    except FileNotFoundError:
        return None, None
    except (OSError, netrc.NetrcParseError):
        raise UsageError("~/.netrc cannot be read", file=name) from None
    return (None, None) if found is None else (found[0] or None, found[2] or None)
