"""VMDK images and raw disks for tests, and what stands in them."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import diskmill
from diskmill.opening.context import Context
from diskmill.opening.graph import open_image
from samples import KiB, MiB, scattered_file

SUBFORMATS = ["monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized"]
SPARSE = ["monolithicSparse", "twoGbMaxExtentSparse"]
SECTOR = 512
GRAIN = 64 * KiB
TABLE = 512 * GRAIN
SPLIT = 2048 * MiB

SIZES = {
    "sector": SECTOR,
    "grain-less": GRAIN - SECTOR,
    "grain": GRAIN,
    "grain-more": GRAIN + SECTOR,
    "table-less": TABLE - SECTOR,
    "table": TABLE,
    "table-more": TABLE + SECTOR,
    "split-less": SPLIT - SECTOR,
    "split": SPLIT,
    "split-more": SPLIT + SECTOR,
}


def source(folder: Path, size: int, seed: int = 1) -> Path:
    """A raw disk with data in random runs, at its very begin and end, and around the ends of grains and tables."""
    path = scattered_file(folder / "source.raw", size, seed=seed, pieces=24)
    chance = random.Random(seed)
    with path.open("r+b") as file:
        for at in (0, GRAIN, TABLE, SPLIT, size):
            for start in (at - SECTOR, at):
                if 0 <= start < size:
                    file.seek(start)
                    file.write(chance.randbytes(SECTOR))
    assert path.stat().st_size == size
    return path


def files_of(image: Path) -> list[Path]:
    return sorted(image.parent.glob(f"{image.stem}*{image.suffix}"))


def read_all(name: Path) -> bytes:
    with open_image(str(name), "vmdk", context=Context()) as image:
        return image.read(0, image.size)


def convert(one: Path, other: Path, subformat: str = "monolithicSparse", **keywords: Any) -> None:
    diskmill.convert([str(one)], str(other), output_format="vmdk", options={"subformat": subformat}, **keywords)


def chain(folder: Path, subformat: str = "monolithicSparse") -> tuple[Path, Path, Path]:
    """An overlay on a base, and the raw disk that the overlay reads as."""
    raw = source(folder, TABLE + GRAIN)
    base, overlay = folder / "base.vmdk", folder / "overlay.vmdk"
    convert(raw, base)
    diskmill.create(
        str(overlay), format="vmdk", backing="base.vmdk", backing_format="vmdk", options={"subformat": subformat}
    )
    data = random.Random(6).randbytes(3 * GRAIN)
    with open_image(str(overlay), "vmdk", context=Context(), writable=True) as disk:
        disk.write(GRAIN + 100, data)
    with raw.open("r+b") as file:
        file.seek(GRAIN + 100)
        file.write(data)
    return raw, base, overlay


def directories(image: Path) -> tuple[int, int, int]:
    """The bytes where the redundant and the primary grain directory begin, and the capacity in sectors."""
    with image.open("rb") as file:
        header = struct.unpack("<4sIIQQQQIQQ", file.read(64))
    return header[8] * SECTOR, header[9] * SECTOR, header[3]


def entry(data: bytes, directory: int, grain: int) -> int:
    """The byte where the entry of *grain* stands in the tables below *directory*."""
    at = directory + grain // 512 * 4
    return int.from_bytes(data[at : at + 4], "little") * SECTOR + grain % 512 * 4
