"""``rebase``: another backing image for an overlay."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

from ..contract import calls
from ..contract.drivers import FormatDriver
from ..contract.extents import Extent, Kind
from ..contract.limits import Meter
from ..contract.node import Image
from ..engine.access import read_extent
from ..engine.copy import CopyPlan, copy
from ..engine.progress import Progress, Report
from ..engine.walk import walk
from ..engine.zeros import ZEROS
from ..errors import UnsupportedError, UsageError, said
from ..opening.context import Context
from ..opening.graph import open_image, refuse_unreadable
from ..opening.names import Name, given_name, parse_name, relative_to
from ..opening.places import place_under, storage_of, written_name
from ..sizes import MiB, round_down, round_up


def rebase(
    name: Name,
    backing: Name,
    *,
    backing_format: str | None = None,
    unsafe: bool = False,
    compress: bool = False,
    format: str | None = None,
    image_opts: bool = False,
    context: Context | None = None,
    source_context: Context | None = None,
    progress: Report | None = None,
    cancel: threading.Event | None = None,
) -> None:
    """Let the image *name* stand on *backing* from now on, without changing what it reads as.

    What it left to its old backing image, and the new one has not, is copied into it first.

    :param backing: the new backing image, as it is to be written into the image; ``""``: none.
    :param backing_format: its format; it is never guessed for good, since a guess would be the guest's to make.
    :param unsafe: only write the new name: the caller vouches for both reading the same.
    :param compress: store what is copied compressed.
    :param source_context: for the old and the new backing image; by default *context*.
    :raises UnsupportedError: the format has no backing images.
    :raises UsageError: *backing_format* is not given.
    :raises DriverError: there is no *backing_format*, which matters unless *unsafe*.
    """
    name = given_name(name)
    backing = given_name(backing)
    context = context or Context()
    if backing_format is not None and not unsafe:  # else it is only written down, which mends what is written wrongly
        context.registry.format(backing_format)
    if backing_format == "":
        raise UsageError("the backing image's format has an empty name", file=name)
    if not backing:
        backing_format = None
    with ExitStack() as stack:
        image = stack.enter_context(
            open_image(name, format, context=context, writable=True, backing=not unsafe, image_opts=image_opts)
        )
        driver = image.driver
        assert isinstance(driver, FormatDriver)
        if "backing" not in driver.capabilities:
            raise UnsupportedError(f"format '{driver.name}' does not support backing files", file=name)
        if compress and "compression" not in driver.capabilities:
            raise UnsupportedError(f"format '{driver.name}' does not support compression", file=name)
        written = written_name(backing, place_under(image), context.registry) if backing else backing
        options = {"backing_file": written, "backing_fmt": backing_format or ""}
        able = calls.preflight(context.registry, image, "amend", {"options": options, "force": False})
        if not able and not hasattr(driver, "amend"):
            raise UnsupportedError(f"format '{driver.name}' cannot change the backing file", file=name)
        if unsafe and backing and backing_format is None:
            raise UsageError(
                f"the backing image's format must be specified ({said('backing_format', '-F')})", file=name
            )
        if not unsafe:
            new = _new_backing(stack, image, backing, backing_format, source_context or context)
            counter = Progress(progress)
            counter.expect(image.size)
            for one in (image, new):
                if one is not None:
                    refuse_unreadable(one, context)
            plan = CopyPlan(compress=compress)
            image.recording = False  # it reads as before
            for start, end in _differences(image, new, counter, cancel):
                _take_in(image, plan, start, end, cancel)
            counter.phase("finish")
            image.flush()
        calls.amend(context.registry, image, options)


def _new_backing(stack: ExitStack, image: Image, backing: str, format: str | None, context: Context) -> Image | None:
    if not backing:
        return None
    spec = relative_to(parse_name(backing), place_under(image))
    new: Image = stack.enter_context(open_image(spec, format, context=context))
    if format is None:
        raise UsageError(
            f"the backing image's format must be specified ({said('backing_format', '-F')}): "
            f"'{new.driver.name}' was detected",
            file=image.name,
        )
    below: Image | None = new
    while below is not None:
        if below.file is not image.file and _same(below, image):
            raise UsageError("the new backing image stands on the image itself", file=image.name)
        below = below.backing
    return new


def _same(one: Image, other: Image) -> bool:
    identity = storage_of(one).identity()
    return identity is not None and identity == storage_of(other).identity()


def _take_in(image: Image, plan: CopyPlan, start: int, end: int, cancel: threading.Event | None) -> None:
    """Make guest bytes *start* to *end*, which the image leaves to its old backing image, its own."""
    old = image.backing
    inside = start if old is None else max(min(end, old.size), start)
    if old is not None and start < inside:
        copy(old, image, plan, source_offset=start, target_offset=start, length=inside - start, cancel=cancel)
    if inside < end:
        image.zero(inside, end - inside, unmap=False)
        # A format may leave unallocated what reads as zeros already: the new backing image would show there.
        for extent in list(image.extents(inside, end - inside)):
            if extent.kind is Kind.HOLE:
                for at in range(extent.start, extent.end, len(ZEROS)):
                    image.write(at, memoryview(ZEROS)[: extent.end - at])


def _differences(
    image: Image, new: Image | None, progress: Progress, cancel: threading.Event | None
) -> Iterator[tuple[int, int]]:
    """Ranges of whole units that the image leaves to its backing image, and where the two backing images differ."""
    unit = image.unit
    nothing = image.backing is None and new is None
    at = 0
    # The list is complete before anything is written: the image's own extents change with that.
    for start, end in [] if nothing else list(_holes(image)):
        progress.advance(start - at)
        run: tuple[int, int] | None = None
        for low, high in _unequal(image.backing, new, start, end, progress, cancel):
            low, high = max(round_down(low, unit), start), min(round_up(high, unit), end)
            if run is not None and low > run[1]:
                yield run
                run = None
            run = (run[0] if run else low, high)
        if run is not None:
            yield run
        at = end
    progress.advance(image.size - at)


def _holes(image: Image) -> Iterator[tuple[int, int]]:
    """Ranges that *image* leaves to its backing image.

    :raises LimitError: there are more extents than a file of its size can rightly have.
    """
    start = end = 0
    meter = Meter(image)
    for extent in image.extents(0, image.size):
        meter.add(1)
        if extent.kind is not Kind.HOLE:
            continue
        if extent.start != end:
            if end > start:
                yield start, end
            start = extent.start
        end = extent.end
    if end > start:
        yield start, end


def _unequal(
    old: Image | None, new: Image | None, start: int, end: int, progress: Progress, cancel: threading.Event | None
) -> Iterator[tuple[int, int]]:
    """Pieces of the range, of at most 64 KiB, that do not read the same in both."""
    piece = MiB // 16
    lefts, rights = _padded(old, start, end), _padded(new, start, end)
    left, right = bytearray(piece), bytearray(piece)
    a, b = next(lefts), next(rights)
    at = start
    while at < end:
        if cancel is not None and cancel.is_set():
            from ..errors import CancelledError

            raise CancelledError("cancelled")
        stop = min(a.end, b.end)
        if not _alike(a, b, at):
            stop = min(stop, round_down(at, piece) + piece)
            count = stop - at
            read_extent(a.clip(at, stop), memoryview(left)[:count])
            read_extent(b.clip(at, stop), memoryview(right)[:count])
            if left[:count] != right[:count]:
                yield at, stop
        progress.advance(stop - at)
        at = stop
        if at < end:
            a = a if a.end > at else next(lefts)
            b = b if b.end > at else next(rights)


def _alike(a: Extent, b: Extent, at: int) -> bool:
    """Whether both surely read the same from *at* on, without a look at the data."""
    if a.reads_as_zeros or b.reads_as_zeros:
        return a.reads_as_zeros and b.reads_as_zeros
    if a.kind is not Kind.DATA or b.kind is not Kind.DATA or a.node is None or b.node is None:
        return False
    return a.offset - a.start == b.offset - b.start and a.node.identity() == b.node.identity() is not None


def _padded(image: Image | None, start: int, end: int) -> Iterator[Extent]:
    """The extents of *image* from *start* to *end*; zeros beyond its end, or where there is none."""
    inside = start if image is None else max(min(end, image.size), start)
    if image is not None and start < inside:
        yield from walk(image, start, inside - start)
    if inside < end:
        yield Extent(inside, end - inside, Kind.ZERO)
