"""Consistency: every reference is counted and held against the refcounts on disk.

Tables are looked at many at a time, with numpy; a table that several snapshots share is looked at once. What counts
as a corruption, and the figures, are those of ``qemu-img check``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from diskmill.contract.limits import READ_PER_WORK, Meter
from diskmill.contract.results import CheckResult, Finding
from diskmill.errors import DiskmillError
from diskmill.sizes import MiB

from . import bitmaps, snapshots
from . import c_qcow2 as c
from .bounds import compressed_misplaced, misplaced, unaligned
from .header import Header
from .recount import CHUNK, Counts, Marks, Room, chunks_of, unpack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .image import Qcow2Image


_BATCH = 1 * MiB
"""Bytes of L2 tables looked at together."""
_PART = 1 << 18
"""Entries of an L1 table that are looked at together."""
_MOST_FINDINGS = 1000
"""Findings that are told in words; the rest are only counted."""


def check(image: Qcow2Image) -> CheckResult:
    """Look through all of *image*'s metadata."""
    with image.lock:
        if image.writable:
            image.flush()
        checker = Checker(image)
        checker.run()
        return checker.result


class _Weights:
    """L2 tables by offset, and how many L1 entries name each."""

    def __init__(self) -> None:
        self._offsets = np.zeros(0, np.uint64)
        self._weights = np.zeros(0, np.int64)

    def add(self, table: NDArray[Any], times: int) -> None:
        """Count the entries of an L1 *table* that there are so many *times*."""
        offsets, weights = np.unique(table & np.uint64(c.OFFSET_MASK), return_counts=True)
        used = offsets > 0
        offsets, weights = offsets[used], weights[used] * times
        if not len(self._offsets):
            self._offsets, self._weights = offsets, weights
        elif len(offsets):
            both, which = np.unique(np.concatenate((self._offsets, offsets)), return_inverse=True)
            together = np.zeros(len(both), np.int64)
            np.add.at(together, which, np.concatenate((self._weights, weights)))
            self._offsets, self._weights = both, together

    def result(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Offsets, ascending, and how often each is named."""
        return self._offsets, self._weights


class Checker:
    """One run of the check.

    :param table: the snapshot table's entries and its length in bytes; None: to be read.
    :ivar room: the memory for what is known of each cluster.
    :ivar counts: the references found to each cluster.
    :ivar flags: how many of the corruptions are COPIED flags that contradict the stored refcounts.
    :ivar surplus: whether a cluster in use is counted too often.
    :ivar lost: which clusters are counted, but nothing refers to them.
    :ivar beyond: clusters behind the end of the file to which something refers.
    """

    def __init__(self, image: Qcow2Image, table: tuple[list[snapshots.Entry], int] | None = None) -> None:
        self.image = image
        self.file = image.file
        self.header: Header = image.header
        self.size = image.unit
        self.bits = self.header.cluster_bits
        self.file_clusters = -(-self.file.size // self.size)
        self.result = CheckResult(filename=image.name, format="qcow2")
        self.room = Room(image.file, self.size, image.name)
        self.counts = Counts(self.room)
        self.single: Marks | None = None  # which clusters have a refcount of 1 on disk
        self.reftable: NDArray[Any] = np.zeros(0, np.uint64)
        self.per_block = self.size * 8 // self.header.refcount_bits
        self.highest = 0
        self.entries = None if table is None else table[0]
        self.snapshot_bytes = 0 if table is None else table[1]
        self.l2_reserved = np.uint64(c.L2_RESERVED_MASK | (c.ZERO if self.header.version < 3 else 0))
        """Bits that a standard cluster descriptor must not have; QEMU reads no version 2 that has the zero flag."""
        self.flags = 0
        self.surplus = False
        self.lost = Marks(self.room)
        self.beyond: list[NDArray[Any]] = []

    def run(self) -> None:
        """Count everything, then compare."""
        result, header = self.result, self.header
        result.total_clusters = -(-header.size // self.size)
        result.allocated_clusters = result.fragmented_clusters = result.compressed_clusters = 0
        self._read_reftable()
        self._count(0, self.size, "header")
        self._count_guest()
        if header.nb_snapshots:
            self._count(header.snapshots_offset, self.snapshot_bytes, "snapshot table")
        crypto = header.extension(c.EXT_CRYPTO_HEADER)
        if crypto is not None and header.crypt_method > c.CRYPT_AES:
            place = c.CRYPTO_HEADER.unpack(crypto)
            self._count(place.offset, place.length, "encryption header")
        self._count_bitmaps()
        self._count(header.refcount_table_offset, header.refcount_table_clusters * self.size, "refcount table")
        self._count_blocks()
        self._compare()
        result.image_end_offset = (self.highest + 1) * self.size

    def corruption(self, text: str, count: int = 1) -> None:
        """Data is wrong or lost."""
        self.result.corruptions += count
        self._find("corruption", text, count)

    def tell(self, text: str) -> None:
        """What a repair does."""
        self._find("corruption", text, 0)

    def _find(self, kind: str, text: str, count: int) -> None:
        if len(self.result.findings) < _MOST_FINDINGS:
            # A name that came out of an image may hold terminal escapes.
            text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
            self.result.findings.append(Finding(kind, text, count))

    # -- refcounts on disk --------------------------------------------------------------------------------------

    def _read_reftable(self) -> None:
        length = self.header.refcount_table_clusters * self.size
        raw = self.file.read(self.header.refcount_table_offset, length)
        self.reftable = np.frombuffer(raw, ">u8").astype(np.uint64)

    def blocks(self) -> Iterator[tuple[int, NDArray[Any]]]:
        """(first cluster, refcounts) of every block that can be read and counts clusters inside the file.

        :raises LimitError: the table names more blocks than the file can hold.
        """
        meter = Meter(self.file)
        most = -(-self.file_clusters // self.per_block)
        together = max(_BATCH // self.size, 1)
        index, end = 0, min(most, len(self.reftable))
        while index < end:
            offset = int(self.reftable[index]) & c.REFTABLE_OFFSET_MASK
            if not self._readable(offset):
                index += 1
                continue
            upto = index + 1
            while (
                upto < end
                and upto - index < together
                and int(self.reftable[upto]) == int(self.reftable[index]) + (upto - index) * self.size
            ):
                upto += 1
            meter.add((upto - index) * (self.size // 64 >> READ_PER_WORK - 6) + 1)
            raw = self.file.read(offset, (upto - index) * self.size)
            counts = unpack(np.frombuffer(raw, np.uint8), self.header.refcount_bits)
            yield index * self.per_block, counts[: self.file_clusters - index * self.per_block]
            index = upto

    def _readable(self, offset: int) -> bool:
        return bool(offset) and not misplaced(offset, self.size, self.file.size)

    def _single(self, clusters: NDArray[Any]) -> NDArray[Any]:
        """Which of *clusters*, all inside the file, have a refcount of 1 on disk."""
        if self.single is None:
            self.single = Marks(self.room)
            for first, counts in self.blocks():
                self.single.put(first, counts == 1)
        return self.single.which(clusters)

    # -- counting -----------------------------------------------------------------------------------------------

    def _count(self, offset: int, length: int, what: str) -> None:
        """A reference to each cluster that the bytes *offset* to *offset + length* are in."""
        if not length:
            return
        if offset + length - self.file.size >= self.size:
            self.corruption(f"{what}: {length} bytes at offset {offset} lie beyond the end of the file")
            return
        first, last = offset // self.size, (offset + length - 1) // self.size
        self.counts.add_range(first, last - first + 1)

    def _count_guest(self) -> None:
        """The L1 tables and everything below them."""
        header = self.header
        active = self._l1(header.l1_table_offset, header.l1_size, "L1 table")
        found = _Weights()
        found.add(active, 1)
        in_use, times = found.result()
        if header.nb_snapshots:
            self._count_snapshots(found)
        offsets, weights = found.result()
        self._count_tables(offsets, weights)
        self._check_l1_flags(active)
        which = np.searchsorted(in_use, offsets)
        which[which >= len(in_use)] = 0
        actives = np.where(in_use[which] == offsets, times[which], 0) if len(in_use) else np.zeros(len(offsets), int)
        readable = (offsets < self.file.size) & (offsets & np.uint64(511) == 0)
        self._count_l2(offsets[readable], weights[readable], actives[readable])

    def _count_snapshots(self, found: _Weights) -> None:
        """The L1 tables of the snapshots; one that several have is read once.

        :raises LimitError: they claim more tables than the file can hold.
        """
        if self.entries is None:
            self.entries, self.snapshot_bytes = snapshots.read_table(self.file, self.header, self.image.name)
        meter = Meter(self.file)
        places: dict[tuple[int, int], list[str]] = {}
        for entry in self.entries:
            what = f"L1 table of snapshot {entry.id} ({entry.name})"
            if entry.l1_table_offset % self.size:
                self.corruption(f"{what}: offset {entry.l1_table_offset} is not at a cluster boundary")
            elif entry.l1_size * 8 > c.MAX_L1_BYTES:
                self.corruption(f"{what}: {entry.l1_size} entries are too many")
            else:
                places.setdefault((entry.l1_table_offset, entry.l1_size), []).append(what)
        for (offset, entries), names in places.items():
            meter.add((entries * 8 >> READ_PER_WORK) + 1)
            table = self._l1(offset, entries, names[0])
            found.add(table, len(names))
            reserved = int(np.count_nonzero(table & np.uint64(c.L1_RESERVED_MASK)))
            for what in names[1:]:
                meter.add((entries * 8 >> self.bits) + 1)
                self._count(offset, entries * 8, what)
                if reserved:
                    self.corruption(f"{what}: {reserved} entries have reserved bits set", reserved)

    def _l1(self, offset: int, entries: int, what: str) -> NDArray[Any]:
        self._count(offset, entries * 8, what)
        raw = self.file.read(offset, entries * 8) if offset < self.file.size else b""
        table = np.frombuffer(raw, ">u8").astype(np.uint64)
        reserved = np.flatnonzero(table & np.uint64(c.L1_RESERVED_MASK))
        for index in reserved.tolist():
            self.corruption(f"{what}: entry {index} has reserved bits set")
        # Readers pass over such an entry; whoever counts references takes the header for its table.
        for index in np.flatnonzero(table == np.uint64(c.COPIED)).tolist():
            self.corruption(f"{what}: entry {index} has the copied flag, and no table")
        return table

    def _count_tables(self, offsets: NDArray[Any], weights: NDArray[Any]) -> None:
        """Count the clusters of L2 tables at *offsets*, each named *weights* times by L1 tables."""
        beyond = offsets >= self.file.size
        for offset, weight in zip(offsets[beyond].tolist(), weights[beyond].tolist(), strict=True):
            self.corruption(f"L2 table at offset {offset} lies beyond the end of the file", weight)
        uneven = unaligned(offsets, self.size)
        for offset, weight in zip(offsets[uneven].tolist(), weights[uneven].tolist(), strict=True):
            self.corruption(f"L2 table at offset {offset} is not at a cluster boundary", weight)
        self.beyond.append(offsets[beyond & ~uneven] >> np.uint64(self.bits))
        inside = offsets[~beyond] >> np.uint64(self.bits)
        for weight in np.unique(weights[~beyond]).tolist():
            self.counts.add(inside[weights[~beyond] == weight], weight)

    def _check_l1_flags(self, table: NDArray[Any]) -> None:
        for at in range(0, len(table), _PART):
            self._check_flags_from(at, table[at : at + _PART])

    def _check_flags_from(self, first: int, table: NDArray[Any]) -> None:
        """Hold the COPIED flags of *table*, L1 entries from entry *first* on, against refcounts on disk."""
        used = np.flatnonzero(table & np.uint64(c.OFFSET_MASK))
        entries = table[used]
        used = used + first
        offsets = entries & np.uint64(c.OFFSET_MASK)
        inside = offsets < self.file.size
        used, entries, offsets = used[inside], entries[inside], offsets[inside]
        copied = entries >> np.uint64(63) == 1
        wrong = self._single(offsets >> np.uint64(self.bits)) != copied
        number = int(np.count_nonzero(wrong))
        self.flags += number
        self.result.corruptions += number
        told = np.flatnonzero(wrong)[:_MOST_FINDINGS]  # of millions, no more become Python's numbers
        for index, entry in zip(used[told].tolist(), entries[told].tolist(), strict=True):
            self._find("corruption", f"L1 entry {index} ({entry:#x}) contradicts its refcount in the copied flag", 1)

    def _count_l2(self, offsets: NDArray[Any], weights: NDArray[Any], actives: NDArray[Any]) -> None:
        """Count what the L2 tables at *offsets* name: *weights* times each, *actives* of those from the active L1
        table."""
        together = max(_BATCH // self.size, 1)
        for at in range(0, len(offsets), together):
            part = slice(at, at + together)
            data = self.tables(offsets[part].tolist())
            entries = data.reshape(len(offsets[part]), -1)
            weight, active = weights[part], actives[part]
            for one in np.unique(weight).tolist():
                for live in np.unique(active[weight == one]).tolist():
                    rows = (weight == one) & (active == live)
                    self._count_entries(entries if bool(rows.all()) else entries[rows], one, live)

    def tables(self, offsets: list[int]) -> NDArray[Any]:
        """The words of the L2 tables at *offsets*, which ascend; neighbours are read at once."""
        raw = bytearray(len(offsets) * self.size)
        view = memoryview(raw)
        at = 0
        while at < len(offsets):
            upto = at + 1
            while upto < len(offsets) and offsets[upto] == offsets[upto - 1] + self.size:
                upto += 1
            self.file.read_into(offsets[at], view[at * self.size : upto * self.size])
            at = upto
        return np.frombuffer(raw, ">u8").astype(np.uint64)

    def _count_entries(self, words: NDArray[Any], weight: int, active: int) -> None:
        """The entries of whole L2 tables (a row each), which *weight* L1 entries name, *active* of them in use."""
        columns = words.shape[1]
        bitmap = None
        if self.header.extended_l2:
            columns //= 2
            bitmap = words[:, 1::2].ravel()
            words = words[:, 0::2]
        entries = words.ravel()
        if not entries.any() and (bitmap is None or not bitmap.any()):
            return
        hosts = entries & np.uint64(c.OFFSET_MASK)
        standard = hosts != 0
        if self.image.external:  # offset 0 is a cluster too, where the flag says so
            standard |= entries & np.uint64(c.COPIED) != 0
        compressed = np.False_
        if bool((entries & (self.l2_reserved | np.uint64(c.COMPRESSED))).any()):  # mostly there is neither
            compressed = entries & np.uint64(c.COMPRESSED) != 0
            standard &= ~compressed
            if compressed.any():
                subclusters = None if bitmap is None else bitmap[compressed]
                self._count_compressed(entries[compressed], subclusters, weight, active)
            reserved = (entries & self.l2_reserved != 0) & ~compressed
            self._each(entries, reserved, "L2 entry {:#x} has reserved bits set", weight)
        if bitmap is not None:
            allocated, zero = bitmap & np.uint64(c.ALL_ALLOCATED), bitmap >> np.uint64(32)
            broken = standard & (allocated & zero != 0)
            self._each(entries, broken, "L2 entry {:#x}: subclusters are both allocated and zero", weight)
            standard &= ~broken
            lost = ~standard & ~compressed & ~broken & (allocated != 0)
            self._each(entries, lost, "L2 entry {:#x} has allocated subclusters, but no cluster", weight)
        # Where each table begins in what is chosen.
        starts = np.arange(columns, len(entries), columns)
        if not standard.all():
            chosen = np.flatnonzero(standard)
            hosts, entries = hosts[chosen], entries[chosen]
            starts = np.searchsorted(chosen, starts)
        uneven = unaligned(hosts, self.size)
        self._each(hosts, uneven, "data cluster at offset {} is not at a cluster boundary", weight)
        if active:
            self._figures(hosts, starts, active)
        if self.image.external:
            return
        beyond = hosts >= self.file.size
        if beyond.any():
            self._each(hosts, beyond, "data cluster at offset {} lies beyond the end of the file", weight)
            self.beyond.append(hosts[beyond & ~uneven] >> np.uint64(self.bits))
        inside = hosts if not beyond.any() else hosts[~beyond]
        clusters = inside >> np.uint64(self.bits)
        self.counts.add(clusters, weight)
        if active:
            copied = (entries if len(inside) == len(entries) else entries[~beyond]) >> np.uint64(63) == 1
            wrong = self._single(clusters) != copied
            self.flags += int(np.count_nonzero(wrong)) * active
            self._each(inside, wrong, "data cluster at offset {} contradicts its refcount in the copied flag", active)
        crossing = uneven[~beyond]
        if crossing.any():  # it reaches into the next cluster
            self.counts.add(clusters[crossing] + np.uint64(1), weight)

    def _figures(self, hosts: NDArray[Any], starts: NDArray[Any], active: int) -> None:
        """What is told of the data clusters at *hosts*; at the indexes *starts* another table begins."""
        result = self.result
        assert result.allocated_clusters is not None and result.fragmented_clusters is not None
        result.allocated_clusters += len(hosts) * active
        apart = hosts[1:] != hosts[:-1] + np.uint64(self.size)
        apart[starts[(starts > 0) & (starts < len(hosts))] - 1] = False
        result.fragmented_clusters += int(np.count_nonzero(apart)) * active

    def _each(self, values: NDArray[Any], mask: NDArray[Any], text: str, count: int) -> None:
        if not mask.any():
            return
        found = values[mask]
        self.result.corruptions += len(found) * count
        # Neighbours are told together.
        apart = np.flatnonzero(found[1:] != found[:-1] + np.uint64(self.size)) + 1
        edges = np.concatenate(([0], apart, [len(found)]))[: _MOST_FINDINGS + 1].tolist()
        for low, high in itertools.pairwise(edges):
            more = f", and {high - low - 1} after it" if high - low > 1 else ""
            self._find("corruption", text.format(int(found[low])) + more, (high - low) * count)

    def _count_compressed(self, entries: NDArray[Any], bitmap: NDArray[Any] | None, weight: int, active: int) -> None:
        result = self.result
        if active:
            assert result.allocated_clusters is not None
            assert result.fragmented_clusters is not None and result.compressed_clusters is not None
            result.allocated_clusters += len(entries) * active
            result.compressed_clusters += len(entries) * active
            result.fragmented_clusters += len(entries) * active
        flagged = entries & np.uint64(c.COPIED) != 0
        self._each(entries, flagged, "compressed cluster {:#x} has the copied flag", weight)
        if bitmap is not None:
            self._each(entries, bitmap != 0, "compressed cluster {:#x} has a subcluster bitmap", weight)
            entries = entries[bitmap == 0]
        if self.image.external:
            self._each(entries, entries != 0, "compressed cluster {:#x} with an external data file", weight)
            return
        shift = 62 - (self.bits - 8)
        host = entries & np.uint64((1 << min(shift, 56)) - 1)
        sectors = (entries >> np.uint64(shift)) & np.uint64((1 << (62 - shift)) - 1)
        end = host + (sectors + np.uint64(1)) * np.uint64(512) - (host & np.uint64(511))
        beyond = compressed_misplaced(host, end, self.size, self.file.size)
        self._each(host, beyond, "compressed cluster at offset {} lies beyond the end of the file", weight)
        host, end = host[~beyond], end[~beyond]
        first, last = host >> np.uint64(self.bits), (end - np.uint64(1)) >> np.uint64(self.bits)
        while len(first):
            self.counts.add(first, weight)
            first = first + np.uint64(1)
            more = first <= last
            first, last = first[more], last[more]

    def _count_bitmaps(self) -> None:
        header, name = self.header, self.image.name
        try:
            where = bitmaps.directory(self.file, header, name)
            if where is None:
                return
            entries = bitmaps.read_directory(self.file, header, name)
        except DiskmillError as error:
            self.corruption(error.cause)
            return
        self._count(where.offset, where.length, "bitmap directory")
        for entry in entries:
            what = f"table of bitmap '{entry.name}'"
            self._count(entry.bitmap_table_offset, entry.bitmap_table_size * 8, what)
            for at in range(0, entry.bitmap_table_size, 65536):
                count = min(65536, entry.bitmap_table_size - at)
                raw = self.file.read(entry.bitmap_table_offset + at * 8, count * 8)
                words = np.frombuffer(raw, ">u8").astype(np.uint64)
                hosts = words & np.uint64(c.OFFSET_MASK)
                bad = words & np.uint64(0xFF000000000001FE) != 0
                bad |= (hosts != 0) & (words & np.uint64(1) != 0) | (hosts & np.uint64(self.size - 1) != 0)
                self._each(words, bad, what + ": entry {:#x} is impossible", 1)
                hosts = hosts[~bad & (hosts != 0)]
                beyond = hosts >= self.file.size
                self._each(hosts, beyond, what + ": offset {} lies beyond the end of the file", 1)
                self.counts.add(hosts[~beyond] >> np.uint64(self.bits), 1)

    def _count_blocks(self) -> None:
        used = np.flatnonzero(self.reftable)
        good = []
        for index, entry in zip(used.tolist(), self.reftable[used].tolist(), strict=True):
            if entry & (self.size - 1):
                self.corruption(f"refcount block {index} at offset {entry} is not at a cluster boundary")
            elif entry >= self.file.size:
                self.corruption(f"refcount block {index} at offset {entry} lies beyond the end of the file")
            else:
                good.append((index, entry >> self.bits))
        self.counts.add(np.array([cluster for _, cluster in good], np.uint64), 1)
        for index, cluster in good:
            count = self.counts.get(cluster)
            if count != 1:
                self.corruption(f"refcount block {index} at offset {cluster * self.size} has {count} references")

    # -- comparing ----------------------------------------------------------------------------------------------

    def _compare(self) -> None:
        """Stored refcounts against counted references, for every cluster in the file."""
        at = 0
        for first, stored in self.blocks():
            self._compare_missing(at, first)
            at = first + len(stored)
            for low, count in chunks_of(first, len(stored)):
                self._compare_slice(low, stored[low - first : low - first + count])
        self._compare_missing(at, self.file_clusters)

    def _compare_missing(self, first: int, last: int) -> None:
        """Clusters that no refcount block counts: every reference is one too many."""
        for index in sorted(self.counts.chunks):
            low, high = max(first, index * CHUNK), min(last, (index + 1) * CHUNK)
            if low < high:
                self._compare_slice(low, np.zeros(high - low, np.uint8))

    def _compare_slice(self, first: int, stored: NDArray[Any]) -> None:
        counted = self.counts.slice(first, len(stored))
        used = np.flatnonzero((stored != 0) | (counted != 0))
        if len(used):
            self.highest = max(self.highest, first + int(used[-1]))
        differ = np.flatnonzero(stored != counted)
        if not len(differ):
            return
        stored, counted = stored[differ], counted[differ]
        unreferenced = counted == 0
        if unreferenced.any():
            self.lost.add(differ[unreferenced] + first)
        leaks = int(np.count_nonzero(stored > counted))
        self.surplus |= leaks > int(np.count_nonzero(unreferenced))
        self.result.leaks += leaks
        self.result.corruptions += len(differ) - leaks
        # Neighbours that are wrong in the same way are told together.
        apart = (np.diff(differ) != 1) | (np.diff(stored) != 0) | (np.diff(counted) != 0)
        edges = np.concatenate(([0], np.flatnonzero(apart) + 1, [len(differ)]))[: _MOST_FINDINGS + 1].tolist()
        for low, high in itertools.pairwise(edges):
            has, wants, offset = int(stored[low]), int(counted[low]), (first + int(differ[low])) * self.size
            what = (
                f"cluster at offset {offset}" if high - low == 1 else f"{high - low} clusters from offset {offset} on"
            )
            kind = "leak" if has > wants else "corruption"
            self._find(kind, f"{what}: refcount {has}, references {wants}", high - low)

    def counted_beyond(self) -> list[int]:
        """The clusters in ``beyond`` that refcount blocks count: they were in the file once."""
        beyond = np.unique(np.concatenate([np.zeros(0, np.uint64), *self.beyond]))
        found: list[int] = []
        indexes = beyond // np.uint64(self.per_block)
        for index in np.unique(indexes).tolist():
            offset = int(self.reftable[index]) & c.REFTABLE_OFFSET_MASK if index < len(self.reftable) else 0
            if self._readable(offset):
                block = unpack(np.frombuffer(self.file.read(offset, self.size), np.uint8), self.header.refcount_bits)
                inside = beyond[indexes == index]
                found += inside[block[(inside - np.uint64(index * self.per_block)).astype(np.int64)] > 0].tolist()
        return found
