"""Host clusters: their reference counts, and which are free.

Source: the specification's section "Host cluster management". Allocation is cheap: it takes from a run of free
clusters and notes what it took; the refcount blocks hear of it when they are written. Freed clusters come back only
after everything that pointed to them has left the disk.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from diskmill.errors import ImageError, UnsupportedError
from diskmill.kit import tables
from diskmill.sizes import SECTOR, MiB, round_up

from . import c_qcow2 as c
from .bounds import misplaced

if TYPE_CHECKING:
    from diskmill.contract.node import Node

    from .header import Header

CACHE_BYTES = 8 * MiB
"""How much of refcount blocks is kept in memory (as arrays with at least a byte an entry)."""
_MOST_SPARE = 1 << 16
"""Runs of freed clusters that are remembered; beyond, the refcount blocks are searched again."""
_FOREVER = 1 << 62
FIRST_FREE = 3
"""Of a new image: the first cluster behind header, refcount table and first refcount block."""

_CODES = {1: "B", 2: "B", 4: "B", 8: "B", 16: "H", 32: "I", 64: "Q"}


class Block:
    """One refcount block in memory. Dirty where low < high; *new* where the file has none yet."""

    __slots__ = ("counts", "high", "low", "new", "offset")

    def __init__(self, counts: array[int], offset: int, *, new: bool) -> None:
        self.counts = counts
        self.offset = offset
        self.new = new
        self.low, self.high = len(counts), 0

    def mark(self, low: int, high: int) -> None:
        """Entries *low* to *high* were changed."""
        self.low = min(self.low, low)
        self.high = max(self.high, high)


class Refcounts:
    """The refcount table, its blocks, and the allocator over them.

    Not thread-safe: callers hold the image's lock.

    :param first: for an image that nobody has seen yet, the first free cluster; all after it are free, and the third
        one is for the first refcount block. None: the image is on disk.
    :param expected: as many entries the refcount table is to have, at least, if it grows.
    """

    def __init__(self, file: Node, header: Header, name: str, *, first: int | None = None, expected: int = 0) -> None:
        self.file = file
        self.header = header
        self.name = name
        self.cluster_size = header.cluster_size
        self.bits = header.refcount_bits
        self.maximum = (1 << self.bits) - 1
        self.per_block = self.cluster_size * 8 // self.bits
        count = header.refcount_table_clusters * self.cluster_size // 8
        self.offset = header.refcount_table_offset
        self.expected = expected
        self.table_moved = False
        self.table_dirty: set[int] = set()
        self._blocks: OrderedDict[int, Block] = OrderedDict()
        self._taken: deque[list[int]] = deque()  # allocated runs [start, end) that no block has heard of
        self._more: dict[int, int] = {}  # references to add to clusters, beside the first that a run stands for
        self._dropped: list[tuple[int, int]] = []  # (cluster, count): references to remove, last of all
        self._spare: list[tuple[int, int]] = []  # free runs [start, end) known
        self._searched = 0  # clusters below were offered by the search; those above are still to come
        self._at = self._end = 0
        self._packed = 0
        self._packed_references = 0
        self._guard: array[int] = array("Q")
        self.damaged: Callable[[], None] = lambda: None
        """Called when metadata contradicts itself, before the error."""
        if first is None:
            file.event("reftable_load")
            self.table = tables.read(file, self.offset, count, 8, "big")
            self._search: Iterator[tuple[int, int]] = self._free_runs(0)
        else:
            self.table = tables.filled(count, 8)
            self._new_block(0, FIRST_FREE - 1)
            self._taken.append([0, first])
            self._searched = first
            self._search = iter([(first, _FOREVER)])

    # -- allocating ---------------------------------------------------------------------------------------------

    @property
    def changed(self) -> bool:
        """Whether a flush has anything to write."""
        return bool(self._taken or self._more or self._dropped or self.table_dirty or self.table_moved)

    @property
    def crowded(self) -> bool:
        """Whether so much is noted that it is time to flush."""
        return len(self._taken) + len(self._more) + len(self._dropped) > 100_000

    def allocate(self, count: int) -> list[tuple[int, int]]:
        """*count* clusters with a refcount of 1: (first, number) of each run."""
        runs = []
        while count:
            if self._at == self._end:
                self._next_run()
            taken = min(count, self._end - self._at)
            runs.append((self._at, taken))
            self._take(taken)
            count -= taken
        return runs

    def allocate_together(self, count: int) -> int:
        """The first of *count* neighbouring clusters with a refcount of 1."""
        skipped = []
        while self._end - self._at < count:
            if self._at < self._end:
                skipped.append((self._at, self._end))
            self._next_run()
        first = self._at
        self._take(count)
        self._spare.extend(skipped)
        return first

    def allocate_bytes(self, sizes: Iterable[int]) -> list[int]:
        """Byte offsets for compressed clusters of *sizes* bytes, packed one behind the other.

        A host cluster gets one reference for each compressed cluster that has a sector in it.
        """
        offsets, size_of = [], self.cluster_size
        for size in sizes:
            used = self._packed % size_of
            cluster = self._packed // size_of
            if used and self._packed_references < self.maximum:
                follows = self._at == cluster + 1 and self._at < self._end
                if size <= size_of - used:
                    offset = self._packed
                elif follows and self.maximum > 1:
                    offset = self._packed
                    self._take(1)
                else:
                    offset = 0
            else:
                offset = 0
            if offset:
                self._more[cluster] = self._more.get(cluster, 0) + 1
                self._packed_references += 1
            else:
                offset = self.allocate(1)[0][0] * size_of
                cluster = offset // size_of
                self._packed_references = 1
            last = (round_up(offset + size, SECTOR) - 1) // size_of
            if last != cluster:
                self._packed_references = 1
            self._packed = offset + size
            if offset >= 1 << (62 - (self.header.cluster_bits - 8)):
                raise UnsupportedError("the image is too large for another compressed cluster", file=self.name)
            offsets.append(offset)
        return offsets

    def _take(self, count: int) -> None:
        start = self._at
        self._at += count
        if self._taken and self._taken[-1][1] == start:
            self._taken[-1][1] = self._at
        else:
            self._taken.append([start, self._at])

    def _next_run(self) -> None:
        """Take the next run of free clusters: freed ones first, then those that the search finds."""
        while True:
            searching = not self._spare
            try:
                start, end = next(self._search) if searching else self._spare.pop()
                if end == _FOREVER and start >> (55 - self.header.cluster_bits):
                    raise UnsupportedError("the image file is full: host offsets have 56 bits", file=self.name)
                self.refuse_metadata(start, end, "a cluster that is marked as free")
            except BaseException:
                # A generator that failed is at its end, and so is one whose last run is refused.
                self._search = self._free_runs(self._searched)
                raise
            if searching:
                self._searched = end
            if start < end:
                self._at, self._end = start, end
                return

    def _free_runs(self, first: int) -> Iterator[tuple[int, int]]:
        """The runs of clusters from *first* on with a refcount of 0, in order; the last has no end."""
        index = first // self.per_block - 1
        while index + 1 < len(self.table):
            index += 1
            base = index * self.per_block
            at = max(first - base, 0)
            if not self.table[index]:
                yield base + at, base + self.per_block
                continue
            counts = self.block(index).counts
            while at < len(counts):
                try:
                    at = counts.index(0, at)
                except ValueError:
                    break
                end = at + 1
                step = 1
                while end < len(counts):  # in growing steps, for a block that is mostly free
                    part = counts[end : end + step]
                    if part != array(part.typecode, bytes(len(part) * part.itemsize)):
                        if step == 1:
                            break
                        step = 1
                        continue
                    end += len(part)
                    step = min(step * 2, 4096)
                yield base + at, base + end
                at = end
        yield max(len(self.table) * self.per_block, first), _FOREVER

    # -- what must not be overwritten ---------------------------------------------------------------------------

    def protect(self, clusters: Iterable[int]) -> None:
        """Remember the host clusters that hold metadata: a damaged image may offer them for data."""
        self._guard = array("Q", sorted(clusters))

    def refuse_metadata(self, start: int, end: int, what: str) -> None:
        """Host clusters *start* to *end* are about to be written as guest data.

        :raises ImageError: they hold metadata.
        """
        index = bisect_left(self._guard, start)
        if index < len(self._guard) and self._guard[index] < end:
            raise self._damage(
                f"{what} holds metadata: the image is damaged, check it",
                f"offset {self._guard[index] * self.cluster_size}",
            )

    def _damage(self, cause: str, place: str) -> ImageError:
        self.damaged()
        return ImageError(cause, file=self.name, place=place)

    def _unprotect(self, start: int, end: int) -> None:
        low, high = bisect_left(self._guard, start), bisect_left(self._guard, end)
        del self._guard[low:high]

    # -- giving back --------------------------------------------------------------------------------------------

    def drop_metadata(self, cluster: int, count: int = 1) -> None:
        """As :meth:`drop`, for metadata that was moved: its old place may hold data again."""
        self._unprotect(cluster, cluster + count)
        self.drop(cluster, count)

    def drop(self, cluster: int, count: int = 1) -> None:
        """Remove one reference from each of *count* clusters, when nothing on disk points to them any more."""
        if self._dropped:
            first, number = self._dropped[-1]
            if first + number == cluster:
                self._dropped[-1] = (first, number + count)
                return
        self._dropped.append((cluster, count))

    def dropped(self) -> list[tuple[int, int]]:
        """The runs of clusters that lost a reference since this was asked last: :meth:`release` removes it."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def release(self, dropped: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Remove references that were dropped: (first, number) of the runs of clusters that became free.

        The caller made sure that nothing on disk points to them, and writes the blocks afterwards.
        """
        freed: list[list[int]] = []
        for start, count in dropped:
            end = start + count
            while start < end:
                index, at = divmod(start, self.per_block)
                number = min(end - start, self.per_block - at)
                for low, high in self._decrease(self.block(index), at, at + number):
                    first, last = index * self.per_block + low, index * self.per_block + high
                    if first <= self._packed // self.cluster_size < last:
                        self._packed = 0
                    if freed and freed[-1][1] == first:
                        freed[-1][1] = last
                    else:
                        freed.append([first, last])
                start += number
        return [(start, end - start) for start, end in freed]

    def _decrease(self, block: Block, low: int, high: int) -> Iterator[tuple[int, int]]:
        """One less for entries *low* to *high* of *block*; the stretches (start, end) of those that are 0 now."""
        counts = block.counts
        block.mark(low, high)
        for run in tables.runs(counts[low:high], 0):
            start, end = low + run.at, low + run.at + run.length
            if not run.value:
                raise self._damage(
                    "a cluster in use has no references: the image is damaged, check it",
                    f"refcount entry {start} of the block at offset {block.offset}",
                )
            tables.fill_run(counts, start, run.length, run.value - 1, 0)
            if run.value == 1:
                yield start, end

    def offer(self, freed: Iterable[tuple[int, int]]) -> None:
        """Clusters that :meth:`release` freed may be used again: the disk knows."""
        for start, count in freed:
            end = min(start + count, self._searched)  # the search will come to those above
            if start < end:
                self._spare.append((start, end))
        if self._spare and self._at < self._end:
            # What was freed is used before the file grows.
            self._spare.insert(0, (self._at, self._end))
            self._at = self._end = 0
        if len(self._spare) > _MOST_SPARE:
            # Forget them all and look for free clusters from the start: every allocation is in the blocks by now.
            if self._taken:
                raise RuntimeError("there are allocations that no refcount block has")
            self._spare.clear()
            self._at = self._end = self._searched = 0
            self._search = self._free_runs(0)

    # -- blocks -------------------------------------------------------------------------------------------------

    def count(self, cluster: int) -> int:
        """The reference count of *cluster*, as far as the blocks have heard."""
        index = cluster // self.per_block
        if index >= len(self.table) or not self.table[index]:
            return 0
        return self.block(index).counts[cluster % self.per_block]

    def last(self) -> int:
        """The last cluster that has references, as far as the blocks have heard."""
        for index in reversed(range(len(self.table))):
            if self.table[index]:
                counts = self.block(index).counts
                used = len(counts.tobytes().rstrip(b"\0"))
                if used:
                    return index * self.per_block + (used - 1) // counts.itemsize
        return 0

    def block(self, index: int) -> Block:
        """Refcount block *index*, which exists.

        :raises ImageError: the refcount table has an impossible entry.
        """
        block = self._blocks.get(index)
        if block is not None:
            return block
        offset = self.place(index)
        if not offset:
            raise self._misplaced(index, offset)
        self.file.event("refblock_load")
        data = self.file.read(offset, self.cluster_size)
        block = Block(unpack(data, self.bits), offset, new=False)
        self._keep(index, block)
        return block

    def place(self, index: int) -> int:
        """Where refcount block *index* is in the file; 0: there is none.

        :raises ImageError: the refcount table has an impossible entry.
        """
        offset = self.table[index] & c.REFTABLE_OFFSET_MASK if index < len(self.table) else 0
        if misplaced(offset, self.cluster_size, self.file.size):
            raise self._misplaced(index, offset)
        return offset

    def _misplaced(self, index: int, offset: int) -> ImageError:
        cause = f"it says that the refcount block is at offset {offset}"
        return ImageError(cause, file=self.name, place=f"refcount table entry {index}")

    def _keep(self, index: int, block: Block) -> None:
        most = max(CACHE_BYTES // (self.per_block * block.counts.itemsize), 2)
        while len(self._blocks) >= most:
            old = next(iter(self._blocks))
            self._write_block(self._blocks[old])
            del self._blocks[old]
        self._blocks[index] = block

    def _ensure(self, index: int) -> Block:
        if index < len(self.table) and self.table[index]:
            return self.block(index)
        if index >= len(self.table):
            self._grow_table(index + 1)
        return self._new_block(index, self.allocate(1)[0][0])

    def _new_block(self, index: int, cluster: int) -> Block:
        self.file.event("refblock_alloc")
        block = Block(array(_CODES[self.bits], bytes(self.per_block * max(self.bits // 8, 1))), 0, new=True)
        block.offset = cluster * self.cluster_size
        block.mark(0, self.per_block)
        self._keep(index, block)
        self.table[index] = block.offset
        self.table_dirty.add(index)
        return block

    def _grow_table(self, entries: int) -> None:
        """A longer refcount table, somewhere else; the old place is given back at the end."""
        self.file.event("reftable_grow")
        clusters = -(-max(entries, len(self.table) * 3 // 2, self.expected) * 8 // self.cluster_size)
        if clusters * self.cluster_size > c.MAX_REFTABLE_BYTES:
            clusters = -(-entries * 8 // self.cluster_size)
        if clusters * self.cluster_size > c.MAX_REFTABLE_BYTES:
            raise UnsupportedError("the image file is full: its refcount table cannot grow", file=self.name)
        old = self.offset // self.cluster_size
        old_clusters = len(self.table) * 8 // self.cluster_size
        self.offset = self.allocate_together(clusters) * self.cluster_size
        self.table.extend(tables.filled(clusters * self.cluster_size // 8 - len(self.table), 8))
        self.table_moved = True
        self.drop_metadata(old, old_clusters)

    def _increase(self, block: Block, at: int, number: int, change: int) -> None:
        """Add *change* to *number* entries of *block* from *at* on.

        :raises UnsupportedError: a refcount does not fit in refcount_bits; nothing is changed then.
        """
        part = block.counts[at : at + number]
        same = part == array(part.typecode, part[:1]) * number
        highest = (part[0] if same else max(part)) + change
        if highest > self.maximum:
            raise UnsupportedError(
                f"a cluster would have {highest} references, more than refcount_bits={self.bits} can count",
                file=self.name,
            )
        if same:
            tables.fill_run(block.counts, at, number, highest, 0)
        else:
            block.counts[at : at + number] = array(part.typecode, [value + change for value in part])
        block.mark(at, at + number)

    def apply(self) -> None:
        """Tell the blocks, in memory, what was allocated. What a failure leaves undone, the next call does."""
        while self._taken or self._more:
            while self._taken:
                run = self._taken[0]
                index, at = divmod(run[0], self.per_block)
                block = self._ensure(index)  # a new block takes a cluster: another run, or this one becomes longer
                number = min(run[1] - run[0], self.per_block - at)
                self._increase(block, at, number, 1)
                run[0] += number
                if run[0] == run[1]:
                    self._taken.popleft()
            while self._more:
                cluster, count = next(reversed(self._more.items()))
                index, at = divmod(cluster, self.per_block)
                self._increase(self._ensure(index), at, 1, count)
                del self._more[cluster]

    def write_blocks(self) -> None:
        """Write what changed of the blocks."""
        for block in self._blocks.values():
            self._write_block(block)

    def _write_block(self, block: Block) -> None:
        """Write what changed of *block*, in whole sectors."""
        if block.low >= block.high:
            return
        if block.new:
            low, high = 0, len(block.counts)
        else:
            sector = SECTOR * 8 // self.bits
            low = block.low // sector * sector
            high = min(-(-block.high // sector) * sector, len(block.counts))
        self.file.event("refblock_alloc_write" if block.new else "refblock_update_part")
        self.file.write(block.offset + low * self.bits // 8, pack(block.counts[low:high], self.bits))
        block.new = False
        block.low, block.high = len(block.counts), 0

    def write_table(self) -> None:
        """Write what changed of the refcount table; whole, where it moved."""
        if self.table_moved:
            self.file.event("refblock_alloc_write_table")
            self.file.write(self.offset, tables.to_bytes(self.table, "big"))
        elif self.table_dirty:
            low, high = min(self.table_dirty), max(self.table_dirty) + 1
            self.file.event("refblock_alloc_hookup")
            self.file.write(self.offset + low * 8, tables.to_bytes(self.table[low:high], "big"))
        self.table_dirty.clear()


def unpack(data: bytes | bytearray | memoryview, bits: int) -> array[int]:
    """The refcounts in *data*, *bits* wide each; at least a byte an entry in memory."""
    if bits >= 8:
        counts = array(_CODES[bits])
        counts.frombytes(data)
        if bits > 8 and sys.byteorder == "little":
            counts.byteswap()
        return counts
    # Bit 0 is the least significant: within a byte, entries go upwards from there.
    mask, table = (1 << bits) - 1, []
    for byte in range(256):
        table.append(bytes(byte >> shift & mask for shift in range(0, 8, bits)))
    return array("B", b"".join(map(table.__getitem__, data)))


def pack(counts: array[int], bits: int) -> bytes:
    """*counts* as the disk has them; their number is a whole number of bytes."""
    if bits >= 8:
        return tables.to_bytes(counts, "big") if bits > 8 else counts.tobytes()
    whole = counts.tobytes()
    per_byte = 8 // bits
    value = int.from_bytes(whole[0::per_byte], "little")
    for index in range(1, per_byte):
        value |= int.from_bytes(whole[index::per_byte], "little") << (index * bits)
    return value.to_bytes(len(whole) // per_byte, "little")
