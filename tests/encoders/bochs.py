"""Bochs redologs. Source: the Bochs developers' guide, "Harddisk Images based on redologs"."""

from __future__ import annotations

import random
import struct
from typing import BinaryIO

from . import Variants, in_memory, main

SECTOR = 512
FREE = 0xFFFFFFFF


def encode(
    source: BinaryIO,
    size: int,
    out: BinaryIO,
    *,
    extent: int = 128 * 1024,
    version: int = 2,
    subtype: bytes = b"Growing",
    seed: int | None = None,
) -> None:
    """Sectors of zeros are left out, and extents that have no others.

    :param seed: let extents lie in the file in a random order, with sectors of zeros stored here and there.
    """
    chance = random.Random(seed)
    count = -(-size // extent)
    bitmap = max(-(-extent // SECTOR // 8), 1)
    room = -(-bitmap // SECTOR) * SECTOR
    head = struct.pack("<32s16s16sII", b"Bochs Virtual HD Image", b"Redolog", subtype, version << 16, SECTOR)
    head += struct.pack("<III", count, bitmap, extent)
    head += struct.pack("<IQ", 0, size) if version == 2 else struct.pack("<Q", size)
    used = []
    for index in range(count):
        source.seek(index * extent)
        data = source.read(min(extent, size - index * extent))
        if data.count(0) != len(data):
            used.append(index)
    if seed is not None:
        chance.shuffle(used)
    catalog = [FREE] * count
    for number, index in enumerate(used):
        catalog[index] = number
    out.write(head.ljust(SECTOR, b"\0") + struct.pack(f"<{count}I", *catalog))
    for index in used:
        source.seek(index * extent)
        data = source.read(min(extent, size - index * extent)).ljust(extent, b"\0")
        bits = bytearray(room)
        for sector in range(extent // SECTOR):
            part = data[sector * SECTOR : (sector + 1) * SECTOR]
            if part.count(0) != SECTOR or seed is not None and chance.random() < 0.1:
                bits[sector // 8] |= 1 << sector % 8
        out.write(bits + data)


VARIANTS: Variants = {
    "v2": in_memory(encode),
    "v1": in_memory(encode, version=1),
    "shuffled": in_memory(encode, extent=4096, seed=7),
    "large": in_memory(encode, extent=4 << 20, seed=8),
}

if __name__ == "__main__":
    main(encode)
