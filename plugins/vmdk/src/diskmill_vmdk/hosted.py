"""Hosted sparse extents: what Workstation, Player and QEMU write, and the stream of OVF packages.

Source: VMware, "Virtual Disk Format 5.0", "Hosted Sparse Extents" and "Stream-Optimized Compressed Sparse Extents".
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from diskmill.contract.extents import Kind, Placement
from diskmill.contract.node import Node, Storage
from diskmill.errors import ImageError, UnsupportedError
from diskmill.kit import tables
from diskmill.sizes import MAX_SIZE, SECTOR, round_up

from .grains import MAX_HELD_GRAIN, GrainPart, refuse_duplicates
from .structures import (
    COWD_MAGIC,
    DEFLATE,
    FLAG_COMPRESSED,
    FLAG_MARKERS,
    FLAG_NEWLINE,
    FLAG_REDUNDANT,
    FLAG_ZEROED,
    FOOTER,
    GD_AT_END,
    MARKER,
    NEWLINES,
    SPARSE_HEADER,
    SPARSE_MAGIC,
)

if TYPE_CHECKING:
    from .structures import SparseExtentHeader

MAX_ENTRIES = 512
"""Entries in a grain table: VMware and QEMU know no other number."""
LAST_SECTOR = 1 << 32
"""Entries have 32 bits: an extent's file ends below 2 TiB."""
_KEPT = 8192
"""Grain tables that are kept in memory before they are written out: 256 GiB of guest disk, 16 MiB."""


def read_header(node: Node, *, name: str) -> SparseExtentHeader:
    """The header of the hosted sparse extent in *node*, checked as far as it can be without reading more."""
    header = SPARSE_HEADER.unpack(node.read(0, min(node.size, SPARSE_HEADER.size)), file=name)
    _check_header(header, name)
    return header


def _check_header(header: SparseExtentHeader, name: str) -> None:
    if header.magicNumber != SPARSE_MAGIC:
        what = "an ESX extent (COWD)" if header.magicNumber == COWD_MAGIC else "a bad magic"
        raise ImageError(f"not a hosted sparse extent: {what}", file=name, place="header")
    if not 1 <= header.version <= 3:
        raise UnsupportedError(f"sparse extent version {header.version}", file=name)
    if header.flags & FLAG_NEWLINE and header.newlines != NEWLINES:
        raise ImageError("its line ends were changed: it was transferred as text", file=name, place="header")
    limit = MAX_SIZE // SECTOR
    if header.capacity > limit:
        raise ImageError(f"a disk of {header.capacity} sectors", file=name, place="header")
    if header.compressAlgorithm not in (0, DEFLATE):
        raise UnsupportedError(f"compression algorithm {header.compressAlgorithm}", file=name)
    if not 0 < header.grainSize <= limit or header.grainSize & header.grainSize - 1:
        raise ImageError(f"a grain of {header.grainSize} sectors", file=name, place="header")
    if not 0 < header.numGTEsPerGT <= MAX_ENTRIES:
        raise UnsupportedError(f"grain tables of {header.numGTEsPerGT} entries", file=name)


def is_compressed(header: SparseExtentHeader) -> bool:
    """Whether the grains are."""
    return bool(header.compressAlgorithm == DEFLATE)


def require_writable(header: SparseExtentHeader, *, name: str) -> None:
    """
    :raises UnsupportedError: the extent can only be read.
    """
    why = None
    if is_compressed(header) or header.gdOffset == GD_AT_END:
        why = "a streamOptimized image cannot be changed: it is written once, in order"
    elif header.version == 3:
        why = "a sparse extent of version 3 (changed block tracking) can only be read"
    elif header.grainSize * SECTOR > MAX_HELD_GRAIN:
        why = f"a sparse extent with grains of {header.grainSize * SECTOR} bytes can only be read"
    if why is not None:
        raise UnsupportedError(why, file=name)


