"""The disk beside a descriptor, opened through the gate like whatever a file names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from diskmill.contract.extents import Extent, Kind
from diskmill.contract.node import Image, Node
from diskmill.contract.references import Reference
from diskmill.errors import ImageError, UnsupportedError
from diskmill.kit.image import FormatImage

from .envelope import MOST, chosen, disks_of

if TYPE_CHECKING:
    from diskmill.contract.requests import OpenRequest

    from . import OvaDriver


class OvfImage(FormatImage):
    """The disk in the file called *disk*."""

    def __init__(self, driver: OvaDriver, file: Node, disk: str, *, name: str) -> None:
        super().__init__(driver, file, name=name, size=0, writable=False)
        self.references = [Reference("extent", disk if disk.startswith("/") else f"./{disk}")]
        self.inner: Image | None = None

    def attach(self, reference: Reference, node: Node) -> None:
        assert isinstance(node, Image)
        self.inner = node
        self.size = node.size
        self.sector_size = node.sector_size

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        if self.inner is None:
            raise ImageError("its disk is not open", file=self.name)
        if length:
            yield Extent(offset, length, Kind.DATA, self.inner, offset)

    def children(self) -> Iterator[Node]:
        yield self.file
        if self.inner is not None:
            yield self.inner


def open_ovf(driver: OvaDriver, request: OpenRequest) -> OvfImage:
    """The disk of the descriptor in ``request.file`` that is wanted."""
    file, name = request.below(), request.name
    if request.writable:
        raise UnsupportedError("a descriptor can only be read; its disks can be written one by one", file=name)
    if file.forward:
        raise UnsupportedError("a descriptor that comes through a pipe has no disks beside it", file=name)
    if file.size > MOST:
        raise ImageError(f"a descriptor of {file.size} bytes", file=name)
    disks = disks_of(file.read(0, file.size), name)
    wanted = request.options.get("disk")
    return OvfImage(driver, file, disks[chosen(disks, None if wanted is None else str(wanted), name)], name=name)
