"""Mending in a copy: the next metadata of a damaged image, behind the end of its file.

Source: the specification's sections "Host cluster management", "Cluster mapping", "Snapshots" and "Bitmaps".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from diskmill.errors import DiskmillError, ImageError, StorageError, UnsupportedError
from diskmill.sizes import MiB, round_up

from . import bitmaps, encryption, snapshots
from . import c_qcow2 as c
from .bounds import misplaced as no_cluster
from .bounds import outside
from .check import Checker
from .recount import Counts, chunks_of, pack
from .salvage import compressed_range, find_tables, impossible, misplaced, refuse_lost, runs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .header import Header
    from .image import Qcow2Image

_BATCH = 1 * MiB
"""Bytes of L2 tables, refcount blocks or lost clusters that are dealt with together."""
_MOST_TRIED = 64
"""Impossible entries of one table for which flipped bits are tried."""
_L1_COST = 40
"""Bytes of memory for an entry of an L1 table: it is there, with all others, sorted and weighed."""
_FEW = 8
"""Up to half as many impossible entries do not make something else of a table."""
_DUE = 1
"""In ``Mender.moved``: it will be moved."""
_OFFSET = np.uint64(c.OFFSET_MASK)
_COPIED = np.uint64(c.COPIED)


class Mender:
    """One repair: the metadata that follows from what is sound of the old.

    :param checker: has looked through the image.
    """

    def __init__(self, checker: Checker, give_up: bool) -> None:
        self.checker = checker
        self.image = checker.image
        self.file = checker.file
        self.size = checker.size
        self.bits = np.uint64(checker.bits)
        self.step = 2 if checker.header.extended_l2 else 1
        self.give_up = give_up
        self.header = checker.header.copy()
        self.counts = Counts(checker.room)
        """References to each cluster in the mended image."""
        self.moved: dict[int, int] = {}
        """Offset of L2 tables that are not kept where they are → new offset, 0 (it is no L2 table) or _DUE."""
        self.runs: Iterator[range] | None = None
        self.left = range(0)
        self.zeros = 0
        """Offset of a cluster of zeros, where version 2 needs one."""

    def run(self) -> None:
        """Do it.

        :raises ImageError: something that can still be saved would be given up. Nothing was changed.
        """
        result = self.checker.result
        wrong = result.corruptions - self.checker.flags
        l1s, entries = self._l1_tables()
        self._keep_tables(l1s, entries)
        self.counts.add_range(0, 1)
        offset, length = encryption.place(self.header, self.file, self.image.name)
        self.counts.add_range(offset // self.size, -(-length // self.size))
        kept = self._bitmaps()
        self._count_places(l1s)
        flags = self._write_tables(l1s) + self._put_l1s(l1s, entries)
        self._put_bitmaps(kept)
        self._put_refcounts()
        self.header.incompatible_features &= ~(c.DIRTY | c.CORRUPT)
        self.note("all refcounts are written anew")
        switch(self.image, self.header)
        result.corruptions_fixed, result.leaks_fixed = wrong + flags, result.leaks

    def note(self, text: str) -> None:
        """Tell what is done."""
        self.checker.tell(text)

    # -- space --------------------------------------------------------------------------------------------------

    def take(self, count: int) -> int:
        """The first of *count* neighbouring clusters that hold nothing.

        They lie behind the end of the file, or where that cannot grow (a block device), in clusters that are
        neither counted nor referred to.
        """
        if self.runs is None:
            self.runs = self._free_runs()
        if count > len(self.left):
            self.left = next((run for run in self.runs if len(run) >= count), range(0))
            if not self.left:
                raise StorageError("No space left on device: a repair needs free space", file=self.image.name)
        first = self.left[0]
        self.left = self.left[count:]
        return first

    def _free_runs(self) -> Iterator[range]:
        end = round_up(self.file.size, self.size)
        if self.file.resizable:
            try:
                self.file.truncate(end + self.size)
            except DiskmillError:
                yield from self._unused()
                return
        yield range(end // self.size, 1 << (56 - self.checker.bits))

    def _unused(self) -> Iterator[range]:
        checker = self.checker
        for first, stored in checker.blocks():
            for at, count in chunks_of(first, len(stored)):
                unused = stored[at - first : at - first + count] == 0
                unused &= checker.counts.slice(at, count) == 0
                yield from (range(at + low, at + high) for low, high in runs(np.flatnonzero(unused)))

    def put(self, data: bytes) -> int:
        """The offset at which *data* was written to new clusters, with a reference each; 0 where it is empty."""
        if not data:
            return 0
        count = -(-len(data) // self.size)
        first = self.take(count)
        self.counts.add_range(first, count)
        self.file.write(first * self.size, data.ljust(count * self.size, b"\0"))
        return first * self.size

    # -- L1 tables ----------------------------------------------------------------------------------------------

    def _l1_tables(self) -> tuple[list[NDArray[Any]], list[snapshots.Entry]]:
        """The active L1 table and those of the snapshots that can be kept, with these snapshots."""
        header = self.header
        tables, kept = [self._read_l1(header.l1_table_offset, header.l1_size)], []
        for entry in self.checker.entries or []:
            offset, length = entry.l1_table_offset, entry.l1_size * 8
            if length > c.MAX_L1_BYTES or outside(offset, length, self.size, self.file.size):
                self.note(f"snapshot {entry.id} ({entry.name}) has lost its L1 table: it is removed")
                continue
            tables.append(self._read_l1(offset, entry.l1_size))
            kept.append(entry)
        return tables, kept

    def _read_l1(self, offset: int, entries: int) -> NDArray[Any]:
        self.checker.room.take(entries * _L1_COST)
        raw = self.file.read(offset, entries * 8)
        return np.frombuffer(raw, ">u8").astype(np.uint64) & np.uint64(c.OFFSET_MASK | c.COPIED)

    def _keep_tables(self, l1s: list[NDArray[Any]], entries: list[snapshots.Entry]) -> None:
        """Clear the L1 entries that name no L2 table, and count what the L2 tables name."""
        offsets, weights = _weigh(l1s)
        possible = ~no_cluster(offsets, self.size, self.file.size)
        self.moved.update((offset, 0) for offset in offsets[~possible].tolist())
        self._count_tables(offsets[possible], weights[possible])
        lost = find_tables(self.checker)
        self._reattach(l1s, lost)
        if not self.give_up:
            refuse_lost(self.checker, lost)
        for number, l1 in enumerate(l1s):
            for index in self._no_tables(l1):
                where = f" of snapshot {entries[number - 1].id}" if number else ""
                self.note(f"L1 entry {index}{where} names no L2 table: its clusters are unallocated")
                l1[index] = 0

    def _no_tables(self, l1: NDArray[Any]) -> list[int]:
        """The indexes in *l1* of entries that name what is no L2 table."""
        bad = np.array([offset for offset, place in self.moved.items() if not place], np.uint64)
        indexes: list[int] = np.flatnonzero(np.isin(l1 & _OFFSET, bad)).tolist()
        return indexes

    def _reattach(self, l1s: list[NDArray[Any]], lost: dict[int, int]) -> None:
        """Let L1 entries name a lost table where a flipped bit made them name what is none."""
        again: list[int] = []
        for l1 in l1s:
            for index in self._no_tables(l1):
                old = int(l1[index] & _OFFSET)
                near = [offset for offset in _one_bit_from(old, self.size) if offset in lost]
                if len(near) == 1:
                    self.note(f"L1 entry {index} ({old:#x}) is mended: the L2 table is at offset {near[0]}")
                    l1[index] = near[0] | c.COPIED
                    again.append(near[0])
        if again:
            offsets, weights = np.unique(np.array(again, np.uint64), return_counts=True)
            self._count_tables(offsets, weights)
            for offset in offsets.tolist():
                del lost[offset]

    def _put_l1s(self, l1s: list[NDArray[Any]], entries: list[snapshots.Entry]) -> int:
        """Write the L1 tables and the snapshot table; how many COPIED flags of the active one were wrong."""
        header = self.header
        offsets, weights = _weigh(l1s)
        places = np.array([self.moved.get(offset, offset) for offset in offsets.tolist()], np.uint64)
        flags = 0
        kept = []
        for number, l1 in enumerate(l1s):
            used = np.flatnonzero(l1 & _OFFSET)
            which = np.searchsorted(offsets, l1[used] & _OFFSET)
            new = np.zeros(len(l1), np.uint64)
            new[used] = places[which]
            if number:
                kept.append(dataclasses.replace(entries[number - 1], l1_table_offset=self._put_l1(new)))
            else:
                due = np.where(weights[which] == 1, _COPIED, np.uint64(0))
                flags = int(np.count_nonzero(due != l1[used] & _COPIED))
                new[used] |= due
                header.l1_table_offset = self._put_l1(new)
        if header.nb_snapshots:
            header.nb_snapshots = len(kept)
            header.snapshots_offset = self.put(snapshots.pack_table(kept, header.size))
        return flags

    def _put_l1(self, l1: NDArray[Any]) -> int:
        return self.put(l1.astype(">u8").tobytes())

    # -- L2 tables ----------------------------------------------------------------------------------------------

    def _batches(self, offsets: NDArray[Any]) -> Iterator[tuple[slice, NDArray[Any], NDArray[Any], NDArray[Any]]]:
        """(part of *offsets*, words of those tables, a row each, the same mended, which entries lead nowhere)."""
        together = max(_BATCH // self.size, 1)
        for at in range(0, len(offsets), together):
            part = slice(at, at + together)
            words = self.checker.tables(offsets[part].tolist()).reshape(len(offsets[part]), -1)
            wrong = impossible(self.checker, words)
            mended, nowhere = self._mend(words) if wrong.any() else (words, wrong)
            yield part, words, mended, nowhere

    def _count_tables(self, offsets: NDArray[Any], weights: NDArray[Any]) -> None:
        """Count what the L2 tables at *offsets* name once they are mended. What is no table is noted."""
        for part, words, mended, nowhere in self._batches(offsets):
            # More than half of the entries, and not just a few: this is something else.
            used = (words[:, :: self.step] != 0).sum(axis=1)
            garbage = nowhere.sum(axis=1) * 2 > np.maximum(used, _FEW)
            for offset in offsets[part][garbage].tolist():
                self.moved[offset] = 0
            for row in np.flatnonzero((mended != words).any(axis=1) & ~garbage).tolist():
                self.moved[int(offsets[part][row])] = _DUE
                self._tell(words[row, :: self.step], mended[row, :: self.step])
            for weight in np.unique(weights[part]).tolist():
                self._refer(mended[(weights[part] == weight) & ~garbage], weight)

    def _tell(self, old: NDArray[Any], new: NDArray[Any]) -> None:
        differ = np.flatnonzero(old != new)[:100]
        for was, now in zip(old[differ].tolist(), new[differ].tolist(), strict=True):
            self.note(f"L2 entry {was:#x} becomes {now:#x}")

    def _refer(self, words: NDArray[Any], weight: int) -> None:
        """*weight* references for each cluster that the tables *words* name."""
        if self.image.external:
            return
        entries = words[:, :: self.step].ravel()
        compressed = entries & np.uint64(c.COMPRESSED) != 0
        hosts = entries & _OFFSET
        if compressed.any():
            host, end = compressed_range(self.checker, entries[compressed])
            first, last = host >> self.bits, (end - np.uint64(1)) >> self.bits
            while len(first):
                self.counts.add(first, weight)
                first = first + np.uint64(1)
                more = first <= last
                first, last = first[more], last[more]
            hosts = hosts[~compressed]
        self.counts.add(hosts[hosts != 0] >> self.bits, weight)

    def _mend(self, words: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """The tables *words* with sound entries, and which entries lead nowhere: always the same answer."""
        words, low = words.copy(), np.uint64(c.ALL_ALLOCATED)
        entries = words[:, :: self.step]  # a view
        compressed = entries & np.uint64(c.COMPRESSED) != 0
        entries &= np.where(compressed, ~_COPIED, ~self.checker.l2_reserved)
        nowhere = misplaced(self.checker, entries, compressed)
        if not self.image.external:
            self._unflip(entries, nowhere & ~compressed)
            nowhere = misplaced(self.checker, entries, compressed)
        if nowhere.any():
            entries[nowhere] = self._zero_entry()
        if self.step == 2:
            bitmap = words[:, 1::2]  # a view
            bitmap[nowhere] = c.ALL_ZEROS
            bitmap[(entries & np.uint64(c.COMPRESSED)) != 0] = 0
            bitmap &= ~((bitmap & low) << np.uint64(32))  # of two claims, the data is kept
            if not self.image.external:
                homeless = (entries & np.uint64(c.OFFSET_MASK | c.COMPRESSED) == 0) & (bitmap & low != 0)
                bitmap[homeless] = (bitmap[homeless] | bitmap[homeless] << np.uint64(32)) & ~low
        return words, nowhere

    def _unflip(self, entries: NDArray[Any], wrong: NDArray[Any]) -> None:
        """Mend, in place, the *wrong* entries that are one flipped bit away from a lost cluster, and from no other."""
        for row in np.flatnonzero(wrong.any(axis=1)).tolist():
            for column in np.flatnonzero(wrong[row])[:_MOST_TRIED].tolist():
                old = int(entries[row, column])
                near = [
                    offset
                    for offset in _one_bit_from(old & c.OFFSET_MASK, self.size)
                    if self.checker.lost.has(offset // self.size)
                ]
                if len(near) == 1:
                    entries[row, column] = old & ~c.OFFSET_MASK | near[0]

    def _zero_entry(self) -> int:
        """A standard cluster descriptor of zeros."""
        if self.step == 2 or self.header.version < 3 and self.header.backing_file is None:
            return 0
        if self.header.version > 2:
            return c.ZERO
        if not self.zeros:  # the entries themselves will count it
            self.zeros = self.take(1) * self.size
            self.file.write(self.zeros, bytes(self.size))
        return self.zeros

    def _count_places(self, l1s: list[NDArray[Any]]) -> None:
        """Count the L2 tables that stay; those whose cluster something else uses too get one of their own."""
        offsets, weights = _weigh(l1s)
        clusters = offsets >> self.bits
        shared = self.counts.get_all(clusters) != 0
        self.moved.update((offset, _DUE) for offset in offsets[shared].tolist())
        stay = np.array([offset not in self.moved for offset in offsets.tolist()], bool)
        for weight in np.unique(weights[stay]).tolist():
            self.counts.add(clusters[stay & (weights == weight)], weight)

    def _write_tables(self, l1s: list[NDArray[Any]]) -> int:
        """Write the L2 tables that change, for their COPIED flags too; how many of these were wrong.

        All data clusters have their counts by now, and no table's new place is one of them.
        """
        flags = 0
        offsets, weights = _weigh(l1s)
        active, _ = _weigh(l1s[:1])
        for part, words, mended, _ in self._batches(offsets):
            rows = np.isin(offsets[part], active)
            due = mended.copy()
            if not self.image.external:
                entries = mended[:, :: self.step]
                plain = (entries & np.uint64(c.COMPRESSED) == 0) & (entries & _OFFSET != 0) & rows[:, None]
                single = self.counts.get_all((entries[plain] & _OFFSET) >> self.bits) == 1
                due[:, :: self.step][plain] = entries[plain] & ~_COPIED | np.where(single, _COPIED, np.uint64(0))
                flags += int(np.count_nonzero(due != mended))
            move = (due != words).any(axis=1)
            move |= np.array([self.moved.get(offset) == _DUE for offset in offsets[part].tolist()], bool)
            for row in np.flatnonzero(move).tolist():
                offset, weight = int(offsets[part][row]), int(weights[part][row])
                if offset not in self.moved:
                    self.counts.forget(offset // self.size)
                place = self.put(due[row].astype(">u8").tobytes())
                self.counts.add(np.full(weight - 1, place // self.size, np.uint64), 1)
                self.moved[offset] = place
        return flags

    # -- bitmaps ------------------------------------------------------------------------------------------------

    def _bitmaps(self) -> list[tuple[bitmaps.Entry, NDArray[Any]]]:
        """The bitmaps that can be kept, with their tables; their clusters are counted.

        Where a bitmap's bits are lost, everything counts as changed: who goes by it copies too much, not too little.
        """
        header, name = self.header, self.image.name
        if not header.autoclear_features & c.BITMAPS:
            return []
        try:
            where = bitmaps.directory(self.file, header, name)
            assert where is not None
            entries, broken = bitmaps.scan_directory(self.file, header, where, name)
        except ImageError as error:
            entries, broken = [], error
        if broken is not None:
            self.note(f"bitmaps that cannot be read are removed: {broken.place}: {broken.cause}")
        kept = []
        for entry in entries:
            raw = self.file.read(entry.bitmap_table_offset, entry.bitmap_table_size * 8)
            table = np.frombuffer(raw, ">u8").astype(np.uint64)
            hosts = table & _OFFSET
            bad = (table & np.uint64(c.BITMAP_TABLE_RESERVED) != 0) | (hosts & np.uint64(self.size - 1) != 0)
            bad |= (hosts >= self.file.size) | (hosts != 0) & (table & np.uint64(c.BITMAP_ALL_ONES) != 0)
            placed = np.flatnonzero(~bad & (hosts != 0))
            twice = self.counts.get_all(hosts[placed] >> self.bits) != 0
            _, first = np.unique(hosts[placed], return_index=True)
            twice[np.setdiff1d(np.arange(len(placed)), first)] = True
            bad[placed[twice]] = True
            if bad.any():
                self.note(f"bitmap '{entry.name}' has lost bits: they are set")
                table[bad] = c.BITMAP_ALL_ONES
            hosts = table & _OFFSET
            self.counts.add(hosts[hosts != 0] >> self.bits, 1)
            kept.append((entry, table))
        return kept

    def _put_bitmaps(self, kept: list[tuple[bitmaps.Entry, NDArray[Any]]]) -> None:
        """Write the tables of bitmaps and their directory."""
        if not self.header.autoclear_features & c.BITMAPS:
            return
        for entry, table in kept:
            entry.bitmap_table_offset = self.put(table.astype(">u8").tobytes())
        data = bitmaps.pack_directory([entry for entry, _ in kept])
        bitmaps.set_directory(self.header, len(kept), self.put(data), len(data))

    # -- refcounts ----------------------------------------------------------------------------------------------

    def _put_refcounts(self) -> None:
        """Write refcount blocks and a refcount table that count everything, themselves too."""
        header, counts = self.header, self.counts
        highest = max(int(chunk.max()) for chunk in counts.chunks.values())
        while highest >> header.refcount_bits:
            if header.version < 3:
                raise UnsupportedError(f"a cluster has {highest} references: too many", file=self.image.name)
            header.refcount_order += 1
            self.note(f"refcounts get {header.refcount_bits} bits: a cluster has {highest} references")
        per_block = self.size * 8 // header.refcount_bits
        places: dict[int, int] = {}
        at = clusters = 0
        while True:
            # Each block takes a cluster, which another block may have to count: another round.
            due = [index for index in self._blocks_in_use(per_block) if index not in places]
            for index in due:
                places[index] = self.take(1)
                counts.add_range(places[index], 1)
            needed = -(-(max(places) + 1) * 8 // self.size)
            if needed > clusters:
                if needed * self.size > c.MAX_REFTABLE_BYTES:
                    raise UnsupportedError("the refcount table would be larger than 8 MiB", file=self.image.name)
                for cluster in range(at, at + clusters):
                    counts.forget(cluster)
                at, clusters = self.take(needed), needed
                counts.add_range(at, clusters)
            elif not due:
                break
        table = np.zeros(clusters * self.size // 8, ">u8")
        for index, cluster in places.items():
            table[index] = cluster * self.size
            parts = [counts.slice(low, count) for low, count in chunks_of(index * per_block, per_block)]
            self.file.write(cluster * self.size, pack(np.concatenate(parts), header.refcount_bits).tobytes())
        self.file.write(at * self.size, table.tobytes())
        header.refcount_table_offset, header.refcount_table_clusters = at * self.size, clusters

    def _blocks_in_use(self, per_block: int) -> list[int]:
        found = [np.unique(clusters // per_block) for clusters in self.counts.used()]
        indexes: list[int] = np.unique(np.concatenate(found)).tolist()
        return indexes


def switch(image: Qcow2Image, header: Header) -> None:
    """Let *header* be the image's: everything that it names is written."""
    header.pack()  # it fits
    image.order_files()
    image.order.replace_header(header)
    image.reload()


def _weigh(l1s: list[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The offsets of the L2 tables that *l1s* name, ascending, and how many entries name each."""
    offsets, weights = np.unique(np.concatenate(l1s) & _OFFSET, return_counts=True)
    return offsets[offsets > 0], weights[offsets > 0]


def _one_bit_from(offset: int, size: int) -> Iterator[int]:
    """Offsets of clusters of *size* bytes that bits which should not be set, or one flipped bit, make *offset* of."""
    if offset % size:
        yield offset - offset % size
        return
    for bit in range(size.bit_length() - 1, 56):
        yield offset ^ 1 << bit
