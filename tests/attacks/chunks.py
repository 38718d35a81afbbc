"""Formats of compressed chunks (cloop, DMG): more of them than there can be, and chunks that hold the same bytes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from diskmill_dmg.c_udif import BLOCK_TABLE, KOLY, MISH, TERMINATOR, TRAILER
from encoders.cloop import PREAMBLE
from encoders.dmg import SECTOR, property_list

from . import attack, put


@attack("cloop/holes", count=((1 << 31) - 2, 1 << 24), block=(512, 64 << 20))
def cloop_holes(path: Path, count: int, block: int) -> None:
    """Offsets of billions of blocks, all holes of the file."""
    count = min(count, ((1 << 63) - 512) // block)
    put(
        path,
        (0, PREAMBLE.ljust(128, b"\0")[:128]),
        (128, struct.pack(">2I", block, count)),
        size=136 + (count + 1) * 8,
    )


@attack("cloop/one block", count=(100_000,), block=(65536,), way=("same", "turns"))
def cloop_same(path: Path, count: int, block: int, way: str) -> None:
    """Blocks that all have the same place (and so no bytes), or one that comes back by turns."""
    payload = zlib.compress(bytes(block), 9)
    at = 136 + (count + 1) * 8
    offsets = [at] * (count + 1) if way == "same" else [at, at + len(payload)] * (count // 2) + [at]
    put(
        path,
        (0, PREAMBLE.ljust(128, b"\0")[:128]),
        (128, struct.pack(">2I", block, count)),
        (136, struct.pack(f">{count + 1}Q", *offsets)),
        (at, payload),
    )


@attack("dmg/one chunk", count=(100_000,), sectors=(8, 2048, 131072), kind=("raw", "zlib", "zero"))
def dmg_same(path: Path, count: int, sectors: int, kind: str) -> None:
    """Chunks that all have the same stored bytes."""
    length = sectors * SECTOR
    types = {"raw": 1, "zlib": 0x80000005, "zero": 0}
    data = zlib.compress(bytes(length), 1) if kind == "zlib" else bytes(length) if kind == "raw" else b""
    table = b"".join(
        struct.pack(">2I4Q", types[kind], 0, index * sectors, sectors, 0, len(data)) for index in range(count)
    )
    table += struct.pack(">2I4Q", TERMINATOR, 0, count * sectors, 0, 0, 0)
    header = BLOCK_TABLE.new(
        Signature=MISH, Version=1, SectorCount=count * sectors, BuffersNeeded=sectors, NumberOfBlockChunks=count + 1
    )
    plist = property_list([BLOCK_TABLE.pack(header) + table])
    trailer = TRAILER.new(
        Signature=KOLY,
        Version=4,
        HeaderSize=512,
        Flags=1,
        DataForkLength=len(data),
        SegmentNumber=1,
        SegmentCount=1,
        XMLOffset=len(data),
        XMLLength=len(plist),
        ImageVariant=1,
        SectorCount=count * sectors,
    )
    put(path, (0, data), (len(data), plist), (len(data) + len(plist), TRAILER.pack(trailer)))
