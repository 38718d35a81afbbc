"""Exports as places: what lies beside one, and what a policy that trusts a server lets an image name."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from diskmill.contract.drivers import ProtocolDriver
from diskmill.contract.place import Place
from diskmill.errors import UsageError
from diskmill.records import replace

from .location import Location, from_options, parse_location

_SERVER = ("server.type", "server.host", "server.port", "server.path", "server.abstract", "server.cid")
_OPTIONS = (*_SERVER, "host", "port", "path", "export")
_OF_THE_USER = ("tls-creds", "tls-hostname", "timeout", "open-timeout", "reconnect-delay", "retries", "connections")
"""Options that say whom to believe, what to show him, and how long to wait: not for an image to choose."""


class NbdPlace(Place):
    """The export at *location*. A server's exports are taken for files in folders, by the slashes in their names."""

    def __init__(self, driver: ProtocolDriver, location: Location, chosen: str = "") -> None:
        self.driver = driver
        self.location = location
        self._chosen = chosen
        """An option that was given with it and is the user's to give."""

    def _sibling(self, export: str) -> NbdPlace:
        return NbdPlace(self.driver, replace(self.location, export=export), self._chosen)

    def display(self) -> str:
        return self.location.uri

    def beside(self, reference: str) -> NbdPlace:
        return self._sibling(posixpath.join(posixpath.dirname(self.location.export), reference))

    def inside(self, name: str) -> NbdPlace:
        return self._sibling(posixpath.join(self.location.export, name))

    def resolved(self) -> NbdPlace:
        export = self.location.export
        return self._sibling(posixpath.normpath(export)) if export and not export.startswith("/") else self

    def folder(self) -> NbdPlace | None:
        export = self.location.export
        return self._sibling(posixpath.dirname(export)) if export else None

    def within(self, folder: Place) -> bool:
        if not isinstance(folder, NbdPlace) or self._sibling("").identity() != folder._sibling("").identity():
            return False
        if folder.location.tls and not self.location.tls:  # trusted only behind TLS
            return False
        above, own = folder.location.export.rstrip("/"), self.location.export
        return not own.startswith("../") and own != ".." and (not above or own == above or own.startswith(f"{above}/"))

    def objection(self) -> str | None:
        """Key files are this machine's: an image must not choose which are shown to a server."""
        if self.location.certificates or self.location.psk_file:
            return "it names files with keys"
        if self.location.hostname:
            return "it names whom a certificate is for"
        return f"it sets '{self._chosen}'" if self._chosen else None

    def identity(self) -> object:
        return replace(self.location, user="", certificates="", psk_file="", hostname="", tls=False)


def place_of(driver: ProtocolDriver, options: Mapping[str, Any]) -> NbdPlace:
    """The export that the name under ``filename``, or the options of its server, tell.

    :raises UsageError: they contradict each other, or lack something.
    """
    placed = {key: options[key] for key in _OPTIONS if key in options}
    chosen = next((key for key in _OF_THE_USER if key in options), "")
    name = options.get("filename")
    if name is None:
        return NbdPlace(driver, from_options(placed), chosen)
    if set(placed) - {"export"}:
        raise UsageError("the server is given by its name, or by options, not both", file=str(name))
    location = parse_location(str(name))
    if "export" in placed:
        location = replace(location, export=str(placed["export"]))
    return NbdPlace(driver, location, chosen)
