"""``dd``: copy some blocks of one image into a new one."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from ..engine.copy import CopyPlan, copy
from ..engine.progress import Progress, RateLimit, Report
from ..errors import UsageError
from ..kit.forward import drain
from ..opening.context import Context
from ..opening.creation import create_image
from ..opening.graph import open_image
from ..opening.names import Name, given_name
from .convert import comes_in_order
from .identity import identities, refuse_self
from .unsized import FIRST, copy_unsized, expect_growing, piped


def dd(
    source: Name,
    output: Name,
    *,
    block: int = 512,
    count: int | None = None,
    skip: int = 0,
    format: str | None = None,
    output_format: str = "raw",
    options: Mapping[str, Any] | None = None,
    image_opts: bool = False,
    context: Context | None = None,
    progress: Report | None = None,
    cancel: threading.Event | None = None,
) -> int:
    """Copy *count* blocks of *block* bytes, after the first *skip* ones, into the new image *output*.

    :param source: ``-`` is standard input, as it is standard output for *output*.
    :param count: None: up to the disk's end.
    :return: how many bytes were copied.
    :raises UsageError: the block size is not 1 byte to 2 GiB - 1.
    """
    context = context or Context()
    source = piped(given_name(source), context, image_opts=image_opts)
    output = piped(given_name(output), context)
    if not 0 < block < 2**31:
        raise UsageError(f"the block size must be 1 to {2**31 - 1} bytes")
    other = output_format != "raw"
    with open_image(source, format, context=context, image_opts=image_opts, copied=other, unsized=True) as image:
        refuse_self([image], output, context.registry)
        start = min(skip * block, image.size)
        length = image.size - start if count is None else min(count * block, image.size - start)
        counter = Progress(progress)
        most, endless = length, image.unsized
        if endless:
            expect_growing(context.registry.format(output_format), image)
            length = min(length, FIRST)
        else:
            counter.expect(length)
        inputs = identities([image])
        target = create_image(
            output, output_format, length, options or {}, context=context, inputs=inputs, growing=endless
        )
        try:
            ordered = comes_in_order([image])
            plan = CopyPlan(zeroed=target.blank, threads=2 if ordered else None, one_by_one=ordered)
            if endless:
                length = copy_unsized(image, target, plan, context, counter, RateLimit(), cancel, skip=start, most=most)
            else:
                copy(image, target, plan, source_offset=start, length=length, progress=counter, cancel=cancel)
            drain(image)
            target.settle()
        except BaseException:
            target.abandon()
            raise
        target.close()
    if skip * block > start:
        context.warn(f"'{source}': it has fewer than {skip} blocks of {block} bytes to skip")
    return length