def footer_of(node: Node, header: SparseExtentHeader, *, name: str) -> SparseExtentHeader:
    """The valid header of an extent: its footer, where the header says so."""
    if header.gdOffset != GD_AT_END:
        return header
    # Footer marker, footer and end-of-stream marker are the last three sectors.
    place = "footer"
    at = node.size // SECTOR * SECTOR - 3 * SECTOR
    if at < SECTOR:
        raise ImageError("it is missing: the file was cut short", file=name, place=place)
    data = node.read(at, 3 * SECTOR)
    before, after = MARKER.unpack(data), MARKER.unpack(data, 2 * SECTOR)
    if before.size or before.type != FOOTER or after.val or after.size or after.type:
        raise ImageError("it is missing: the file was cut short", file=name, place=place)
    footer = SPARSE_HEADER.unpack(data, SECTOR)
    _check_header(footer, name)
    if footer.gdOffset == GD_AT_END:
        raise ImageError("it does not say where the grain directory is", file=name, place=place)
    return footer


def geometry(header: SparseExtentHeader, node: Node, name: str) -> dict[str, Any]:
    """What the header says, as keywords for :class:`GrainPart`."""
    if header.gdOffset > MAX_SIZE // SECTOR:
        raise ImageError("the grain directory lies beyond the end of the file", file=name, place="header")
    if header.overHead * SECTOR > node.size:
        raise ImageError(
            f"the file was cut short: {node.size} bytes, but {header.overHead * SECTOR} are metadata",
            file=name,
            place="header",
        )
    return {
        "name": name,
        "grain": header.grainSize * SECTOR,
        "per_table": header.numGTEsPerGT,
        "width": 4,
        "directory": header.gdOffset * SECTOR,
        "zeroed": bool(header.flags & FLAG_ZEROED),
    }


