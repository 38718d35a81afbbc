"""What L2 entries say, as extents: where guest bytes live in the file.

Source: the specification's sections "Cluster mapping", "Standard Cluster Descriptor", "Compressed Clusters Descriptor"
and "Extended L2 Entries".
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from diskmill.contract.extents import Extent, Kind, joins
from diskmill.errors import ImageError
from diskmill.kit import tables

from . import c_qcow2 as c
from .bounds import compressed_misplaced, misplaced
from .l2 import compressed_place

if TYPE_CHECKING:
    from .image import Qcow2Image

_ALL = 0xFFFFFFFF


class Extents:
    """What the active L1 table of *image*, and the L2 tables below it, say of guest bytes."""

    def __init__(self, image: Qcow2Image) -> None:
        self.image = image
        self.file, self.header, self.lock = image.file, image.header, image.lock
        self.unit, self.external = image.unit, image.external

    def of(self, offset: int, length: int) -> Iterator[Extent]:
        """As :meth:`Node.extents`: neighbouring clusters that are neighbours in the file come as one."""
        end = offset + length
        first, behind = offset // self.unit, -(-end // self.unit)
        clusters: Iterable[Extent]
        with self.lock:  # for looking up, and not while the caller reads
            single = self.image.mapping.within(first, behind)
        if single is None:
            clusters = self._batches(first, behind)
        elif single[0] is None or not any(single[0]):
            clusters = iter((Extent(offset, length, Kind.HOLE),))
        else:
            clusters = self._meant_by(first, behind - first, single[0])
        last: Extent | None = None
        for extent in clusters:
            start, upto = extent.start, extent.start + extent.length
            if start < offset or upto > end:
                if upto <= offset or start >= end:
                    continue  # other subclusters of the first or last cluster
                extent = extent.clip(offset, end)
            if last is None:
                last = extent
            elif extent.kind is last.kind and not extent.unit and joins(last, extent):
                last = last._replace(length=last.length + extent.length)
            else:
                yield last
                last = extent
        if last is not None:
            yield last

    def vacant(self, offset: int, length: int) -> bool:
        """As :meth:`Image.vacant`, of what one L2 table says."""
        with self.lock:
            single = self.image.mapping.within(offset // self.unit, -(-(offset + length) // self.unit))
        return single is not None and (single[0] is None or not any(single[0]))

    def _batches(self, first: int, last: int) -> Iterator[Extent]:
        """As :meth:`of`, but whole guest clusters, from *first* to before *last*, and not yet joined."""
        with self.lock:
            batches = self.image.mapping.batches(first, last)
        while True:
            with self.lock:
                batch = next(batches, None)
            if batch is None:
                return
            cluster, count, words, times = batch
            told = self._meant_by(cluster, count, words)
            if times == 1:
                yield from told
            else:
                yield from _repeated(list(told), count * self.unit, times)

    def _meant_by(self, cluster: int, count: int, words: array[int] | None) -> Iterable[Extent]:
        """The extents of *count* guest clusters from *cluster* on, whose entries are *words*."""
        if words is None:
            return (Extent(cluster * self.unit, count * self.unit, Kind.HOLE),)
        return self._standard(cluster, words) if self.image.mapping.words == 1 else self._extended(cluster, words)

    def _standard(self, cluster: int, words: array[int]) -> Iterator[Extent]:
        """Extents of guest clusters from *cluster* on whose standard L2 entries are *words*."""
        size = self.unit
        zeros = self.header.version > 2
        plain = None if self.external or self.image.volume is not None else self.image.data
        least, most, low = size, self.file.size - size, size - 1
        for at, length, value, step in tables.runs(words, size):
            start = (cluster + at) * size
            if not value:
                yield Extent(start, length * size, Kind.HOLE)
            elif value & c.COMPRESSED:
                for index in range(length):
                    yield self._compressed(start + index * size, value + index * step)
            elif value & c.ZERO and zeros:
                host = value & c.OFFSET_MASK
                if host % size:  # a damaged entry: it need not have meant zeros
                    raise self._misplaced(host, start)
                if host and (step or length == 1):
                    yield Extent(start, length * size, Kind.ZERO, self.image.data, host)
                else:
                    yield Extent(start, length * size, Kind.ZERO)
            elif (
                length == 1
                and plain is not None
                and least <= (host := value & c.OFFSET_MASK) <= most
                and not host & low
            ):
                yield Extent(start, size, Kind.DATA, plain, host)  # a scattered image is all of these
            else:
                yield from self._data(start, length, value, step)

    def _extended(self, cluster: int, words: array[int]) -> Iterator[Extent]:
        """As :meth:`_standard` of extended L2 entries: two words each, the second one a bitmap of subclusters."""
        size = self.unit
        bitmaps = words[1::2]
        for run in tables.runs(words[0::2], size):
            if run.value & c.COMPRESSED:
                for index in range(run.length):
                    yield self._compressed((cluster + run.at + index) * size, run.value + index * run.step)
                continue
            for part in tables.runs(bitmaps[run.at : run.at + run.length], 0):
                start = (cluster + run.at + part.at) * size
                value = run.value + part.at * run.step
                if part.value == c.ALL_ALLOCATED:
                    yield from self._data(start, part.length, value, run.step)
                elif part.value == c.ALL_ZEROS:
                    yield Extent(start, part.length * size, Kind.ZERO)
                elif not part.value:
                    yield Extent(start, part.length * size, Kind.HOLE)
                else:
                    for index in range(part.length):
                        yield from self._subclusters(start + index * size, value + index * run.step, part.value)

    def _subclusters(self, start: int, value: int, bitmap: int) -> Iterator[Extent]:
        """Extents of the guest cluster at *start*, whose subclusters are not all alike."""
        size = self.unit // c.SUBCLUSTERS
        allocated, zero = bitmap & _ALL, bitmap >> 32
        if allocated & zero:
            raise ImageError(
                "subclusters are both allocated and zero", file=self.image.name, place=f"guest offset {start}"
            )
        if allocated:
            whole = next(iter(self._data(start, 1, value, 0)))
        index = 0
        while index < c.SUBCLUSTERS:
            kind = allocated >> index & 1, zero >> index & 1
            upto = index + 1
            while upto < c.SUBCLUSTERS and (allocated >> upto & 1, zero >> upto & 1) == kind:
                upto += 1
            if kind[0]:
                yield whole.clip(start + index * size, start + upto * size)
            else:
                yield Extent(start + index * size, (upto - index) * size, Kind.ZERO if kind[1] else Kind.HOLE)
            index = upto

    def _data(self, start: int, count: int, value: int, step: int) -> Iterator[Extent]:
        """Verbatim clusters, checked against the file."""
        size, host = self.unit, value & c.OFFSET_MASK
        if not host and not (self.external and value & c.COPIED):
            raise self._misplaced(host, start)
        self.require_place(host, count, step, start)
        data = self.image.require_data()
        kind = Kind.DATA if self.image.volume is None else Kind.ENCODED
        if step or count == 1:
            yield Extent(start, count * size, kind, data, host, codec=self.image.volume)
        else:  # several guest clusters share one
            for index in range(count):
                yield Extent(start + index * size, size, kind, data, host, codec=self.image.volume)

    def require_place(self, host: int, count: int, step: int, start: int) -> None:
        """See that *count* clusters from *host* on, of guest offset *start*, can be there.

        :raises ImageError: they cannot.
        """
        last = host + (count - 1) * step
        if host % self.unit or not self.external and misplaced(last, self.unit, self.file.size):
            raise self._misplaced(host, start)

    def _misplaced(self, host: int, start: int) -> ImageError:
        return ImageError(
            f"it says that the data is at offset {host} of {self.file.size}",
            file=self.image.name,
            place=f"L2 entry of guest offset {start}",
        )

    def _compressed(self, start: int, value: int) -> Extent:
        """The extent of the guest cluster at *start*, whose entry *value* is a compressed cluster descriptor."""
        host, stored = compressed_place(self.header.cluster_bits, value)
        outside = compressed_misplaced(host, host + stored, self.unit, self.file.size)
        # The number of sectors is rounded up, so the last cluster's may end after the file does.
        if host + stored > self.file.size:
            stored = self.file.size - host
        if outside or self.external:
            raise ImageError(
                f"it says that compressed data is at offset {host} of {self.file.size}",
                file=self.image.name,
                place=f"L2 entry of guest offset {start}",
            )
        return Extent(start, self.unit, Kind.ENCODED, self.file, host, stored, self.image.codec, self.unit)


def _repeated(extents: list[Extent], length: int, times: int) -> Iterator[Extent]:
    """*extents*, which cover *length* bytes, so many *times* one after the other."""
    only = extents[0]
    if len(extents) == 1 and only.node is None:
        yield only._replace(length=length * times)
        return
    for ahead in range(0, length * times, length):
        for extent in extents:
            yield extent._replace(start=extent.start + ahead)
