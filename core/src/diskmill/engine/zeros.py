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


def data_runs(buffer: bytearray, start: int, end: int, granule: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the stretches of ``buffer[start:end]`` that are not zeros, in whole granules from *start* on.

    :param granule: bytes, a multiple of 8; the last one may be shorter.
    """
    whole = (end - start) // granule
    words = memoryview(buffer)[start : start + whole * granule].cast("Q")[:: granule // 8].tolist() if whole else []
    zeros = ZEROS[:granule] if granule <= len(ZEROS) else bytes(granule)
    begin = index = 0
    for _ in range(words.count(0)):
        index = words.index(0, index)
        if buffer.startswith(zeros, start + index * granule):
            if begin < index:
                yield start + begin * granule, (index - begin) * granule
            begin = index + 1
        index += 1
    begin = start + begin * granule
    upto = start + whole * granule
    if upto < end and not buffer.startswith(zeros[: end - upto], upto):
        upto = end
    if begin < upto:
        yield begin, upto - begin
