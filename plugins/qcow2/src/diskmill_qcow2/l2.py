"""The L1 table and the L2 tables: read many at a time, kept in bounded memory, written by the changed part.

Source: the specification's sections "Cluster mapping" and "Extended L2 Entries". A table here is an array of the
64-bit words that the disk has: one an entry, or two with extended L2 entries.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from diskmill.contract.limits import READ_PER_WORK, Meter
from diskmill.errors import ImageError
from diskmill.kit import tables
from diskmill.kit.blocks import BlockTable
from diskmill.sizes import MiB

from . import c_qcow2 as c
from .bounds import counted, misplaced

if TYPE_CHECKING:
    import threading

    from diskmill.contract.node import Node

    from .header import Header

CACHE_BYTES = 16 * MiB
"""How much of L2 tables is kept in memory."""
_TABLE_WORK = 16
"""How much more work a table is than as many bytes of data: its entries are looked at."""
_READ_BYTES = 2 * MiB
"""How much of L2 tables is looked at together when a long range is mapped."""


class Table:
    """One L2 table in memory.

    :ivar offset: where it is in the file; 0: nowhere yet.
    :ivar origin: of a table that is nowhere yet, what the disk has in its stead: the table that it is a copy of, or
        None for a new one. So it can be put there before what changed.
    :ivar low: the first word that the disk does not have yet; *high* the one after the last. Clean: low >= high.
    """

    __slots__ = ("entries", "high", "low", "offset", "origin")

    def __init__(self, entries: array[int], offset: int) -> None:
        self.entries = entries
        self.offset = offset
        self.origin: array[int] | None = None
        self.low, self.high = len(entries), 0

    @property
    def dirty(self) -> bool:
        """Whether the disk has other contents."""
        return self.low < self.high

    def mark(self, low: int, high: int) -> None:
        """Words *low* to *high* were changed."""
        self.low = min(self.low, low)
        self.high = max(self.high, high)


class L1(BlockTable):
    """An L1 table, in pages; those that were changed stay in memory until they are written."""

    def __init__(self, file: Node, offset: int, entries: int) -> None:
        super().__init__(file, offset, entries, 8, "big", lambda: None)
        self.kept = max(self.kept, entries // self.page + 2)  # no more are there: never full of changed ones

    def __getitem__(self, index: int) -> int:
        return self.get(index)

    def __setitem__(self, index: int, entry: int) -> None:
        self.set(index, 1, entry, 0)

    def part(self, low: int, high: int) -> array[int]:
        """Entries *low* to *high - 1*."""
        result: array[int] = array("Q")
        for number in range(low // self.page, -(-high // self.page)):
            base = number * self.page
            result.extend(self._page(number)[max(low - base, 0) : min(high - base, self.page)])
        return result

    def zeros(self, index: int, end: int) -> int:
        """The first entry from *index* on that is not 0; *end* where all before are."""
        step = 64
        while index < end:
            number, at = divmod(index, self.page)
            if not at and number not in self._pages:
                skipped = self._absent(index, end)
                if skipped:
                    index += skipped
                    continue
            page = self._page(number)
            upto = min(at + step, at + end - index, len(page))
            raw = memoryview(page)[at:upto].tobytes()
            left = len(raw.lstrip(b"\0"))
            if left:
                return index + (len(raw) - left) // 8
            index += upto - at
            step *= 8
        return end

    def _absent(self, index: int, end: int) -> int:
        """How many whole pages of entries from *index* on are in memory nowhere, and in the file a hole; as entries."""
        size = (end - index) * 8
        hole = 0 if self._dirty else self._hole(self.offset + index * 8, size)
        return end - index if hole == size else hole // 8 // self.page * self.page

    def written(self) -> None:
        """The disk has what was changed."""
        self._dirty.clear()


class Mapping:
    """The active L1 table and the L2 tables that it names.

    :param absent_behind: told of a table that lies behind the end of the file and never was there, before its clusters
        are taken for unallocated; it may refuse that.

    Not thread-safe: callers hold the image's lock, *lock*.
    """

    def __init__(
        self,
        file: Node,
        header: Header,
        name: str,
        lock: threading.RLock,
        l1_offset: int | None = None,
        l1_size: int | None = None,
        *,
        absent_behind: Callable[[str], None] = lambda what: None,
    ) -> None:
        self.file = file
        self._lock = lock
        self.name = name
        self.header = header
        self._absent_behind = absent_behind
        self.cluster_size = header.cluster_size
        self.words = 2 if header.extended_l2 else 1
        self.count = header.l2_entries
        """Entries of an L2 table."""
        self.l1_offset = header.l1_table_offset if l1_offset is None else l1_offset
        entries = header.l1_size if l1_size is None else l1_size
        self.l1 = L1(file, self.l1_offset, entries)
        self.l1_dirty: set[int] = set()
        self._tables: OrderedDict[int, Table] = OrderedDict()
        self._dirty: set[int] = set()

    @property
    def crowded(self) -> bool:
        """Whether changed tables fill the cache, so that it is time to flush."""
        return len(self._dirty) * self.cluster_size >= CACHE_BYTES

    @property
    def changed(self) -> bool:
        """Whether a flush has anything to write."""
        return bool(self._dirty or self.l1_dirty)

    def offset(self, index: int) -> int:
        """Where L2 table *index* is in the file; 0: there is none.

        :raises ImageError: the L1 entry is impossible.
        """
        entry = self.l1[index]
        offset = entry & c.OFFSET_MASK
        if offset and misplaced(offset, self.cluster_size, self.file.size):
            if not offset % self.cluster_size and not counted(self.file, self.header, offset):
                # Nothing was ever there: other writers leave such entries.
                self._absent_behind(f"the L2 table of L1 entry {index}")
                self.l1[index] = 0
                return 0
            raise ImageError(
                f"it says that the L2 table is at offset {offset}", file=self.name, place=f"L1 entry {index}"
            )
        return offset

    def get(self, index: int) -> Table | None:
        """L2 table *index*; None: there is none, all its clusters are unallocated."""
        table = self._tables.get(index)
        if table is not None:
            self._tables.move_to_end(index)
            return table
        if index >= len(self.l1):
            raise ImageError(f"the L1 table has no entry {index}", file=self.name)
        offset = self.offset(index)
        if not offset:
            return None
        self.file.event("l2_load")
        table = Table(tables.read(self.file, offset, self.cluster_size // 8, 8, "big"), offset)
        self._keep(index, table)
        return table

    def update(self, index: int, drop: Callable[[int], None]) -> Table:
        """L2 table *index* to be changed: a new one where there is none, a copy where a snapshot shares it.

        :param drop: called with the offset of a shared table, which loses this reference once the copy is in place.
        """
        table = self.get(index)
        if table is None:
            table = Table(tables.filled(self.cluster_size // 8, 8), 0)
            self._keep(index, table)
        elif table.offset and not self.l1[index] & c.COPIED:
            drop(table.offset)
            table.offset, table.origin = 0, table.entries[:]
        if not table.offset:
            table.mark(0, len(table.entries))
        self._dirty.add(index)
        return table

    def batches(self, first: int, last: int) -> Iterator[tuple[int, int, array[int] | None, int]]:
        """Entries of guest clusters *first* to *last*: (cluster, count, words or None where there is no table, times).

        The words are a copy. Neighbouring tables come together. What several L1 entries in a row name (a damaged image,
        or a hostile one) comes once, whole: ``count`` clusters, which are there so many ``times``.

        :raises LimitError: more is to be read than the tables that the file can hold.
        """
        # What comes once has data between its tables, and looking ahead would pass that by.
        most = 1 if self.file.forward else max(_READ_BYTES // self.cluster_size, 1)
        if first >= last:
            return
        index, end = first // self.count, -(-last // self.count)
        meter = Meter(self.file)
        while index < end:
            begin = index
            if self._absent(index):
                index = self._absent_to(index, end)
                entries = None
            elif (index := self._alike_to(begin, end)) > begin + 1:
                table = self.get(begin)
                assert table is not None
                yield begin * self.count, self.count, table.entries[:], index - begin
                continue
            else:
                while index < end and index - begin < most and not self._absent(index):
                    index += 1
                meter.add((index - begin) * self.cluster_size * _TABLE_WORK >> READ_PER_WORK)
                entries = self._read(begin, index)
            low, high = max(first, begin * self.count), min(last, index * self.count)
            if entries is not None:
                entries = entries[(low - begin * self.count) * self.words : (high - begin * self.count) * self.words]
            yield low, high - low, entries, 1

    def within(self, first: int, last: int) -> tuple[array[int] | None] | None:
        """As :meth:`batches`, for guest clusters that one table has: its words. None: they are more than one's.

        A chain of images is asked for a few clusters at a time, again and again.
        """
        index, at = divmod(first, self.count)
        if first >= last or last - first > self.count - at:
            return None
        table = self.get(index) if self.has(index) else None
        if table is None:
            return (None,)
        return (table.entries[at * self.words : (at + last - first) * self.words],)

    def require_rightful(self, first: int) -> None:
        """See that entries *first* and following of the L1 table name no more tables than the file can hold.

        :raises LimitError: they do.
        """
        entries = self.l1.part(first, len(self.l1))
        work = self.cluster_size * _TABLE_WORK >> READ_PER_WORK
        Meter(self.file).add((len(entries) - entries.count(0)) * work)

    def _alike_to(self, index: int, end: int) -> int:
        """The first table behind table *index* that is another one."""
        entry, upto = self.l1[index], index + 1
        if not self._dirty:
            while upto < end and self.l1[upto] == entry:
                upto += 1
        return upto

    def has(self, index: int) -> bool:
        """Whether there is an L2 table *index*.

        :raises ImageError: the L1 entry is impossible.
        """
        if index in self._tables:
            return True
        offset = self.l1[index] & c.OFFSET_MASK
        return bool(offset if offset < self.file.size else self.offset(index))

    def remove(self, index: int) -> None:
        """There is no L2 table *index* any more; the caller drops its references."""
        self._tables.pop(index, None)
        self._dirty.discard(index)
        if self.l1[index]:
            self.l1[index] = 0
            self.l1_dirty.add(index)

    def _absent(self, index: int) -> bool:
        return not self.has(index)

    def _absent_to(self, index: int, end: int) -> int:
        """The first table from *index* on that is there; *end* where none before is."""
        new = sorted(one for one in self._dirty if index <= one < end)  # the L1 table may not have them yet
        while index < end and self._absent(index):
            index = min(self.l1.zeros(index + 1, end), end)
            while new and new[0] < index:
                first = new.pop(0)
                if self.has(first):
                    return first
        return index

    def _read(self, first: int, last: int) -> array[int]:
        """The entries of tables *first* to *last*, which all exist, one after the other."""
        if last - first == 1:
            table = self.get(first)
            assert table is not None
            return table.entries
        result: array[int] = array("Q")
        index = first
        while index < last:
            cached = self._tables.get(index)
            if cached is not None:
                result.extend(cached.entries)
                index += 1
                continue
            begin, offset = index, self.offset(index)
            while (
                index < last
                and index not in self._tables
                and self.offset(index) == offset + (index - begin) * self.cluster_size
            ):
                index += 1
            count = (index - begin) * self.cluster_size // 8
            result.extend(tables.read(self.file, offset, count, 8, "big"))
        return result

    def _keep(self, index: int, table: Table) -> None:
        self._tables[index] = table
        most = max(CACHE_BYTES // self.cluster_size, 2)
        if len(self._tables) > most + len(self._dirty):
            for old in list(self._tables)[: len(self._tables) // 4 + 1]:
                if old not in self._dirty and old != index:
                    del self._tables[old]
        self._tell()

    def _tell(self) -> None:
        self.file.account.hold(self, len(self._tables) * self.cluster_size)

    def shrink(self) -> None:
        """See :class:`diskmill.contract.limits.Cache`."""
        if self._lock.acquire(blocking=False):
            try:
                for old in [old for old in self._tables if old not in self._dirty]:
                    del self._tables[old]
                self._tell()
            finally:
                self._lock.release()

    # -- writing ------------------------------------------------------------------------------------------------

    def unplaced(self) -> list[Table]:
        """Tables that need a place in the file, in guest order."""
        return [self._tables[index] for index in sorted(self._dirty) if not self._tables[index].offset]

    def write_origins(self, unplaced: Sequence[Table]) -> None:
        """Let tables that just got their places hold what the disk has in their stead, before the L1 table names them.

        The changes go there afterwards. So an L2 table that nothing names and that says where data is was never left by
        a crash: it is the mark of a damaged L1 table.
        """
        try:
            for table in unplaced:
                origin = tables.filled(self.cluster_size // 8, 8) if table.origin is None else table.origin
                self.file.event("l2_alloc_write")
                self.file.write(table.offset, tables.to_bytes(origin, "big"))
        except BaseException:
            for table in unplaced:  # nothing may name what does not hold its origin
                table.offset = 0
            raise
        for table in unplaced:
            table.origin = None

    def link(self, indexes: Iterable[int] | None = None) -> None:
        """Let the L1 table, in memory, name every table that changed, or those of *indexes*."""
        for index in self._dirty if indexes is None else indexes:
            entry = self._tables[index].offset | c.COPIED
            if self.l1[index] != entry:
                self.l1[index] = entry
                self.l1_dirty.add(index)

    def write_tables(self) -> None:
        """Write what changed of the L2 tables."""
        parts: list[bytes] = []
        start = end = size = 0
        if self._dirty:
            self.file.event("l2_update")
        for index in sorted(self._dirty, key=lambda one: self._tables[one].offset):
            table = self._tables[index]
            if table.dirty:
                # Whole sectors: no more can be hoped to be written at once, and no less is.
                low, high = table.low & ~63, min((table.high + 63) & ~63, len(table.entries))
                at = table.offset + low * 8
                if parts and (at != end or size >= _READ_BYTES):
                    self.file.write(start, b"".join(parts))
                    parts, size = [], 0
                if not parts:
                    start = at
                parts.append(tables.to_bytes(table.entries[low:high], "big"))
                size += (high - low) * 8
                end = at + (high - low) * 8
        if parts:
            self.file.write(start, b"".join(parts))
        for index in self._dirty:  # only now: after a write that failed, all are still to be written
            table = self._tables[index]
            table.low, table.high = len(table.entries), 0
        self._dirty.clear()

    def write_l1(self) -> None:
        """Write what changed of the L1 table."""
        for low, high in _stretches(sorted(self.l1_dirty), 512):
            self.file.event("l1_update")
            self.file.write(self.l1_offset + low * 8, tables.to_bytes(self.l1.part(low, high), "big"))
        self.l1_dirty.clear()
        self.l1.written()

    def move_l1(self, offset: int, entries: int) -> None:
        """The L1 table is at *offset* from now on, with as many *entries*, all on disk."""
        self.l1, self.l1_offset = L1(self.file, offset, entries), offset
        self.l1_dirty.clear()

    def forget(self) -> None:
        """Drop every table from memory: the L1 table was replaced."""
        if self._dirty:
            raise RuntimeError("there are tables that were not written")
        self._tables.clear()


def _stretches(indexes: list[int], gap: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of the groups of sorted *indexes* that lie less than *gap* apart."""
    start = previous = -1
    for index in indexes:
        if start >= 0 and index - previous >= gap:
            yield start, previous + 1
            start = index
        elif start < 0:
            start = index
        previous = index
    if start >= 0:
        yield start, previous + 1


def compressed_place(cluster_bits: int, entry: int) -> tuple[int, int]:
    """Byte offset and bytes, to the end of the last sector, that a compressed cluster descriptor names."""
    shift = 62 - (cluster_bits - 8)
    host = entry & ((1 << shift) - 1) & ((1 << 56) - 1)
    sectors = (entry >> shift & ((1 << (62 - shift)) - 1)) + 1
    return host, sectors * 512 - (host & 511)


def compressed_entry(cluster_bits: int, host: int, stored: int) -> int:
    """The compressed cluster descriptor for *stored* bytes at offset *host*."""
    shift = 62 - (cluster_bits - 8)
    sectors = (host + stored - 1) // 512 - host // 512
    return c.COMPRESSED | sectors << shift | host
