"""Files of digests that disks are held against: lines as ``digest`` prints them, or bare digests of blocks."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ..contract.limits import Meter
from ..contract.node import Image
from ..contract.results import Comparison
from ..engine.digest import Digester, scan
from ..engine.progress import Progress
from ..errors import DiskmillError, StorageError, UsageError
from .digest import BlockFile

PREFIX = "digests:"
"""What stands before the name of such a file where an image could be meant."""
_LONGEST = 16 << 20
"""Bytes that no list of disks has."""
_LINE = re.compile(rb"([0-9A-Fa-f]{16,256})(?:  ([^\n]+))?")


class Line(NamedTuple):
    """A digest in hexadecimal, and of which disk it is said to be; empty: of one without a name."""

    digest: str
    name: str


def lines_of(path: str) -> list[Line] | None:
    """The lines ``HEX  NAME`` of the file *path*; None: it holds something else, as digests of blocks.

    :raises StorageError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_LONGEST + 1)
    except OSError as error:
        raise StorageError.from_os(error, path) from None
    found = [_LINE.fullmatch(line) for line in data.splitlines() if line.strip()]
    if not found or len(data) > _LONGEST:
        return None
    lines = [Line(one[1].decode().lower(), os.fsdecode(one[2] or b"")) for one in found if one is not None]
    return lines if len(lines) == len(found) else None


@contextmanager
def blocks_of(path: str, size: int, algorithm: str, block: int) -> Iterator[BlockFile]:
    """The digests of the blocks of a disk of *size* bytes, which are in the file *path*.

    :raises UsageError: it has not as many of them as the disk has blocks.
    :raises StorageError: it cannot be read.
    """
    zero, blocks = Digester(0, algorithm, block).zero, -(-size // block)
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size != blocks * len(zero):
                text = f"it does not hold the {algorithm} of each of {blocks} blocks of {block} bytes"
                raise UsageError(text, file=path)
            yield BlockFile(file, zero)
    except DiskmillError:
        raise
    except OSError as error:
        raise StorageError.from_os(error, path) from None


class _FoundError(Exception):
    """A block differs: nothing behind it need be read."""

    def __init__(self, number: int) -> None:
        self.number = number


def first_unlike(
    image: Image,
    path: str,
    *,
    algorithm: str,
    block_size: int,
    progress: Progress,
    cancel: threading.Event | None = None,
) -> int | None:
    """The first block of *image* whose digest is not what the file *path* has for it; None: they are all the same.

    :raises UsageError: the file has not as many digests as the disk has blocks.
    """

    def look(first: int, count: int, digests: bytes | None) -> None:
        for number in known.unlike(first, count, digests):
            raise _FoundError(number)

    with blocks_of(path, image.size, algorithm, block_size) as known:
        digester = Digester(image.size, algorithm, block_size, look, meter=Meter(image))
        try:
            scan(image, [digester], granule=block_size, progress=progress, cancel=cancel)
        except _FoundError as found:
            return found.number
    return None


def against(
    image: Image,
    path: str,
    *,
    algorithm: str,
    block_size: int,
    progress: Progress,
    cancel: threading.Event | None = None,
) -> Comparison:
    """Whether the disk of *image* is the one that the file *path* is of: one digest, or those of its blocks.

    :raises UsageError: it holds neither.
    """
    progress.expect(image.size)
    lines = lines_of(path)
    if lines is None:
        number = first_unlike(image, path, algorithm=algorithm, block_size=block_size, progress=progress, cancel=cancel)
        if number is None:
            return Comparison(True, "Digests are identical.")
        at = number * block_size
        return Comparison(False, f"Digest mismatch in the block at offset {at}!", at)
    named = [one for one in lines if one.name == image.name] if len(lines) > 1 else lines
    if len(named) != 1:
        raise UsageError(f"it has {len(named)} digests of '{image.name}', and others", file=path)
    digester = Digester(image.size, algorithm, block_size, meter=Meter(image))
    if len(digester.zero.hex()) != len(named[0].digest):
        raise UsageError(f"it has no digest by {algorithm}: name the algorithm", file=path)
    scan(image, [digester], granule=block_size, progress=progress, cancel=cancel)
    found = digester.hexdigest()
    same = found == named[0].digest
    return Comparison(same, "Digests are identical." if same else f"Digest mismatch: it is {found}!")
