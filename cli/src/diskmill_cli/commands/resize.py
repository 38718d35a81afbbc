"""``diskmill resize``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import common
from ..arguments import Arguments, Command, Example, Option

if TYPE_CHECKING:
    from ..session import Session


def run(arguments: Arguments, session: Session) -> int:
    from diskmill.commands.resize import PREALLOCATION, resize
    from diskmill.errors import UsageError, did_you_mean
    from diskmill.sizes import parse_size

    if len(arguments.operands) != 2:
        raise UsageError("expecting an image file name and a size")
    name, text = arguments.operands
    relative = text.startswith(("+", "-"))
    size = parse_size(text[1:] if relative else text, what="image size")
    mode = arguments.one("preallocation") or "off"
    if mode not in PREALLOCATION:
        hint = did_you_mean(mode, PREALLOCATION)
        raise UsageError(f"invalid preallocation '{mode}': choose from {', '.join(PREALLOCATION)}", hint=hint)
    new = resize(
        name,
        -size if text.startswith("-") else size,
        relative=relative,
        shrink=arguments.has("shrink"),
        preallocation=mode,
        format=arguments.one("format"),
        image_opts=arguments.has("image_opts"),
        context=common.context_of(arguments, session),
    )
    if arguments.one("output") == "json":
        session.json({"filename": name, "virtual-size": new})
    else:
        session.print("Image resized.")
    return 0


COMMAND = Command(
    "resize",
    "Make the guest disk larger or smaller.",
    "NAME [+|-]SIZE",
    (
        common.FORMAT,
        common.IMAGE_OPTS,
        Option(
            "preallocation",
            ("--preallocation",),
            "How space for what is new is claimed: off, metadata, falloc, full.",
            "MODE",
            panel="The image",
            default="off",
        ),
        Option("shrink", ("--shrink",), "Allow the disk to lose what lies beyond its new end.", panel="The image"),
        common.OUTPUT,
        common.QUIET,
        common.OBJECT,
        common.TRUST,
        common.LIMITS,
    ),
    run,
    about="File systems and partitions inside are not changed: make them smaller before, or larger afterwards.",
    examples=(
        Example("diskmill resize disk.qcow2 +10G", "10 GiB more"),
        Example("diskmill resize --shrink disk.qcow2 5G", "5 GiB in all"),
    ),
)
