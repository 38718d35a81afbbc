"""What a check finds, and what of it can be repaired without losing what can still be saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.contract.extents import Kind
from diskmill.contract.results import CheckResult, Finding
from diskmill.errors import ImageError
from diskmill.sizes import MiB, round_up

from .c_vhdx import ALIGN, NO_GUID, NOT_PRESENT, PARTIALLY_PRESENT, REGION_TABLE_OFFSETS, STATE
from .resize import sectors

if TYPE_CHECKING:
    from .image import VhdxImage

_SPARE = 4 * MiB
"""What QEMU leaves free behind the regions of a new image."""
_FINDINGS = 1000
"""Findings are told in words up to this many; beyond, they are only counted."""
_RESERVED = 4
"""A state that no block has."""


def check(image: VhdxImage, repair: str) -> CheckResult:
    """See :func:`diskmill.contract.hookspecs.check`. Of a differencing image nothing is repaired but its log."""
    result = CheckResult()
    every = repair == "all" and not image.differencing
    if image.replayed:
        # Opening it for writing has put everything in place.
        _corrupt(result, "the image was not closed properly: its log holds updates", fixed=image.writable)
        image.replayed = not image.writable
    _check_copies(image, result, every=every)
    if not _check_states(image, result):
        return result
    sound = _check_places(image, result, every=every)
    end = image.check_blocks(result, drop=NOT_PRESENT if every else None, repair=every and sound)
    if image.differencing:
        _check_bitmaps(image, result)
    elif not image.metadata.fixed:  # space of such is meant to be there
        _check_spare(image, result, end, repair=bool(repair) and sound)
    # QEMU tells no totals for the format.
    result.total_clusters = result.allocated_clusters = result.fragmented_clusters = None
    return result


def _corrupt(result: CheckResult, text: str, count: int = 1, *, fixed: bool = False) -> None:
    result.corruptions += count
    result.corruptions_fixed += count if fixed else 0
    if len(result.findings) < _FINDINGS:
        result.findings.append(Finding("corruption", text, count, fixed=fixed))


def _check_copies(image: VhdxImage, result: CheckResult, *, every: bool) -> None:
    """Headers and region tables are there twice, so that one of each may be lost."""
    if not all(image.headers.whole):
        _corrupt(result, "one of the two headers is damaged", fixed=every)
        if every:
            image.headers.update_both()
    if not (all(image.regions.whole) and image.regions.alike):
        _corrupt(result, "the two copies of the region table are not both whole and alike", fixed=every)
        if every:
            image.headers.update_both(LogGuid=NO_GUID)
            for offset in REGION_TABLE_OFFSETS:
                image.log.commit(sectors(image, offset, image.regions.table), image.file.size)
            image.regions.whole, image.regions.alike = [True, True], True


def _check_states(image: VhdxImage, result: CheckResult) -> bool:
    """Whether every entry is in a state that there is."""
    sound = True
    for run in image.table.runs(0, len(image.table), image.step):
        state = run.value & STATE
        if state == _RESERVED or state == PARTIALLY_PRESENT and not image.differencing:
            last = f" to {run.at + run.length - 1}" if run.length > 1 else ""
            _corrupt(result, f"block {run.at}{last}: there is no state {state}", run.length)
            sound = False
    return sound


def _check_places(image: VhdxImage, result: CheckResult, *, every: bool) -> bool:
    """Whether no block lies over metadata; a last block that the file's end cuts gets its zeros."""
    sound = True
    for block, count, entry, step, kind in image._told_apart(0, len(image.table)):
        if kind is not Kind.DATA:
            continue
        if image.meets_metadata(count, entry, step):
            _corrupt(result, f"block {block}, or one after it, lies over metadata")
            sound = False
        last = block + (count - 1 if step else 0)
        place = image.position(entry) + (last - block) * image.block_size
        end = place + min(image.block_size, image.size - last * image.block_size)
        if place < image.file.size < end and not image.dirty:
            _corrupt(result, f"block {last} is cut by the end of the file", fixed=every)
            if every and image.file.resizable:
                image.file.truncate(round_up(end, ALIGN))
    return sound


def _check_bitmaps(image: VhdxImage, result: CheckResult) -> None:
    """Blocks that are there in part need their sector bitmap."""
    checked = -1
    for run in image.table.runs(0, len(image.table), image.step):
        if run.value & STATE == PARTIALLY_PRESENT:
            for chunk in range(run.at // image.ratio, (run.at + run.length - 1) // image.ratio + 1):
                if chunk > checked:
                    checked = chunk
                    try:
                        image.bitmap_place(chunk)
                    except ImageError as error:
                        _corrupt(result, f"{error.place}: {error.cause}")


def _check_spare(image: VhdxImage, result: CheckResult, end: int, *, repair: bool) -> None:
    """Space behind the last block belongs to nothing, or nothing that is in use."""
    used = max(end, image.used_end())
    spare = image.file.size - max(used, image.regions.ranges[-1][1] + _SPARE)
    if spare <= 0:
        return
    count = -(-spare // image.block_size)
    result.findings.append(Finding("leak", f"{spare} bytes behind the last block", count, fixed=repair))
    result.leaks += count
    if repair and image.file.resizable:
        result.leaks_fixed += count
        image.headers.update_both(LogGuid=NO_GUID)
        image.file.truncate(used)
