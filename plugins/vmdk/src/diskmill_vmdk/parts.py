"""The parts of a VMDK disk: one for each extent of its descriptor, one after the other on the guest disk.

VMware calls them extents; here that word is the framework's. A part answers for its own range of the guest disk, in
guest offsets, what an image answers for all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from diskmill.contract.extents import Extent, Kind, Placement
from diskmill.errors import ImageError, UnsupportedError

if TYPE_CHECKING:
    from diskmill.contract.node import Node


class Part:
    """Guest bytes ``start`` to ``end``.

    :param node: where its bytes are; None where it has none.
    :param name: how errors call it.
    """

    unit = 1
    """Bytes that are allocated together."""
    writable = True
    compressed = False
    blind = False
    """Whether it takes grains of zeros that only its tables tell of for grains that it does not hold."""

    def __init__(self, node: Node | None, start: int, length: int, *, name: str) -> None:
        self.node = node
        self.start = start
        self.end = start + length
        self.name = name

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """As of an image. Neighbours that belong together may come apart: the image joins them."""
        raise NotImplementedError

    def reserve(self, offset: int, length: int) -> list[Placement]:
        """As of an image."""
        raise UnsupportedError("this extent cannot be written", file=self.name)

    def publish(self, placement: Placement) -> None:
        """As of an image."""

    def zero_units(self, offset: int, length: int, *, unmap: bool, backing: bool) -> None:
        """As of an image; *backing*: what is not allocated reads as something else than zeros."""
        raise UnsupportedError("this extent cannot be written", file=self.name)

    def flush(self) -> None:
        """Tables that changed reach the file, after the data that they point to."""

    def finish(self) -> None:
        """The disk is whole: nothing more will be written."""

    def details(self) -> dict[str, Any]:
        """What QAPI's ``VmdkExtentInfo`` tells beside name and size."""
        return {}


class FlatPart(Part):
    """Bytes as they are, in a file or on a device.

    :param offset: where they begin there, in bytes.
    """

    node: Node

    def __init__(self, node: Node, start: int, length: int, *, name: str, offset: int, writable: bool = True) -> None:
        super().__init__(node, start, length, name=name)
        self.offset = offset
        self.writable = writable
        if offset + length > node.size:
            raise ImageError(
                f"it has {node.size} bytes, but the descriptor puts {length} from byte {offset} on into it", file=name
            )

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, Kind.DATA, self.node, self.offset + offset - self.start)

    def reserve(self, offset: int, length: int) -> list[Placement]:
        return [Placement(offset, length, self.node, self.offset + offset - self.start)]

    def zero_units(self, offset: int, length: int, *, unmap: bool, backing: bool) -> None:
        self.node.zero(self.offset + offset - self.start, length, unmap=unmap)


class ZeroPart(Part):
    """Zeros that no file holds."""

    writable = False

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, Kind.ZERO)

    def reserve(self, offset: int, length: int) -> list[Placement]:
        raise UnsupportedError(f"guest bytes {self.start} to {self.end} are an extent of zeros", file=self.name)

    def zero_units(self, offset: int, length: int, *, unmap: bool, backing: bool) -> None:
        """They are."""


class MissingPart(Part):
    """What cannot be read: an extent that the descriptor bars, or that was not opened."""

    writable = False

    def __init__(self, start: int, length: int, *, name: str, why: str) -> None:
        super().__init__(None, start, length, name=name)
        self.why = why

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        raise ImageError(self.why, file=self.name, place=f"guest bytes {self.start} to {self.end}")
