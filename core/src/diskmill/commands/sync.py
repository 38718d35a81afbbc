"""``sync``: a copy that exists becomes what its source is by now, by writing only the blocks that differ."""

from __future__ import annotations

import threading
from typing import NamedTuple

from ..engine.copy import CopyPlan, copy
from ..engine.digest import BLOCK
from ..engine.progress import Progress, Report
from ..errors import UsageError
from ..kit.forward import drain
from ..opening.context import Context
from ..opening.graph import open_image
from ..opening.names import Name, given_name
from ..records import replace
from ..sizes import whole
from .changes import unlike
from .conversion import thread_count
from .identity import refuse_self


class Synced(NamedTuple):
    """What was done.

    :ivar size: bytes of the disk.
    :ivar copied: bytes that were written; the rest was the same.
    """

    size: int
    copied: int

    @property
    def saved(self) -> int:
        """Bytes that need not be written."""
        return self.size - self.copied


def sync(
    source: Name,
    target: Name,
    *,
    format: str | None = None,
    target_format: str | None = None,
    block_size: int = BLOCK,
    dry_run: bool = False,
    threads: int | None = None,
    image_opts: bool = False,
    context: Context | None = None,
    progress: Report | None = None,
    cancel: threading.Event | None = None,
) -> Synced:
    """Make the guest disk of *target*, an image that exists and is as large, that of *source*.

    Both are read, and blocks whose SHA-256 differ are written. If the call ends before that is done, the target is
    partly as it was; the next call goes on.

    :param block_size: bytes of a block.
    :param dry_run: write nothing; tell what would be.
    :param image_opts: both names are option strings.
    :raises DiskmillError: whatever went wrong.
    """
    source, target = given_name(source), given_name(target)
    context = context or Context()
    block_size, threads = whole(block_size, "block_size", 1), thread_count(threads)
    counter = Progress(progress)
    with open_image(source, format, context=context, image_opts=image_opts) as image:
        if not image_opts:
            refuse_self([image], target, context.registry)
        other = open_image(
            target,
            target_format,
            context=replace(context, share=False) if not dry_run else context,
            writable=not dry_run,
            image_opts=image_opts,
        )
        with other:
            if other.size != image.size:
                text = f"its disk has {other.size} bytes, and that of '{source}' {image.size}: resize it first"
                raise UsageError(text, file=target)
            counter.expect(2 * image.size)
            found = unlike(image, other, block=block_size, threads=threads, progress=counter, cancel=cancel)
            copied = sum(length for _, length in found.ranges())
            if copied and not dry_run:
                counter.expect(copied)
                plan = CopyPlan(threads=threads)
                copy(image, other, plan, ranges=found.ranges(), progress=counter, cancel=cancel)
            drain(image)
    return Synced(image.size, copied)
