"""An opened DMG: guest ranges are looked up among its chunks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING

from diskmill.contract.extents import Extent, Kind, joined
from diskmill.contract.node import Node
from diskmill.errors import DiskmillError, ImageError, UnsupportedError
from diskmill.kit.chunks import Chunk, Chunks, unreadable
from diskmill.kit.image import ReadOnlyImage
from diskmill.sizes import SECTOR, MiB

from .c_udif import IGNORE, RAW, ZERO
from .methods import METHODS

if TYPE_CHECKING:
    from . import DmgDriver
    from .c_udif import BlockTable, Trailer
    from .tables import ChunkTable

MAX_CHUNK = 64 * MiB
"""Bytes that a compressed chunk holds, or takes in the file: as many as QEMU reads."""


class DmgImage(ReadOnlyImage):
    """A DMG file.

    :param trailer: the ``UDIFResourceFile``.
    :param partitions: the headers of its block tables, in their order.
    :param table: the chunks of all; they do not overlap.
    """

    def __init__(
        self,
        driver: DmgDriver,
        file: Node,
        trailer: Trailer,
        partitions: list[BlockTable],
        table: ChunkTable,
        *,
        name: str,
    ) -> None:
        super().__init__(driver, file, name=name, size=trailer.SectorCount * SECTOR)
        self.trailer = trailer
        self.partitions = partitions
        self.table = table
        self.chunks = Chunks(file, name)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        return joined(self._extents(offset, offset + length))

    def _extents(self, offset: int, end: int) -> Iterator[Extent]:
        at = offset
        sectors, counts = self.table.sectors, self.table.counts
        index = max(bisect_right(sectors, offset // SECTOR) - 1, 0)
        while at < end and index < len(sectors):
            start = sectors[index] * SECTOR
            upto = start + counts[index] * SECTOR
            if start > at:
                yield self._gap(at, min(start, end))
            if upto > at and start < end:
                yield from self._chunk(index, max(at, start), min(upto, end))
            at = max(at, upto)
            index += 1
        if at < end:
            yield self._gap(at, end)

    def _gap(self, start: int, end: int) -> Extent:
        error = ImageError(f"no chunk has guest bytes {start} to {end}", file=self.name, place="block tables")
        return unreadable(self.file, start, end - start, error)

    def _chunk(self, index: int, low: int, high: int) -> Iterator[Extent]:
        """The part of a chunk in guest bytes *low* to *high*."""
        types, sectors, counts, offsets, lengths = self.table
        type, start, length = types[index], sectors[index] * SECTOR, counts[index] * SECTOR
        if type in (ZERO, IGNORE):
            yield Extent(low, high - low, Kind.ZERO)
            return
        offset, stored = offsets[index], lengths[index]
        error = self._fault(type, length, offset, stored)
        if error is not None:
            yield unreadable(self.file, low, high - low, error)
        elif type == RAW:
            yield Extent(start, length, Kind.DATA, self.file, offset).clip(low, high)
        else:
            yield from self.chunks.extents(Chunk(start, length, offset, stored, METHODS[type]), low, high)

    def _fault(self, type: int, length: int, offset: int, stored: int) -> DiskmillError | None:
        """Why a chunk cannot be read, as far as the tables tell."""
        place = f"chunk at offset {offset}"
        if type != RAW and type not in METHODS:
            return UnsupportedError(f"chunks of type {type:#010x} are not supported", file=self.name, place=place)
        if offset + stored > self.file.size:
            return ImageError(f"its {stored} bytes are not inside the file", file=self.name, place=place)
        if type == RAW and stored < length:
            return ImageError(f"it has {stored} bytes for {length} of the disk", file=self.name, place=place)
        if type != RAW and max(length, stored) > MAX_CHUNK:
            return UnsupportedError(f"it is larger than {MAX_CHUNK} bytes", file=self.name, place=place)
        return None
