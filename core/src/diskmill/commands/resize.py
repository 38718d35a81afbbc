"""``resize``: another size for the guest disk."""

from __future__ import annotations

from typing import get_args

from ..contract import calls
from ..contract.calls import Preallocation
from ..contract.extents import Kind
from ..contract.node import Image
from ..errors import UnsupportedError, UsageError, said
from ..opening.context import Context
from ..opening.graph import open_image
from ..opening.names import Name, given_name
from ..sizes import MAX_SIZE, SECTOR, round_up, whole

PREALLOCATION: tuple[Preallocation, ...] = get_args(Preallocation)


def resize(
    name: Name,
    size: int,
    *,
    relative: bool = False,
    shrink: bool = False,
    preallocation: Preallocation = "off",
    format: str | None = None,
    image_opts: bool = False,
    context: Context | None = None,
) -> int:
    """Give the guest disk of the image *name* another size, and return that: bytes.

    :param size: bytes, rounded up to whole sectors; with *relative*, how many more (or less, where negative).
    :param shrink: allow the disk to become smaller; what lies beyond its new end is lost.
    :param preallocation: how space for what is new is claimed, one of :data:`PREALLOCATION`.
    :raises UnsupportedError: the format cannot do that.
    :raises UsageError: the disk would become smaller and *shrink* is not set, or the size is out of range.
    """
    name = given_name(name)
    size = whole(size, "size", -MAX_SIZE if relative else 0)
    context = context or Context()
    if preallocation not in PREALLOCATION:
        raise UsageError(f"invalid preallocation '{preallocation}': choose from {', '.join(PREALLOCATION)}")
    with open_image(name, format, context=context, writable=True, image_opts=image_opts) as image:
        target = round_up(image.size + size if relative else size, SECTOR)  # as in a new image
        if not 0 < target <= MAX_SIZE:
            raise UsageError(f"the new size must be 1 to {MAX_SIZE} bytes", file=name)
        if target < image.size and not shrink:
            allow = said("shrink=True", "--shrink")
            raise UsageError(
                f"the disk would become smaller and lose what lies there: allow it with {allow}", file=name
            )
        if target <= image.size and preallocation != "off":
            raise UsageError("preallocation is for growing images", file=name)
        set_size(image, target, context, preallocation)
        return image.size


def set_size(image: Image, size: int, context: Context, preallocation: Preallocation = "off") -> None:
    """Let the driver of *image* make its guest disk *size* bytes long, which are whole sectors.

    :raises UnsupportedError: the format cannot do that.
    """
    refuse_size(image, size, context, preallocation)
    old = image.size
    calls.resize(context.registry, image, size, preallocation)
    if image.backing is not None and min(image.size, image.backing.size) > old:
        # What a longer backing image holds there was never part of this disk. A driver that hides it at all does so
        # before the new size is on disk; from one that does not, it is hidden late.
        for extent in list(image.extents(old, min(image.size, image.backing.size) - old)):
            if extent.kind is Kind.HOLE:
                image.zero(extent.start, extent.length, unmap=False)


def refuse_size(image: Image, size: int, context: Context, preallocation: str = "off") -> None:
    """Refuse a size that :func:`set_size` would refuse, before anything is written.

    :raises UnsupportedError: the format, or this image, cannot have it.
    """
    driver = image.driver
    needed = "shrink" if size < image.size else "resize"
    if needed not in driver.capabilities:
        raise UnsupportedError(f"format '{driver.name}' cannot {needed} images", file=image.name)
    modes = next((one.choices for one in driver.options if one.name == "preallocation"), ("off",))
    if preallocation not in modes:
        raise UnsupportedError(
            f"format '{driver.name}' does not know the preallocation '{preallocation}'", file=image.name
        )
    arguments = {"size": size, "preallocation": preallocation}
    calls.preflight(context.registry, image, "resize", arguments)
