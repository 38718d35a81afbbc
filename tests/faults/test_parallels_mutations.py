"""Damaged Parallels images, extensions and bundles: an error in one line, or an image that reads."""

from __future__ import annotations

import pytest
from diskmill.sizes import KiB
from formats import Machine
from mutations import mutants, withstand


def sample(cluster: int, *, old: bool = False) -> bytes:
    """A fragmented image."""
    machine = Machine()
    machine.create("sample", "parallels", 12 * cluster, {"cluster_size": cluster})
    with machine.open("sample", "parallels", writable=True) as image:
        for block in (5, 3, 4, 9, 1):
            image.write(block * cluster + 777, bytes([block]) * 3000)
    data = bytearray(machine.files["sample"].read(0, machine.files["sample"].size))
    if old:
        data[0:16] = b"WithoutFreeSpace"
        for at in range(64, 64 + 12 * 4, 4):
            entry = int.from_bytes(data[at : at + 4], "little") * (cluster // 512)
            data[at : at + 4] = entry.to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize("old", [False, True], ids=["Ext", "old"])
@pytest.mark.parametrize("seed", range(3))
def test_damage_in_header_and_table(old: bool, seed: int) -> None:
    data = sample(32 * KiB, old=old)
    counts = withstand("parallels", mutants(data, [(0, 64), (16, 48), (64, 48)], seed=seed, count=400))
    assert counts["read"] > 20 and counts["refused"] > 20 and counts["written"] > 20, counts
