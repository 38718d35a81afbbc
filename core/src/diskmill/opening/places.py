"""From names and options to places: which protocol driver has them, and where it says that they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..contract.drivers import FilterDriver, ProtocolDriver
from ..contract.node import Image, Node, Storage
from ..contract.place import Place
from ..errors import DriverError, UnsupportedError, UsageError, shown
from .known_drivers import PACKAGES
from .names import DEVICES, flatten, new_file, parse_name, relative_to
from .registry import Registry

if TYPE_CHECKING:
    from .context import Context


def protocol_of(name: str, registry: Registry, *, shown: str = "") -> ProtocolDriver:
    """The protocol driver called *name*, or that names with the prefix *name* belong to.

    :param shown: the name of the node, for the message.
    :raises DriverError: there is none, or it is broken.
    """
    found = registry.prefixed(name)
    if found is not None:
        return found
    try:
        return registry.protocol(name)
    except DriverError:
        if registry.has(FilterDriver.group, name):
            raise UnsupportedError(f"filter '{name}' stands on what is there, and makes no new file") from None
        if name in PACKAGES or name in registry.failures:
            raise
        raise DriverError(f"unknown protocol '{name}'", file=shown or None) from None


def place_of(leaf: Mapping[str, Any], registry: Registry) -> Place:
    """Where the protocol node with the options *leaf* is.

    :raises DriverError: nobody knows its protocol. UsageError: it is no possible place.
    """
    given = leaf.get("place")
    if isinstance(given, Place):
        return given
    driver = protocol_of(str(leaf.get("driver", "file")), registry, shown=str(leaf.get("filename", "")))
    return driver.place(flatten({key: value for key, value in leaf.items() if key != "driver"}))


def place_named(name: str, beside: Place | None, registry: Registry) -> Place:
    """Where the file called *name* is, for an image at *beside*; None: from here.

    :raises DriverError: nobody knows its protocol. UnsupportedError: nothing lies beside.
    """
    return place_of(relative_to(parse_name(name), beside).get("file", {}), registry)


def written_name(name: str, beside: Place | None, registry: Registry) -> str:
    """*name*, as typed, as a reference that is written into an image at *beside*: without credentials.

    :raises UsageError: it would lead elsewhere without them.
    """
    typed = parse_name(name).get("file", {})
    if name.startswith("json:") or typed.get("driver", "file") == "file":
        return _without_credentials(name)
    try:
        place = place_of(relative_to(typed, beside), registry)
    except DriverError:  # nobody knows the protocol: it is written to the letter
        return _without_credentials(name)
    display = place.display()
    if place.identity() is None or display == name:
        return _without_credentials(name)
    if place_named(display, beside, registry).identity() != place.identity():
        raise UsageError("what is not shown of this name (a query, say) would be written into the image", file=display)
    return display


def _without_credentials(name: str) -> str:
    """*name*, which has none.

    :raises UsageError: it seems to have some, and nobody knows what it means without them.
    """
    if shown(name) != name:
        raise UsageError("what is not shown of this name would be written into the image", file=shown(name))
    return name


def new_place(name: str, registry: Registry) -> Place:
    """Where an output called *name* is to be: a path, or ``protocol:…``."""
    return place_of(new_file(name), registry)


def expect_device(name: str | None, node: Node, context: Context) -> None:
    """Refuse what is no device where *name* is QEMU's driver for devices, and callers expect what QEMU does.

    :raises UsageError: *node* is storage, and no block device.
    """
    if name in DEVICES and context.habits.devices_are_there and isinstance(node, Storage) and not node.is_device:
        raise UsageError(
            f"'{name}' driver requires '{node.name}' to be either a character or block device", file=node.name
        )


def storage_of(node: Node) -> Storage:
    """The storage at the bottom of *node*, following ``file``."""
    while not isinstance(node, Storage):
        assert isinstance(node, Image)
        node = node.file
    return node


def place_under(node: Node) -> Place | None:
    """Where the storage at the bottom of *node* is; None where that has no place."""
    return storage_of(node).place
