"""``bitmap``: the persistent dirty bitmaps of an image."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

from ..contract import calls
from ..contract.calls import BitmapAction
from ..contract.node import Image, Storage
from ..errors import UnsupportedError, UsageError, said
from ..opening.context import Context
from ..opening.graph import open_image
from ..opening.names import Name, given_name
from ..records import replace

if TYPE_CHECKING:
    from ..contract.results import Bitmap

Action = BitmapAction | Literal["remove-all"]
ACTIONS: tuple[Action, ...] = ("add", "remove", "remove-all", "clear", "enable", "disable", "merge")


def bitmap(
    name: Name,
    bitmap: str | None,
    actions: Sequence[tuple[Action, str]],
    *,
    granularity: int | None = None,
    source: Name | None = None,
    source_format: str | None = None,
    format: str | None = None,
    image_opts: bool = False,
    context: Context | None = None,
) -> None:
    """Do *actions* to the bitmap called *bitmap* of the image *name*, in order.

    :param bitmap: None, where the one action is ``remove-all``, which takes away every bitmap of the image.
    :param actions: each one of :data:`ACTIONS`, with the name of the bitmap that ``merge`` takes in.
    :param granularity: of a bitmap that is added: guest bytes for each bit.
    :param source: the image that ``merge`` takes bitmaps from; None: the same one.
    :raises UnsupportedError: the format has no bitmaps.
    :raises UsageError: there is no such bitmap, or one already.
    """
    name = given_name(name)
    source = None if source is None else given_name(source)
    context = context or Context()
    if not actions:
        raise UsageError(
            "need at least one of "
            + said(", ".join(ACTIONS), "--add, --remove, --remove-all, --clear, --enable, --disable or --merge")
        )
    for action, _ in actions:
        if action not in ACTIONS:
            raise UsageError(f"invalid action '{action}': choose from {', '.join(ACTIONS)}")
    if bitmap is None and any(action != "remove-all" for action, _ in actions):
        raise UsageError("the name of a bitmap is missing")
    if granularity is not None and not any(action == "add" for action, _ in actions):
        raise UsageError(f"a granularity goes with {said('the action add', '--add')}")
    if source is not None and not any(action == "merge" for action, _ in actions):
        raise UsageError(f"a source image goes with {said('the action merge', '--merge')}")
    with ExitStack() as stack:
        image = stack.enter_context(
            open_image(name, format, context=context, writable=True, backing=False, image_opts=image_opts)
        )
        _require(image.driver, name)
        other = image
        if source is not None:
            other = stack.enter_context(open_image(source, source_format, context=context, backing=False))
            if not bitmaps_of(other, context):
                _require(other.driver, source)
        _refuse(image, other, bitmap or "", actions, context)
        try:
            for action, merged in actions:
                if action == "remove-all":
                    for one in calls.bitmaps(context.registry, image):
                        calls.bitmap(context.registry, image, "remove", one.name)
                    continue
                options: dict[str, Any] = {}
                if action == "merge":
                    options = {"source": _find(other, merged, context)}
                elif action == "add" and granularity is not None:
                    options = {"granularity": granularity}
                calls.bitmap(context.registry, image, action, bitmap or "", **options)
        except UsageError:  # what the actions before it did is in memory, and stays there
            image.abandon()
            raise


def _refuse(image: Image, other: Image, name: str, actions: Sequence[tuple[Action, str]], context: Context) -> None:
    """Refuse what one of the *actions* would refuse once those before it are done.

    :raises UsageError: there is no such bitmap, or one already; it is inconsistent; the sizes differ.
    """
    sound = {one.name: not one.inconsistent for one in calls.bitmaps(context.registry, image)}
    for action, merged in actions:
        if action == "remove-all":
            sound.clear()
            continue
        if action == "add":
            if name in sound:
                raise UsageError(f"Bitmap already exists: {name}", file=image.name)
            sound[name] = True
            continue
        if action == "merge" and other is not image:
            source = _find(other, merged, context)
            if source.size != image.size:
                raise UsageError(
                    f"Bitmaps are of different sizes (destination size is {image.size}, "
                    f"source size is {source.size}) and can't be merged",
                    file=image.name,
                )
        for needed in (name, merged) if action == "merge" and other is image else (name,):
            if needed not in sound:
                raise UsageError(f"Dirty bitmap '{needed}' not found", file=image.name)
            if not sound[needed] and action != "remove":
                raise UsageError(
                    f"Bitmap '{needed}' is inconsistent and cannot be used: it can only be removed", file=image.name
                )
        if action == "remove":
            del sound[name]


def _find(image: Image, name: str, context: Context) -> Bitmap:
    for one in bitmaps_of(image, context):
        if one.name == name:
            if one.inconsistent:
                raise UsageError(f"Bitmap '{name}' is inconsistent and cannot be used", file=image.name)
            return one
    raise UsageError(f"Dirty bitmap '{name}' not found", file=image.name)


def bitmaps_of(image: Image, context: Context) -> list[Bitmap]:
    """The dirty bitmaps of the guest disk of *image*: those that its format keeps, or, of a disk that is all of a
    storage (raw), those that the storage keeps.
    """
    if "bitmaps" in image.driver.capabilities:
        return calls.bitmaps(context.registry, image)
    if image.window != 0 or not isinstance(image.file, Storage):
        return []
    return [replace(one, size=image.size) for one in image.file.bitmaps()]


def _require(driver: Any, name: str) -> None:
    if "bitmaps" not in driver.capabilities:
        raise UnsupportedError(f"format '{driver.name}' has no persistent bitmaps", file=name)
