"""VMDK: many extents in one file, and grain tables that are named more often than they are there."""

from __future__ import annotations

import random
from array import array
from pathlib import Path

from diskmill_vmdk import structures as s

from . import attack, put

SECTOR = 512


def _header(capacity: int, grain: int, per: int, directory: int, overhead: int) -> bytes:
    record = s.SPARSE_HEADER.new(
        magicNumber=s.SPARSE_MAGIC,
        version=1,
        flags=s.FLAG_NEWLINE | s.FLAG_ZEROED,
        capacity=capacity,
        grainSize=grain,
        numGTEsPerGT=per,
        gdOffset=directory,
        overHead=overhead,
        newlines=s.NEWLINES,
    )
    return s.SPARSE_HEADER.pack(record)


@attack("vmdk/one extent, many lines", lines=(4000,), entries=(1 << 10, 1 << 18), content=("sparse", "different"))
def many_lines(path: Path, lines: int, entries: int, content: str) -> None:
    """A descriptor of many lines that name one sparse extent, whose grain directory is as large as can be."""
    sectors = entries * 512 * 8
    directory = array("I", [] if content == "sparse" else random.Random(1).sample(range(1 << 20), entries))
    put(
        path.with_name("extent.vmdk"),
        (0, _header(sectors, 8, 512, 8, 8)),
        (8 * SECTOR, directory.tobytes()),
        size=(8 * SECTOR + entries * 4) if content == "sparse" else 1 << 30,
    )
    text = '# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType="twoGbMaxExtentSparse"\n'
    text += f'RW {sectors} SPARSE "extent.vmdk"\n' * lines
    path.write_text(text)


@attack("vmdk/flat lines", lines=(4000,))
def flat_lines(path: Path, lines: int) -> None:
    """As many lines of one flat file."""
    put(path.with_name("flat.vmdk"), size=64 * SECTOR)
    text = '# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType="twoGbMaxExtentFlat"\n'
    path.write_text(text + 'RW 64 FLAT "flat.vmdk" 0\n' * lines)


@attack("vmdk/sparse directory", entries=(1 << 20, 1 << 22), per=(1, 512))
def directory(path: Path, entries: int, per: int) -> None:
    """A directory as large as can be, and nothing in it."""
    put(path, (0, _header(entries * per * 128, 128, per, 8, 8)), size=8 * SECTOR + entries * 4)


@attack("vmdk/one grain for all", tables=(1000,), pattern=("same", "turns", "zeros"))
def grains(path: Path, tables: int, pattern: str) -> None:
    """Grain tables whose entries name one grain or two."""
    first = 8 + -(-tables * 4 // SECTOR)
    data = first + tables * 4
    entry = {"same": [data, data], "turns": [data, data + 128], "zeros": [1, 1]}[pattern]
    put(
        path,
        (0, _header(tables * 512 * 128, 128, 512, 8, data)),
        (8 * SECTOR, array("I", range(first, first + tables * 4, 4)).tobytes()),
        (first * SECTOR, array("I", entry * 256 * tables).tobytes()),
        (data * SECTOR, b"\x5a" * (256 * SECTOR)),
    )
