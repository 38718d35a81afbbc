"""One disk of a VMA archive. Source: see :mod:`.c_vma`."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from diskmill.contract.extents import Extent, Kind, joined
from diskmill.contract.node import Node
from diskmill.contract.results import CheckResult
from diskmill.kit.image import ReadOnlyImage
from diskmill.kit.tables import bit_runs

from .c_vma import VMA_BLOCK_SIZE, VMA_CLUSTER_SIZE

if TYPE_CHECKING:
    from . import VmaDriver


class Clusters:
    """The clusters of a disk that have data, ascending.

    :ivar numbers: which cluster of the disk each is.
    :ivar masks: which of its blocks are stored, the lowest bit for the first.
    :ivar offsets: where in the file they are, one behind the other.
    """

    def __init__(self) -> None:
        self.numbers = array("I")
        self.masks = array("H")
        self.offsets = array("Q")

    def add(self, number: int, mask: int, offset: int) -> None:
        self.numbers.append(number)
        self.masks.append(mask)
        self.offsets.append(offset)

    def sort(self) -> None:
        """Let them ascend: an archive has clusters in the order in which they were read, or were about to change."""
        order = sorted(range(len(self.numbers)), key=self.numbers.__getitem__)
        for column in (self.numbers, self.masks, self.offsets):
            column[:] = array(column.typecode, map(column.__getitem__, order))


class VmaImage(ReadOnlyImage):
    """A disk of an archive, *told* being what there is to say of that."""

    def __init__(
        self, driver: VmaDriver, file: Node, clusters: Clusters, told: Mapping[str, Any], *, name: str, size: int
    ) -> None:
        super().__init__(driver, file, name=name, size=size)
        self.clusters, self._told = clusters, told

    def details(self) -> dict[str, Any]:
        return dict(self._told)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        return joined(self._extents(offset, offset + length))

    def _extents(self, low: int, high: int) -> Iterator[Extent]:
        clusters, at = self.clusters, low
        for index in range(bisect_left(clusters.numbers, low // VMA_CLUSTER_SIZE), len(clusters.numbers)):
            start = clusters.numbers[index] * VMA_CLUSTER_SIZE
            if start >= high:
                break
            if start > at:
                yield Extent(at, start - at, Kind.ZERO)
            place = clusters.offsets[index]
            for first, count, stored in bit_runs(clusters.masks[index].to_bytes(2, "little"), 0, 16, "little"):
                begin, size = start + first * VMA_BLOCK_SIZE, count * VMA_BLOCK_SIZE
                if begin < high and begin + size > low:
                    kind, node = (Kind.DATA, self.file) if stored else (Kind.ZERO, None)
                    yield Extent(begin, size, kind, node, place if stored else 0).clip(low, high)
                place += size if stored else 0
            at = start + VMA_CLUSTER_SIZE
        if at < high:
            yield Extent(at, high - at, Kind.ZERO)

    def check(self) -> CheckResult:
        """What could be wrong would have kept it from being opened: guest bytes have no checksum."""
        total, stored = -(-self.size // VMA_CLUSTER_SIZE), len(self.clusters.numbers)
        return CheckResult(total_clusters=total, allocated_clusters=stored)
