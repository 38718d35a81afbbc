"""Sparse extents as ESX writes them, for which no tool here is the writer: put together from their specifications."""

from __future__ import annotations

import random
import struct
from collections.abc import Mapping

SECTOR = 512
SESPARSE_GRAIN = 8 * SECTOR


def _shuffled(grains: Mapping[int, bytes | None], seed: int) -> dict[int, int]:
    """For each grain that has bytes its place among those that have: in no order, so that images are fragmented."""
    numbers = [number for number, data in grains.items() if data is not None]
    random.Random(seed).shuffle(numbers)
    return {number: place for place, number in enumerate(numbers)}


def cowd(sectors: int, grains: Mapping[int, bytes], *, grain: int = 1, seed: int = 1) -> bytes:
    """A COWD (vmfsSparse) extent for a disk of *sectors*.

    :param grains: the bytes of the grains that it holds, *grain* sectors each, by their number.
    """
    count = -(-sectors // (grain * 4096))
    used = sorted({number // 4096 for number in grains})
    directory_sectors = -(-count * 4 // SECTOR)
    first_table = 4 + directory_sectors
    first_grain = first_table + 32 * len(used)
    places = _shuffled(grains, seed)
    end = first_grain + len(grains) * grain
    header = struct.pack("<4s7I", b"COWD", 1, 3, sectors, grain, 4, count, end).ljust(4 * SECTOR, b"\0")
    directory = [0] * count
    tables = bytearray(32 * SECTOR * len(used))
    data = bytearray(len(grains) * grain * SECTOR)
    for place, index in enumerate(used):
        directory[index] = first_table + 32 * place
    for number, content in grains.items():
        at = places[number] * grain
        struct.pack_into("<I", tables, (used.index(number // 4096) * 4096 + number % 4096) * 4, first_grain + at)
        data[at * SECTOR : at * SECTOR + len(content)] = content
    packed = struct.pack(f"<{count}I", *directory).ljust(directory_sectors * SECTOR, b"\0")
    return header + packed + bytes(tables) + bytes(data)


def sesparse(sectors: int, grains: Mapping[int, bytes | None], *, seed: int = 1) -> bytes:
    """A seSparse extent for a disk of *sectors*.

    :param grains: the bytes of the grains of 4 KiB that it holds, by their number; None: a grain of zeros.
    """
    count = -(-sectors // (8 * 4096))
    used = sorted({number // 4096 for number in grains})
    directory_sectors = -(-count * 8 // SECTOR)
    tables_at = 4 + directory_sectors
    bitmap_at = tables_at + 64 * len(used)
    grains_at = -(-(bitmap_at + 2) // 8) * 8
    places = _shuffled(grains, seed)
    fields = [0xCAFEBABE, 0x2_00000001, sectors, 8, 64, 0, 0, 0, 0, 0]
    fields += [1, 1, 2, 1, 3, 1]  # volatile header, journal header, journal: offset and size of each
    fields += [4, directory_sectors, tables_at, 64 * len(used), bitmap_at, 1, bitmap_at + 1, 1]
    fields += [grains_at, len(places) * 8]
    header = struct.pack("<26Q", *fields).ljust(SECTOR, b"\0")
    volatile = struct.pack("<4Q", 0xCAFECAFE, 0, 0, 0).ljust(SECTOR, b"\0")
    directory = [0] * count
    tables = bytearray(64 * SECTOR * len(used))
    data = bytearray(len(places) * SESPARSE_GRAIN)
    for place, index in enumerate(used):
        directory[index] = 1 << 60 | place
    for number, content in grains.items():
        entry = 2 << 60
        if content is not None:
            at = places[number]
            # The lowest 12 bits of the grain's place stand above the others.
            entry = 3 << 60 | (at & 0xFFF) << 48 | at >> 12
            data[at * SESPARSE_GRAIN : at * SESPARSE_GRAIN + len(content)] = content
        struct.pack_into("<Q", tables, (used.index(number // 4096) * 4096 + number % 4096) * 8, entry)
    packed = struct.pack(f"<{count}Q", *directory).ljust(directory_sectors * SECTOR, b"\0")
    front = header + volatile + bytes(2 * SECTOR) + packed + bytes(tables)
    return front.ljust(grains_at * SECTOR, b"\0") + bytes(data)
