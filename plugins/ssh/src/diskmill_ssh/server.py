"""Which machine is meant, and how its key is checked: what a user, or an image, may say of it.

Names and options are QEMU's: see "ssh" in its manual of block drivers, and ``BlockdevOptionsSsh`` in its QAPI schema.
Whatever may come out of an image and reaches the ``ssh`` program is checked here, character by character.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diskmill.errors import UsageError

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*(%[A-Za-z0-9_.-]{1,32})?")
"""A name or IPv4 address, or an IPv6 address. None begins with a hyphen, or means something to a shell."""
_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@+-]{0,254}")
_DIGITS = {"md5": 32, "sha1": 40, "sha256": 64}
"""How many hexadecimal digits each kind of hash has."""


@dataclass(frozen=True)
class Check:
    """How the machine's key is checked.

    :param mode: ``none``, ``known_hosts``, or ``hash``.
    :param type: of a hash: ``md5``, ``sha1`` or ``sha256``.
    :param hash: the hash, in small hexadecimal digits.
    """

    mode: str
    type: str = ""
    hash: str = ""


@dataclass(frozen=True)
class Server:
    """A machine, and who logs in. None: as the user's own configuration of ssh says."""

    host: str
    port: int | None = None
    user: str | None = None
    check: Check | None = None

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.host):
            raise UsageError(f"'{self.host[:80]}' is no name or address of a host")
        if self.port is not None and not 0 < self.port < 65536:
            raise UsageError(f"{self.port} is no TCP port")
        if self.user is not None and not _USER.fullmatch(self.user):
            raise UsageError(f"'{self.user[:80]}' is no name of a user")

    def is_part_of(self, other: Server) -> bool:
        """Whether whoever may use *other* may use this: the same machine and user, and no laxer check."""
        same = (self.host.lower(), self.port, self.user) == (other.host.lower(), other.port, other.user)
        return same and self.check in (None, other.check)

    def display(self) -> str:
        """As it stands in a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = "" if self.user is None else f"{self.user.replace('@', '%40')}@"
        return f"ssh://{user}{host}{'' if self.port is None else f':{self.port}'}"


def server_of(options: Mapping[str, Any]) -> Server:
    """The machine that the flat *options* name.

    :raises UsageError: they name none, or are no possible values.
    """
    host, port = (_either(options, f"server.{key}", key) for key in ("host", "port"))
    if host is None:
        raise UsageError("the option 'server.host' is missing: it names the machine")
    user = options.get("user")
    return Server(str(host), _port(port), None if user is None else str(user), _check(options))


def _either(options: Mapping[str, Any], name: str, old: str) -> Any:
    if name in options and old in options:
        raise UsageError(f"the options '{name}' and '{old}' say the same: give one")
    return options.get(name, options.get(old))


def _port(value: Any) -> int | None:
    if value is None:
        return None
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise UsageError(f"'{text[:80]}' is no TCP port")
    return int(text)


def _check(options: Mapping[str, Any]) -> Check | None:
    word = options.get("host_key_check")
    mode = options.get("host-key-check.mode")
    if word is not None:
        if mode is not None:
            raise UsageError("the options 'host_key_check' and 'host-key-check.mode' say the same: give one")
        return parse_check(str(word))
    kind, value = (options.get(f"host-key-check.{key}") for key in ("type", "hash"))
    if mode != "hash":
        if kind is not None or value is not None:
            raise UsageError("a hash is only checked with host-key-check.mode=hash")
        if mode not in (None, "none", "known_hosts"):
            raise UsageError(f"invalid value '{mode}' for 'host-key-check.mode': choose from none, hash, known_hosts")
        return None if mode is None else Check(str(mode))
    if kind is None or value is None:
        raise UsageError("host-key-check.mode=hash needs host-key-check.type and host-key-check.hash")
    return _hash(str(kind), str(value))


def parse_check(word: str) -> Check:
    """What ``host_key_check=`` says: ``yes``, ``no``, or a hash.

    :raises UsageError: nothing of these.
    """
    if word in ("yes", "no"):
        return Check("known_hosts" if word == "yes" else "none")
    kind, colon, value = word.partition(":")
    if not colon:
        raise UsageError(f"unknown host_key_check setting ({word[:80]}): it is yes, no, md5:…, sha1:… or sha256:…")
    return _hash(kind, value)


def _hash(kind: str, value: str) -> Check:
    if kind not in _DIGITS:
        raise UsageError(f"there is no kind of hash '{kind[:80]}': choose from {', '.join(_DIGITS)}")
    digits = value.replace(":", "").lower()
    if not re.fullmatch(f"[0-9a-f]{{{_DIGITS[kind]}}}", digits):
        try:  # as ssh-keygen -l shows it
            digits = base64.b64decode(value + "=" * (-len(value) % 4), validate=True).hex()
        except (binascii.Error, ValueError):
            digits = ""
        if len(digits) != _DIGITS[kind]:
            raise UsageError(f"'{value[:80]}' is no {kind} hash: that has {_DIGITS[kind]} hexadecimal digits")
    return Check("hash", kind, digits)
