"""``measure``: how large would an image be?"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from ..contract import calls
from ..contract.node import Image
from ..contract.options import validate
from ..contract.requests import MeasureRequest
from ..contract.results import Measurement
from ..engine.progress import Progress, Report
from ..errors import UnsupportedError, UsageError
from ..opening.context import Context
from ..opening.creation import split_options
from ..opening.graph import open_image
from ..opening.names import Name, given_name
from ..sizes import MAX_SIZE, SECTOR, round_down, round_up, whole
from .map import entries
from .snapshot import load_snapshot


def measure(
    name: Name | None = None,
    *,
    size: int | None = None,
    output_format: str = "raw",
    options: Mapping[str, Any] | None = None,
    format: str | None = None,
    snapshot: str | None = None,
    image_opts: bool = False,
    context: Context | None = None,
    progress: Report | None = None,
) -> Measurement:
    """How many bytes a new image of *output_format* takes: for the data of the image *name*, or for *size* bytes.

    :param size: a guest disk's size in bytes, instead of *name*.
    :param options: ``create`` options of the output's format.
    :param snapshot: measure this internal snapshot of the image.
    :raises UnsupportedError: the format cannot tell.
    :raises UsageError: both or none of *name* and *size* are given.
    """
    name = None if name is None else given_name(name)
    size = None if size is None else whole(size, "size")
    context = context or Context()
    rest = dict(options or {})
    if (name is None) == (size is None):
        raise UsageError("either a size or one image must be given")
    if name is None and (format is not None or snapshot is not None or image_opts):
        raise UsageError("a format, a snapshot and option strings go with an image")
    if size is not None and not 0 <= size <= MAX_SIZE:
        raise UsageError(f"the size must be 0 to {MAX_SIZE} bytes")
    driver = context.registry.format(output_format)
    if "create" not in driver.capabilities:
        raise UnsupportedError(f"format '{output_format}' does not support size measurement")
    own, _ = split_options(
        driver, context.registry.protocol("file"), _without_backing(rest), context.habits.idle_options
    )
    with ExitStack() as stack:
        source: Image | None = None
        if name is not None:
            source = stack.enter_context(open_image(name, format, context=context, image_opts=image_opts))
            if snapshot is not None:
                load_snapshot(source, snapshot, context)
            size = source.size
        assert size is not None
        counter = Progress(progress)
        counter.expect(size)
        request = MeasureRequest(
            size=round_up(size, SECTOR),
            options=validate(driver.options, own, when="create", driver=output_format),
            data_bytes=lambda unit: 0 if source is None else _data_bytes(source, unit, context, counter),
            bitmaps=_bitmaps(source, context),
            context=context,
        )
        result = calls.measure(context.registry, driver, request)
        counter.complete()  # of what the disk holds, a driver need not ask
        return result


def _without_backing(options: dict[str, Any]) -> dict[str, Any]:
    """A backing image does not change how much its overlay takes at most."""
    return {key: value for key, value in options.items() if key not in ("backing_file", "backing_fmt")}


def _data_bytes(source: Image, unit: int, context: Context, counter: Progress) -> int:
    """Bytes in units of *unit* bytes that hold data of *source* which is not known to be zeros."""
    total = done = 0
    for entry in entries(source, 0, source.size, context):
        counter.advance(entry.length)
        if entry.zero or not entry.data:
            continue
        first = max(round_down(entry.start, unit), done)
        done = max(round_up(entry.start + entry.length, unit), done)
        total += done - first
    return total


def _bitmaps(source: Image | None, context: Context) -> list[tuple[str, int]] | None:
    """Name and granularity of each persistent bitmap; None where the source cannot have any."""
    if source is None or "bitmaps" not in source.driver.capabilities:
        return None
    try:
        calls.preflight(context.registry, source, "bitmap")
    except UsageError:  # of this version there are none
        return None
    details = source.details() or {}
    return [(str(one["name"]), int(one["granularity"])) for one in details.get("bitmaps", [])]
