"""Stretches of guest bytes, (where one starts, where it ends): found, rounded, and shared out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ...contract.extents import Extent
from ...sizes import round_down, round_up
from ..zeros import data_runs

Stretch = tuple[int, int]
"""Guest offsets: where it starts, and where it ends."""


def touched(extents: Sequence[Extent], low: int, high: int, edge: int) -> list[Stretch]:
    """(start, end) of the stretches of guest bytes *low* to *high* that extents touch, in steps of *edge* from *low*.

    What lies between them are zeros that need not be looked at.
    """
    result: list[Stretch] = []
    begin = end = low
    for extent in extents:
        if extent.start > end:
            first, upto = low + round_down(extent.start - low, edge), low + round_up(end - low, edge)
            if first > upto:
                if begin < upto:
                    result.append((begin, upto))
                begin = first
        end = extent.end
    if begin < end:
        result.append((begin, min(low + round_up(end - low, edge), high)))
    return result


def data_in(buffer: bytearray, low: int, stretches: Sequence[Stretch], granule: int) -> list[Stretch]:
    """What of *stretches* is not zeros, in whole granules from the start of each; *buffer* begins at guest *low*."""
    return [
        (low + at, low + at + length)
        for begin, end in stretches
        for at, length in data_runs(buffer, begin - low, end - low, granule)
    ]


def rounded_out(stretches: Sequence[Stretch], unit: int, limit: int) -> list[Stretch]:
    """The whole units, up to *limit*, that *stretches* touch."""
    result: list[Stretch] = []
    for start, end in stretches:
        start, end = round_down(start, unit), min(round_up(end, unit), limit)
        if result and start <= result[-1][1]:
            start = result.pop()[0]
        result.append((start, end))
    return result


def shared_out(stretches: Sequence[Stretch], borders: Iterable[Stretch]) -> Iterator[list[Stretch]]:
    """What of *stretches* lies within each of *borders*; both are in order."""
    index = 0
    for start, end in borders:
        inside: list[Stretch] = []
        while index < len(stretches) and stretches[index][0] < end:
            low, high = stretches[index]
            if high > start:
                inside.append((max(low, start), min(high, end)))
            if high > end:
                break
            index += 1
        yield inside
