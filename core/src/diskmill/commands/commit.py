"""``commit``: put what an overlay holds into the image that it stands on."""

from __future__ import annotations

import threading
from itertools import pairwise

from ..contract import calls
from ..contract.extents import Kind
from ..contract.node import Image
from ..contract.place import Place
from ..engine.copy import CopyPlan, copy
from ..engine.progress import Progress, RateLimit, Report
from ..errors import UnsupportedError, UsageError, said
from ..opening.context import Context
from ..opening.graph import chain_of, open_image
from ..opening.names import Name, given_name
from ..opening.places import place_named, place_under, storage_of
from .resize import refuse_size, set_size


def commit(
    name: Name,
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
    name = given_name(name)
    context = context or Context()
    with open_image(
        name, format, context=context, writable=True, writable_backing=True, image_opts=image_opts
    ) as image:
        layers = _layers(image, base, context)
        target = layers[-1].backing
        assert target is not None
        counter = Progress(progress)
        counter.expect(sum(layer.size for layer in layers))
        limit = RateLimit(rate)
        _foresee(layers, target, drop=drop and base is None, context=context)
        if target.size < image.size:
            if not target.blank:
                _keep_zeros(layers[-1], target.size)
            set_size(target, image.size, context)
        # From the lowest layer up, so that of two layers with data in one place the upper one stays.
        for layer in reversed(layers):
            copy(layer, target, CopyPlan(shared=layer.backing), progress=counter, limit=limit, cancel=cancel)
        counter.phase("flush")
        target.flush()
        if drop and base is None:
            image.recording = False
            counter.phase("empty the overlay")
            calls.empty(context.registry, image)


def _foresee(layers: list[Image], target: Image, *, drop: bool, context: Context) -> None:
    """Refuse what can be known to fail, while nothing has been written."""
    for layer in layers:  # damaged tables, and a VMDK whose parent has changed, are found by looking at all of them
        for _ in layer.extents(0, layer.size):
            pass
    if target.size < layers[0].size:
        refuse_size(target, layers[0].size, context)
    if not drop:
        return
    driver = layers[0].driver
    able = calls.preflight(context.registry, layers[0], "empty")
    if able is False or not (able or hasattr(driver, "empty")):
        raise UnsupportedError(
            f"format '{driver.name}' cannot empty this image: use {said('drop=False', '-d')}", file=layers[0].name
        )


def _keep_zeros(layer: Image, start: int) -> None:
    """Let *layer* itself hold the zeros that it reads as from *start* on, where its backing image ends: that grows by
    something else (an encrypted disk by noise), which would show through the holes, and go into the backing image."""
    layer.recording = False  # it reads as before
    for extent in list(layer.extents(start, max(layer.size - start, 0))):
        if extent.kind is Kind.HOLE:
            layer.zero(extent.start, extent.length, unmap=False)
    layer.flush()


def _layers(image: Image, base: str | None, context: Context) -> list[Image]:
    """The images above *base*, from the top."""
    chain = list(chain_of(image))
    if len(chain) == 1:
        raise UsageError("the image has no backing image", file=image.name)
    if base is None:
        return chain[:1]
    # As each image of the chain would refer to it, from its own folder; else as it is from here.
    for from_image in (True, False):
        for depth, (above, one) in enumerate(pairwise(chain), 1):
            wanted = _identity(base, place_under(above) if from_image else None, context)
            if wanted is not None and wanted == storage_of(one).identity():
                return chain[:depth]
    raise UsageError(f"Did not find '{base}' in the backing chain of '{image.name}'")


def _identity(name: str, place: Place | None, context: Context) -> object | None:
    """Which file *name* is, seen from *place*; None, where there is no such file.

    It is not opened: this process holds the locks of the whole chain.
    """
    try:
        return place_named(name, place, context.registry).identity()
    except UnsupportedError:  # nothing lies beside it
        return None
