"""Copies of disks that come through a pipe, whose size nobody knows before their end: raw ones, and LUKS over them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from ..contract.drivers import FormatDriver
from ..contract.node import Image
from ..engine.copy import CopyPlan, copy
from ..engine.progress import Progress, RateLimit
from ..errors import UnsupportedError
from ..kit.forward import needs_copy
from ..opening.context import Context
from ..sizes import MAX_SIZE, SECTOR, MiB, round_up
from .resize import set_size

FIRST = 64 * MiB
"""Bytes that the output has at first, and that are copied at once: what is too much is cut off at the end."""


PIPE = "pipe:-"
"""What ``-`` stands for: standard input, or standard output."""


def piped(name: str, context: Context, *, image_opts: bool = False) -> str:
    """*name* as it was given, with ``-`` as what it stands for, where callers do not expect a file, as of qemu-img."""
    return PIPE if name == "-" and not image_opts and not context.habits.dash_is_a_file else name


def refuse(images: Sequence[Image], more: bool) -> None:
    """Refuse what needs the size of the source, which has none.

    :param more: something was asked for that needs it.
    """
    image = images[0]
    if len(images) > 1 or more:
        text = f"what was asked for needs to know the disk's size, and nobody does before its end: {needs_copy()}"
        raise UnsupportedError(text, file=image.name)


def expect_growing(driver: FormatDriver, image: Image) -> None:
    """Refuse to copy *image* into a format whose images cannot grow and be cut.

    :raises UnsupportedError: it is one.
    """
    if not {"resize", "shrink"} <= driver.capabilities:
        text = f"format '{driver.name}' has to know the disk's size beforehand: {needs_copy()}"
        raise UnsupportedError(text, file=image.name)


def copy_unsized(
    image: Image,
    target: Image,
    plan: CopyPlan,
    context: Context,
    progress: Progress,
    limit: RateLimit,
    cancel: threading.Event | None,
    *,
    skip: int = 0,
    most: int = MAX_SIZE,
) -> int:
    """Copy *image* into *target*, a new one, which grows as it comes.

    :param skip: bytes at the beginning that are left out.
    :param most: bytes that are copied at most.
    :return: how many were.
    """
    at = 0

    def left() -> int:
        """Bytes that come behind *at*, as far as that is known."""
        return (most if image.ended is None else min(max(round_up(image.ended, SECTOR) - skip, 0), most)) - at

    while left() > 0:  # probing may have seen the end of a small one
        step = min(FIRST, left())
        if target.size < at + step:
            grown = round_up(at + step, SECTOR)
            set_size(target, max(grown, 2 * at) if target.unit > 1 else grown, context)
        progress.expect(step)
        copy(
            image,
            target,
            plan,
            source_offset=skip + at,
            target_offset=at,
            length=step,
            progress=progress,
            limit=limit,
            cancel=cancel,
        )
        at += step
    at += left()
    if round_up(at, SECTOR) != target.size:
        set_size(target, round_up(at, SECTOR), context)
    return at
