"""The bitmaps that go along with a copy."""

from __future__ import annotations

from collections.abc import Sequence

from ..contract import calls
from ..contract.node import Image
from ..contract.results import Bitmap
from ..errors import UnsupportedError, UsageError, said
from ..opening.context import Context


def sound(found: Sequence[Bitmap], skip_broken: bool, image: Image, context: Context) -> list[Bitmap]:
    """Those of *found*, bitmaps of *image*, that are consistent.

    :param skip_broken: the others are left out, with a warning; otherwise they are refused.
    """
    sound = []
    for one in found:
        if not one.inconsistent:
            sound.append(one)
        elif skip_broken:
            context.warn(f"Skipping inconsistent bitmap '{one.name}'")
        else:
            skip = said("skip_broken=True", "--skip-broken-bitmaps")
            raise UsageError(
                f"Cannot copy inconsistent bitmap '{one.name}': skip it with {skip}, or remove it", file=image.name
            )
    return sound


def can_have(image: Image, context: Context) -> bool:
    """Whether bitmaps can be added to *image*."""
    if "bitmaps" not in image.driver.capabilities:
        return False
    options = {"action": "add", "name": "", "options": {}}
    return calls.preflight(context.registry, image, "bitmap", options) is not False


def refuse(wanted: bool, copied: Sequence[Bitmap], target: Image, context: Context) -> None:
    """Refuse an image that cannot have all of these bitmaps, before it is written."""
    if not wanted:
        return
    if not can_have(target, context):
        text = f"format '{target.driver.name}', or this version of it, does not support persistent bitmaps"
        raise UnsupportedError(text, file=target.name)
    there = {one.name for one in calls.bitmaps(context.registry, target)}
    for one in copied:
        if one.size != target.size:  # of an image that exists: nothing could be merged into it afterwards
            text = f"bitmap '{one.name}' is of a disk of {one.size} bytes, this one has {target.size}"
            raise UsageError(text, file=target.name)
        if one.name in there:
            raise UsageError(f"Bitmap already exists: {one.name}", file=target.name)


def add_empty(copied: Sequence[Bitmap], target: Image, context: Context) -> None:
    """Empty bitmaps in *target*, which record nothing."""
    for one in copied:
        calls.bitmap(context.registry, target, "add", one.name, granularity=one.granularity, disabled=True)
