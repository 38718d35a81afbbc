"""Repair: references decide what is in use, and nothing is written over.

Lost space is given back by lowering refcounts where they are. Everything else that is wrong is mended in a copy: L1
tables, the L2 tables that change, the snapshot table, the bitmap directory and its tables, and all refcounts are put
behind the end of the file, and one write of the header, which also takes the dirty and the corrupt bit away, makes
them the image. So a crash leaves the damaged image as it was or the mended one, and what a damaged entry points to is
never written to.

What can still be saved (:mod:`.salvage`) is not given up unless the user says so.

Source: the specification's sections "Host cluster management" and "Cluster mapping".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from diskmill.contract.results import CheckResult, Finding
from diskmill.errors import ImageError

from . import c_qcow2 as c
from . import snapshots
from .check import Checker
from .mending import Mender, switch
from .recount import chunks_of, pack, unpack
from .salvage import find_tables, refuse_lost, runs

if TYPE_CHECKING:
    from .image import Qcow2Image


def repair(image: Qcow2Image, mode: str, *, give_up: bool) -> CheckResult:
    """Mend *image*, whose lock is held.

    :param mode: ``leaks`` or ``all``.
    :param give_up: mend it even where that gives up data that could still be saved.
    :return: what was found; ``corruptions_fixed`` and ``leaks_fixed`` of it are mended.
    :raises ImageError: it gives up nothing, or cannot be mended; nothing was changed.
    """
    image.store_bitmaps()
    entries, length, broken = snapshots.scan_table(image.file, image.header, image.name)
    checker = Checker(image, (entries, length))
    checker.run()
    result = checker.result
    if broken is not None:
        checker.corruption(f"{broken.place}: {broken.cause}")
    tables_wrong = result.corruptions - checker.flags
    if mode == "leaks" and tables_wrong:
        if result.leaks:
            text = "leaked clusters are kept while the image is corrupted: they may be what it has lost"
            result.findings.append(Finding("leak", text, 0))
        return result
    if not give_up:
        _refuse_cut(checker)
    if mode == "leaks" or not (result.corruptions or checker.surplus):  # a surplus hides COPIED flags that are due
        if not give_up:
            refuse_lost(checker, find_tables(checker))
        _give_back(checker)
        result.leaks, result.leaks_fixed = 0, result.leaks
        marks = c.DIRTY | c.CORRUPT
        unknown = image.header.autoclear_features & ~c.KNOWN_AUTOCLEAR
        if not result.corruptions and (image.header.incompatible_features & marks or unknown):
            header = image.header.copy()
            header.incompatible_features &= ~marks
            switch(image, header)
        return result
    Mender(checker, give_up).run()
    result.corruptions = result.leaks = 0
    return result


def _refuse_cut(checker: Checker) -> None:
    """Refuse a file that was longer once."""
    cut = checker.counted_beyond()
    if cut:
        raise ImageError(
            f"the file ends at {checker.file.size}, but {len(cut)} clusters behind that are in use, up to "
            f"{(cut[-1] + 1) * checker.size}: it was cut off. Nothing was changed; -r lost gives them up",
            file=checker.image.name,
        )


def _give_back(checker: Checker) -> None:
    """Lower the refcounts that are too high, and give the space of what is free back to the file system.

    No metadata names what becomes free, so the writes may reach the disk in any order.
    """
    bits = checker.header.refcount_bits
    for first, stored in checker.blocks():
        lowered = stored.copy()
        for at, count in chunks_of(first, len(stored)):
            part = lowered[at - first : at - first + count]
            np.minimum(part, checker.counts.slice(at, count), out=part, casting="unsafe")
        for index in np.unique(np.flatnonzero(lowered != stored) // checker.per_block).tolist():
            offset = int(checker.reftable[first // checker.per_block + index])
            raw = np.frombuffer(checker.file.read(offset, checker.size), np.uint8)
            block = unpack(raw, bits).copy()
            part = lowered[index * checker.per_block : (index + 1) * checker.per_block]
            block[: len(part)] = part
            checker.file.write(offset, pack(block, bits).tobytes())
    for lost in checker.lost.marked():
        for low, high in runs(lost):
            checker.file.discard(low * checker.size, (high - low) * checker.size)
    checker.image.reload()
