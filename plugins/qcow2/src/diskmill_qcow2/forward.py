"""New images that are written from the first byte to the last, into a pipe or an upload.

All tables come before the data, so what will be written must be known beforehand: then each cluster has its place.
Header, refcount table, refcount blocks, L1 table, L2 tables, and the guest's clusters in their order.

Source: the specification's sections "Header", "Host cluster management" and "Cluster mapping".
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from diskmill.contract.extents import Extent, Kind, Placement
from diskmill.errors import ImageError
from diskmill.kit import tables
from diskmill.kit.forward import foretell
from diskmill.kit.image import FormatImage
from diskmill.sizes import MiB

from . import c_qcow2 as c

if TYPE_CHECKING:
    from diskmill.contract.drivers import FormatDriver
    from diskmill.contract.node import Storage
    from diskmill.contract.requests import CreateRequest

    from .header import Header


class Layout:
    """Which guest clusters there will be, as runs of them, and where everything is in the file.

    :param ranges: guest (offset, length), in order, that will be written.
    """

    def __init__(self, header: Header, ranges: Iterator[tuple[int, int]]) -> None:
        self.size = header.cluster_size
        self.per_table = header.l2_entries
        self.first = array("Q")
        self.before = array("Q", [0])
        """Clusters in the runs before each run, and at last in all."""
        behind = 0
        for offset, length in ranges:
            begin, end = max(offset // self.size, behind), -(-(offset + length) // self.size)
            if begin < end:
                self._add(begin, end - begin)
                behind = end
        self.tables = self._tables()
        l1 = -(-header.l1_size * 8 // self.size)
        per_block = self.size * 8 // header.refcount_bits
        self.blocks = self.table_clusters = 1
        while True:  # what counts clusters takes clusters
            start = 1 + self.table_clusters + self.blocks
            total = start + l1 + len(self.tables) + self.before[-1]
            blocks = -(-total // per_block)
            table_clusters = -(-blocks * 8 // self.size)
            if (blocks, table_clusters) == (self.blocks, self.table_clusters):
                break
            self.blocks, self.table_clusters = blocks, table_clusters
        self.total = total
        self.l1 = start * self.size
        self.l2 = self.l1 + l1 * self.size
        self.data = self.l2 + len(self.tables) * self.size

    def _add(self, begin: int, count: int) -> None:
        run = len(self.first) - 1
        if run >= 0 and self.first[run] + self.before[run + 1] - self.before[run] == begin:
            self.before[-1] += count
        else:
            self.first.append(begin)
            self.before.append(self.before[-1] + count)

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """(first guest cluster, count, offset in the file) of each run."""
        for run, first in enumerate(self.first):
            yield first, self.before[run + 1] - self.before[run], self.data + self.before[run] * self.size

    def _tables(self) -> array[int]:
        """The indexes of the L2 tables that are needed."""
        found = array("Q")
        for run, first in enumerate(self.first):
            last = first + self.before[run + 1] - self.before[run] - 1
            low = first // self.per_table
            if len(found) and found[-1] == low:
                low += 1
            found.extend(range(low, last // self.per_table + 1))
        return found

    def l2_tables(self) -> Iterator[bytes]:
        """The L2 tables, in order."""
        runs = self.runs()
        first, count, host = next(runs, (0, 0, 0))
        for index in self.tables:
            table = tables.filled(self.per_table, 8)
            end = (index + 1) * self.per_table
            while count and first < end:
                part = min(count, end - first)
                tables.fill_run(table, first % self.per_table, part, host | c.COPIED, self.size)
                first, count, host = first + part, count - part, host + part * self.size
                if not count:
                    first, count, host = next(runs, (0, 0, 0))
            yield tables.to_bytes(table, "big")

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(guest offset, length, offset in the file, or -1 where there is no cluster) from *start* to *end*."""
        run = max(bisect_right(self.first, start // self.size) - 1, 0)
        at = start
        while at < end:
            low, high = end, end
            if run < len(self.first):
                low = self.first[run] * self.size
                high = low + (self.before[run + 1] - self.before[run]) * self.size
            if at < low:
                upto = min(low, end)
                yield at, upto - at, -1
            elif at < high:
                upto = min(high, end)
                yield at, upto - at, self.data + self.before[run] * self.size + at - low
            else:
                upto, run = at, run + 1
            at = upto


def create_forward(driver: FormatDriver, request: CreateRequest, header: Header) -> ForwardImage:
    """The image, its tables written; *header* lacks the places of tables only."""
    file = request.output()
    layout = Layout(header, request.layout() if request.layout is not None else iter(()))
    size = layout.size
    foretell(file, layout.total * size)
    header.refcount_table_offset, header.refcount_table_clusters = size, layout.table_clusters
    header.l1_table_offset = layout.l1 if header.l1_size else 0
    file.write(0, header.pack())
    file.write(size, tables.to_bytes(array("Q", range_of(layout)), "big"))
    _count(file, (1 + layout.table_clusters) * size, layout.total, header.refcount_bits)
    l1 = tables.filled(header.l1_size, 8)
    for number, index in enumerate(layout.tables):
        l1[index] = layout.l2 + number * size | c.COPIED
    file.write(layout.l1, tables.to_bytes(l1, "big"))
    for number, table in enumerate(layout.l2_tables()):
        file.write(layout.l2 + number * size, table)
    file.truncate(layout.total * size)
    return ForwardImage(driver, file, layout, name=request.name, size=header.size)


def range_of(layout: Layout) -> range:
    """The offsets of the refcount blocks."""
    start = (1 + layout.table_clusters) * layout.size
    return range(start, start + layout.blocks * layout.size, layout.size)


def _count(file: Storage, offset: int, clusters: int, bits: int) -> None:
    """A refcount of 1 for each of *clusters*, from *offset* on; entries below a byte begin at its lowest bit."""
    if bits >= 8:
        one, each = (1).to_bytes(bits // 8, "big"), 1
    else:
        each = 8 // bits
        one = bytes([sum(1 << (bits * number) for number in range(each))])
    whole, rest = divmod(clusters, each)
    most = MiB // len(one)
    for at in range(0, whole, most):
        file.write(offset + at * len(one), one * min(most, whole - at))
    if rest:
        file.write(offset + whole * len(one), bytes([sum(1 << (bits * number) for number in range(rest))]))


class ForwardImage(FormatImage):
    """A new image in which each cluster has its place: what is written goes there, and nothing else can be."""

    file: Storage

    def __init__(self, driver: FormatDriver, file: Storage, layout: Layout, *, name: str, size: int) -> None:
        super().__init__(driver, file, name=name, size=size, writable=True)
        self.layout = layout
        self.unit = layout.size

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        for at, count, place in self.layout.pieces(offset, offset + length):
            yield Extent(at, count, Kind.HOLE) if place < 0 else Extent(at, count, Kind.DATA, self.file, place)

    def reserve(self, offset: int, length: int) -> list[Placement]:
        """The places of clusters. What is not written of one reads as zeros."""
        found = []
        for at, count, place in self.layout.pieces(offset, offset + length):
            if place < 0:
                raise ImageError(
                    "there is data that was not there when the output was laid out: the source has changed",
                    file=self.name,
                    place=f"guest offset {at}",
                )
            found.append(Placement(at, count, self.file, place))
        return found

    def publish(self, placements: Sequence[Placement]) -> None:
        """All tables are written."""

    def zero_units(self, offset: int, length: int, *, unmap: bool) -> None:
        """Nothing was written there, nor will be."""
