"""What a driver is: a pluggy plugin that declares its options and capabilities as data.

An entry point of the group ``diskmill.format``, ``diskmill.protocol`` or ``diskmill.crypto`` names an instance of one
of these classes. Its hookimpls are methods, named as in :mod:`diskmill.contract.hookspecs`. The module that the entry
point names stays light: it imports the rest of the driver inside the methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import pluggy

if TYPE_CHECKING:
    from .extents import Extent
    from .node import Image
    from .options import Option

hookimpl = pluggy.HookimplMarker("diskmill")
"""Marks a method or function as the implementation of the hook of its name."""

CAPABILITIES = {
    "create": "new images can be made",
    "write": "existing images can be written",
    "backing": "images can stand on a backing image",
    "compression": "clusters can be stored compressed",
    "zero": "units can be marked as zeros without storing them",
    "check": "consistency can be checked",
    "repair": "what a check finds can be repaired",
    "resize": "the guest disk can be made larger",
    "shrink": "the guest disk can be made smaller",
    "amend": "options of an image can be changed",
    "snapshots": "internal snapshots",
    "bitmaps": "persistent dirty bitmaps",
    "encryption": "guest data can be encrypted",
    "preallocation": "space can be claimed at creation",
    "pipe": "images can be read from a pipe, from the first byte to the last",
    "stream": "compressed output must be written from the first byte to the last, once",
}
"""Every capability that a driver can declare, with what it means; commands give their refusals from these."""


class Driver:
    """What all kinds of driver have."""

    group: ClassVar[str] = ""
    name: str
    """As a user types it after ``-f`` or ``driver=``."""
    title: str = ""
    """A phrase for tables: what the format is and who uses it."""
    options: tuple[Option, ...] = ()
    capabilities: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"<{self.group} driver {self.name}>"


class FormatDriver(Driver):
    """A driver for an image format. Hooks: ``probe``, ``open``, ``create`` and whatever else it can do."""

    group = "diskmill.format"

    @hookimpl
    def map(self, image: Image, offset: int, length: int) -> Iterator[Extent]:
        """Most formats have nothing to add to what the image answers."""
        return image.extents(offset, length)


class ProtocolDriver(Driver):
    """A driver for a place where bytes are kept. Hooks: ``open``, and ``create`` where that makes sense."""

    group = "diskmill.protocol"
    prefixes: tuple[str, ...] = ()
    """Name prefixes that belong to it, without the colon: ``nbd`` for ``nbd:…`` and ``nbd://…``."""


class CryptoDriver(Driver):
    """A driver for encryption that formats ask for by name."""

    group = "diskmill.crypto"
