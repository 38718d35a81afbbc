"""Disk images that tests start from: sparse files with known bytes, and real file systems."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

from tools import run, tool

KiB = 1024
MiB = 1024 * KiB


def sparse_file(path: Path, size: int, pieces: Mapping[int, bytes]) -> Path:
    """A raw image of `size` bytes that is a hole but for `pieces`, which map offsets to bytes."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in pieces.items():
            if offset + len(data) > size:
                raise ValueError(f"{len(data)} bytes at {offset} go past the end of a file of {size}")
            file.seek(offset)
            file.write(data)
    return path


def scattered_file(path: Path, size: int, *, seed: int, pieces: int = 64, longest: int = 256 * KiB) -> Path:
    """A raw image with data, explicit zeros and holes in runs of random lengths at random places.

    The same seed gives the same image. Starts and lengths follow no alignment, so runs end inside sectors and clusters.
    """
    chance = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        for _ in range(pieces):
            start = chance.randrange(size)
            length = min(chance.randrange(1, longest), size - start)
            kind = chance.choice(("random", "text", "zeros"))
            file.seek(start)
            if kind == "random":
                file.write(chance.randbytes(length))
            elif kind == "text":
                word = b"%d " % chance.randrange(10**6)
                file.write((word * (length // len(word) + 1))[:length])
            else:
                file.write(bytes(length))
    return path


def ext4_image(path: Path, size: int, tree: Path) -> Path:
    """A raw image of an ext4 file system that holds a copy of a directory tree."""
    sparse_file(path, size, {})
    run(tool("mkfs.ext4"), "-q", "-F", "-d", tree, path)
    return path
