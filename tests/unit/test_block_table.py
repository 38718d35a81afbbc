"""A table of blocks, in pages: what is read of it, and what it says."""

from __future__ import annotations

from typing import Any

import pytest
from diskmill.kit import tables
from diskmill.kit.blocks import PAGE, BlockTable
from twins import Content, MemoryDriver, MemoryStorage


class Watched(MemoryStorage):
    """Storage that counts the bytes that are read of it."""

    seen = 0

    def read_into(self, offset: int, buffer: Any) -> None:
        self.seen += len(buffer)
        super().read_into(offset, buffer)


@pytest.mark.parametrize("width", [4, 8])
def test_pages_that_are_holes_are_not_read(width: int) -> None:
    count = 40 * PAGE + 7
    node = Watched(MemoryDriver(), "memory:disk", Content(), writable=True)
    node.truncate(512 + count * width)
    table = BlockTable(node, 512, count, width, "big", lambda: None)
    entries = {3 * PAGE: 5, 3 * PAGE + 1: 6, 17 * PAGE - 1: 9, count - 1: 11}
    for index, value in entries.items():
        node.write(512 + index * width, value.to_bytes(width, "big"))

    def spelled_out() -> dict[int, int]:
        found, at = {}, 0
        for run in table.runs(0, count, 1):
            assert run.at == at
            at += run.length
            if run.value or run.step:
                found |= {run.at + index: run.value + index * run.step for index in range(run.length)}
        assert at == count
        return {index: value for index, value in found.items() if value}

    assert spelled_out() == entries
    assert 0 < node.seen <= 8 * PAGE * width  # a block of the file belongs to two pages, where one ends in it
    table.set(30 * PAGE + 1, 3, 100, 1)
    assert spelled_out() == entries | {30 * PAGE + 1: 100, 30 * PAGE + 2: 101, 30 * PAGE + 3: 102}
    table.write_back()
    fresh = BlockTable(node, 512, count, width, "big", lambda: None)
    assert fresh.get(30 * PAGE + 2) == 101 and not fresh.get(0)
    assert tables.read(node, 512 + 30 * PAGE * width, 4, width, "big").tolist() == [0, 100, 101, 102]
