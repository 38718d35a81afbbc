"""Damaged DMG, cloop and Bochs images: data or one clear error, in bounded time and memory."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

import pytest
from diskmill.sizes import KiB
from encoders import bochs, cloop, dmg, in_memory
from formats import fragments
from mutations import Region, mutants, withstand

COUNT = 2000


def disk(size: int = 128 * KiB) -> bytes:
    data = bytearray(size)
    for offset, part in fragments(3, size, 16 * KiB):
        data[offset : offset + len(part)] = part
    return bytes(data)


DISK = disk()


def survived(format: str, images: Iterator[tuple[str, bytes]]) -> None:
    counts = withstand(format, images)
    assert counts["read"] > COUNT // 20
    assert counts["refused"] > COUNT // 20


@pytest.mark.parametrize("block", [4096, 128 * KiB])
def test_cloop(block: int) -> None:
    data = in_memory(cloop.encode, block=block)(DISK)
    table = 8 + 8 * (len(DISK) // block + 2)
    regions = [(0, 32), (128, 8), (128, table), (128 + table, 200)]
    survived("cloop", mutants(data, regions, seed=block, count=COUNT // 2))


@pytest.mark.parametrize("version", [1, 2])
def test_bochs(version: int) -> None:
    data = in_memory(bochs.encode, extent=4096, version=version, seed=1)(DISK)
    catalog = len(DISK) // 4096 * 4
    regions = [(0, 64), (64, 40), (64, 40), (512, catalog), (512 + catalog, 16)]
    survived("bochs", mutants(data, regions, seed=version, count=COUNT // 2))


def _dmg(**choices: object) -> bytes:
    return in_memory(dmg.encode, types=dmg.EVERY, chunk=40, borders=(1, 200), **choices)(DISK)


def test_dmg_trailers() -> None:
    data = _dmg()
    end = len(data) - 512
    regions = [(end, 80), (end + 0xD8, 16), (end + 488, 12), (end, 512)]
    survived("dmg", mutants(data, regions, seed=1, count=COUNT // 2))


def test_dmg_property_lists() -> None:
    data = _dmg()
    (offset,) = struct.unpack_from(">Q", data, len(data) - 512 + 0xD8)
    survived("dmg", mutants(data, [(offset, len(data) - 512 - offset)], seed=2, count=COUNT // 2))


def test_dmg_resource_forks() -> None:
    data = _dmg(fork=True)
    offset, length = struct.unpack_from(">QQ", data, len(data) - 512 + 0x28)
    where = struct.unpack_from(">I", data, offset + 4)[0]
    regions: list[Region] = [(offset, 16), (offset + where, length - where), (offset + 256, length - 256)]
    survived("dmg", mutants(data, regions, seed=3, count=COUNT // 2))


def test_dmg_block_tables() -> None:
    """Behind base64 and XML, which damage seldom leaves readable."""
    image = _dmg()
    resources = dmg.resources_of(image)
    chance = random.Random(4)

    def damaged() -> Iterator[tuple[str, bytes]]:
        for number in range(COUNT):
            index = chance.randrange(len(resources))
            table = resources[index]
            regions = [(0, 204), (204, len(table) - 204), (204, len(table) - 204)]
            ((what, changed),) = mutants(table, regions, seed=number, count=1)
            yield what, dmg.with_resources(image, [*resources[:index], changed, *resources[index + 1 :]])

    survived("dmg", damaged())


def test_dmg_payloads() -> None:
    data = _dmg()
    (offset,) = struct.unpack_from(">Q", data, len(data) - 512 + 0xD8)
    counts = withstand("dmg", mutants(data, [(0, offset)], seed=5, count=COUNT // 2))
    assert sum(counts.values()) == COUNT // 2
