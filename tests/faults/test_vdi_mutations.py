"""Damaged VDI images: an error in one line, or an image that reads."""

from __future__ import annotations

import pytest
from diskmill.sizes import KiB
from formats import Machine
from mutations import mutants, withstand


def sample(**options: object) -> bytes:
    """A fragmented image with blocks of all kinds."""
    machine = Machine()
    machine.create("sample", "vdi", 700 * KiB, options)
    with machine.open("sample", "vdi", writable=True) as image:
        for block in (5, 3, 4, 9, 1):
            image.write(block * 64 * KiB + 777, bytes([block]) * 3000)
    return bytes(machine.files["sample"])


@pytest.mark.parametrize("options", [{}, {"preallocation": "metadata"}], ids=["dynamic", "static"])
@pytest.mark.parametrize("seed", range(3))
def test_damage_in_header_and_map(options: dict[str, object], seed: int) -> None:
    data = sample(cluster_size=64 * KiB, **options)
    regions = [(64, 24), (340, 130), (512, 48)]
    counts = withstand("vdi", mutants(data, regions, seed=seed, count=400))
    assert counts["read"] > 20 and counts["refused"] > 20 and counts["written"] > 20, counts