class HostedPart(GrainPart):
    """An uncompressed hosted sparse extent."""

    node: Storage
    writable = True

    def __init__(self, node: Node, header: SparseExtentHeader, start: int, *, name: str) -> None:
        keywords = geometry(header, node, name)
        super().__init__(node, start, header.capacity * SECTOR, **keywords)
        self.header = header
        self.redundant_offset: int | None = None
        # Where both offsets are the same there is one directory.
        if header.flags & FLAG_REDUNDANT and header.rgdOffset not in (0, header.gdOffset):
            self.redundant_offset = min(header.rgdOffset, MAX_SIZE // SECTOR) * SECTOR
        self._redundant: array[int] | None = None
        self._next: int | None = None
        self._dirty: set[int] = set()
        self._placed: set[int] = set()
        self._marked = False
        self._lock = threading.RLock()
        """Held while tables come into memory, and leave it: who looks them up meanwhile finds the one or the other."""

    def entries(self, first: int, sector: int, count: int) -> array[int]:
        with self._lock:
            return super().entries(first, sector, count)

    @property
    def redundant(self) -> array[int] | None:
        """The redundant grain directory; None where there is none.

        :raises ImageError: it is damaged: the disk can be read without it, but not written.
        """
        if self._redundant is None and self.redundant_offset is not None:
            if self.redundant_offset + self.count * self.width > self.node.size:
                raise ImageError("the redundant grain directory lies beyond the end of the file", file=self.name)
            redundant = self.read_directory(self.redundant_offset)
            refuse_duplicates(self.directory + redundant, self.name, "grain directories")
            self._redundant = redundant
        return self._redundant

    # -- space --------------------------------------------------------------------------------------------------

    def take(self, count: int) -> int:
        """The first of *count* new sectors at the end of the file, at a multiple of the grain size."""
        grain = self.unit // SECTOR
        if self._next is None:
            self._next = round_up(self._end(), grain)
        sector = self._next
        if sector + count > LAST_SECTOR:
            raise UnsupportedError("the file of a sparse extent cannot grow beyond 2 TiB", file=self.name)
        self._next = sector + round_up(count, grain)
        return sector

    def _end(self) -> int:
        """The sector after everything that is in use."""
        grain, overhead = self.unit // SECTOR, int(self.header.overHead)
        end = max(-(-self.node.size // SECTOR), overhead)
        if end % grain == 0 and overhead % grain == 0:
            return end
        # The disk's last grain may go on beyond the end of the file; where that was cut short, another one too.
        for index in range(self.count):
            sector = self.directory[index]
            if self.special(sector) is None:
                end = max(end, max(self.entries(index, sector, 1)) + grain)
        return end

    def table(self, index: int) -> array[int]:
        """Grain table *index*, in memory, to be changed."""
        table = self.changed.get(index)
        if table is not None:
            return table
        with self._lock:
            return self._load(index)

    def _load(self, index: int) -> array[int]:
        if len(self.changed) >= _KEPT:
            self.flush()
            self.changed.clear()
        sector = self.directory[index]
        kind = self.special(sector)
        if kind is None:
            table = self.read_tables(index, sector, 1)
            self._require_sound(index, table)
        else:
            # There is no such table in the file: it gets places, which the directory names once it is there.
            if self.redundant is not None and self.redundant[index] != sector:
                raise self._unlike_copy(index)
            table = tables.filled(self.per_table, 4, sector)
            self.directory[index] = self.take(self.table_sectors)
            if self.redundant is not None:
                self.redundant[index] = self.take(self.table_sectors)
            self._placed.add(index)
            self._dirty.add(index)
        self.changed[index] = table
        self._recent = (0, array("I"))
        return table

    def _require_sound(self, index: int, table: array[int]) -> None:
        """Refuse to write where a damaged directory would make us overwrite something else than grain table *index*."""
        place = f"grain table {index}"
        pairs = [(self.directory_offset, self.directory[index])]
        if self.redundant is not None:
            assert self.redundant_offset is not None
            other = self.redundant[index]
            if self.special(other) is not None or not self._is_copy(table, other, self.read_tables(index, other, 1)):
                raise self._unlike_copy(index)
            pairs.append((self.redundant_offset, other))
        header = self.header
        taken = [(0, 1), (header.descriptorOffset, header.descriptorSize)]
        taken += [(offset // SECTOR, -(-self.count * self.width // SECTOR)) for offset, _ in pairs]
        for _, sector in pairs:
            if any(sector < at + count and at < sector + self.table_sectors for at, count in taken):
                raise ImageError("it lies where other metadata is", file=self.name, place=place)

    def _unlike_copy(self, index: int) -> ImageError:
        text = "it and its redundant copy differ: check and repair the image first"
        return ImageError(text, file=self.name, place=f"grain table {index}")

    def _is_copy(self, table: array[int], sector: int, copy: array[int]) -> bool:
        """Whether *copy*, at *sector*, is a copy of *table*; among the metadata, one that a crash left behind too."""
        if copy == table:
            return True
        return sector + self.table_sectors <= self.header.overHead and all(
            one == other or min(one, other) <= 1 for one, other in zip(table, copy, strict=True)
        )

    # -- writing ------------------------------------------------------------------------------------------------

    def reserve(self, offset: int, length: int) -> list[Placement]:
        self._mark(True)
        unit, step = self.unit, self.unit // SECTOR
        low, high = offset - self.start, offset - self.start + length
        grain, end = low // unit, -(-high // unit)
        result: list[Placement] = []
        while grain < end:
            index, at = divmod(grain, self.per_table)
            count = min(end - grain, self.per_table - at)
            entries = self.table(index)[at : at + count]
            if not any(entries):
                self._fresh(result, grain, count)
            else:
                for run in tables.runs(entries, step):
                    self._place(result, grain + run.at, run, low, high)
            grain += count
        return result

    def _place(self, result: list[Placement], grain: int, run: tables.Run, low: int, high: int) -> None:
        unit, value, length = self.unit, run.value, run.length
        while length and self.special(value) is not None:
            count = length if not run.step else 1
            self._fresh(result, grain, count)
            grain, length, value = grain + count, length - count, value + run.step
        while length:
            count = length if run.step else 1
            begin, end = max(grain * unit, low), min((grain + count) * unit, high)
            offset = value * SECTOR + begin - grain * unit
            if value < self.header.overHead:
                raise ImageError("it lies where the metadata is", file=self.name, place=f"grain {grain}")
            if value * SECTOR >= self.node.size:
                raise ImageError("it points beyond the end of the file", file=self.name, place=f"grain {grain}")
            result.append(Placement(self.start + begin, end - begin, self.node, offset))
            grain, length = grain + count, length - count

    def _fresh(self, result: list[Placement], grain: int, count: int) -> None:
        unit = self.unit
        offset = self.take(count * (unit // SECTOR)) * SECTOR
        start, length = self.start + grain * unit, count * unit
        if result:
            last = result[-1]
            if last.fresh and last.start + last.length == start and last.offset + last.length == offset:
                result[-1] = last._replace(length=last.length + length)
                return
        result.append(Placement(start, length, self.node, offset, True))

    def publish(self, placement: Placement) -> None:
        if placement.fresh:
            self._set(placement.start, placement.length, placement.offset // SECTOR, self.unit // SECTOR)

    def _set(self, start: int, length: int, value: int, step: int) -> None:
        grain = (start - self.start) // self.unit
        end = grain + length // self.unit
        while grain < end:
            index, at = divmod(grain, self.per_table)
            count = min(end - grain, self.per_table - at)
            tables.fill_run(self.table(index), at, count, value, step)
            self._dirty.add(index)
            grain, value = grain + count, value + count * step

    def zero_units(self, offset: int, length: int, *, unmap: bool, backing: bool) -> None:
        extents = list(self.extents(offset, length))
        missing = [extent for extent in extents if extent.node is None and extent.kind.value == "hole"]
        if backing and missing and not self.zeroed:
            raise UnsupportedError("grains of zeros need the option zeroed_grain", file=self.name)
        self._mark(True)
        for extent in extents:
            if extent.node is not None:
                extent.node.zero(extent.offset, extent.length, unmap=unmap)
        if backing:
            for extent in missing:
                self._set(extent.start, round_up(extent.length, self.unit), 1, 0)

    # -- what reaches the file ----------------------------------------------------------------------------------

    def flush(self) -> None:
        """Grain tables after the grains, directories after new grain tables; and copies after what they are copies of.

        A repair takes from the copies what only they name, so that it would bring up what had not been there before.
        """
        if not self._dirty:
            return
        if self._placed:
            self.lengthen()
        self.node.barrier()
        dirty = sorted(self._dirty)
        self._write_tables(self.directory, dirty)
        if self.redundant is not None or self._placed:
            self.node.barrier()
        if self.redundant is not None:
            self._write_tables(self.redundant, dirty)
        if self._placed:
            self._write_directories()
        self._dirty.clear()
        self._placed.clear()

    def _write_directories(self) -> None:
        self.node.event("l1_update")
        self.node.write(self.directory_offset, tables.to_bytes(self.directory, "little"))
        if self.redundant is not None and self.redundant_offset is not None:
            self.node.barrier()
            self.node.write(self.redundant_offset, tables.to_bytes(self.redundant, "little"))

    def _write_tables(self, directory: array[int], indexes: Sequence[int]) -> None:
        """Write changed grain tables to where *directory* has them, neighbours at once."""
        group: list[int] = []
        pad = bytes(self.table_sectors * SECTOR - self.table_bytes)
        for index in [*indexes, -1]:
            if group and (index < 0 or directory[index] != directory[group[-1]] + self.table_sectors):
                data = b"".join(tables.to_bytes(self.changed[one], "little") + pad for one in group)
                self.check_tables(group[0], directory[group[0]], 0)
                self.node.event("l2_update")
                self.node.write(directory[group[0]] * SECTOR, data)
                group = []
            group.append(index)

    def _mark(self, unclean: bool) -> None:
        """Say in the header that the extent is being written, or no longer is."""
        if self._marked is not unclean and not self.header.uncleanShutdown:
            self._marked = unclean
            self.node.write(SPARSE_HEADER.offsets["uncleanShutdown"], bytes([unclean]))

    def finish(self) -> None:
        if self._marked:
            self.node.barrier()
            self._mark(False)

    # -- repair and resize ---------------------------------------------------------------------------------------

    def forget(self) -> None:
        """The tables in the file are not what they were."""
        self._recent = (0, array("I"))
        self.changed.clear()

    def place_copy(self, directory: array[int], index: int, table: array[int]) -> None:
        """Let *directory*, the primary or the redundant one, have *table* as its table *index*, in a new place: what
        lies where a damaged entry points to is not known."""
        sector = self.take(self.table_sectors)
        self.node.write(sector * SECTOR, tables.to_bytes(table, "little").ljust(self.table_sectors * SECTOR, b"\0"))
        directory[index] = sector
        self._placed.add(index)

    def turn_to_copies(self) -> None:
        """The tables that were placed anew count from now on."""
        if self._placed:
            self.node.barrier()
            self._write_directories()
            self._placed.clear()
            self.forget()

    def declare_clean(self) -> None:
        """Take back what a writer that never ended said in the header."""
        if self.header.uncleanShutdown:
            self.header.uncleanShutdown = 0
            self.node.barrier()
            self.node.write(SPARSE_HEADER.offsets["uncleanShutdown"], b"\0")

    def empty(self) -> None:
        """Point to no grain any more; then the file ends where they began."""
        self.flush()
        self.forget()
        for index, sector in enumerate(self.directory):
            if self.special(sector) is None:
                self.changed[index] = tables.filled(self.per_table, 4)
                self._dirty.add(index)
            if len(self.changed) >= _KEPT:
                self.flush()
                self.changed.clear()
        self.flush()
        self.node.barrier()
        end = self.header.overHead
        places = [*self.directory, *(self.redundant or ())]
        if (
            all(sector < end for sector in places)
            and max(self.directory_offset, self.redundant_offset or 0) < end * SECTOR
        ):
            self.node.truncate(end * SECTOR)
            self._next = None

    def trim(self, below: Callable[[int, int], bytes] | None = None) -> None:
        """What lies beyond the end of the disk comes to mean something when it grows: the rest of the last grain, and
        the entries behind it.

        :param below: reads guest bytes, where a longer parent may not show in the rest of a grain that is not held.
        """
        used = (self.end - self.start) % self.unit
        if used:
            (extent,) = self.extents(self.end - SECTOR, SECTOR)
            data = None
            if extent.node is not None:
                end = extent.offset + SECTOR
                if any(self.node.read(end, self.unit - used)):
                    data = self.node.read(end - used, used)
            elif extent.kind is Kind.HOLE and below is not None:
                data = below(self.end - used, used)
            if data is not None:
                sector = self.take(self.unit // SECTOR)
                self.node.write(sector * SECTOR, data.ljust(self.unit, b"\0"))
                self._set(self.end - used, self.unit, sector, 0)
                self.lengthen()  # by the table, where there was none
        index, used = divmod(-(-(self.end - self.start) // self.unit), self.per_table)
        if used and self.special(self.directory[index]) is None and any(self.table(index)[used:]):
            tables.fill_run(self.table(index), used, self.per_table - used, 0, 0)
            self._dirty.add(index)

    def hide(self, start: int, end: int) -> None:
        """Hold zeros, whatever a parent has, in the grains from guest byte *start*, where one begins, up to *end*."""
        if start >= end:
            return
        length = round_up(end - start, self.unit)
        if self.zeroed:
            self._set(start, length, 1, 0)
        else:
            sector = self.take(length // SECTOR)
            self.lengthen()  # what lies beyond the end of the file is zeros
            self._set(start, length, sector, self.unit // SECTOR)
        self.lengthen()  # by tables, where there were none

    def lengthen(self) -> None:
        """The file ends with whole grains, and with all that was taken, for whoever appends to it."""
        end = self.take(0) * SECTOR
        if self.node.size < end:
            self.node.truncate(end)

    def give_up_changes(self) -> None:
        """Forget the changes to tables that were not flushed, and the space that was taken at the file's end."""
        self.forget()
        self._dirty.clear()
        self._placed.clear()
        self._next = None

    def set_capacity(self, size: int) -> None:
        """Say in the header that the extent holds *size* bytes, and where its directories are."""
        self.header.capacity = size // SECTOR
        self.header.gdOffset = self.directory_offset // SECTOR
        if self.redundant_offset is not None:
            self.header.rgdOffset = self.redundant_offset // SECTOR
        self.node.write(0, SPARSE_HEADER.pack(self.header))

    def moved(self, primary: tuple[int, array[int]], redundant: tuple[int, array[int]] | None) -> None:
        """The directories are elsewhere now: (sector, entries); the header does not say so yet."""
        self.directory_offset, self._directory = primary[0] * SECTOR, primary[1]
        self.count = len(primary[1])
        if redundant is not None:
            self.redundant_offset, self._redundant = redundant[0] * SECTOR, redundant[1]


FLAGS_NEW = FLAG_NEWLINE | FLAG_REDUNDANT
"""Of new uncompressed extents."""
FLAGS_STREAM = FLAG_NEWLINE | FLAG_COMPRESSED | FLAG_MARKERS
"""Of new streamOptimized ones."""
GRAIN = 128
"""Sectors in a grain of new extents, as VMware makes them."""
DESCRIPTOR_AT, DESCRIPTOR_ROOM = 1, 20
"""Sectors for the descriptor in new extents."""


def make_extent(
    node: Storage, size: int, *, zeroed: bool = False, compressed: bool = False, grain: int = GRAIN
) -> None:
    """A new, empty hosted sparse extent for *size* bytes, with all its tables in place and no descriptor yet.

    :param zeroed: whether it marks grains of zeros; *compressed*: whether its grains will be.
    :param grain: sectors.
    """
    capacity = size // SECTOR
    count = -(-capacity // (grain * MAX_ENTRIES))
    directory_sectors = -(-count * 4 // SECTOR)
    table_sectors = MAX_ENTRIES * 4 // SECTOR
    redundant = DESCRIPTOR_AT + DESCRIPTOR_ROOM
    primary = redundant + directory_sectors + count * table_sectors
    overhead = round_up(primary + directory_sectors + count * table_sectors, grain)
    header = SPARSE_HEADER.new(
        magicNumber=SPARSE_MAGIC,
        version=3 if compressed else 2 if zeroed else 1,
        flags=FLAGS_NEW | (FLAG_ZEROED if zeroed else 0) | (FLAGS_STREAM if compressed else 0),
        capacity=capacity,
        grainSize=grain,
        descriptorOffset=DESCRIPTOR_AT,
        descriptorSize=DESCRIPTOR_ROOM,
        numGTEsPerGT=MAX_ENTRIES,
        rgdOffset=redundant,
        gdOffset=primary,
        overHead=overhead,
        newlines=NEWLINES,
        compressAlgorithm=DEFLATE if compressed else 0,
    )
    if overhead >= LAST_SECTOR:
        raise UnsupportedError("a disk that a sparse extent has no room for", file=node.name)
    node.truncate(overhead * SECTOR)
    for place in (redundant, primary):
        first = place + directory_sectors
        directory = array("I", range(first, first + count * table_sectors, table_sectors))
        node.write(place * SECTOR, tables.to_bytes(directory, "little"))
    node.write(0, SPARSE_HEADER.pack(header))
