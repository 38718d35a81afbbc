"""Damaged VHD images: an error in one line, or an image that reads. Half of them have right checksums all the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from diskmill.sizes import KiB, MiB
from formats import Machine
from mutations import mutants, withstand


def sample(**options: object) -> bytes:
    """A fragmented image."""
    machine = Machine()
    machine.create("sample", "vpc", 9 * MiB, {"force_size": True, **options})
    with machine.open("sample", "vpc", writable=True) as image:
        for block in (3, 1, 4):
            image.write(block * 2 * MiB + 777, bytes([block]) * 3000)
    return bytes(machine.files["sample"])


def seal(data: bytearray, offset: int, length: int, field: int) -> None:
    """Set the checksum, at byte *field*, of the structure at *offset*."""
    if offset < 0 or offset + length > len(data):
        return
    data[offset + field : offset + field + 4] = bytes(4)
    total = ~sum(data[offset : offset + length]) & 0xFFFFFFFF
    data[offset + field : offset + field + 4] = total.to_bytes(4, "big")


def sealed(images: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    for number, (what, data) in enumerate(images):
        copy = bytearray(data)
        if number % 2:
            seal(copy, 0, 512, 64)
            seal(copy, 512, 1024, 36)
            seal(copy, len(copy) - 512, 512, 64)
        yield what, bytes(copy)


@pytest.mark.parametrize("seed", range(5))
def test_damage_in_a_dynamic_image(seed: int) -> None:
    data = sample()
    regions = [(0, 96), (512, 64), (576, 900), (1536, 24), (len(data) - 512, 96)]
    counts = withstand("vpc", sealed(mutants(data, regions, seed=seed, count=300)))
    assert counts["read"] > 20 and counts["refused"] > 20 and counts["written"] > 20, counts


@pytest.mark.parametrize("seed", range(2))
def test_damage_in_a_fixed_image(seed: int) -> None:
    machine = Machine()
    machine.create("sample", "vpc", 100 * KiB, {"subformat": "fixed"})
    data = bytes(machine.files["sample"])
    counts = withstand("vpc", sealed(mutants(data, [(len(data) - 512, 96)], seed=seed, count=400)))
    assert counts["read"] > 20 and counts["refused"] > 20 and counts["written"] > 20, counts
