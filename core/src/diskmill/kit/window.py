"""A plain window: an image whose guest bytes stand in its file as they are, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..contract.drivers import Driver
from ..contract.extents import Extent, Kind, Placement
from ..contract.node import Node, Storage
from .image import FormatImage


class WindowImage(FormatImage):
    """An image that is *size* bytes of *file* from byte *offset* on. Nothing points to them, so nothing is published.

    As long as ``window`` says where that is, the engine looks through it, and asks nothing here for guest data.
    """

    def __init__(self, driver: Driver, file: Node, *, name: str, size: int, writable: bool, offset: int = 0) -> None:
        super().__init__(driver, file, name=name, size=size, writable=writable)
        self.window = self.origin = offset
        self.blank = file.blank

    @property
    def ended(self) -> int | None:  # type: ignore[override]
        """In bytes, where the file has ended."""
        return None if self.file.ended is None else max(self.file.ended - self.origin, 0)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        if not isinstance(self.file, Storage):
            yield Extent(offset, length, Kind.DATA, self.file, offset + self.origin)
            return
        for extent in self.file.extents(offset + self.origin, length):
            yield extent.moved(-self.origin)

    def reserve(self, offset: int, length: int) -> list[Placement]:
        return [Placement(offset, length, self.file, offset + self.origin)]

    def publish(self, placements: Sequence[Placement]) -> None:
        """Where the data is, is what it is."""

    def zero_units(self, offset: int, length: int, *, unmap: bool) -> None:
        self.file.zero(offset + self.origin, length, unmap=unmap)

    def discard_units(self, offset: int, length: int) -> None:
        self.file.discard(offset + self.origin, length)
