"""``diskmill info``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from diskmill.records import replace

from .. import common
from ..arguments import Arguments, Command, Example, Option

if TYPE_CHECKING:
    from diskmill.contract.results import ImageInfo

    from ..session import Session


def run(arguments: Arguments, session: Session) -> int:
    from diskmill.commands.info import info, info_chain
    from diskmill.errors import DiskmillError, UsageError

    if not arguments.operands:
        raise UsageError("expecting one image file name, or several")
    context = common.context_of(arguments, session)
    format, image_opts = arguments.one("format"), arguments.has("image_opts")
    chain = arguments.has("backing_chain")
    limits = "" in arguments.all("limits")
    found: list[ImageInfo] = []
    status = 0
    for name in arguments.operands:
        try:
            if chain:
                found += info_chain(name, format=format, limits=limits, image_opts=image_opts, context=context)
            else:
                found.append(info(name, format=format, limits=limits, image_opts=image_opts, context=context))
        except DiskmillError as error:
            if len(arguments.operands) == 1:
                raise
            session.fail(error)
            status = error.exit_code
    if arguments.one("output") == "json":
        from diskmill.qapi import image_info

        objects = [image_info(one) for one in found]
        session.json(objects if chain or len(arguments.operands) > 1 else objects[0])
    elif session.fancy(arguments):
        from ..terminal import show_info

        show_info(found, session.console())
    else:
        for number, one in enumerate(found):
            session.print(*([""] if number else []), *lines(one, plain=session.plain))
    return status


def lines(one: ImageInfo, *, plain: bool = False) -> Iterator[str]:
    """What qemu-img prints about an image; *plain*: see :func:`~diskmill_cli.output.snapshot_lines`."""
    from diskmill.sizes import format_size

    from ..output import snapshot_lines, tree

    yield f"image: {one.filename}"
    yield f"file format: {one.format}"
    yield f"virtual size: {format_size(one.virtual_size)} ({one.virtual_size} bytes)"
    yield f"disk size: {'unavailable' if one.actual_size is None else format_size(one.actual_size)}"
    if one.encrypted:
        yield "encrypted: yes"
    if one.cluster_size is not None:
        yield f"cluster_size: {one.cluster_size}"
    if one.dirty:
        yield "cleanly shut down: no"
    if one.backing_filename is not None:
        full = one.full_backing_filename
        if full is None:
            where = " (cannot determine actual path)"
        else:
            where = "" if full == one.backing_filename else f" (actual path: {full})"
        yield f"backing file: {one.backing_filename}{where}"
        if one.backing_filename_format is not None:
            yield f"backing file format: {one.backing_filename_format}"
    if one.limits is not None:
        from diskmill.qapi import limits

        yield "Block limits:"
        yield from tree(limits(one.limits))
    if one.snapshots:
        yield "Snapshot list:"
        yield from snapshot_lines(one.snapshots, plain=plain)
    if one.specific is not None:
        yield "Format specific information:"
        yield from tree(one.specific)


COMMAND = Command(
    "info",
    "Tell what an image is.",
    "NAME…",
    (
        common.FORMAT,
        common.IMAGE_OPTS,
        Option(
            "backing_chain", ("--backing-chain",), "Tell about every image of the backing chain.", panel="The image"
        ),
        replace(
            common.LIMITS,
            help="Also tell what requests should keep to; =memory=1G,…: what opening images may cost.",
            loose=True,
        ),
        replace(common.CACHE, help="The cache mode for what is read."),
        common.OUTPUT,
        *common.ACCESS[:-1],
    ),
    run,
    about="Nothing but the named image is opened, whatever it refers to, unless --backing-chain asks for it. With "
    "several names, --output=json gives an array.",
    examples=(
        Example("diskmill info disk.qcow2", "format, sizes, backing image, snapshots and what else the format tells"),
        Example("diskmill info --backing-chain --output=json disk.qcow2", "the whole chain, for programs"),
    ),
)
