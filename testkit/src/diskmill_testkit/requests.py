"""Drivers asked for storage, as the core asks them."""

from __future__ import annotations

from diskmill.contract import calls
from diskmill.contract.drivers import FilterDriver, ProtocolDriver
from diskmill.contract.node import Storage
from diskmill.contract.options import validate
from diskmill.contract.place import Place
from diskmill.contract.requests import CreateRequest, OpenRequest
from diskmill.opening.context import Context
from diskmill.opening.names import parse_name
from diskmill.opening.places import protocol_of
from diskmill.opening.registry import Registry


class PassDriver(FilterDriver):
    """A filter that changes nothing."""

    contract = 1
    name = "pass"


def created(registry: Registry, name: str, like: Storage | None = None) -> Storage:
    """New storage of the protocol that *name* is of.

    :param like: storage beside which it is made, and whose file alone it may replace.
    """
    driver, place = _located(registry, name)
    options = validate(driver.options, {}, when="create", driver=driver.name)
    asked = CreateRequest(place.display(), Context(registry=registry), 0, options=options, like=like, place=place)
    return calls.create_storage(registry, driver, asked)


def opened_by(registry: Registry, name: str, *, writable: bool = False) -> Storage:
    """The storage *name*, opened by its protocol's driver."""
    driver, place = _located(registry, name)
    options = validate(driver.options, {}, when="open", driver=driver.name)
    asked = OpenRequest(place.display(), Context(registry=registry), options=options, writable=writable, place=place)
    return calls.open_storage(registry, driver, asked)


def _located(registry: Registry, name: str) -> tuple[ProtocolDriver, Place]:
    spec = dict(parse_name(name)["file"])
    driver = protocol_of(spec.pop("driver"), registry)
    return driver, driver.place(spec)
