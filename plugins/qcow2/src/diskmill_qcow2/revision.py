"""A new revision of an image's metadata: written beside the old one, and switched to by one write of the header.

Operations that change the refcounts of everything (a snapshot is taken, applied or deleted; refcounts get another
width; the version changes) change too many tables to do it in place: between two writes, refcounts and COPIED flags
would contradict each other. So every table that changes is written to free clusters, the refcount blocks and the
refcount table too, and the first sector of the header, which names the L1 table, the refcount table and the snapshot
table, is written last. A crash leaves the old revision or the new one, each exact.

Source: the specification's sections "Host cluster management", "Cluster mapping" and "Snapshots".
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from diskmill.errors import ImageError, UnsupportedError
from diskmill.sizes import MiB

from . import c_qcow2 as c
from .bounds import compressed_misplaced, misplaced
from .header import check_refcount_table
from .recount import CHUNK, Counts, Marks, Room, chunks_of, pack, unpack

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .image import Qcow2Image

_BATCH = 1 * MiB
"""Bytes of L2 tables or of refcount blocks that are dealt with together."""
_L1_COST = 24
"""Bytes of memory for an entry of an L1 table: it is there, with all others, and changed."""
_MOST_FREED = 1 << 18
"""Runs of freed clusters whose space the file gives back; beyond, they are only free."""


class Revision:
    """The next metadata of *image*, which is flushed and whose lock is held.

    Nothing that the image on disk needs is touched before :meth:`commit`; until then it can simply be forgotten.

    :param refcount_order: of the new refcounts; None: as it is.
    :ivar header: the next header; callers change it.
    :ivar room: the memory for tables and for what is known of each cluster.
    :ivar l1: the active L1 table's entries as they are.
    :ivar read: whether somebody may be reading what becomes free: it keeps a reference until they have left.
    """

    def __init__(self, image: Qcow2Image, refcount_order: int | None = None) -> None:
        image.order.flush_tables()
        image.store_bitmaps()
        check_refcount_table(image.header, image.file.size, image.name)
        self.image = image
        self.file = image.file
        self.size = image.unit
        self.bits = image.header.cluster_bits
        self.header = image.header.copy()
        self.old = image.header
        if refcount_order is not None:
            self.header.refcount_order = refcount_order
        self.allocator = image.new_allocator()
        self.read = False
        self.room = Room(image.file, self.size, image.name)
        self.gained = Counts(self.room)
        self.lost = Counts(self.room)
        self.l1 = self.read_l1(self.old.l1_table_offset, self.old.l1_size)

    # -- tables that are there ----------------------------------------------------------------------------------

    def read_l1(self, offset: int, entries: int) -> NDArray[Any]:
        """The entries of an L1 table; the caller has checked that it can be there.

        :raises LimitError: this and the tables read before take more memory than there may be.
        """
        self.room.take(entries * _L1_COST)
        return np.frombuffer(self.file.read(offset, entries * 8), ">u8").astype(np.uint64)

    def l2_tables(self, l1: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """(indexes in *l1*, words of those L2 tables, a row each), some tables at a time, by their place in the file.

        :raises ImageError: an L1 entry is impossible.
        """
        offsets = l1 & np.uint64(c.OFFSET_MASK)
        count = int(np.count_nonzero(offsets))
        if count > self.file.size // self.size:  # before memory is taken for each
            cause = f"it names {count} L2 tables, and the file has no room for as many: check it"
            raise ImageError(cause, file=self.image.name, place="L1 table")
        used = np.flatnonzero(offsets)
        used = used[np.argsort(offsets[used], kind="stable")]
        offsets = offsets[used]
        bad = misplaced(offsets, self.size, self.file.size)
        bad[1:] |= offsets[1:] == offsets[:-1]
        if bad.any():
            index, offset = int(used[bad][0]), int(offsets[bad][0])
            raise ImageError(
                f"no L2 table can be at offset {offset}: check it", file=self.image.name, place=f"L1 entry {index}"
            )
        together = max(_BATCH // self.size, 1)
        for at in range(0, len(used), together):
            part = offsets[at : at + together]
            raw = bytearray(len(part) * self.size)
            view = memoryview(raw)
            for low, high in stretches(part, self.size):
                self.file.read_into(int(part[low]), view[low * self.size : high * self.size])
            yield used[at : at + together], np.frombuffer(raw, ">u8").astype(np.uint64).reshape(len(part), -1)

    def refer(self, l1: NDArray[Any], counts: Counts) -> None:
        """Add to *counts* a reference for each cluster that *l1* and the L2 tables below it name.

        :raises ImageError: they name what cannot be.
        """
        offsets = l1 & np.uint64(c.OFFSET_MASK)
        for indexes, words in self.l2_tables(l1):
            counts.add(offsets[indexes] >> np.uint64(self.bits), 1)
            entries = words[:, :: 2 if self.old.extended_l2 else 1].ravel()
            compressed = entries & np.uint64(c.COMPRESSED) != 0
            hosts = entries & np.uint64(c.OFFSET_MASK)
            if compressed.any():
                self._refer_compressed(entries[compressed], counts)
                hosts = hosts[~compressed]
            counts.add(self.clusters(hosts[hosts != 0]), 1)

    def clusters(self, hosts: NDArray[Any]) -> NDArray[Any]:
        """The clusters at the offsets *hosts*, which L2 entries name.

        :raises ImageError: there can be none.
        """
        if misplaced(hosts, self.size, self.file.size).any():
            raise self._damaged("an L2 entry names what is no cluster in the file")
        return hosts >> np.uint64(self.bits)

    def _refer_compressed(self, entries: NDArray[Any], counts: Counts) -> None:
        shift = 62 - (self.bits - 8)
        host = entries & np.uint64((1 << min(shift, 56)) - 1)
        sectors = (entries >> np.uint64(shift)) & np.uint64((1 << (62 - shift)) - 1)
        end = host + (sectors + np.uint64(1)) * np.uint64(512) - (host & np.uint64(511))
        if compressed_misplaced(host, end, self.size, self.file.size).any():
            raise self._damaged("an L2 entry names compressed data outside the file")
        first, last = host >> np.uint64(self.bits), (end - np.uint64(1)) >> np.uint64(self.bits)
        while len(first):
            counts.add(first, 1)
            first = first + np.uint64(1)
            more = first <= last
            first, last = first[more], last[more]

    def _damaged(self, cause: str) -> ImageError:
        return ImageError(f"{cause}: the image is damaged, check it", file=self.image.name)

    # -- tables that are new ------------------------------------------------------------------------------------

    def allocate(self, count: int) -> NDArray[Any]:
        """*count* free clusters, which get a reference each."""
        runs = self.allocator.allocate(count)
        clusters = np.concatenate([np.arange(first, first + number, dtype=np.uint64) for first, number in runs])
        self.gained.add(clusters, 1)
        return clusters

    def put(self, data: bytes) -> int:
        """The offset at which *data* was written to free, neighbouring clusters; 0 where it is empty."""
        if not data:
            return 0
        count = -(-len(data) // self.size)
        first = self.allocator.allocate_together(count)
        self.gained.add_range(first, count)
        self.file.write(first * self.size, data.ljust(count * self.size, b"\0"))
        return first * self.size

    def free(self, offset: int, length: int) -> None:
        """Drop the references to the clusters of a table of *length* bytes."""
        self.lost.add_range(offset // self.size, -(-length // self.size))

    def set_l1(self, l1: NDArray[Any]) -> None:
        """Let *l1* be the active L1 table."""
        if len(l1) == len(self.l1) and (l1 == self.l1).all():
            return
        self.free(self.old.l1_table_offset, self.old.l1_size * 8)
        self.header.l1_table_offset = self.put(l1.astype(">u8").tobytes())
        self.header.l1_size = len(l1)

    def replace_tables(self, indexes: NDArray[Any], words: NDArray[Any], l1: NDArray[Any], weight: int) -> None:
        """Write L2 tables anew, and let entries *indexes* of *l1* point there.

        :param weight: how many L1 tables of the new revision let go of the old place and get the new one.
        """
        places = self.allocate(len(indexes))
        if weight > 1:
            self.gained.add(places, weight - 1)
        self.lost.add((l1[indexes] & np.uint64(c.OFFSET_MASK)) >> np.uint64(self.bits), weight)
        self.write_clusters(places, words.astype(">u8"))
        l1[indexes] = places << np.uint64(self.bits)

    def blank(self, places: NDArray[Any]) -> None:
        """Let the clusters *places* be zeros."""
        for low, high in stretches(places, 1):
            self.file.zero(int(places[low]) * self.size, (high - low) * self.size)

    def write_clusters(self, places: NDArray[Any], rows: NDArray[Any]) -> None:
        """Write a row to each of the clusters *places*, neighbours with one call."""
        for low, high in stretches(places, 1):
            self.file.write(int(places[low]) * self.size, rows[low:high].tobytes())

    def share(self, l1: NDArray[Any], weight: int) -> NDArray[Any]:
        """*l1* as the active L1 table, when everything below it has other references too: no COPIED flag is left.

        :param weight: as in :meth:`replace_tables`.
        """
        flag = np.uint64(c.COPIED)
        result = l1 & ~flag
        step = 2 if self.old.extended_l2 else 1
        for indexes, words in self.l2_tables(l1):
            flagged = (words[:, ::step] & flag != 0).any(axis=1)
            if flagged.any():
                words = words[flagged]
                words[:, ::step] &= ~flag
                self.replace_tables(indexes[flagged], words, result, weight)
                if weight == 1:
                    result[indexes[flagged]] |= flag
        return result

    def own(self, l1: NDArray[Any]) -> NDArray[Any]:
        """*l1*, the active L1 table, with COPIED flags for what lost references and has one left."""
        flag = np.uint64(c.COPIED)
        single = self._single()
        result = l1.copy()
        offsets = l1 & np.uint64(c.OFFSET_MASK)
        used = np.flatnonzero(offsets)
        now = single.which(offsets[used] >> np.uint64(self.bits))
        result[used[now]] |= flag
        step = 2 if self.old.extended_l2 else 1
        for indexes, words in self.l2_tables(l1):
            entries = words[:, ::step]
            plain = (entries & np.uint64(c.COMPRESSED) == 0) & (entries & np.uint64(c.OFFSET_MASK) != 0)
            hosts = (entries & np.uint64(c.OFFSET_MASK)) >> np.uint64(self.bits)
            due = plain & (entries & flag == 0)
            due[due] = single.which(hosts[due])
            rows = due.any(axis=1)
            # A table that another L1 table shares has nothing below it that is the active one's alone.
            rows &= result[indexes] & flag != 0
            if rows.any():
                words[:, ::step] = np.where(due, entries | flag, entries)
                self.replace_tables(indexes[rows], words[rows], result, 1)
                result[indexes[rows]] |= flag
        return result

    def _single(self) -> Marks:
        """Which clusters lost references and have one left."""
        found = Marks(self.room)
        for index, lost in self.lost.chunks.items():
            final = self._final(index * CHUNK, CHUNK)
            found.put(index * CHUNK, (lost != 0) & (final == 1))
        return found

    # -- refcounts ----------------------------------------------------------------------------------------------

    def verify(self) -> None:
        """Refuse what the refcounts cannot count, before anything is written.

        :raises UnsupportedError: one would be too large.
        :raises ImageError: one would be less than 0: they are wrong already.
        """
        chunks = {*self.gained.chunks, *self.lost.chunks}
        if self.header.refcount_order != self.old.refcount_order:
            chunks |= self._counted(CHUNK)
        for index in sorted(chunks):
            self._final(index * CHUNK, CHUNK)

    def _final(self, first: int, count: int) -> NDArray[Any]:
        """The refcounts of *count* clusters from *first* on in the new revision; they lie in one chunk."""
        stored = self.stored(first, count).astype(np.uint64)
        final: NDArray[Any] = stored + self.gained.slice(first, count) - self.lost.slice(first, count)
        wrong = final > np.uint64(1 << 63) if self.header.refcount_bits == 64 else final > np.uint64(1 << 62)
        if wrong.any():
            at = (first + int(np.flatnonzero(wrong)[0])) * self.size
            raise ImageError(
                "a cluster in use has too few references: the image is damaged, check it",
                file=self.image.name,
                place=f"refcount of offset {at}",
            )
        if len(final) and int(final.max()) > (1 << self.header.refcount_bits) - 1:
            raise UnsupportedError(
                f"refcount too large: a cluster would have {int(final.max())} references, "
                f"more than refcount_bits={self.header.refcount_bits} can count",
                file=self.image.name,
            )
        return final

    def stored(self, first: int, count: int) -> NDArray[Any]:
        """The refcounts on disk of *count* clusters from *first* on."""
        old = self.allocator
        result = np.zeros(count, f"u{max(old.bits // 8, 1)}")
        index, end = first // old.per_block, min(-(-(first + count) // old.per_block), len(old.table))
        while index < end:
            offset = old.place(index)
            upto = index + 1
            while (
                upto < end
                and (upto - index) * self.size < _BATCH
                and offset
                and old.place(upto) == offset + (upto - index) * self.size
            ):
                upto += 1
            if offset:
                raw = np.frombuffer(self.file.read(offset, (upto - index) * self.size), np.uint8)
                counts = unpack(raw, old.bits)
                base = index * old.per_block
                low, high = max(base, first), min(base + len(counts), first + count)
                result[low - first : high - first] = counts[low - base : high - base]
            index = upto
        return result

    def _touched(self) -> NDArray[Any]:
        """The new refcount blocks, by index, that differ from the old ones; all in use, where the width changes."""
        per_block = self.size * 8 // self.header.refcount_bits
        found = [np.zeros(0, np.int64)]
        for counts in (self.gained, self.lost):
            found += [np.unique(clusters // per_block) for clusters in counts.used()]
        if self.header.refcount_order != self.old.refcount_order:
            found.append(np.array(sorted(self._counted(per_block)), np.int64))
        return np.unique(np.concatenate(found))

    def _counted(self, step: int) -> set[int]:
        """The stretches of *step* clusters, by index, of which the old refcount blocks count any. A table may have a
        place for each block of an exabyte, and most are empty."""
        old = self.allocator
        found: set[int] = set()
        for index, entry in enumerate(old.table):
            if entry:
                first = index * old.per_block
                found.update(range(first // step, (first + old.per_block - 1) // step + 1))
        return found

    def _write_refcounts(self) -> list[tuple[int, int]]:
        """Write the new refcount blocks and the new refcount table; the runs of clusters that become free."""
        old, header = self.allocator, self.header
        same = header.refcount_order == self.old.refcount_order
        places: dict[int, int] = {}
        table_clusters = table_at = 0
        if not same:
            for index in range(len(old.table)):
                if old.table[index]:
                    self.free(old.place(index), self.size)
        self.free(self.old.refcount_table_offset, self.old.refcount_table_clusters * self.size)
        while True:
            # Each block and table takes clusters, which other blocks may have to count: another round.
            due = [index for index in self._touched().tolist() if index not in places]
            for index, cluster in zip(due, self.allocate(len(due)).tolist() if due else [], strict=True):
                places[index] = cluster
                if same and index < len(old.table) and old.table[index]:
                    self.free(old.place(index), self.size)
            entries = max(max(places, default=0) + 1, len(old.table) if same else 0)
            clusters = -(-entries * 8 // self.size)
            if clusters > table_clusters:
                if clusters * self.size > c.MAX_REFTABLE_BYTES:
                    raise UnsupportedError("the refcount table would be larger than 8 MiB", file=self.image.name)
                if table_clusters:
                    self.free(table_at * self.size, table_clusters * self.size)
                table_clusters = clusters
                table_at = self.allocator.allocate_together(clusters)
                self.gained.add_range(table_at, clusters)
            elif not due:
                break
        table = np.zeros(table_clusters * self.size // 8, np.uint64)
        if same:
            table[: len(old.table)] = old.table
        for index, cluster in places.items():
            table[index] = cluster << self.bits
        freed = self._write_blocks(places)
        self.file.write(table_at * self.size, table.astype(">u8").tobytes())
        header.refcount_table_offset = table_at * self.size
        header.refcount_table_clusters = table_clusters
        return freed

    def _write_blocks(self, places: dict[int, int]) -> list[tuple[int, int]]:
        bits = self.header.refcount_bits
        per_block = self.size * 8 // bits
        together = max(_BATCH // self.size, 1)
        freed: list[tuple[int, int]] = []
        indexes = sorted(places)
        at = 0
        while at < len(indexes):
            upto = at + 1
            while upto < len(indexes) and upto - at < together and indexes[upto] == indexes[upto - 1] + 1:
                upto += 1
            first, count = indexes[at] * per_block, (upto - at) * per_block
            final = self._finals(first, count)
            gone = np.flatnonzero((final == 0) & (self.stored(first, count) != 0))
            runs = [(first + int(gone[low]), high - low) for low, high in stretches(gone, 1)]
            if self.read:
                freed += runs
                final[gone] = 1
            else:
                freed += runs[: _MOST_FREED - len(freed)]
            rows = pack(final, bits).reshape(upto - at, self.size)
            self.write_clusters(np.array([places[index] for index in indexes[at:upto]], np.uint64), rows)
            at = upto
        return freed

    def _finals(self, first: int, count: int) -> NDArray[Any]:
        """As :meth:`_final`, over several chunks."""
        kind = f"u{max(self.header.refcount_bits // 8, 1)}"
        return np.concatenate([self._final(at, number).astype(kind) for at, number in chunks_of(first, count)])

    # -- the switch ---------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Write the refcounts, then switch to the new revision."""
        image = self.image
        self.header.pack()  # it fits, or nothing is done
        # Who enters from now on looks nothing up before the image's lock is free, and then finds the new revision.
        self.read = bool(image.readers)
        freed = self._write_refcounts()
        image.order_files()
        image.order.replace_header(self.header)
        image.reload()
        if self.read:
            image.order.retire(freed)
            return
        for first, count in freed:
            self.file.discard(first * self.size, count * self.size)


def stretches(numbers: NDArray[Any], step: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1), as indexes, of the stretches of *numbers* that count upwards by *step*."""
    if len(numbers):
        edges = np.flatnonzero(numbers[1:] != numbers[:-1] + numbers.dtype.type(step)) + 1
        yield from pairwise([0, *edges.tolist(), len(numbers)])
