"""VHDX images: headers, a log, a block allocation table, metadata, and blocks that begin at whole MiB.

Tables change through the log, a sector of theirs at a time; guest data never does. For the source see
:mod:`diskmill_vhdx.c_vhdx`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from diskmill.contract.extents import Extent, Kind, Placement
from diskmill.contract.ids import fresh
from diskmill.contract.node import Node
from diskmill.errors import ImageError, UnsupportedError
from diskmill.kit import tables
from diskmill.kit.blocks import BlockImage
from diskmill.sizes import SECTOR, round_up

from .bat import Bat, chunk_ratio
from .c_vhdx import (
    ALIGN,
    FULLY_PRESENT,
    HEADER_SECTION,
    NO_GUID,
    NOT_PRESENT,
    PARTIALLY_PRESENT,
    PLACE,
    STATE,
    UNDEFINED,
    UNMAPPED,
    UNMAPPED_095,
    ZERO,
)
from .parent import parent

if TYPE_CHECKING:
    from diskmill.contract.references import Reference

    from . import VhdxDriver
    from .headers import Headers
    from .log import Log
    from .regions import Metadata, Regions

_EMPTY = {NOT_PRESENT, UNDEFINED, ZERO, UNMAPPED, UNMAPPED_095}
_FURTHEST = 1 << 62
"""No file offset is as large: entries could name places up to 2**64."""
_MAP = 1 << 26
"""MiB of the file that a check looks at in one pass: a byte of memory each."""


class VhdxImage(BlockImage):
    """A VHDX file.

    :param meta: where its metadata is read: *file*, or that with what its log holds laid over.
    """

    table: Bat

    def __init__(
        self,
        driver: VhdxDriver,
        file: Node,
        meta: Node,
        headers: Headers,
        log: Log,
        regions: Regions,
        metadata: Metadata,
        *,
        name: str,
        writable: bool,
    ) -> None:
        self.meta, self.headers, self.log, self.regions, self.metadata = meta, headers, log, regions, metadata
        self.differencing = metadata.differencing
        self.ratio = chunk_ratio(metadata.block_size, metadata.sector)
        self.parent = parent(metadata.locator, name) if self.differencing else None
        super().__init__(
            driver,
            file,
            name=name,
            size=metadata.size,
            writable=writable,
            table=self.new_table(meta, regions.bat.FileOffset, metadata.size),
            block_size=metadata.block_size,
            empty={},
            step=metadata.block_size,
            data_start=HEADER_SECTION,
        )
        self.sector_size = metadata.sector
        self.occupied = regions.ranges
        """(start, end) of what no block may lie over, ascending."""
        self.preallocated = True if metadata.fixed else None
        self.begun = False
        """Whether the headers tell already that the image is being written."""
        self.replayed = False
        """Whether the log held something when the image was opened."""

    def new_table(self, node: Node, offset: int, size: int, *, logged: bool = True) -> Bat:
        """The table for a disk of *size* bytes at *offset* of *node*.

        :param logged: whether it changes through the log; not one that nothing points to yet.
        """
        blocks = -(-size // self.metadata.block_size)
        table: Bat
        make_room = self.flush if logged else lambda: table.write_back()
        table = Bat(node, offset, blocks, self.ratio, make_room, differencing=self.differencing)
        return table

    def details(self) -> dict[str, Any] | None:
        """QAPI has none for the format. Sectors of another size than usual are told: partition tables count them."""
        return None if self.sector_size == SECTOR else {"logical-sector-size": self.sector_size}

    @property
    def dirty(self) -> bool:
        return self.meta is not self.file

    # -- mapping ------------------------------------------------------------------------------------------------

    def attach(self, reference: Reference, node: Node) -> None:
        if self.parent is None:
            raise UnsupportedError("it is not a differencing image: it has no parent", file=self.name)
        if isinstance(node, VhdxImage):
            if node.headers.current.DataWriteGuid not in self.parent.linkage:
                raise ImageError(f"'{node.name}' is not its parent, or was changed since", file=self.name)
            if node.metadata.sector != self.metadata.sector:
                raise ImageError(f"its parent '{node.name}' has sectors of another size", file=self.name)
        super().attach(reference, node)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        extents = super().extents(offset, length)
        return self._by_sectors(extents) if self.differencing else extents

    def _by_sectors(self, extents: Iterator[Extent]) -> Iterator[Extent]:
        """Blocks of a differencing image may hold only the sectors whose bit is set; the others are the parent's."""
        if self.backing is None:
            raise UnsupportedError("its parent is not open, and it holds only what differs from that", file=self.name)
        for extent in extents:
            start = extent.start
            while extent.kind is Kind.DATA and start < extent.end:  # blocks that lie side by side came as one extent
                block = start // self.block_size
                end = min((block + 1) * self.block_size, extent.end)
                part = extent.clip(start, end)
                if self.table.get(block) & STATE == PARTIALLY_PRESENT:
                    yield from self._present(part)
                else:
                    yield part
                start = end
            if extent.kind is not Kind.DATA:
                yield extent

    def _present(self, extent: Extent) -> Iterator[Extent]:
        """A part of a block, as the sector bitmap has it."""
        sector = self.metadata.sector
        first, last = extent.start // sector, -(-extent.end // sector)
        chunk = extent.start // self.block_size // self.ratio
        bitmap = self.bitmap_place(chunk)
        low = first - chunk * self.ratio * (self.block_size // sector)
        data = self.meta.read(bitmap + low // 8, -(-(low + last - first) // 8) - low // 8)
        for at, count, present in tables.bit_runs(data, low % 8, last - first, "little"):
            start, end = (first + at) * sector, (first + at + count) * sector
            part = extent.clip(start, end)
            yield part if present else Extent(part.start, part.length, Kind.HOLE)

    def bitmap_place(self, chunk: int) -> int:
        """The file offset of the sector bitmap block of *chunk*.

        :raises ImageError: there is none, or it lies nowhere where it can be.
        """
        entry = self.table.bitmap(chunk)
        place = entry & PLACE
        where = f"sector bitmap {chunk}"
        if entry & STATE != FULLY_PRESENT:
            raise ImageError("it is missing, but blocks need it", file=self.name, place=where)
        if place < HEADER_SECTION or place + ALIGN > self.meta.size:
            raise ImageError("it does not lie inside the file", file=self.name, place=where)
        return place

    def position(self, entry: int) -> int:
        return entry & PLACE

    def entry_at(self, end: int, count: int) -> int:
        place = round_up(end, ALIGN)
        if place + count * self.block_size > _FURTHEST:
            raise ImageError("there is no room behind its last block", file=self.name)
        return place | FULLY_PRESENT

    def _told_apart(self, first: int, end: int) -> Iterator[tuple[int, int, int, int, Kind]]:
        absent = Kind.HOLE if self.differencing else Kind.ZERO
        for at, length, value, step in self.table.runs(first, end, self.step):
            state = value & STATE  # the same for the whole run: a step is whole MiB
            if state == FULLY_PRESENT or state == PARTIALLY_PRESENT and self.differencing:
                yield at, length, value, step if length > 1 else 0, Kind.DATA
            elif state in _EMPTY:
                yield at, length, value, 0, absent if state == NOT_PRESENT else Kind.ZERO
            else:
                raise ImageError(f"it cannot be in state {state}", file=self.name, place=f"block {at}")

    def check_place(self, block: int, count: int, entry: int, step: int) -> None:
        super().check_place(block, count, entry, step)
        if self.meets_metadata(count, entry, step):
            raise ImageError("its place in the file belongs to the metadata", file=self.name, place=f"block {block}")

    def meets_metadata(self, count: int, entry: int, step: int) -> bool:
        """Whether one of *count* blocks, which lie side by side (all in one place where *step* is 0), is over it."""
        low = self.position(entry)
        high = low + (count if step else 1) * self.block_size
        index = bisect_right(self.occupied, low, key=lambda one: one[1])
        return index < len(self.occupied) and self.occupied[index][0] < high

    def _twins(self, end: int) -> Iterator[tuple[int, int, bool]]:
        # Blocks begin at any whole MiB, so they may overlap in part; nothing but guest bytes lies there, so that a copy
        # of its own mends each.
        length = self.block_size // ALIGN
        for low in range(0, -(-end // ALIGN), _MAP):
            seen = bytearray(min(_MAP, -(-end // ALIGN) - low))
            for block, count, entry, step, kind in self._told_apart(0, len(self.table)):
                if kind is not Kind.DATA:
                    continue
                first, upto = self._fitting(count, entry, step)
                at = self.position(entry) // ALIGN - low
                if step and _claimed(seen, at + first * length, (upto - first) * length):
                    continue
                for index in range(first, upto):
                    if not _claimed(seen, at + (index * length if step else 0), length):
                        yield block + index, 1, True

    # -- writing ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Tell, before the first change, that the image is another one from now on."""
        if self.differencing:
            raise UnsupportedError("a differencing image can only be read", file=self.name)
        if not self.begun:
            self.log.require()
            self.headers.update_both(DataWriteGuid=fresh(16), LogGuid=NO_GUID)
            self.begun = True

    def reserve(self, offset: int, length: int) -> list[Placement]:
        if not self.begun:
            self.begin()
        return super().reserve(offset, length)

    def discard_units(self, offset: int, length: int) -> None:
        self.begin()
        super().discard_units(offset, length)

    def used_end(self) -> int:
        end = max(high for _, high in self.regions.ranges)
        # Places are kept, too, of blocks that were unmapped: no two entries may name one place.
        for run in self.table.runs(0, len(self.table), self.step):
            last = self.position(run.value + (run.length - 1) * run.step)
            if last < self.file.size and run.value & STATE in _EMPTY:
                end = max(end, last + self.block_size if last else 0)
        return end

    def write_tables(self) -> None:
        self.log.settle()
        if self.table.dirty:
            self.begin()
            self.lengthen()
            changes = self.table.changes()
            while batch := list(islice(changes, self.log.capacity)):
                self.log.commit(batch, self.end or self.file.size)
            self.table.written()


def _claimed(seen: bytearray, at: int, length: int) -> bool:
    """Mark *length* bytes from *at* on; False, and none is marked, where one of them is already."""
    low, high = max(at, 0), min(at + length, len(seen))
    if low < high:
        if seen.find(1, low, high) >= 0:
            return False
        seen[low:high] = b"\1" * (high - low)
    return True
