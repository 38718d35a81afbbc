"""Damaged VHDX images: an error in one line, or an image that reads. Half of them have right checksums all the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from diskmill.sizes import KiB, MiB
from formats import Machine
from mutations import Region, mutants, withstand
from twins import Content
from vhdx_samples import (
    BAT,
    HEADERS,
    METADATA,
    REGION_TABLES,
    announce,
    differencing,
    entry,
    log_place,
    put_in_log,
    region,
    seal,
    with_entries,
)

NAME = bytes(range(16))


def sample() -> bytes:
    """A fragmented image."""
    machine = Machine()
    machine.create("sample", "vhdx", 5 * MiB + 512, {"block_size": MiB})
    with machine.open("sample", "vhdx", writable=True) as image:
        for block in (4, 1, 2):
            image.write(block * MiB + 777, bytes([block]) * 3000)
    return bytes(machine.files["sample"])


def damaged(
    data: bytes, regions: Sequence[Region], *, seed: int, count: int, sealed: Sequence[Region] = ()
) -> Iterator[tuple[str, Content]]:
    """*count* damaged copies of *data*: most of it is holes, so only *regions*, which lie apart, are mutated.

    :param sealed: the log entries that are, like headers and region tables, given right checksums in every second copy.
    """
    base = Content()
    for at in range(0, len(data), 4096):
        if data[at : at + 4096].strip(b"\0"):
            base.write(at, data[at : at + 4096])
    base.truncate(len(data))
    small = b"".join(data[at : at + length] for at, length in regions)
    starts = [sum(length for _, length in regions[:index]) for index in range(len(regions))]
    places = [(start, length) for start, (_, length) in zip(starts, regions, strict=True)]
    structures = [*((at, 4096) for at in HEADERS), *((at, 65536) for at in REGION_TABLES), *sealed]
    for number, (what, mutant) in enumerate(mutants(small, places, seed=seed, count=count)):
        copy = base.copy()
        for start, (at, length) in zip(starts, regions, strict=True):
            copy.write(at, mutant[start : start + length])
        if len(mutant) < len(small):
            copy.truncate(len(data) * len(mutant) // len(small))
        for at, length in structures if number % 2 else ():
            if at + length <= copy.size:
                structure = copy.read(at, length)
                seal(structure, 0, length)
                copy.write(at, structure)
        yield what, copy


@pytest.mark.parametrize("seed", range(3))
def test_damage_in_headers_and_tables(seed: int) -> None:
    data = sample()
    metadata = region(data, METADATA)
    regions = [(at, 80) for at in (*HEADERS, *REGION_TABLES)]
    regions += [(metadata, 32), (metadata + 32, 160), (metadata + 64 * KiB, 48), (region(data, BAT), 64)]
    counts = withstand("vhdx", damaged(data, regions, seed=seed, count=400))
    assert counts["read"] > 20 and counts["refused"] > 20 and counts["written"] > 20, counts


@pytest.mark.parametrize("seed", range(2))
def test_damage_in_the_log(seed: int) -> None:
    """Two entries, with data and zeros."""
    data = bytearray(sample())
    start = region(data, BAT)
    first = entry(NAME, 5, 0, with_entries(data, {3: 2}), flushed=len(data), last=len(data))
    updates = [(start + 64 * KiB, 128 * KiB), *with_entries(data, {0: 2})]
    second = entry(NAME, 6, 0, updates, flushed=len(data), last=len(data))
    put_in_log(data, 0, first + second)
    announce(data, NAME)
    low = log_place(data)[0]
    high = low + len(first)
    regions = [(low, 100), (high, 128), (low + 4096, 16), (high + 4096, 64), (HEADERS[0], 80), (HEADERS[1], 80)]
    images = damaged(bytes(data), regions, seed=seed, count=400, sealed=((low, len(first)), (high, len(second))))
    counts = withstand("vhdx", images)
    assert counts["read"] > 20 and counts["refused"] > 20 and counts["written"] > 20, counts


def test_damage_in_a_differencing_image() -> None:
    data = sample()
    values = {"relative_path": ".\\parent", "absolute_win32_path": "\\\\?\\C:\\parent"}
    child = bytes(differencing(bytearray(data), data, values, {1: b"\xaa" * 16, 2: b"\xff" * 3}))
    metadata, table = region(data, METADATA), region(data, BAT)
    regions = [(metadata + 32, 192), (metadata + 64 * KiB, 48), (table, 48), (table + 4096 * 8, 8)]
    regions += [(metadata + 128 * KiB, 80), (metadata + 128 * KiB + 80, 200)]
    images = damaged(child, regions, seed=0, count=500)
    counts = withstand("vhdx", images, write=False, beside={"parent": Content(data)})
    assert counts["read"] > 20 and counts["refused"] > 20, counts
