"""Images with two levels of tables: QED, qcow and their like.

An entry of the first table (L1) says where in the file a second one (L2) is, whose entries say where blocks are; an
L2 table that would hold nothing but zeros is not there. :class:`TwoLevelTable` shows them as the one flat table that
:class:`~diskmill.kit.blocks.BlockImage` works with; :class:`TwoLevelImage` is such an image whose entries are file
offsets.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from ..contract.extents import Kind
from ..contract.limits import READ_PER_WORK, Meter
from ..errors import ImageError
from ..sizes import MiB, round_up
from .blocks import LARGE, PAGE, BlockImage, BlockTable
from .tables import Run

if TYPE_CHECKING:
    from ..contract.drivers import FormatDriver
    from ..contract.node import Node

WIDTH = 8
"""Bytes in an entry of either table."""
_CACHE_BYTES = 16 * MiB
"""How much of L2 tables is kept in memory."""
_MAX_TABLES = 1 << 22
"""How many L2 tables an image may have that is written: their places are kept in memory then."""


class TwoLevelTable(BlockTable):
    """The entries of all L2 tables, one after the other; those of tables that are not there are 0.

    :param l1: the first table; an entry of 0: no table.
    :param l2_entries: entries of an L2 table, a power of two.
    :param place: the file offset that an L1 entry means, given with its index; it raises where there can be none.
    :param new_table: the L1 entry for a new L2 table, which reads as zeros.
    :param make_room: as of :class:`~diskmill.kit.blocks.BlockTable`.
    """

    def __init__(
        self,
        node: Node,
        l1: BlockTable,
        l2_entries: int,
        order: str,
        *,
        place: Callable[[int, int], int],
        new_table: Callable[[], int],
        make_room: Callable[[], None],
    ) -> None:
        super().__init__(node, 0, len(l1) * l2_entries, WIDTH, order, make_room)
        self.l1 = l1
        l1.level = "l1"
        self.l2_entries = l2_entries
        self.page = min(l2_entries, PAGE)
        self.kept = max(_CACHE_BYTES // (self.page * WIDTH), 64)
        self._l2_place = place
        self._new_table = new_table

    def _place(self, number: int) -> int | None:
        index, at = divmod(number * self.page, self.l2_entries)
        entry = self.l1.get(index)
        return self._l2_place(index, entry) + at * WIDTH if entry else None

    def runs(self, first: int, end: int, step: int) -> Iterator[Run]:
        """As :meth:`BlockTable.runs`; stretches without L2 tables come as one, unseen.

        A table that several L1 entries in a row name (damage, or malice) is looked at once.

        :raises LimitError: more is to be read than the tables that the file can hold.
        """
        many = self.l2_entries
        meter = Meter(self.node)
        for run in self.l1.runs(first // many, -(-end // many), 0):
            low, high = max(run.at * many, first), min((run.at + run.length) * many, end)
            if not run.value or self._unseen(run, low, high):
                yield Run(low, high - low, 0, 0)
            elif run.length > 1 and many <= PAGE:
                yield from self._repeated(run, low, high, step, meter)
            else:
                for at in range(low, high, PAGE):
                    upto = min(at + PAGE, high)
                    meter.add((upto - at) * WIDTH >> READ_PER_WORK)
                    yield from super().runs(at, upto, step)

    def _repeated(self, run: Run, low: int, high: int, step: int, meter: Meter) -> Iterator[Run]:
        """Entries *low* to *high - 1*, all in L2 tables that are one and the same."""
        many = self.l2_entries
        base = run.at * many
        told = list(super().runs(base, base + many, step))
        if len(told) == 1 and not told[0].step:
            yield Run(low, high - low, told[0].value, 0)
            return
        for ahead in range((low - base) // many * many, high - base, many):
            meter.add(len(told))
            for at, length, value, stride in told:
                start, end = max(at + ahead, low), min(at + ahead + length, high)
                if start < end:
                    yield Run(start, end - start, value + (start - at - ahead) * stride, stride)

    def _unseen(self, run: Run, low: int, high: int) -> bool:
        """Whether a large L2 table is a hole of the file: an image may name a thousand of those, a gigabyte each."""
        if run.length > 1 or self.l2_entries * WIDTH < LARGE:
            return False
        with self._lock:
            if any(low // self.page <= number <= high // self.page for number in self._dirty):
                return False
        size = self.l2_entries * WIDTH
        return self._hole(self._l2_place(run.at, run.value), size) == size

    def set(self, index: int, count: int, value: int, step: int) -> None:
        """As :meth:`BlockTable.set`; L2 tables come into being where they are missing and *value* is not 0."""
        while count:
            l2 = index // self.l2_entries
            part = min(count, (l2 + 1) * self.l2_entries - index)
            there = self.l1.get(l2) != 0
            if not there and value:
                self.l1.set(l2, 1, self._new_table(), 0)
            if there or value:
                super().set(index, part, value, step)
            index, count, value = index + part, count - part, value + part * step

    def prepare(self, index: int, count: int) -> None:
        """Let there be L2 tables for *count* entries from *index* on."""
        for l2 in range(index // self.l2_entries, (index + count - 1) // self.l2_entries + 1):
            if not self.l1.get(l2):
                self.l1.set(l2, 1, self._new_table(), 0)

    @property
    def dirty(self) -> bool:
        return super().dirty or self.l1.dirty

    def write_back(self) -> None:
        """Write what changed, in any order: a new L2 table reads as zeros until its entries are there, as none does."""
        super().write_back()
        self.l1.write_back()

    def forget(self) -> None:
        """Drop what is in memory: the tables on disk were changed some other way."""
        for table in (self, self.l1):
            with table._lock:
                table._pages.clear()
                table._dirty.clear()


class TwoLevelImage(BlockImage):
    """An image over a :class:`TwoLevelTable` whose entries of both levels are byte offsets in the file.

    A block that is about to be overwritten is held against the places of header and tables, so that a damaged
    table cannot make a write destroy them.

    :param l1_offset: where the L1 table is; *l1_entries* how many entries it has. The caller has checked both.
    :param front: the file offset behind the header, before which nothing else can be.
    :param align: what the offsets of blocks and L2 tables are a multiple of; new ones begin at whole blocks.
    :param empty: as of :class:`~diskmill.kit.blocks.BlockImage`, like *whole*.
    """

    def __init__(
        self,
        driver: FormatDriver,
        file: Node,
        *,
        name: str,
        size: int,
        writable: bool,
        block_size: int,
        l1_offset: int,
        l1_entries: int,
        l2_entries: int,
        order: str,
        front: int,
        align: int,
        empty: Mapping[int, Kind],
        whole: bool,
    ) -> None:
        self.l1_offset = l1_offset
        self.l1_end = l1_offset + l1_entries * WIDTH
        self.l2_bytes = l2_entries * WIDTH
        self.align = align
        self._places: array[int] | None = None
        self.levels = TwoLevelTable(
            file,
            BlockTable(file, l1_offset, l1_entries, WIDTH, order, lambda: self.flush()),
            l2_entries,
            order,
            place=self.l2_place,
            new_table=self._new_l2,
            make_room=lambda: self.flush(),
        )
        super().__init__(
            driver,
            file,
            name=name,
            size=size,
            writable=writable,
            table=self.levels,
            block_size=block_size,
            empty=empty,
            step=block_size,
            data_start=front,
            whole=whole,
        )

    # -- places -------------------------------------------------------------------------------------------------

    def position(self, entry: int) -> int:
        return entry

    def entry_at(self, end: int, count: int) -> int:
        entry = round_up(end, self.block_size)
        if entry + count * self.block_size > 1 << 63:
            raise ImageError("the file cannot become any larger", file=self.name)
        return entry

    def l2_place(self, index: int, entry: int) -> int:
        """The file offset of L2 table *index*, which the L1 table says is at *entry*.

        :raises ImageError: there can be none.
        """
        limit = max(self.file.size, self.end or 0)
        if entry % self.align or entry < self.data_start or entry + self.l2_bytes > limit:
            cause = f"it says that the L2 table is at offset {entry} of {limit}"
            raise ImageError(cause, file=self.name, place=f"L1 entry {index}")
        return entry

    def check_place(self, block: int, count: int, entry: int, step: int) -> None:
        if entry % self.align:
            cause = f"its offset {entry} is not a multiple of {self.align}"
            raise ImageError(cause, file=self.name, place=f"block {block}")
        super().check_place(block, count, entry, step)

    def _allocate(self, block: int, count: int) -> list[tuple[int, int, int]]:
        # Before what they name: when that is published is chance, and the layout shall not be.
        self.levels.prepare(block, count)
        return super()._allocate(block, count)

    def _new_l2(self) -> int:
        at = self.entry_at(self.find_end(), 0)
        self.end = at + round_up(self.l2_bytes, self.block_size)
        self.file.event("l2_alloc_write")
        if not self.cleared:
            self.file.zero(at, self.l2_bytes)
        self.table_places().append(at)
        return at

    def used_end(self) -> int:
        end = max(self.data_start, self.l1_end)
        places = self.table_places()
        return max(end, places[-1] + self.l2_bytes) if places else end

    def table_places(self) -> array[int]:
        """The file offsets of all L2 tables, sorted.

        :raises ImageError: two of them share bytes, or lie over the L1 table: what is written to one changes the other.
        """
        if self._places is not None:
            return self._places
        found = array("Q")
        for run in self.levels.l1.runs(0, len(self.levels.l1), 0):
            if run.value:
                found.append(self.l2_place(run.at, run.value))
                if run.length > 1 or len(found) > _MAX_TABLES:
                    cause = "several L1 entries name one L2 table" if run.length > 1 else "there are too many L2 tables"
                    raise ImageError(f"it cannot be written: {cause}", file=self.name, place=f"L1 entry {run.at}")
        found = array("Q", sorted(found))
        ahead = 0
        for place in found:
            if place < ahead or place < self.l1_end and place + self.l2_bytes > self.l1_offset:
                cause = f"it cannot be written: the L2 table at offset {place} lies over another table"
                raise ImageError(cause, file=self.name, place="L1 table")
            ahead = place + self.l2_bytes
        self._places = found
        return found

    def start_empty(self, end: int) -> None:
        """Called by ``create``: there are no blocks yet, and the first can be at file offset *end*."""
        self.end, self._places = end, array("Q")

    def forget_places(self) -> None:
        """What the tables name was changed past the image's own ways: look again before the next new block."""
        self.end, self._places = None, None

    def drop_blocks(self) -> None:
        """Let the image have no blocks of its own: empty the L1 table, then cut the file behind it."""
        with self.lock:
            self.write_tables()
            self.levels.forget()
            for run in self.levels.l1.runs(0, len(self.levels.l1), 0):
                if run.value:
                    self.levels.l1.set(run.at, run.length, 0, 0)
            self.levels.write_back()
            self.order_files()
            self.forget_places()
            self.find_end()
            self.flush()

    def overwritten(self, block: int, count: int, entry: int) -> None:
        end = entry + count * self.block_size
        places = self.table_places()
        after = bisect_right(places, entry - self.l2_bytes)
        if entry < self.l1_end and end > self.l1_offset or after < len(places) and places[after] < end:
            cause = f"its place in the file, offset {entry}, belongs to a table"
            raise ImageError(cause, file=self.name, place=f"block {block}")
