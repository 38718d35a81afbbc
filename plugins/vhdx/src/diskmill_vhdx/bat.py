"""The block allocation table: entries of payload blocks, and after those of each chunk one of its sector bitmap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from diskmill.kit import tables
from diskmill.kit.blocks import PAGE, BlockTable
from diskmill.kit.tables import Run

from .c_vhdx import CHUNK_SECTORS, LOG_SECTOR

if TYPE_CHECKING:
    from diskmill.contract.node import Node

WIDTH = 8
"""Bytes in an entry."""


def chunk_ratio(block_size: int, sector: int) -> int:
    """Payload blocks for each sector bitmap block."""
    return CHUNK_SECTORS * sector // block_size


def entries(blocks: int, ratio: int, *, differencing: bool = False) -> int:
    """How many entries a table for *blocks* payload blocks has."""
    if differencing:
        return -(-blocks // ratio) * (ratio + 1)
    return blocks + max(blocks - 1, 0) // ratio


class Bat(BlockTable):
    """The table at *offset* of *node*, its entries numbered by payload blocks."""

    def __init__(
        self,
        node: Node,
        offset: int,
        blocks: int,
        ratio: int,
        make_room: Callable[[], None],
        *,
        differencing: bool = False,
    ) -> None:
        count = entries(blocks, ratio, differencing=differencing)
        super().__init__(node, offset, count, WIDTH, "little", make_room)
        self.blocks = blocks
        self.ratio = ratio

    def __len__(self) -> int:
        return self.blocks

    def get(self, index: int) -> int:
        return super().get(index + index // self.ratio)

    def bitmap(self, chunk: int) -> int:
        """The entry of the sector bitmap block of *chunk*."""
        return super().get(chunk * (self.ratio + 1) + self.ratio)

    def runs(self, first: int, end: int, step: int) -> Iterator[Run]:
        for chunk, low, high in self._chunks(first, end):
            for run in super().runs(low + chunk, high + chunk, step):
                yield run._replace(at=run.at - chunk) if chunk else run

    def set(self, index: int, count: int, value: int, step: int) -> None:
        for chunk, low, high in self._chunks(index, index + count):
            super().set(low + chunk, high - low, value + (low - index) * step, step)

    def _chunks(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(chunk, first block, end) for the stretches of blocks *first* to *end - 1* that lie in one chunk each.

        As many bitmap entries stand before a block's entry as there are chunks before its own.
        """
        while first < end:
            chunk = first // self.ratio
            upto = min((chunk + 1) * self.ratio, end)
            yield chunk, first, upto
            first = upto

    def changes(self) -> Iterator[tuple[int, bytes]]:
        """(file offset, contents) of the sectors that are not on disk as they are here."""
        for number in sorted(self._dirty):
            at = self.offset + number * PAGE * WIDTH
            page = tables.to_bytes(self._pages[number], self.order)
            old = self.node.read(at, -(-len(page) // LOG_SECTOR) * LOG_SECTOR)
            new = page + old[len(page) :]
            for low in range(0, len(new), LOG_SECTOR):
                sector = new[low : low + LOG_SECTOR]
                if sector != old[low : low + LOG_SECTOR]:
                    yield at + low, sector

    def written(self) -> None:
        """What :meth:`changes` gave is on disk."""
        self._dirty.clear()
