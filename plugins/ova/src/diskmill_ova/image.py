"""The disk in an archive, read where it lies."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from diskmill.contract import calls
from diskmill.contract.drivers import PROBE_BYTES, Driver
from diskmill.contract.extents import Extent
from diskmill.contract.node import Image, Node, Storage
from diskmill.contract.options import validate
from diskmill.contract.requests import OpenRequest
from diskmill.errors import ImageError, UnsupportedError
from diskmill.kit.image import FormatImage

from .archive import Entry, Member, entries
from .envelope import MOST, chosen, disks_of

if TYPE_CHECKING:
    from . import OvaDriver

_DISKS = (".vmdk", ".vhd", ".vhdx", ".vdi", ".qcow2", ".qcow", ".qed", ".img", ".raw", ".hdd")
"""Endings of names of disks, for archives without a descriptor."""


class OvaImage(FormatImage):
    """The guest disk of *inner*, a member of the archive in *file*."""

    def __init__(self, driver: Driver, file: Node, inner: Image, *, name: str) -> None:
        super().__init__(driver, file, name=name, size=inner.size, writable=False)
        self.inner = inner
        self.sector_size = inner.sector_size

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield from self.inner.extents(offset, length)

    def details(self) -> dict[str, Any] | None:
        return {"disk": self.inner.name, "format": self.inner.driver.name}

    def allocated(self) -> int | None:
        return self.file.allocated()

    def children(self) -> Iterator[Node]:
        yield self.file
        yield self.inner

    def release(self, *, abandon: bool = False) -> None:
        try:
            self.inner.abandon() if abandon else self.inner.close()
        finally:
            self.file.abandon() if abandon else self.file.close()


def open_ova(driver: OvaDriver, request: OpenRequest) -> OvaImage:
    """The disk of the archive in ``request.file`` that is wanted.

    :raises UnsupportedError: it is to be written, or stands on other files.
    """
    file, name = request.below(), request.name
    if request.writable:
        raise UnsupportedError("a disk in an archive can only be read", file=name)
    if not isinstance(file, Storage):
        raise UnsupportedError("an archive is read from storage, and not from inside of an image", file=name)
    wanted = request.options.get("disk")
    entry = _disk(file, name, None if wanted is None else str(wanted))
    member = Member(file, entry.name, entry.offset, entry.size)
    inner = _opened(member, request)
    if list(inner.references):
        inner.close()
        raise UnsupportedError(f"its disk '{entry.name}' stands on other files, which are not opened", file=name)
    return OvaImage(driver, file, inner, name=name)


def _disk(file: Storage, name: str, wanted: str | None) -> Entry:
    """Where the disk is that is *wanted*."""
    described: list[str] | None = None
    found: list[Entry] = []
    for entry in entries(file, name):
        if entry.name.endswith(".ovf") and described is None:
            if entry.size > MOST:
                raise ImageError(f"its descriptor has {entry.size} bytes", file=name)
            described = disks_of(file.read_some(entry.offset, entry.size), name)
        elif described is not None:
            if entry.name in described:
                found.append(entry)
        elif entry.name.lower().endswith(_DISKS) and not posixpath.basename(entry.name).startswith("."):
            found.append(entry)
        if file.forward and found and (wanted is None or found[-1].name == wanted):
            if wanted is None and described is not None and len(described) > 1:
                chosen(described, None, name)
            return found[-1]  # what comes behind it cannot be looked at before it
    if described is not None:
        found = [entry for one in described for entry in found if entry.name == one]
    return found[chosen([entry.name for entry in found], wanted, name)]


def _opened(member: Member, request: OpenRequest) -> Image:
    """The image in *member*, by the driver that knows it."""
    registry = request.context.registry
    driver = registry.probe(member.read_some(0, min(PROBE_BYTES, member.size)), member.name)
    if driver is None or driver.name == "ova":
        raise UnsupportedError(f"the format of its disk '{member.name}' is not known", file=request.name)
    if member.forward and "pipe" not in driver.capabilities:
        text = f"its disk '{member.name}' is {driver.name}, which cannot be read from {member.one_pass}"
        raise UnsupportedError(text, file=request.name)
    inner = OpenRequest(
        name=member.name,
        context=request.context,
        file=member,
        options=validate(driver.options, {}, when="open", driver=driver.name),
        shallow=request.shallow,
        guessed=True,
    )
    return calls.open_image(registry, driver, inner)
