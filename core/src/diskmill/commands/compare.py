"""``compare``: do two images read the same?"""

from __future__ import annotations

import threading

from ..contract.extents import Extent, Kind
from ..contract.node import Image
from ..contract.results import Comparison
from ..engine.compare import first_data, first_difference
from ..engine.digest import BLOCK
from ..engine.progress import Progress, Report
from ..errors import CancelledError, DiskmillError, UnsupportedError, UsageError, said
from ..kit.forward import drain
from ..opening.context import Context
from ..opening.graph import open_image
from ..opening.names import Name, given_name
from .digest import ALGORITHM
from .known_digests import PREFIX, against
from .unsized import piped

UNREADABLE = 4
"""The exit status of qemu-img where the images can be opened but not be read."""


def compare(
    a: Name,
    b: Name,
    *,
    format_a: str | None = None,
    format_b: str | None = None,
    strict: bool = False,
    image_opts: bool = False,
    algorithm: str = ALGORITHM,
    block_size: int = BLOCK,
    context: Context | None = None,
    progress: Report | None = None,
    cancel: threading.Event | None = None,
) -> Comparison:
    """Compare the guest disks of two images, backing chains included.

    Where one disk is longer, the rest of it must read as zeros.

    :param b: ``digests:PATH`` stands for the disk that a file is of: what :func:`diskmill.digest` gave, or wrote there
        of the disk's blocks, by *algorithm* for blocks of *block_size* bytes.
    :param strict: also compare the disks' sizes, and which ranges are allocated.
    :raises DiskmillError: an image cannot be opened, or (with an ``exit_code`` of :data:`UNREADABLE`) not be read.
    """
    context = context or Context()
    a, b = (piped(given_name(one), context, image_opts=image_opts) for one in (a, b))
    counter = Progress(progress)
    if b.startswith(PREFIX) and not (image_opts or context.habits.digests_are_a_file):
        if strict:
            raise UsageError(f"digests tell nothing of what is allocated ({said('strict', '-s')})", file=b)
        with open_image(a, format_a, context=context) as image:
            result = against(
                image,
                b.removeprefix(PREFIX),
                algorithm=algorithm,
                block_size=block_size,
                progress=counter,
                cancel=cancel,
            )
            if result.identical:
                drain(image)
            return result
    with (
        open_image(a, format_a, context=context, image_opts=image_opts, unsized=True) as left,
        open_image(b, format_b, context=context, image_opts=image_opts, unsized=True) as right,
    ):
        for image in (left, right):
            if image.unsized:
                raise UnsupportedError("nobody knows its size before its end: save it to a file first", file=image.name)
        counter.expect(max(left.size, right.size))
        if strict and left.size != right.size:
            return Comparison(False, "Strict mode: Image size mismatch!", size_differs=True)
        try:
            return _compared(left, right, strict, counter, cancel)
        except CancelledError:
            raise
        except DiskmillError as error:
            error.exit_code = UNREADABLE
            raise


def _compared(left: Image, right: Image, strict: bool, counter: Progress, cancel: threading.Event | None) -> Comparison:
    differs = left.size != right.size
    status: list[int] = []

    def watch(one: Extent, other: Extent) -> bool:
        if _allocated(one) != _allocated(other):
            status.append(one.start)
        return bool(status)

    common = min(left.size, right.size)
    offset = first_difference(left, right, common, watch=watch if strict else None, progress=counter, cancel=cancel)
    if offset is None and status:
        return Comparison(False, f"Strict mode: Offset {status[0]} block status mismatch!", status[0])
    if offset is None and differs:
        offset = first_data(left if left.size > right.size else right, common, progress=counter)
    if offset is not None:
        return Comparison(False, f"Content mismatch at offset {offset}!", offset, size_differs=differs, common=common)
    for image in (left, right):
        drain(image)
    return Comparison(True, "Images are identical.", size_differs=differs, common=common)


def _allocated(extent: Extent) -> tuple[bool, bool]:
    """What strict mode compares: whether the range is allocated in the chain, and whether it is known to be zeros."""
    return extent.kind is not Kind.HOLE, extent.reads_as_zeros
