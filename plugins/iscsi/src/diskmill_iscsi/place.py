"""Places of the protocol ``iscsi``: LUNs, by portal, target and number.

Names are those of QEMU (``iscsi://[user[%password]@]host[:port]/target/lun``), which are those of libiscsi.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from diskmill.contract.place import Place
from diskmill.errors import UsageError

if TYPE_CHECKING:
    from diskmill.contract.drivers import ProtocolDriver

_WHERE = ("transport", "portal", "target", "lun")
_OF_THE_USER = ("user", "password-secret", "initiator-name", "timeout")
"""Options that say who one is, and how long to wait: not for an image to choose."""
_HOST = r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}|\[[0-9A-Fa-f:.]{2,45}\])"
_PORTAL = re.compile(rf"({_HOST})(?::([0-9]{{1,5}}))?")
_TARGET = re.compile(r"[\x21-\x7e]{1,223}")
"""A name of iSCSI has no blanks (RFC 3720, 3.2.6)."""
_PORT = 3260
_MOST_LUNS = 1 << 14


@dataclass(frozen=True)
class Unit:
    """A LUN."""

    host: str
    port: int
    target: str
    lun: int

    @property
    def portal(self) -> str:
        return f"{self.host}:{self.port}"


class IscsiPlace(Place):
    """The LUN *unit*, with the name and password for CHAP that a URL gives.

    :param chosen: an option that was given with it and is the user's to give.
    """

    def __init__(
        self,
        driver: ProtocolDriver,
        unit: Unit,
        user: str | None = None,
        password: str | None = None,
        *,
        chosen: str = "",
    ) -> None:
        self.driver = driver
        self.unit = unit
        self.user = user
        self.password = password
        self._chosen = chosen

    def display(self) -> str:
        unit = self.unit
        host = unit.host if unit.port == _PORT else unit.portal
        return f"iscsi://{host}/{quote(unit.target, safe=':.@-')}/{unit.lun}"

    def objection(self) -> str | None:
        if self.user is not None or self.password is not None:
            return "it says who we are there"
        return f"it sets '{self._chosen}'" if self._chosen else None

    def within(self, folder: Place) -> bool:
        """Only the LUN itself: what else is there, nobody knows by its number."""
        return isinstance(folder, IscsiPlace) and folder.identity() == self.identity()

    def identity(self) -> object:
        unit = self.unit
        return "iscsi", unit.host.lower(), unit.port, unit.target, unit.lun


def place_of(driver: ProtocolDriver, options: Mapping[str, Any]) -> IscsiPlace:
    """Where the flat *options*, which are those of a node, say that it is.

    :raises UsageError: they name no possible place.
    """
    chosen = next((key for key in _OF_THE_USER if key in options), "")
    name = options.get("filename")
    if name is not None:
        if any(key in options for key in _WHERE):
            raise UsageError("a name says where it is, and so do options: give one of them", file=_shown(str(name)))
        return _parse(driver, str(name), chosen)
    for key in ("portal", "target"):
        if key not in options:
            raise UsageError(f"the option '{key}' is missing, or a name, iscsi://host/target/lun")
    unit = _unit(str(options["portal"]), str(options["target"]), str(options.get("lun", 0)), None)
    return IscsiPlace(driver, unit, chosen=chosen)


def _parse(driver: ProtocolDriver, name: str, chosen: str) -> IscsiPlace:
    shown = _shown(name)
    scheme, slashes, rest = name.partition("://")
    before, at, after = rest.rpartition("@") if "@" in rest.split("/", 1)[0] else ("", "", rest)
    parts = after.split("/")
    if scheme != "iscsi" or not slashes or len(parts) != 3 or "?" in after or "#" in after:
        raise UsageError("a name of this protocol is iscsi://[user[%password]@]host[:port]/target/lun", file=shown)
    user, percent, password = before.partition("%")
    if at and not user:
        raise UsageError("the name for CHAP is missing before the '@'", file=shown)
    unit = _unit(parts[0], unquote(parts[1]), parts[2], shown)
    return IscsiPlace(driver, unit, user if at else None, password if percent else None, chosen=chosen)


def _unit(portal: str, target: str, lun: str, shown: str | None) -> Unit:
    found = _PORTAL.fullmatch(portal)
    if found is None or not 0 < int(found[2] or _PORT) < 65536:
        raise UsageError(f"'{portal[:80]}' is no host, or host:port, of an iSCSI portal", file=shown)
    if not _TARGET.fullmatch(target):
        raise UsageError(f"'{target[:80]}' is no name of an iSCSI target", file=shown)
    if not (lun.isascii() and lun.isdigit() and len(lun) < 6 and int(lun) < _MOST_LUNS):
        raise UsageError(f"'{lun[:80]}' is no number of a LUN", file=shown)
    return Unit(found[1], int(found[2] or _PORT), target, int(lun))


def _shown(name: str) -> str:
    """*name* without what may be a password."""
    scheme, slashes, rest = name.partition("://")
    first, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{first.rpartition('@')[2]}{slash}{path}"
