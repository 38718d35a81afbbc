"""What format drivers derive their images from: guest reads and writes, given what the driver answers.

The driver maps (:meth:`~diskmill.contract.node.Node.extents`) and places
(:meth:`~diskmill.contract.node.Image.reserve`); reading, copy on write and the zeroing of partial units come with
:class:`FormatImage`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..contract.node import Buffer, Image, Node, ReadBuffer
from ..engine import access
from ..engine.access import read_extents
from ..engine.walk import walk

if TYPE_CHECKING:
    from ..contract.drivers import FormatDriver
    from ..engine.lookups import Lookups

__all__ = ["FormatImage", "ReadOnlyImage", "read_extents", "walk"]


class FormatImage(Image):
    """An image whose guest bytes the engine reads and writes as the driver maps them."""

    _lookups: Lookups | None = None

    def read_into(self, offset: int, buffer: Buffer) -> None:
        if type(buffer) is not bytearray:
            buffer = memoryview(buffer).cast("B")  # of what is no array of bytes too, the bytes count
        lookups = self._lookups
        if lookups is None:
            from ..engine.lookups import Lookups

            lookups = self._lookups = Lookups(self)
        stretch = lookups.stretches.get(offset >> access.STRETCH)
        if stretch is not None:
            end, shift, read = stretch[1][bisect_right(stretch[0], offset) - 1]
            if offset + len(buffer) <= end:
                if read is not None:
                    read(offset + shift, buffer)
                else:
                    access.fill_zeros(memoryview(buffer))
                return
            if lookups.read(stretch, offset, buffer):
                return
        else:
            lookups.learn(offset, len(buffer))
        access.read_into(self, offset, buffer)

    def remap(self) -> None:
        self._lookups = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        self.remap()
        try:
            with super().alone():
                yield
        finally:
            self.remap()

    def write(self, offset: int, data: ReadBuffer) -> None:
        access.write(self, offset, data)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        access.zero(self, offset, length, unmap=unmap and self.discards)

    def discard(self, offset: int, length: int) -> None:
        if self.discards:
            access.discard(self, offset, length)


class ReadOnlyImage(FormatImage):
    """An image of a format whose driver only reads: nothing in it tells that a writer did not close it."""

    def __init__(self, driver: FormatDriver, file: Node, *, name: str, size: int) -> None:
        super().__init__(driver, file, name=name, size=size, writable=False)

    @property
    def dirty(self) -> None:
        """Never told."""
