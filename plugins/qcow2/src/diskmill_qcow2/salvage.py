"""What a damaged image has lost, and can be given back.

* *L2 tables that nothing names.* An unreferenced cluster that is counted and holds a table of mostly sound entries,
  one of which names an unreferenced cluster that is counted too, is an L2 table that an L1 table has lost. No crash of
  diskmill (see ``l2.Mapping.write_origins``) leaves such a thing.
* *The end of a file that was cut off*: clusters behind the end of the file that entries name and refcounts count.

An entry that names an impossible place, but from which one flipped bit leads to exactly one unreferenced cluster that
is counted (for an L1 entry: to such an L2 table), is mended. Other impossible entries lead nowhere any more: their
clusters read as zeros.

Source: the specification's sections "Cluster mapping" and "Bitmaps".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from diskmill.contract.extents import Kind
from diskmill.errors import ImageError
from diskmill.sizes import MiB, format_size

from . import bitmaps
from . import c_qcow2 as c
from .bounds import compressed_misplaced, unaligned
from .bounds import misplaced as no_cluster
from .check import Checker
from .revision import stretches

if TYPE_CHECKING:
    from numpy.typing import NDArray


_BATCH = 1 * MiB
"""Bytes of L2 tables, refcount blocks or lost clusters that are dealt with together."""
_GLANCE = 4096
"""Bytes of a lost cluster that are looked at first: most show there that they are no L2 table."""
_MOST_LOST = 256
"""Lost L2 tables that are looked for."""
_OFFSET = np.uint64(c.OFFSET_MASK)
_COPIED = np.uint64(c.COPIED)


def find_tables(checker: Checker) -> dict[int, int]:
    """Lost L2 tables: offset → how many lost clusters their entries name. No more than _MOST_LOST are looked for."""
    found: dict[int, int] = {}
    size, together = checker.size, max(_BATCH // _GLANCE, 1)
    glance = min(_GLANCE, size)
    for run in _lost_data(checker):
        for at in range(run.start, run.stop, together):
            part = range(at, min(at + together, run.stop))
            raw = bytearray(len(part) * glance)
            view = memoryview(raw)
            for row, cluster in enumerate(part):
                checker.file.read_into(cluster * size, view[row * glance : (row + 1) * glance])
            words = np.frombuffer(raw, ">u8").astype(np.uint64).reshape(len(part), -1)
            for row in np.flatnonzero(_like_table(checker, words)).tolist():
                named = _names_lost(checker, part[row] * size)
                if named:
                    found[part[row] * size] = named
                    if len(found) == _MOST_LOST:
                        return found
    return found


def refuse_lost(checker: Checker, lost: dict[int, int]) -> None:
    """Refuse to give up the L2 tables *lost* (offset → how many lost clusters they name)."""
    if lost:
        size = format_size(sum(lost.values()) * checker.size)
        many = " or more" if len(lost) == _MOST_LOST else ""
        places = ", ".join(str(offset) for offset in list(lost)[:3]) + (", …" if len(lost) > 3 else "")
        raise ImageError(
            f"{len(lost)}{many} L2 tables (at offset {places}) with {size} of data are in no L1 table, which must be "
            "damaged. Nothing was changed; -r lost gives them up",
            file=checker.image.name,
        )


def _lost_data(checker: Checker) -> Iterator[range]:
    """Lost clusters, without those that are holes in the file."""
    size = checker.size
    for lost in checker.lost.marked():
        for low, high in runs(lost):
            start = low * size
            for extent in checker.file.extents(start, max(min(high * size, checker.file.size) - start, 0)):
                if extent.kind is Kind.DATA:
                    yield range(extent.start // size, -(-extent.end // size))


def _like_table(checker: Checker, words: NDArray[Any]) -> NDArray[Any]:
    """Which rows are like an L2 table: at most a quarter of the entries in use is impossible."""
    used = words[:, :: 2 if checker.header.extended_l2 else 1] != 0
    like: NDArray[Any] = impossible(checker, words).sum(axis=1) * 4 <= used.sum(axis=1)
    return like


def _names_lost(checker: Checker, offset: int) -> int:
    """How many unreferenced clusters that are counted the table at *offset* names."""
    words = np.frombuffer(checker.file.read(offset, checker.size), ">u8").astype(np.uint64)[None, :]
    if not _like_table(checker, words)[0]:
        return 0
    entries = words[:, :: 2 if checker.header.extended_l2 else 1].ravel()
    compressed = entries & np.uint64(c.COMPRESSED) != 0
    flagged = bool((entries & np.uint64(c.COMPRESSED | c.COPIED)).any())
    if not flagged and not words[0, _bitmap_entries(checker) :].any():
        return 0  # the table of a bitmap looks like that, and may well be left by a crash
    hosts = np.where(compressed, compressed_range(checker, entries)[0], entries & _OFFSET)
    clusters = np.unique(hosts[hosts != 0] >> np.uint64(checker.bits)).tolist()
    return sum(checker.lost.has(cluster) for cluster in clusters)


def _bitmap_entries(checker: Checker) -> int:
    """The most entries that the table of one of the image's bitmaps has."""
    try:
        entries = bitmaps.read_directory(checker.file, checker.header, checker.image.name)
    except ImageError:
        return 0
    return max((entry.bitmap_table_size for entry in entries), default=0)


def compressed_range(checker: Checker, entries: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """First byte of compressed clusters in the file, and the byte after the last."""
    shift = 62 - (checker.bits - 8)
    host = entries & np.uint64((1 << min(shift, 56)) - 1)
    sectors = (entries >> np.uint64(shift)) & np.uint64((1 << (62 - shift)) - 1)
    return host, host + (sectors + np.uint64(1)) * np.uint64(512) - (host & np.uint64(511))


def impossible(checker: Checker, words: NDArray[Any]) -> NDArray[Any]:
    """Which entries (a row for each table) no sound L2 table has."""
    step = 2 if checker.header.extended_l2 else 1
    entries = words[:, ::step]
    compressed = entries & np.uint64(c.COMPRESSED) != 0
    wrong = misplaced(checker, entries, compressed)
    wrong |= compressed & (entries & _COPIED != 0) | ~compressed & (entries & checker.l2_reserved != 0)
    if step == 2:
        bitmap = words[:, 1::2]
        allocated = bitmap & np.uint64(c.ALL_ALLOCATED)
        wrong |= compressed & (bitmap != 0) | (bitmap >> np.uint64(32)) & allocated != 0
        if not checker.image.external:
            wrong |= ~compressed & (entries & _OFFSET == 0) & (allocated != 0)
    return wrong


def misplaced(checker: Checker, entries: NDArray[Any], compressed: NDArray[Any]) -> NDArray[Any]:
    """Which entries name a place where no cluster can be."""
    hosts = entries & _OFFSET
    wrong: NDArray[Any]
    if checker.image.external:
        wrong = unaligned(hosts, checker.size) | compressed
        return wrong
    wrong = no_cluster(hosts, checker.size, checker.file.size)
    if compressed.any():
        host, end = compressed_range(checker, entries)
        outside = compressed_misplaced(host, end, checker.size, checker.file.size)
        wrong = np.where(compressed, outside, wrong)
    return wrong


def runs(numbers: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of the runs of ascending *numbers* that follow each other."""
    for low, high in stretches(numbers, 1):
        yield int(numbers[low]), int(numbers[high - 1]) + 1
