"""Where guest bytes may be put: clusters for what is written, and what becomes of those that were there.

What this image alone uses (the flag COPIED) is overwritten in place; all else gets new clusters. An entry that changes
drops its reference to what it named.

Source: the specification's sections "Cluster mapping", "Extended L2 Entries" and "Host cluster management".
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diskmill.contract.extents import Placement
from diskmill.errors import UnsupportedError
from diskmill.kit import tables
from diskmill.kit.tables import Run
from diskmill.sizes import round_down, round_up

from . import c_qcow2 as c
from .l2 import compressed_entry, compressed_place

if TYPE_CHECKING:
    from .image import Qcow2Image

_ALL = 0xFFFFFFFF


class Placing:
    """Gives guest bytes of *image* places, and takes them away. Callers hold the image's lock."""

    def __init__(self, image: Qcow2Image) -> None:
        self.image = image
        self.file, self.header = image.file, image.header
        self.unit, self.subunit, self.external = image.unit, image.subunit, image.external

    def reserve(self, offset: int, length: int) -> list[Placement]:
        """As :meth:`Image.reserve`. What this image alone uses is overwritten in place; all else gets new clusters.

        With extended L2 entries only the subclusters that the range touches are fresh, save in a cluster that moves
        with what it holds.
        """
        self.image.changing(offset, length)
        if self.image.volume is not None:  # whole sectors
            end = round_up(offset + length, self.image.volume.granularity)
            offset = round_down(offset, self.image.volume.granularity)
            length = end - offset
        size, mapping = self.unit, self.image.mapping
        at, last = offset // size, -(-(offset + length) // size)
        result: list[Placement] = []
        while at < last:
            index, entry = divmod(at, mapping.count)
            count = min(last - at, mapping.count - entry)
            self.image.order.place_table(at)
            table = mapping.get(index)
            if table is None:
                self._new(result, at, count, *self._around(offset, offset + length), part=self.subunit)
            else:
                self._reserve_in(result, table.entries, entry, at, count, offset, offset + length)
            at += count
        if self.image.volume is not None:
            return [placement._replace(cipher=self.image.volume) for placement in result]
        return result

    def _reserve_in(
        self, result: list[Placement], words: array[int], entry: int, at: int, count: int, low: int, high: int
    ) -> None:
        """Places for the guest clusters from *at* on whose *count* entries are those from *entry* on in *words*."""
        extended = self.image.mapping.words == 2
        if extended:
            bitmaps = words[2 * entry + 1 : 2 * (entry + count) : 2]
            words = words[2 * entry : 2 * (entry + count) : 2]
        else:
            words = words[entry : entry + count]
        for run in tables.runs(words, self.unit):
            value = run.value
            parts = bitmaps[run.at : run.at + run.length] if extended else None
            own = value & c.COPIED and not value & c.COMPRESSED and (value & c.OFFSET_MASK or self.external)
            place = self._overwrite if own else self._renew
            place(result, run._replace(at=at + run.at), parts, low, high)

    def _renew(self, result: list[Placement], run: Run, bitmaps: array[int] | None, low: int, high: int) -> None:
        """New clusters for the guest clusters of *run*, which have none, or none of their own.

        :param bitmaps: of extended L2 entries, which subclusters there are: a cluster that has any moves as a whole.
        """
        begin, end = self._around(low, high)
        part = self.subunit
        if bitmaps is not None:
            compressed = run.value & c.COMPRESSED
            if compressed or bitmaps[0] & _ALL:
                begin = 0
            if compressed or bitmaps[-1] & _ALL:
                end = round_up(end, self.unit)
            if compressed or any(bits & _ALL for bits in bitmaps):
                part = 0
        self._new(result, run.at, run.length, begin, end, part=part)

    def _overwrite(self, result: list[Placement], run: Run, bitmaps: array[int] | None, low: int, high: int) -> None:
        """The clusters of *run*, which are this image's alone, take what is written; kept space of zeros counts as
        fresh.

        :raises ImageError: they cannot be where their entries say, or hold metadata.
        """
        size, host = self.unit, run.value & c.OFFSET_MASK
        self.image.guest.require_place(host, run.length, run.step, run.at * size)
        if not self.external:
            first = host // size
            self.image.refcounts.refuse_metadata(first, first + (run.length if run.step else 1), "a guest cluster")
        if bitmaps is None:
            zeros = run.value & c.ZERO and self.header.version > 2
            parts = [(0, run.length, 0 if zeros else _ALL)]
        else:
            parts = [(one.at, one.length, one.value & _ALL) for one in tables.runs(bitmaps, 0)]
        for begin, number, allocated in parts:
            # Neighbours go together where they are so in the file, and all of each cluster is alike.
            together = run.step and allocated in (0, _ALL)
            for single in (begin,) if together else range(begin, begin + number):
                start = (run.at + single) * size
                end = start + (number if together else 1) * size
                ahead = host + single * run.step - start
                for first, upto, own in _by_allocation(allocated, start, end, self.subunit):
                    if first < high and upto > low:
                        self._inside(result, first, upto, first + ahead, low, high, own=own)

    def _inside(
        self, result: list[Placement], start: int, end: int, place: int, low: int, high: int, *, own: bool
    ) -> None:
        """Guest bytes *start* to *end* have their place; their part of *low* to *high* goes there.

        Not *own*: space is kept for them, and nothing reads it yet.
        """
        data = self.image.require_data()
        if not own:
            low, high = self._around(low, high)
        begin = max(start, low)
        length, place = min(end, high) - begin, place + begin - start
        result.append(Placement(begin, length, data, place, fresh=not own, part=0 if own else self.subunit))

    def _around(self, low: int, high: int) -> tuple[int, int]:
        """The clusters, or subclusters, that bytes *low* to *high* touch: where they begin and end."""
        size = self.subunit or self.unit
        return round_down(low, size), round_up(high, size)

    def _new(self, result: list[Placement], at: int, count: int, low: int, high: int, *, part: int) -> None:
        """New clusters for *count* guest clusters from *at* on, of which bytes *low* to *high* are to be filled.

        :param part: what can be published by itself: a subcluster, where there is nothing in any yet.
        """
        size, data = self.unit, self.image.require_data()
        for first, number in [(at, count)] if self.external else self.image.refcounts.allocate(count):
            begin, end = max(at * size, low), min((at + number) * size, high)
            place = first * size + begin - at * size
            result.append(Placement(begin, end - begin, data, place, fresh=True, part=part))
            at += number

    def reserve_encoded(self, units: Sequence[tuple[int, int, int]]) -> list[Placement]:
        """Places for compressed clusters, packed one behind the other."""
        for start, length, _ in units:
            self.image.changing(start, length)
            self.image.order.place_table(start // self.unit)
        offsets = self.image.refcounts.allocate_bytes([stored for _, _, stored in units])
        return [
            Placement(start, self.unit, self.file, offset, fresh=True, stored=stored)
            for (start, _, stored), offset in zip(units, offsets, strict=True)
        ]

    def publish(self, placements: Sequence[Placement]) -> None:
        """Let the L2 tables, in memory, point to *placements*."""
        clusters: list[tuple[int, int, int, int]] = []  # the first, how many, its place, the bits of their subclusters
        for placement in placements:
            if placement.stored:
                self._set(placement.start // self.unit, 1, self._compressed(placement), 0, 0)
            elif placement.fresh:
                ahead = placement.offset - placement.start
                for at, count, bits in self._by_cluster(placement.start, placement.end):
                    if clusters and clusters[-1][0] == at:  # another part of the same one
                        bits |= clusters.pop()[3]
                    clusters.append((at, count, ahead + at * self.unit, bits))
        for at, count, place, bits in clusters:
            bitmap = bits if bits == _ALL else self._entry(at)[1] & ~(bits << 32) | bits
            self._set(at, count, place | c.COPIED, self.unit, bitmap)
        self.image.order.relieve()

    def publish_places(self, placements: Sequence[Placement]) -> None:
        """As :meth:`publish` for clusters without contents; with extended L2 entries no subcluster is allocated yet."""
        for placement in placements:
            if placement.fresh:
                at, count = placement.start // self.unit, -(-placement.length // self.unit)
                self._set(at, count, placement.offset | c.COPIED, self.unit, 0)
        self.image.order.relieve()

    def _compressed(self, placement: Placement) -> int:
        """The compressed cluster descriptor for *placement*."""
        return compressed_entry(self.header.cluster_bits, placement.offset, placement.stored)

    def _by_cluster(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """Guest bytes *start* to *end* as (cluster, count, bits of their subclusters): whole clusters are together."""
        size = self.unit
        if not self.subunit:
            return [(start // size, (end - start) // size, _ALL)]
        result = []
        while start < end:
            at, skip = divmod(start, size)
            count = 1 if skip else max((end - start) // size, 1)
            upto = min((at + count) * size, end)
            first, last = 0, c.SUBCLUSTERS
            if upto - start < size:
                first, last = skip // self.subunit, -(-(upto - at * size) // self.subunit)
            result.append((at, count, (1 << last) - (1 << first)))
            start = upto
        return result

    def _entry(self, at: int) -> tuple[int, int]:
        """The extended L2 entry of guest cluster *at*, and its bitmap."""
        index, entry = divmod(at, self.image.mapping.count)
        table = self.image.mapping.get(index)
        return (0, 0) if table is None else (table.entries[2 * entry], table.entries[2 * entry + 1])

    def _set(self, at: int, count: int, value: int, step: int, bitmap: int) -> None:
        """Entries of *count* guest clusters from *at* on become value, value + step, …; what they had is dropped."""
        mapping = self.image.mapping
        while count:
            index, entry = divmod(at, mapping.count)
            number = min(count, mapping.count - entry)
            table = mapping.update(index, self._drop_table)
            words = table.entries
            if mapping.words == 1:
                low, high = entry, entry + number
                old = words[low:high]
                tables.fill_run(words, low, number, value, step)
                new = words[low:high]
            else:
                low, high = entry * 2, (entry + number) * 2
                old = words[low:high:2]
                new = tables.filled(number, 8)
                tables.fill_run(new, 0, number, value, step)
                words[low:high:2] = new
                words[low + 1 : high : 2] = tables.filled(number, 8, bitmap)
            table.mark(low, high)
            self._drop(old, new)
            at += number
            count -= number
            value += number * step

    def _drop_table(self, offset: int) -> None:
        self.image.refcounts.drop_metadata(offset // self.unit)

    def _drop(self, old: array[int], new: array[int]) -> None:
        """What entries *old* pointed to loses a reference, save where *new* points to the same."""
        if old == array("Q", bytes(len(old) * 8)):
            return
        for run in tables.runs(old, self.unit):
            for part in tables.runs(new[run.at : run.at + run.length], self.unit):
                value = run.value + part.at * run.step
                if not value or not (value ^ part.value) & c.OFFSET_MASK and not value & c.COMPRESSED:
                    continue
                for index in range(1 if run.step and not value & c.COMPRESSED else part.length):
                    self._drop_entry(value + index * run.step, part.length if run.step else 1)

    def _drop_entry(self, value: int, count: int) -> None:
        """*count* references to what the L2 entry *value* names, and to what follows that, are dropped."""
        size = self.unit
        if value & c.COMPRESSED:
            host, stored = compressed_place(self.header.cluster_bits, value)
            first = host // size
            count = (host + stored - 1) // size - first + 1
        elif value & c.OFFSET_MASK and not self.external:
            first = (value & c.OFFSET_MASK) // size
        else:
            return
        self.image.refcounts.refuse_metadata(first, first + count, "a guest cluster")
        self.image.refcounts.drop(first, count)

    # -- taking away --------------------------------------------------------------------------------------------

    def zero_units(self, offset: int, length: int, *, unmap: bool) -> None:
        """Clusters read as zeros from now on; *unmap* gives their space back, and may leave them unallocated.

        Subclusters of a cluster too, where the image has such.

        :raises UnsupportedError: version 2, where they must say so themselves, and raw external data files have no such
            mark; nor have parts of a compressed cluster.
        """
        version2 = self.header.version < 3
        if self.image.raw_data:
            raise UnsupportedError("a raw external data file has no zero clusters", file=self.image.name)
        if version2 and (self.header.backing_file is not None or not unmap):
            raise UnsupportedError("version 2 has no zero clusters", file=self.image.name)
        whole = not offset % self.unit and (not length % self.unit or offset + length == self.image.size)
        if whole:
            self._clear(offset, length, zero=not version2, keep=not unmap)
        else:
            self._zero_subclusters(offset, length, keep=not unmap)

    def _zero_subclusters(self, offset: int, length: int, *, keep: bool) -> None:
        """Subclusters of one cluster (or its tail up to the guest disk's end) read as zeros."""
        ((at, _, bits),) = self._by_cluster(offset, offset + length)
        value, bitmap = self._entry(at)
        if value & c.COMPRESSED:
            raise UnsupportedError("a compressed cluster has no zero subclusters", file=self.image.name)
        self.image.changing(offset, length)
        bitmap = bitmap & ~bits | bits << 32
        if not bitmap & _ALL and not (keep and value & c.COPIED):
            value = 0
        self._set(at, 1, value, 0, bitmap)
        self.image.order.relieve()

    def discard_units(self, offset: int, length: int) -> None:
        """Clusters read as zeros from now on, where the version can say so; their space is given back."""
        version2 = self.header.version < 3
        if version2 and self.header.backing_file is not None or self.external:
            return
        self._clear(offset, length, zero=not version2, keep=False)

    def unmap(self, offset: int, length: int) -> None:
        """Clusters are unallocated from now on: they read as the backing image does."""
        self._clear(offset, length, zero=False, keep=False)

    def _clear(self, offset: int, length: int, *, zero: bool, keep: bool) -> None:
        """Make clusters zero, or (without *zero*) unallocated; *keep* the space that is theirs alone.

        What is unallocated may stay so where it reads as zeros anyway, if not *keep*.
        """
        self.image.changing(offset, length)
        size, mapping = self.unit, self.image.mapping
        at, last = offset // size, -(-(offset + length) // size)
        extended = mapping.words == 2
        plain, bitmap = (0, c.ALL_ZEROS if zero else 0) if extended else (c.ZERO if zero else 0, 0)
        # Zeros that are to stay are said in so many words also where nothing shows through: a backing image may come.
        covered = self.image.backing is not None or self.header.backing_file is not None or keep
        while at < last:
            index, entry = divmod(at, mapping.count)
            count = min(last - at, mapping.count - entry)
            table = mapping.get(index)
            if table is None:
                if covered and zero:
                    self._set(at, count, plain, 0, bitmap)
            else:
                words = table.entries[entry * mapping.words : (entry + count) * mapping.words : mapping.words]
                for run in tables.runs(words, size):
                    value = run.value
                    if not value and not covered and not extended:
                        continue
                    if keep and value & c.COPIED and not value & c.COMPRESSED:
                        kept = value if extended else value | c.ZERO
                        self._set(at + run.at, run.length, kept, run.step, bitmap)
                    else:
                        self._set(at + run.at, run.length, plain, 0, bitmap)
            at += count
            self.image.order.relieve()

    def drop_beyond(self, offset: int) -> None:
        """Nothing is allocated any more in clusters that begin at or after guest *offset*."""
        mapping = self.image.mapping
        first, entry = divmod(-(-offset // self.unit), mapping.count)
        if entry:
            if first < len(mapping.l1) and mapping.get(first) is not None:
                self._set(first * mapping.count + entry, mapping.count - entry, 0, 0, 0)
            first += 1
        # Empty tables go, not full ones: an L2 table that nothing names and that says where data is would be the mark
        # of a damaged L1 table.
        for index in range(first, len(mapping.l1)):
            if mapping.l1[index] & c.COPIED:
                self._set(index * mapping.count, mapping.count, 0, 0, 0)
                self.image.order.relieve()
        self.image.order.flush_tables()
        for index in range(first, len(mapping.l1)):
            table = mapping.get(index) if mapping.has(index) else None
            if table is not None:
                words = table.entries[:: mapping.words]
                self._drop(words, array("Q", bytes(len(words) * 8)))
                if table.offset:
                    self._drop_table(table.offset)
                mapping.remove(index)
                self.image.order.relieve()


def _by_allocation(allocated: int, start: int, end: int, size: int) -> list[tuple[int, int, bool]]:
    """Guest bytes *start* to *end* by whether they are allocated; where that differs they are a cluster.

    :param allocated: the bits of subclusters of *size* bytes.
    """
    if allocated in (0, _ALL):
        return [(start, end, allocated == _ALL)]
    result = []
    index = 0
    while index < c.SUBCLUSTERS:
        first, kind = index, allocated >> index & 1
        while index < c.SUBCLUSTERS and allocated >> index & 1 == kind:
            index += 1
        result.append((start + first * size, start + index * size, kind == 1))
    return result
