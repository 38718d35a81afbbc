"""The L1 table and the L2 tables: read many at a time, kept in bounded memory, written by the changed part.

Source: the specification's sections "Cluster mapping" and "Extended L2 Entries". A table here is an array of the
64-bit words that the disk has: one an entry, or two with extended L2 entries.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from diskmill import tables
from diskmill.errors import ImageError
from diskmill.sizes import MiB

from . import c_qcow2 as c

if TYPE_CHECKING:
    from diskmill.node import Node

    from .header import Header

CACHE_BYTES = 16 * MiB
"""How much of L2 tables is kept in memory."""
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


class Mapping:
    """The active L1 table and the L2 tables that it names.

    Not thread-safe: callers hold the image's lock.
    """

    def __init__(
        self, file: Node, header: Header, name: str, l1_offset: int | None = None, l1_size: int | None = None
    ) -> None:
        self.file = file
        self.name = name
        self.cluster_size = header.cluster_size
        self.words = 2 if header.extended_l2 else 1
        self.count = header.l2_entries
        """Entries of an L2 table."""
        self.l1_offset = header.l1_table_offset if l1_offset is None else l1_offset
        entries = header.l1_size if l1_size is None else l1_size
        self.l1 = tables.read(file, self.l1_offset, entries, 8, "big")
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
        if offset and (offset % self.cluster_size or offset >= self.file.size):
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

    def batches(self, first: int, last: int) -> Iterator[tuple[int, int, array[int] | None]]:
        """Entries of guest clusters *first* to *last*: (cluster, count, words or None where there is no table).

        The words are a copy. Neighbouring tables come together.
        """
        most = max(_READ_BYTES // self.cluster_size, 1)
        index, end = first // self.count, -(-last // self.count)
        while index < end:
            begin = index
            if self._absent(index):
                while index < end and self._absent(index):
                    index += 1
                entries = None
            else:
                while index < end and index - begin < most and not self._absent(index):
                    index += 1
                entries = self._read(begin, index)
            low, high = max(first, begin * self.count), min(last, index * self.count)
            if entries is not None:
                entries = entries[(low - begin * self.count) * self.words : (high - begin * self.count) * self.words]
            yield low, high - low, entries

    def has(self, index: int) -> bool:
        """Whether there is an L2 table *index*."""
        return bool(self.l1[index] & c.OFFSET_MASK) or index in self._tables

    def remove(self, index: int) -> None:
        """There is no L2 table *index* any more; the caller drops its references."""
        self._tables.pop(index, None)
        self._dirty.discard(index)
        if self.l1[index]:
            self.l1[index] = 0
            self.l1_dirty.add(index)

    def _absent(self, index: int) -> bool:
        return not self.has(index)

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
        if len(self._tables) <= most + len(self._dirty):
            return
        for old in list(self._tables)[: len(self._tables) // 4 + 1]:
            if old not in self._dirty and old != index:
                del self._tables[old]

    # -- writing ------------------------------------------------------------------------------------------------

    def homeless(self) -> list[Table]:
        """Tables that need a place in the file, in guest order."""
        return [self._tables[index] for index in sorted(self._dirty) if not self._tables[index].offset]

    def write_origins(self, homeless: Sequence[Table]) -> None:
        """Let tables that just got their places hold what the disk has in their stead, before the L1 table names them.

        The changes go there afterwards. So an L2 table that nothing names and that says where data is was never left by
        a crash: it is the mark of a damaged L1 table.
        """
        try:
            for table in homeless:
                origin = tables.filled(self.cluster_size // 8, 8) if table.origin is None else table.origin
                self.file.write(table.offset, tables.to_bytes(origin, "big"))
        except BaseException:
            for table in homeless:  # nothing may name what does not hold its origin
                table.offset = 0
            raise
        for table in homeless:
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
            self.file.write(self.l1_offset + low * 8, tables.to_bytes(self.l1[low:high], "big"))
        self.l1_dirty.clear()

    def forget(self) -> None:
        """Drop every table from memory: the L1 table was replaced."""
        assert not self._dirty
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
