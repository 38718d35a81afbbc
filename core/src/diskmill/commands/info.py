"""``info``: what an image is, without reading its data."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ..contract import calls
from ..contract.node import Image, Node
from ..contract.results import ChildInfo, ImageInfo, Limits, Snapshot
from ..errors import DiskmillError
from ..opening.context import Context
from ..opening.graph import open_image
from ..opening.names import Name, given_name, parse_name, parse_options, relative_to
from ..opening.places import place_of, place_under
from ..opening.registry import Registry
from ..opening.runtime import without_runtime
from ..sizes import SECTOR


def info(
    name: Name,
    *,
    format: str | None = None,
    limits: bool = False,
    image_opts: bool = False,
    context: Context | None = None,
) -> ImageInfo:
    """What the image *name* is. Nothing that it refers to is opened.

    :param limits: also tell what requests should keep to, as ``ImageInfo.limits``.
    :raises DiskmillError: it cannot be opened.
    """
    name = given_name(name)
    context = context or Context()
    with open_image(name, format, context=context, shallow=True, image_opts=image_opts) as image:
        return describe(image, context, shown_name(name, image_opts, context), limits=limits)


def info_chain(
    name: Name,
    *,
    format: str | None = None,
    limits: bool = False,
    image_opts: bool = False,
    context: Context | None = None,
) -> list[ImageInfo]:
    """What the image *name* is, and every image in its backing chain, in order.

    :param limits: also tell what requests should keep to, as ``ImageInfo.limits``.
    :raises DiskmillError: one of them cannot be opened.
    """
    name = given_name(name)
    context = context or Context()
    found = []
    with open_image(name, format, context=context, image_opts=image_opts) as top:
        image: Image | None = top
        shown = shown_name(name, image_opts, context)
        while image is not None:
            one = describe(image, context, shown, limits=limits)
            found.append(one)
            image, shown = image.backing, _plain(one.full_backing_filename)
    return found


def _plain(name: str | None) -> str | None:
    """The path that *name* means, where it says ``file:`` in front of it."""
    return str(parse_name(name)["file"]["filename"]) if name is not None and name.startswith("file:") else name


def describe(image: Image, context: Context, name: str | None = None, *, limits: bool = False) -> ImageInfo:
    """What the opened *image* is; *name* is what it is called in place of its own name."""
    backing = next((reference for reference in image.references if reference.role == "backing"), None)
    shown = name or image.name
    snapshots: list[Snapshot] = []
    if "snapshots" in image.driver.capabilities and not image.cut_short:
        snapshots = calls.snapshots(context.registry, image)
    return ImageInfo(
        filename=shown,
        format=image.driver.name,
        virtual_size=image.size,
        actual_size=image.allocated(),
        cluster_size=image.cluster_size,
        dirty=image.dirty,
        encrypted=image.encrypted,
        backing_filename=backing.name if backing else None,
        full_backing_filename=full_name(shown, backing.name, context.registry) if backing else None,
        backing_filename_format=backing.format if backing else None,
        snapshots=snapshots,
        limits=_limits(image) if limits else None,
        specific=image.details(),
        children=list(_children(image)),
    )


def _children(node: Node) -> Iterator[ChildInfo]:
    """What *node* stands on, its backing image left out: that is an image of its own."""
    roles = [one.role for one in node.references if one.role != "backing"] if isinstance(node, Image) else []
    others = 0
    for one in node.children():
        if isinstance(node, Image) and one is node.backing:
            continue
        if isinstance(node, Image) and one is not node.file:
            role = roles[min(others, len(roles) - 1)] if roles else "extent"
            name = f"extents.{others}" if role == "extent" else role
            place = place_under(one)
            shown = one.name if place is None else place.tidy()  # what stands beside an image is named ./so
            others += 1
        else:
            name, shown = "file", one.name
        yield ChildInfo(name, shown, one.driver.name, one.size, one.allocated(), list(_children(one)))


def _limits(image: Image) -> Limits:
    """Requests of any alignment are taken; whole units are what zeroing and discarding does best."""
    unit = None if image.cluster_size is None else image.unit
    return Limits(
        request_alignment=SECTOR if image.encrypted else 1,
        max_iov=os.sysconf("SC_IOV_MAX"),
        min_mem_alignment=1,
        opt_mem_alignment=os.sysconf("SC_PAGE_SIZE"),
        discard_alignment=unit,
        write_zeroes_alignment=unit,
    )


def shown_name(name: str, image_opts: bool, context: Context) -> str | None:
    """What an image that is named by options is called: a ``json:`` name, unless a plain path says as much."""
    if not image_opts and not name.startswith("json:"):
        return None
    spec = without_runtime(parse_options(name) if image_opts else parse_name(name), context.registry)
    if spec.get("backing", "") is None:  # says nothing about the image itself
        del spec["backing"]
    file = spec.get("file", spec)
    if set(spec) <= {"driver", "file", "filename"} and set(file) <= {"driver", "filename"}:
        return None
    import json

    from ..qapi import ordered

    if isinstance(file, dict) and "filename" in file:
        spec = {**spec, "file": {"driver": "file", **file}}
    return f"json:{json.dumps(ordered(spec))}"


def full_name(image: str, reference: str, registry: Registry) -> str | None:
    """*reference*, a name that stands in the image called *image*, as it is from here; None where nobody can tell."""
    try:
        target = parse_name(reference)
        if reference.startswith(("json:", "file:")):
            return reference
        own = parse_name(image).get("file", {})
        file = relative_to(target, place_of(own, registry)).get("file", {}) if "filename" in own else None
    except DiskmillError:
        return None
    if file is None:
        return None
    return str(file["filename"]) if "place" in file else reference
