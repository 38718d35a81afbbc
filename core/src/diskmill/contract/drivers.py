"""What a driver is: a pluggy plugin that declares its options and capabilities as data.

An entry point of the group ``diskmill.format``, ``diskmill.protocol`` or ``diskmill.crypto`` names an instance of one
of these classes. Its hookimpls are methods, named as in :mod:`diskmill.contract.hookspecs`. The module that the entry
point names stays light: it imports the rest of the driver inside the methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import UsageError
from .marks import hookimpl as hookimpl

if TYPE_CHECKING:
    from .extents import Extent
    from .node import Image
    from .options import Option, Value
    from .place import Place
    from .server import Server

CONTRACT = 1
"""The version of the contract between drivers and the core; it grows with each change that a driver could notice."""

PROBE_BYTES = 4096
"""How much of a file format drivers see when they probe."""

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
    "archive": "files of it hold an image beside others: the drop-in takes them for raw, as qemu-img does",
    "pipe": "images can be read from a pipe, from the first byte to the last",
    "writes-forward": "data is written in the order of the guest disk, whatever the user allows",
    "forward": "new images can be written to a pipe, from the first byte to the last (with some options, perhaps)",
    "list": "the files below a folder can be told",
    "unfinished": "outputs that were left unfinished can be gone on with",
    "stream": "compressed output must be written from the first byte to the last, once",
}
"""Every capability that a driver can declare, with what it means; commands give their refusals from these."""

HOOKS = {
    "create": "create",
    "check": "check",
    "repair": "check",
    "resize": "resize",
    "shrink": "resize",
    "amend": "amend",
    "snapshots": "snapshot",
    "bitmaps": "bitmap",
    "list": "listing",
}
"""Capability → the hook that a driver with it has. Of protocols, only those of :data:`_OF_PROTOCOLS` are."""
_OF_PROTOCOLS = ("create", "list")


class Driver:
    """What all kinds of driver have. What one declares is checked when it is registered."""

    group: ClassVar[str] = ""
    """The entry-point group of its kind."""
    kind: ClassVar[str] = ""
    """The word for its kind, in messages."""
    name: str
    """As a user types it after ``-f`` or ``driver=``."""
    title: str = ""
    """A phrase for tables: what the format is and who uses it."""
    options: tuple[Option, ...] = ()
    capabilities: frozenset[str] = frozenset()
    children: tuple[str, ...] = ()
    """Options whose value is a node below: a name, or ``NAME.*`` for a list of them."""
    contract: int
    """The version of this contract that the driver was written for; see :data:`CONTRACT`."""

    def __repr__(self) -> str:
        return f"<{self.group} driver {self.name}>"

    def faults(self) -> Iterator[str]:
        """What is wrong with what the driver declares, each with how to mend it; nothing where it is sound."""
        version = getattr(self, "contract", None)
        if version is None:
            yield f"it does not say for which contract it was written: add 'contract = {CONTRACT}' to its class"
        elif version != CONTRACT:
            yield f"it was written for version {version} of the contract, and this core has version {CONTRACT}"
        for capability in sorted(self.capabilities):
            if capability not in CAPABILITIES:
                yield f"there is no capability '{capability}': use some of {', '.join(sorted(CAPABILITIES))}"
            hook = HOOKS.get(capability) if isinstance(self, FormatDriver) or capability in _OF_PROTOCOLS else None
            if hook is not None and not hasattr(self, hook):
                yield f"it declares the capability '{capability}' without the hook '{hook}': add a method of that name"


class FormatDriver(Driver):
    """A driver for an image format. Hooks: ``probe``, ``open``, ``create`` and whatever else it can do."""

    group = "diskmill.format"
    kind = "format"
    children = ("file", "backing", "data-file", "header")
    """What a node of any format may be given; a driver adds its own, which are found where it is named. It takes what
    is given with ``OpenRequest.child``; what it does not take is attached to the image."""

    @hookimpl
    def map(self, image: Image, offset: int, length: int) -> Iterator[Extent]:
        """Most formats have nothing to add to what the image answers."""
        return image.extents(offset, length)

    def goes_forward(self, options: Mapping[str, Any], *, foreseen: bool) -> bool:
        """Whether a new image with these ``create`` options is written from its first byte to its last, once, so that
        it can go into a pipe. A driver with the capability ``forward`` says so here where it depends on them.

        :param foreseen: whether what will be written is known beforehand (``CreateRequest.layout``), and is stored as
            it is.
        """
        return "forward" in self.capabilities


class ProtocolDriver(Driver):
    """A driver for a place where bytes are kept. Hooks: ``open``, and ``create`` where that makes sense."""

    group = "diskmill.protocol"
    kind = "protocol"
    prefixes: tuple[str, ...] = ()
    """Prefixes of names that belong to it, without the colon: ``nbd`` for ``nbd:…`` and ``nbd://…``; ``fsspec+*`` for
    whatever begins with ``fsspec+``. Its package gives an entry point of the group ``diskmill.prefix`` for each, so
    that it is found by them without being imported."""
    siblings: bool = False
    """Whether new outputs can be made beside a place of its kind, and existing ones be opened there for writing."""

    def place(self, options: Mapping[str, Any]) -> Place:
        """Where the node with *options* is: flat, as typed; a plain name stands under ``filename``, with its prefix.

        The default only knows a name. Nothing is opened.

        :raises UsageError: they name no possible place.
        """
        from .place import NamedPlace

        return NamedPlace(self, str(options.get("filename", self.name)))

    def serve(self, image: str, **options: Any) -> Server:
        """Export the guest disk of *image* over the protocol, where the package has a server: it says what *options*
        there are.

        :raises UnsupportedError: it has none.
        """
        from ..errors import UnsupportedError

        raise UnsupportedError(f"protocol '{self.name}' has no server")


class FilterDriver(Driver):
    """A driver for a node that passes on what the node below it has, and changes what it is for. Hook: ``open``, which
    gives a ``Storage`` over ``request.file``; those that declare several ``children`` find them in
    ``request.children``, and all that have one name must be given."""

    group = "diskmill.filter"
    kind = "filter"
    children: tuple[str, ...] = ("file",)

    def named(self, name: str) -> Mapping[str, Any]:
        """The options that a *name* which begins with the filter's own, and a colon, stands for.

        The default has no such names.

        :raises UsageError: it is not of the form that the filter's names have.
        """
        raise UsageError(f"a filter '{self.name}' is given by options, and not by a name", file=name)


class CryptoDriver(Driver):
    """A driver for encryption that formats ask for by name, or by its number. Hooks: ``crypto_open``,
    ``crypto_create``, and ``crypto_amend`` where there are key slots."""

    group = "diskmill.crypto"
    kind = "cipher"
    fits: Mapping[str, int] = {}
    """Format → the number by which its images name this encryption, for each format that can keep it (of ``qcow2`` it
    is the header's ``crypt_method``, 32 bits). Whoever makes a cipher up takes four letters for a number, so that no
    two are alike; programs that do not know it refuse the image."""

    def header_size(self, options: Mapping[str, Value]) -> int:
        """Bytes of the header that ``crypto_create`` makes with these options: 0 where the cipher has none."""
        return 0
