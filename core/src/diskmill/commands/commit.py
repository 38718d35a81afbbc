"""``commit``: put what an overlay holds into the image that it stands on."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from itertools import pairwise

from ..context import Context
from ..engine.copy import CopyPlan, copy
from ..engine.progress import Progress, RateLimit, Report
from ..errors import UnsupportedError, UsageError
from ..extents import Kind
from ..graph import folder_of, open_image, storage_of
from ..names import parse_name, relative_to
from ..node import Image
from .resize import set_size


def commit(
    name: str,
    *,
    base: str | None = None,
    drop: bool = True,
    rate: int = 0,
    format: str | None = None,
    image_opts: bool = False,
    context: Context | None = None,
    progress: Report | None = None,
    cancel: threading.Event | None = None,
) -> None:
    """Write the data of the image *name* into its backing image, so that this reads as the image did.

    :param base: an image further down the chain to write into, by the name that the image above it could use, with
        all that lies between; the image is not emptied
        then, as the images between no longer fit their base.
    :param drop: empty the image afterwards; it reads the same.
    :param rate: bytes a second; 0: as fast as it goes.
    :raises UsageError: it has no backing image, or *base* is not in its chain.
    :raises DiskmillError: an image cannot be read or written. Nothing is lost then: the overlay still holds its data.
    """
    context = context or Context()
    with open_image(
        name, format, context=context, writable=True, writable_backing=True, image_opts=image_opts
    ) as image:
        layers = _layers(image, base)
        target = layers[-1].backing
        assert target is not None
        counter = Progress(progress)
        counter.expect(sum(layer.size for layer in layers))
        limit = RateLimit(rate)
        if target.size < image.size:
            if not target.blank:
                _keep_zeros(layers[-1], target.size)
            set_size(target, image.size, context)
        # From the lowest layer up, so that of two layers with data in one place the upper one stays.
        previous = target.size
        for layer in reversed(layers):
            if previous < layer.size:  # beyond the end of a shorter image below it, the layer's holes are zeros
                target.zero(previous, layer.size - previous)
            copy(layer, target, CopyPlan(keep_holes=True), progress=counter, limit=limit, cancel=cancel)
            previous = layer.size
        target.flush()
        if drop and base is None and context.registry.call(image.driver, "empty", image=image) is None:
            raise UnsupportedError(
                f"all data was committed, but format '{image.driver.name}' cannot empty images: use -d", file=name
            )


def _keep_zeros(layer: Image, start: int) -> None:
    """Let *layer* itself hold the zeros that it reads as from *start* on, where its backing image ends: that grows by
    something else (an encrypted disk by noise), which would show through the holes, and go into the backing image."""
    for extent in list(layer.extents(start, max(layer.size - start, 0))):
        if extent.kind is Kind.HOLE:
            layer.zero(extent.start, extent.length, unmap=False)
    layer.flush()


def _layers(image: Image, base: str | None) -> list[Image]:
    """The images above *base*, from the top."""
    chain = list(_chain(image))
    if len(chain) == 1:
        raise UsageError("the image has no backing image", file=image.name)
    if base is None:
        return chain[:1]
    # As each image of the chain would refer to it, from its own folder; else as it is from here.
    for from_image in (True, False):
        for depth, (above, one) in enumerate(pairwise(chain), 1):
            if storage_of(one).identity() in _identities(base, folder_of(above) if from_image else None):
                return chain[:depth]
    raise UsageError(f"Did not find '{base}' in the backing chain of '{image.name}'")


def _identities(name: str, folder: str | None) -> list[object]:
    """Which file *name* is, seen from *folder*; none, where there is no such file.

    By its inode, not opened: this process holds the locks of the whole chain.
    """
    path = relative_to(parse_name(name), folder).get("file", {}).get("filename")
    try:
        status = os.stat(str(path))
    except (OSError, ValueError):
        return []
    return [(status.st_dev, status.st_ino)]


def _chain(image: Image | None) -> Iterator[Image]:
    while image is not None:
        yield image
        image = image.backing
