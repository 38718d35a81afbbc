"""Images with one flat table of blocks: VDI, VHD, Parallels and their like.

The guest disk is cut into blocks of one size; a table has an entry for each, which says where in the file the block is,
or that it is nowhere. :class:`BlockTable` keeps such a table in pages, so that memory is bounded whatever its size;
:class:`BlockImage` answers the engine from one, and a driver adds what its entries mean.

New blocks lie behind everything else in the file, in space that reads as zeros. So an entry may reach the disk as soon
as the file is that long: until guest bytes follow, the block reads as it did before. That is why blocks need not be
copied on write, and the engine's unit can be small however large the blocks are. Where a new block must not read as
zeros first (over a backing image, or encrypted), the engine writes it whole, and only then the table names it.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterator, Mapping
from math import gcd
from typing import TYPE_CHECKING

from ..contract.extents import Extent, Kind, Placement, joined
from ..contract.limits import contents
from ..contract.node import Node
from ..errors import ImageError, UnsupportedError
from ..sizes import SECTOR, KiB, MiB
from . import tables
from .image import FormatImage
from .tables import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..contract.drivers import FormatDriver
    from ..contract.results import CheckResult

PAGE = 1 << 16
"""Entries in a page of a table."""
_PAGES = 64
"""How many pages are kept in memory."""
LARGE = 64 * KiB
"""Bytes of a table from which asking the file for holes is quicker than reading them."""
_SLOTS = 1 << 22
"""How many blocks of a file a check looks at in one pass: four bytes of memory each."""


class BlockTable:
    """A table on disk, read as it is asked for and written back when it is told to.

    :param node: where the table is: *count* entries of *width* bytes from byte *offset* on, in byte order *order*.
        The caller has checked that they lie inside the file.
    :param make_room: called when too many changed pages are in memory: it writes them back, in the safe order.
    """

    def __init__(
        self, node: Node, offset: int, count: int, width: int, order: str, make_room: Callable[[], None]
    ) -> None:
        self.node = node
        self.offset = offset
        self.count = count
        self.width = width
        self.order = order
        self.page = PAGE
        """Entries in a page."""
        self.kept = _PAGES
        """How many pages are kept in memory."""
        self.level = "l2"
        """What the node below is told is loaded and updated: ``l1`` where it names other tables."""
        self._make_room = make_room
        self._pages: dict[int, array[int]] = {}
        self._dirty: dict[int, tuple[int, int]] = {}
        """Number of a page → its entries that the disk does not have yet: the first, and the one after the last."""
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return self.count

    def _place(self, number: int) -> int | None:
        """Where in the file page *number* is; None: nowhere, all its entries are 0."""
        return self.offset + number * self.page * self.width

    def _page(self, number: int) -> array[int]:
        page = self._pages.get(number)
        return page if page is not None else self._load(number)

    def _load(self, number: int) -> array[int]:
        """Page *number*, read where it is not in memory; clean pages make room for it."""
        with self._lock:
            page = self._pages.get(number)
            if page is None:
                if len(self._pages) >= self.kept:
                    self._drop_clean()
                count = min(self.page, self.count - number * self.page)
                place = self._place(number)
                if place is None:
                    page = tables.filled(count, self.width)
                else:
                    self.node.event(f"{self.level}_load")
                    page = tables.read(self.node, place, count, self.width, self.order)
                self._pages[number] = page
                self._tell()
            return page

    def _drop_clean(self) -> None:
        for old in [old for old in self._pages if old not in self._dirty]:
            del self._pages[old]

    def _tell(self) -> None:
        self.node.account.hold(self, min(len(self._pages) * self.page, self.count) * self.width)

    def shrink(self) -> None:
        """See :class:`diskmill.contract.limits.Cache`."""
        if self._lock.acquire(blocking=False):  # who waits for another table's lock with one in hand waits for ever
            try:
                self._drop_clean()
                self._tell()
            finally:
                self._lock.release()

    def get(self, index: int) -> int:
        """The entry of block *index*."""
        return self._page(index // self.page)[index % self.page]

    def runs(self, first: int, end: int, step: int) -> Iterator[Run]:
        """The runs of entries *first* to *end - 1*, in order; see :func:`diskmill.kit.tables.runs`."""
        for number in range(first // self.page, -(-end // self.page)):
            base = number * self.page
            low, high = max(first - base, 0), min(end - base, self.page)
            unread = high - low == self.page and number not in self._pages
            size = self.page * self.width
            if unread and self._hole(self._place(number), size) == size:
                yield Run(base, high, 0, 0)
                continue
            page = self._page(number)
            if high - low == 1:  # what most writes ask
                yield Run(base + low, 1, page[low], 0)
                continue
            for run in tables.runs(page[low:high], step):
                yield run._replace(at=run.at + base + low)

    def _hole(self, place: int | None, size: int) -> int:
        """How many of *size* bytes of a table from *place* on are a hole of the file, which need not be read."""
        node = self.node
        if size < LARGE or place is None or place + size > node.size:
            return 0
        first = next(iter(node.extents(place, size)))
        return first.length if first.kind is Kind.ZERO else 0

    def set(self, index: int, count: int, value: int, step: int) -> None:
        """Let *count* entries from *index* on be value, value + step, …"""
        while count:
            number, at = divmod(index, self.page)
            part = min(count, self.page - at)
            with self._lock:
                tables.fill_run(self._page(number), at, part, value, step)
                low, high = self._dirty.get(number, (at, at))
                self._dirty[number] = min(low, at), max(high, at + part)
            index, count, value = index + part, count - part, value + part * step
            if len(self._dirty) >= self.kept:
                self._make_room()

    @property
    def dirty(self) -> bool:
        """Whether there is anything to write back."""
        return bool(self._dirty)

    def write_back(self) -> None:
        """Write what changed."""
        with self._lock:
            for number, (low, high) in sorted(self._dirty.items()):
                place = self._place(number)
                assert place is not None
                self.node.event(f"{self.level}_update")
                self.node.write(place + low * self.width, tables.to_bytes(self._pages[number][low:high], self.order))
            self._dirty.clear()


class BlockImage(FormatImage):
    """An image over a :class:`BlockTable`. A driver subclasses it and says what entries mean.

    :param table: the table; at least as many entries as the guest disk has blocks.
    :param block_size: guest bytes in a block, a multiple of 512.
    :param empty: the entries that stand for no block, with what the guest reads there (``HOLE`` or ``ZERO``).
    :param step: by how much the entries of blocks that follow each other in the file differ.
    :param data_start: the file offset before which no block can be.
    :param whole: new blocks are the engine's unit, which it writes whole before the table names them.
    """

    def __init__(
        self,
        driver: FormatDriver,
        file: Node,
        *,
        name: str,
        size: int,
        writable: bool,
        table: BlockTable,
        block_size: int,
        empty: Mapping[int, Kind],
        step: int,
        data_start: int,
        whole: bool = False,
    ) -> None:
        super().__init__(driver, file, name=name, size=size, writable=writable)
        self.table = table
        self.block_size = block_size
        self.empty = empty
        self.step = step
        self.data_start = data_start
        self.whole = whole
        self.footprint = block_size
        """Bytes that a block takes in the file, with what belongs to it there."""
        self.unit = block_size if whole else gcd(block_size, 4 * KiB)
        self.end: int | None = None
        """Where in the file the next new block can go; None: nobody had to know yet."""

    # -- what a driver answers ----------------------------------------------------------------------------------

    def position(self, entry: int) -> int:
        """The file offset of the guest bytes of the block that *entry* names."""
        raise NotImplementedError

    def entry_at(self, end: int, count: int) -> int:
        """The first entry for *count* new blocks behind file offset *end*.

        :raises ImageError: entries cannot name anything that far.
        """
        raise NotImplementedError

    def overwritten(self, block: int, count: int, entry: int) -> None:
        """Guest bytes of *count* blocks from *block* on, whose entries count from *entry*, are about to change."""

    def fill(self, block: int, count: int, entry: int) -> None:
        """The new places of *count* blocks, of which the table knows nothing yet, shall read as the blocks do now.

        Asked only without ``whole``. They read as zeros, which is right where there is no backing image.
        """
        if self.backing is not None:
            raise UnsupportedError("a differencing image can only be read", file=self.name)

    def encoded(self, block: int, entry: int) -> Extent:
        """The extent of *block*, which *entry* says is stored encoded: for drivers that tell such blocks apart."""
        raise NotImplementedError

    def used_end(self) -> int:
        """The file offset behind everything but blocks that the image keeps in the file."""
        return self.data_start

    @property
    def cluster_size(self) -> int | None:
        return self.block_size

    # -- mapping ------------------------------------------------------------------------------------------------

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        return joined(self._extents(offset, offset + length))

    def _extents(self, offset: int, end: int) -> Iterator[Extent]:
        for block, count, kind, position in self._located(offset // self.block_size, -(-end // self.block_size)):
            start, stop = max(block * self.block_size, offset), min((block + count) * self.block_size, end)
            if kind is Kind.ENCODED:
                yield self.encoded(block, position).clip(start, stop)
            elif kind is Kind.DATA:
                yield Extent(start, stop - start, kind, self.file, position + start - block * self.block_size)
            else:
                yield Extent(start, stop - start, kind)

    def vacant(self, offset: int, length: int) -> bool:
        """As :meth:`Image.vacant`, of what lies in one block."""
        first, last = offset // self.block_size, (offset + length - 1) // self.block_size
        return first == last and self.empty.get(self.table.get(first)) is Kind.HOLE

    def _located(self, first: int, end: int) -> Iterator[tuple[int, int, Kind, int]]:
        """(first block, count, kind, file offset) for stretches of blocks *first* to *end - 1*.

        Blocks of one stretch of data follow each other in the file. Encoded blocks come one by one, with their entry.
        """
        dense = self.position(self.step) - self.position(0) == self.block_size
        for block, count, entry, step, kind in self._told_apart(first, end):
            if kind is not Kind.DATA:
                yield block, count, kind, entry
                continue
            self.check_place(block, count, entry, step)
            if count == 1 or dense and step:
                yield block, count, kind, self.position(entry)
            else:
                for index in range(count):
                    yield block + index, 1, kind, self.position(entry + index * step)

    def _told_apart(self, first: int, end: int) -> Iterator[tuple[int, int, int, int, Kind]]:
        """(first block, count, first entry, step, kind) for blocks *first* to *end - 1*.

        Step is 0 where all have the same entry: of data that is damage, though each block reads.
        """
        empty = self.empty
        for at, length, value, step in self.table.runs(first, end, self.step):
            if not step or length == 1:
                yield at, length, value, 0, empty.get(value, Kind.DATA)
                continue
            # A run that counts may begin or end with values that mean something else.
            while length and value in empty:
                yield at, 1, value, 0, empty[value]
                at, length, value = at + 1, length - 1, value + step
            tail = 0
            while tail < length and value + (length - tail - 1) * step in empty:
                tail += 1
            if length > tail:
                yield at, length - tail, value, step, Kind.DATA
            for index in range(length - tail, length):
                entry = value + index * step
                yield at + index, 1, entry, 0, empty[entry]

    def check_place(self, block: int, count: int, entry: int, step: int) -> None:
        """See that *count* blocks from *block* on, with entries from *entry* on, lie where blocks can be.

        :raises ImageError: they do not.
        """
        low = self.position(entry)
        if low < self.data_start:
            raise ImageError("its place in the file belongs to the metadata", file=self.name, place=f"block {block}")
        limit = max(self.file.size, self.end or 0)
        if self.position(entry + (count - 1) * step) >= limit:
            while self.position(entry) < limit and count:  # the first one that does
                half = -(-count // 2)
                inside = self.position(entry + (half - 1) * step) < limit
                if inside:
                    block, count, entry = block + half, count - half, entry + half * step
                else:
                    count = half
                    if half == 1:
                        break
            raise ImageError("it lies beyond the end of the file", file=self.name, place=f"block {block}")
        if self._cut(block, count, entry, step, limit):
            raise ImageError("the file ends within it", file=self.name, place=f"block {block + count - 1}")

    def _cut(self, block: int, count: int, entry: int, step: int, limit: int) -> bool:
        """Whether the last of *count* blocks from *block* on has guest bytes behind *limit* in the file."""
        held = min(self.block_size, self.size - (block + count - 1) * self.block_size)
        return self.position(entry + (count - 1) * step) + held > limit

    # -- writing ------------------------------------------------------------------------------------------------

    def reserve(self, offset: int, length: int) -> list[Placement]:
        end = offset + length
        placements: list[Placement] = []
        block_size = self.block_size
        for block, count, kind, position in list(self._located(offset // block_size, -(-end // block_size))):
            if kind is Kind.DATA:
                self.overwritten(block, count, self.table.get(block))
                pieces = [(block, count, position)]
            else:
                pieces = self._allocate(block, count)
                if self.whole:
                    for first, many, at in pieces:
                        start, length = first * block_size, many * block_size
                        placements.append(Placement(start, length, self.file, at, fresh=True))
                    continue
            for first, many, at in pieces:
                start, stop = max(first * block_size, offset), min((first + many) * block_size, end)
                at += start - first * block_size
                last = placements[-1] if placements else None
                if last is not None and not last.fresh and last.offset + last.length == at:
                    placements[-1] = last._replace(length=last.length + stop - start)
                else:
                    placements.append(Placement(start, stop - start, self.file, at))
        return placements

    def _allocate(self, block: int, count: int) -> list[tuple[int, int, int]]:
        """New places for *count* blocks from *block* on: (first block, count, file offset)."""
        end = self.find_end()
        entry = self._take(count)
        position, last = self.position(entry), self.position(entry + (count - 1) * self.step)
        if not self.whole:
            if not self.cleared:
                self.file.zero(end, last + self.block_size - end)
            self.fill(block, count, entry)
            self._name(block, count, entry)
        if last - position == (count - 1) * self.block_size:
            return [(block, count, position)]
        return [(block + index, 1, self.position(entry + index * self.step)) for index in range(count)]

    def _take(self, count: int) -> int:
        """The first entry for *count* blocks at the end of the file, whose place nothing else gets from now on."""
        entry = self.entry_at(self.find_end(), count)
        self.end = self.position(entry + (count - 1) * self.step) + self.block_size
        return entry

    def _name(self, block: int, count: int, entry: int) -> None:
        """Let the table name new places, which read as the blocks do, for *count* blocks from *block* on."""
        self.overwritten(block, count, entry)
        self.table.set(block, count, entry, self.step)

    def find_end(self) -> int:
        """Where in the file the next new block can go. What lies behind belongs to nothing, and goes."""
        if self.end is None:
            end = self.used_end()
            for block, count, entry, step, kind in self._told_apart(0, len(self.table)):
                if kind is Kind.DATA:
                    self.check_place(block, count, entry, step)
                    end = max(end, self.position(entry + (count - 1) * step) + self.block_size)
                elif kind is Kind.ENCODED:
                    extent = self.encoded(block, entry)
                    end = max(end, extent.offset + extent.stored)
            if self.cleared and self.file.resizable:  # on another image there is no end to cut off
                self.cut(self.file, end)
            self.end = end
        return self.end

    @property
    def cleared(self) -> bool:
        """Whether what lies behind reads as zeros, because the file can be cut: a device, or an image that holds this
        one, keeps what was there before."""
        return self.file.blank and self.file.resizable

    def cut(self, file: Node, end: int) -> None:
        """Let nothing be in the file from *end* on, so that new blocks read as zeros."""
        if file.size > end:
            file.truncate(end)

    def publish(self, placements: Sequence[Placement]) -> None:
        """Name new whole blocks; without ``whole`` the entries are there since the places were reserved."""
        for place in placements:
            if place.fresh:
                count = place.length // self.block_size
                self.table.set(place.start // self.block_size, count, self.entry_at(place.offset, count), self.step)

    def zero_units(self, offset: int, length: int, *, unmap: bool) -> None:
        for extent in list(self.extents(offset, length)):
            if extent.kind is Kind.DATA:
                self.reserve(extent.start, extent.length)
                self.file.zero(extent.offset, extent.length, unmap=unmap)
            elif extent.kind is Kind.HOLE and self.backing is not None:
                raise UnsupportedError("a differencing image can only be read", file=self.name)

    def discard_units(self, offset: int, length: int) -> None:
        for extent in list(self.extents(offset, length)):
            if extent.kind is Kind.DATA:
                self.file.discard(extent.offset, extent.length)

    def flush(self) -> None:
        with self.lock:
            if self.writable:
                self.write_tables()
        super().flush()

    def write_tables(self) -> None:
        """Bring the table on disk up to date: the file is as long as its entries will say before they say it."""
        if self.table.dirty:
            self.lengthen()
            self.order_files()
            self.table.write_back()

    def lengthen(self) -> None:
        """Let the file hold the last block whole."""
        if self.end is not None and self.file.size < self.end and self.file.resizable:
            self.file.truncate(self.end)

    def order_files(self) -> None:
        """What was written to its files before reaches the disk before what is written after; tables in memory stay."""
        self.file.barrier()

    # -- checking -----------------------------------------------------------------------------------------------

    def check_blocks(self, result: CheckResult, *, drop: int | None = None, repair: bool = False) -> int:
        """Look at every entry: for blocks outside the file's data area, and for places that several blocks have.

        What is found goes into *result*, totals too.

        :param repair: give a block that shares its place a copy of its own.
        :param drop: with *repair*, the entry that blocks outside get instead.
        :return: the file offset just after the last block; of the data area's start where there is none.
        """
        end = self.data_start
        allocated = fragmented = 0
        gap = self.position(self.step) - self.position(0) - self.block_size
        following: int | None = None
        outside: list[tuple[int, int]] = []
        for block, count, entry, step, kind in self._told_apart(0, len(self.table)):
            if kind is not Kind.DATA:
                following = None
                continue
            first, upto = self._fitting(count, entry, step)
            outside += [(block + low, high - low) for low, high in ((0, first), (upto, count)) if low < high]
            if first < upto:
                position, last = self.position(entry + first * step), self.position(entry + (upto - 1) * step)
                fragmented += following is not None and not 0 <= position - following <= gap
                following = last + self.block_size
                allocated += upto - first
                if self._cut(block + first, upto - first, entry + first * step, step, self.file.size):
                    _tell(result, [(block + upto - 1, 1)], "in part behind the end of the file")
                end = max(end, last + self.block_size)
            if len(outside) >= _FINDINGS or drop is not None and repair and outside:
                _tell(result, outside, "outside the data area of the file", fixed=repair and drop is not None)
                if repair and drop is not None:
                    for low, many in outside:
                        self.table.set(low, many, drop, 0)
                outside.clear()
        _tell(result, outside, "outside the data area of the file")
        # A repair copies no more than the file holds: an image may name one block a million times.
        budget = contents(self.file) if repair else 0
        for first, count, same in self._twins(end):
            if not same:  # what is whose, nobody can tell
                _tell(result, [(first, count)], "in part at a place that another block has")
                continue
            parted = min(budget // self.block_size, count) if repair else 0
            for block in range(first, first + parted):
                self._part(block)
            budget -= parted * self.block_size
            for low, many, fixed in ((first, parted, True), (first + parted, count - parted, False)):
                if many:
                    _tell(result, [(low, many)], "at a place that another block has", fixed=fixed)
        result.total_clusters = -(-self.size // self.block_size)
        result.allocated_clusters = allocated
        result.fragmented_clusters = fragmented
        return max(end, self.end or 0)

    def _fitting(self, count: int, entry: int, step: int) -> tuple[int, int]:
        """Which of *count* blocks from *entry* on lie inside the data area: first, end."""
        position = self.position(entry)
        if not step:
            return (0, count) if self.data_start <= position < self.file.size else (0, 0)
        stride = self.position(step) - self.position(0)
        first = min(max(-(-(self.data_start - position) // stride), 0), count)
        return first, min(max(-(-(self.file.size - position) // stride), first), count)

    def _twins(self, end: int) -> Iterator[tuple[int, int, bool]]:
        """(first block, count, same): blocks whose place a block looked at before has, as far as the file offset
        *end*; with *same* it is the same place, else they overlap.

        The file is cut into slots as long as a block's footprint: blocks that do not overlap lie in slots of their
        own, and blocks in neighbouring slots overlap if the second lies nearer to its slot's start than the first.
        """
        size = self.footprint
        slots = (end - self.data_start) // size + 1
        for low in range(0, slots, _SLOTS):
            # How far into each slot its block lies, in sectors, plus 1; with the last slot of the pass before.
            base = max(low - 1, 0)
            seen = tables.filled(min(low + _SLOTS, slots) - base + 1, 4)
            for block, count, entry, step, kind in self._told_apart(0, len(self.table)):
                if kind is not Kind.DATA:
                    continue
                first, upto = self._fitting(count, entry, step)
                if not step:  # all at one place
                    upto = min(upto, first + 1)
                for index in range(first, upto):
                    slot, inside = divmod(self.position(entry + index * step) - self.data_start, size)
                    at, inside = slot - base, inside // SECTOR + 1
                    if not 0 <= at < len(seen) - 1:
                        continue
                    taken = seen[at]
                    if not taken:
                        seen[at] = inside
                    if slot < low:
                        continue
                    same = taken == inside
                    if taken or (at and seen[at - 1] > inside) or 0 < seen[at + 1] < inside:
                        yield block + index, 1 if step else count, same
                    elif not step and count > 1:
                        yield block + 1, count - 1, True

    def _part(self, block: int) -> None:
        """Give *block* a new place with the same bytes: another block has its place, or something else needs it."""
        at = self.position(self.table.get(block))
        entry = self._take(1)
        place = self.position(entry)
        for offset in range(0, self.block_size, MiB):
            length = min(MiB, self.block_size - offset)
            self.file.write(place + offset, self.file.read(at + offset, length))
        self._name(block, 1, entry)  # not before: where the copy fails, the old place holds


_FINDINGS = 1000
"""Findings are told in words up to this many; beyond, they are only counted."""


def _tell(result: CheckResult, stretches: Sequence[tuple[int, int]], what: str, *, fixed: bool = False) -> None:
    from ..contract.results import Finding

    for first, count in stretches:
        result.corruptions += count
        result.corruptions_fixed += count if fixed else 0
        if len(result.findings) < _FINDINGS:
            text = f"block {first} lies" if count == 1 else f"blocks {first} to {first + count - 1} lie"
            result.findings.append(Finding("corruption", f"{text} {what}", count, fixed))
