"""Parts with grain tables: where the grains of a sparse extent are.

A grain directory points to grain tables, whose entries are the sectors of grains: 0 is a grain that the extent does
not hold, 1 a grain of zeros where the header allows it. Tables are read many at a time and looked at in runs.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from diskmill.contract.extents import Codec, Extent, Kind
from diskmill.contract.limits import READ_PER_WORK, Meter
from diskmill.errors import ImageError
from diskmill.kit import tables
from diskmill.sizes import SECTOR, MiB

from .parts import Part

if TYPE_CHECKING:
    from diskmill.contract.node import Node

MAX_DIRECTORY = 1 << 22
"""The most entries of a grain directory: what the largest seSparse disk, 64 TiB, needs."""
MAX_GRAIN = 1 << 30
"""The largest grain, in bytes."""
MAX_HELD_GRAIN = 2 * MiB
"""The largest grain that may be compressed, or written: it is held in memory whole."""
TABLE_WORK = 16
"""Reading a table that lies alone costs as much as looking at so many extents."""
_AT_ONCE = 1 << 15
"""Entries that are looked at together."""


class GrainPart(Part):
    """A part with grain tables, to read.

    :param grain: bytes in a grain.
    :param per_table: entries in a grain table.
    :param width: bytes in an entry.
    :param directory: the grain directory's offset in bytes.
    :param zeroed: whether the entry 1 means zeros.
    """

    node: Node
    writable = False

    def __init__(
        self,
        node: Node,
        start: int,
        length: int,
        *,
        name: str,
        grain: int,
        per_table: int,
        width: int,
        directory: int,
        zeroed: bool = False,
    ) -> None:
        super().__init__(node, start, length, name=name)
        if not 0 < grain <= MAX_GRAIN or grain % SECTOR:
            raise ImageError(f"a grain of {grain} bytes", file=name, place="header")
        self.unit = grain
        self.per_table = per_table
        self.width = width
        self.zeroed = zeroed
        self.cover = grain * per_table
        self.table_bytes = per_table * width
        self.table_sectors = -(-self.table_bytes // SECTOR)
        self.directory_offset = directory
        self.count = -(-length // self.cover)
        if self.count > MAX_DIRECTORY:
            raise ImageError(f"a grain directory of {self.count} entries", file=name, place="header")
        if directory + self.count * width > node.size:
            raise ImageError("the grain directory lies beyond the end of the file", file=name, place="header")
        self._directory: array[int] | None = None
        self._recent: tuple[int, array[int]] = (0, array("I"))
        self.work = 0
        """What reading tables has cost so far: see :mod:`diskmill.contract.limits`."""
        self.twin: GrainPart | None = None
        """Another part of the disk that is the same extent, whose directory serves for both."""
        self.changed: dict[int, array[int]] = {}
        """Grain tables in memory, by their place in the directory: these hold, not those in the file."""

    # -- directory and tables -----------------------------------------------------------------------------------

    @property
    def directory(self) -> array[int]:
        """The sectors of the grain tables; 0: there is none, 1: all its grains are zeros (where ``zeroed``)."""
        if self.twin is not None:
            return self.twin.directory
        if self._directory is None:
            self.node.account.charge(self.count * self.width, "a grain directory", self.name)
            directory = self.read_directory(self.directory_offset)
            refuse_duplicates(directory, self.name)
            self._directory = directory
        return self._directory

    def read_directory(self, offset: int) -> array[int]:
        """The grain directory at *offset*."""
        return tables.read(self.node, offset, self.count, self.width, "little")

    def decode_table(self, table: array[int]) -> array[int]:
        """*table*, as the disk has it, with sectors as entries."""
        return table

    def check_tables(self, first: int, sector: int, count: int) -> None:
        """Refuse *count* grain tables, the first of which is at *sector*, that are not inside the file."""
        if (sector + count * self.table_sectors) * SECTOR > self.node.size:
            raise ImageError("it lies beyond the end of the file", file=self.name, place=f"grain table {first}")

    def read_tables(self, first: int, sector: int, count: int) -> array[int]:
        """The entries of *count* grain tables that lie one after the other from *sector* on."""
        self.check_tables(first, sector, count)
        offset = sector * SECTOR
        if self.table_bytes == self.table_sectors * SECTOR:
            return self.decode_table(tables.read(self.node, offset, count * self.per_table, self.width, "little"))
        result = tables.filled(0, self.width)
        for index in range(count):
            at = offset + index * self.table_sectors * SECTOR
            result.extend(self.decode_table(tables.read(self.node, at, self.per_table, self.width, "little")))
        return result

    def entries(self, first: int, sector: int, count: int) -> array[int]:
        """As :meth:`read_tables`, with the tables in memory before those in the file."""
        if self.changed:
            if count == 1 and first in self.changed:
                return self.changed[first][:]  # it may change while it is looked at
            result = self.read_tables(first, sector, count)
            for index in range(first, first + count):
                table = self.changed.get(index)
                if table is not None:
                    result[(index - first) * self.per_table : (index - first + 1) * self.per_table] = table
            return result
        at, recent = self._recent
        upto = at + len(recent) // self.per_table
        if at <= first and first + count <= upto:
            return recent[(first - at) * self.per_table : (first - at + count) * self.per_table]
        result = self.read_tables(first, sector, count)
        self._recent = (first, result)
        self.node.account.hold(self, len(result) * self.width)
        return result

    def shrink(self) -> None:
        """See :class:`diskmill.contract.limits.Cache`."""
        self._recent = (0, array("I"))
        self.node.account.hold(self, 0)

    def same_as(self, other: GrainPart) -> bool:
        """Whether *other*, whose file is the same, has the same tables."""
        mine = (type(self), self.directory_offset, self.count, self.width, self.unit, self.per_table, self.zeroed)
        return mine == (
            type(other),
            other.directory_offset,
            other.count,
            other.width,
            other.unit,
            other.per_table,
            other.zeroed,
        )

    # -- the map ------------------------------------------------------------------------------------------------

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        relative, stop = offset - self.start, offset - self.start + length
        first, last = relative // self.cover, (stop - 1) // self.cover
        block = max(_AT_ONCE // self.per_table, 1)
        meter = Meter(self.node)
        for run in tables.runs(self.directory[first : last + 1], self.table_sectors):
            value, at = run.value, first + run.at
            index, end = at, at + run.length
            while index < end:
                sector = value + (index - at) * run.step
                kind = self.special(sector)
                if kind is not None:
                    upto = end if not run.step else index + 1
                    low, high = max(index * self.cover, relative), min(upto * self.cover, stop)
                    yield Extent(self.start + low, high - low, kind)
                    index = upto
                    continue
                # Tables that follow one another are read together; a run of equal entries is refused before.
                upto = min(end, index + block) if run.step else index + 1
                low, high = max(index * self.cover, relative), min(upto * self.cover, stop)
                work = TABLE_WORK + ((upto - index) * self.table_bytes >> READ_PER_WORK)
                meter.add(work)
                self.work += work
                yield from self._in_tables(index, sector, upto - index, low, high)
                index = upto

    def used(self, grain: int) -> int:
        """Bytes of *grain* that are the guest's: the last one of a disk may go on beyond its end, and in the file be
        no longer than needed."""
        return min(self.unit, self.end - self.start - grain * self.unit)

    def special(self, sector: int) -> Kind | None:
        """What the entry *sector* means where it is no place."""
        if sector == 0:
            return Kind.HOLE
        if sector == 1 and self.zeroed:
            return Kind.ZERO
        return None

    def _in_tables(self, first: int, sector: int, count: int, low: int, high: int) -> Iterator[Extent]:
        """What bytes *low* to *high* of the part are, all in *count* tables from table *first* on."""
        entries = self.entries(first, sector, count)
        base = first * self.cover
        begin, end = (low - base) // self.unit, -(-(high - base) // self.unit)
        if begin or end < len(entries):
            entries = entries[begin:end]
        for extent in self.grains(entries, base + begin * self.unit):
            if extent.start - self.start < low or extent.end - self.start > high:
                extent = extent.clip(self.start + low, self.start + high)
            yield extent

    def grains(self, entries: array[int], base: int) -> Iterator[Extent]:
        """What the grains of *entries* are, the first of which begins at byte *base* of the part."""
        unit, size = self.unit, self.node.size
        step = unit // SECTOR
        for at, length, value, stride in tables.runs(entries, step):
            # A run that counts upwards may begin with an entry that means something else.
            while length and (kind := self.special(value)) is not None:
                count = length if not stride else 1
                yield Extent(self.start + base + at * unit, count * unit, kind)
                at, length, value = at + count, length - count, value + stride
            if not length:
                continue
            last = base // unit + at + (length - 1 if stride else 0)
            if (value + (length - 1) * stride) * SECTOR + self.used(last) > size:
                raise ImageError("it is not all inside the file", file=self.name, place=f"grain {last}")
            if stride or length == 1:
                yield Extent(self.start + base + at * unit, length * unit, Kind.DATA, self.node, value * SECTOR)
                continue
            for index in range(at, at + length):  # damaged, but readable: the same grain several times
                yield Extent(self.start + base + index * unit, unit, Kind.DATA, self.node, value * SECTOR)

    def details(self) -> dict[str, Any]:
        return {"cluster-size": self.unit}


class CompressedPart(GrainPart):
    """A part whose grains are compressed.

    :param codec: what decodes them.
    :param markers: whether a marker stands before each of them.
    """

    compressed = True

    def __init__(self, *args: Any, codec: Codec, markers: bool = True, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.codec = codec
        self.markers = markers
        if self.unit > MAX_HELD_GRAIN:
            raise ImageError(f"a compressed grain of {self.unit} bytes", file=self.name, place="header")
        # What a grain may take at most: deflate makes what it cannot compress a little larger.
        self.longest = self.unit + self.unit // 8 + 2 * SECTOR

    def grains(self, entries: array[int], base: int) -> Iterator[Extent]:
        values = entries.tolist()
        unit, size, node, codec = self.unit, self.node.size, self.node, self.codec
        longest, zeroed = self.longest, self.zeroed
        start, kind = self.start + base, Kind.HOLE
        at, count = start, 0
        values.append(0)
        for index in range(len(values) - 1):
            sector = values[index]
            if sector == 0 or zeroed and sector == 1:
                now = Kind.HOLE if sector == 0 else Kind.ZERO
                if count and now is not kind:
                    yield Extent(at, count * unit, kind)
                    at, count = start + index * unit, 0
                if not count:
                    at, kind = start + index * unit, now
                count += 1
                continue
            if count:
                yield Extent(at, count * unit, kind)
                count = 0
            offset = sector * SECTOR
            if offset >= size:
                raise ImageError(
                    "it points beyond the end of the file", file=self.name, place=f"grain {base // unit + index}"
                )
            # The table does not tell how long a payload is, but it ends before the next one begins.
            room = (values[index + 1] - sector) * SECTOR
            if not 0 < room < longest:
                room = longest
            yield Extent(start + index * unit, unit, Kind.ENCODED, node, offset, min(room, size - offset), codec, unit)
        if count:
            yield Extent(at, count * unit, kind)

    def details(self) -> dict[str, Any]:
        return {"cluster-size": self.unit, "compressed": True}


def refuse_duplicates(directory: array[int], name: str, place: str = "grain directory") -> None:
    """Two parts of the disk in one table is damage; and it would let a small file claim a table of any length."""
    numpy: Any = None
    if len(directory) > 1 << 17:
        with suppress(ModuleNotFoundError):
            import numpy
    if numpy is not None:
        values = numpy.sort(numpy.frombuffer(directory, dtype=f"u{directory.itemsize}"))
        twice = values[1:][(values[1:] == values[:-1]) & (values[1:] > 1)]
        duplicate = int(twice[0]) if len(twice) else None
    else:
        places = sorted(sector for sector in directory if sector > 1)
        duplicate = next((one for one, other in pairwise(places) if one == other), None)
    if duplicate is not None:
        raise ImageError(f"two entries point to the grain table at sector {duplicate}", file=name, place=place)
