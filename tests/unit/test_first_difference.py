"""Comparing two nodes: the first difference is found, and what lies behind it is not read."""

from __future__ import annotations

import pytest
from diskmill.engine.compare import first_difference
from diskmill.engine.progress import Progress
from diskmill.sizes import SECTOR, MiB
from twins import memory

SIZE = 16 * MiB


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("at", [0, MiB, 3 * MiB + 5 * SECTOR + 7])
def test_a_comparison_ends_where_the_nodes_differ(at: int, threads: int) -> None:
    data = bytearray(b"\x01" * SIZE)
    left = memory(bytes(data))
    data[at] = data[at + MiB] = data[-1] = 0
    right = memory(bytes(data))
    told = [0]
    progress = Progress(lambda done, total: told.append(done))
    progress.expect(SIZE)
    assert first_difference(left, right, SIZE, threads=threads, progress=progress) == at // SECTOR * SECTOR
    assert max(told) <= SIZE // 2


def test_what_is_the_same_is_all_compared() -> None:
    left, right = (memory(b"\x01" * (SIZE - SECTOR)) for _ in range(2))
    told = [0]
    progress = Progress(lambda done, total: told.append(done))
    progress.expect(SIZE)
    assert first_difference(left, right, SIZE, progress=progress) is None
    assert max(told) == SIZE
