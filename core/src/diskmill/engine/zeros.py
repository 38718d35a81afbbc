"""Finding zeros in buffers, fast.

``bytes.startswith`` is memcmp, at memory speed; a strided look at one word in each granule says first which granules
are worth comparing at all.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..sizes import MiB

ZEROS = bytes(2 * MiB)
"""Zeros to compare with, and to write from."""


def is_zero(buffer: bytearray | memoryview | bytes) -> bool:
    """Whether every byte is zero."""
    view = memoryview(buffer)
    # Of these types only bytes compare by memcmp (a memoryview compares item by item), hence the copy.
    return all(
        bytes(part) == ZEROS[: len(part)] for part in (view[at : at + 65536] for at in range(0, len(view), 65536))
    )


def data_runs(buffer: bytearray, length: int, granule: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the stretches of ``buffer[:length]`` that are not zeros, in whole granules.

    :param granule: bytes, a multiple of 8; the last one may be shorter.
    """
    whole = length // granule
    words = memoryview(buffer)[: whole * granule].cast("Q")[:: granule // 8].tolist() if whole else []
    start = -1
    zeros = ZEROS[:granule] if granule <= len(ZEROS) else bytes(granule)
    for index, word in enumerate(words):
        if word == 0 and buffer.startswith(zeros, index * granule):
            if start >= 0:
                yield start, index * granule - start
                start = -1
        elif start < 0:
            start = index * granule
    rest = length - whole * granule
    if rest and not buffer.startswith(zeros[:rest], whole * granule):
        start = start if start >= 0 else whole * granule
        yield start, length - start
    elif start >= 0:
        yield start, whole * granule - start
