"""What filters over several nodes with the same bytes have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from diskmill.contract.drivers import Driver
from diskmill.contract.extents import Extent, Kind
from diskmill.contract.node import Node, ReadBuffer
from diskmill.kit.filter import Filter


class Copies(Filter):
    """*nodes*, which are to have the same bytes: what is written goes to each."""

    def __init__(self, driver: Driver, nodes: Sequence[Node]) -> None:
        super().__init__(driver, nodes[0], nodes[1:])
        self.nodes = tuple(nodes)
        self._views = [Filter(driver, node) for node in nodes]
        self.blank = all(node.blank for node in nodes)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Zeros are where all say so: elsewhere they must be held against each other."""
        end = offset + length
        walks = [view.extents(offset, max(min(length, view.size - offset), 0)) for view in self._views]
        nexts = [next(one, None) for one in walks]
        at = offset
        while at < end:
            for number, one in enumerate(walks):
                while (extent := nexts[number]) is not None and extent.end <= at:
                    nexts[number] = next(one, None)
            # A node that ends before has zeros there.
            upto = min([end, *(extent.end for extent in nexts if extent is not None)])
            zeros = all(extent is None or extent.reads_as_zeros for extent in nexts)
            yield Extent(at, upto - at, Kind.ZERO if zeros else Kind.DATA, self, at)
            at = upto

    def write(self, offset: int, data: ReadBuffer) -> None:
        for node in self.nodes:
            node.write(offset, data)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        for node in self.nodes:
            node.zero(offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        for node in self.nodes:
            node.discard(offset, length)

    def truncate(self, size: int) -> None:
        for node in self.nodes:
            node.truncate(size)

    def allocate(self, offset: int, length: int, mode: str) -> None:
        for node in self.nodes:
            node.allocate(offset, length, mode)

    def event(self, name: str) -> None:
        for node in self.nodes:
            node.event(name)

    def allocated(self) -> int | None:
        sizes = [node.allocated() for node in self.nodes]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None


def first_difference(one: ReadBuffer, other: ReadBuffer) -> int:
    """Where two buffers of the same length first differ, found by halving."""
    low, high = 0, len(one)
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
