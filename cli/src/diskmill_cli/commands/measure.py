"""``diskmill measure``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.records import replace

from .. import common
from ..arguments import Arguments, Command, Example, Option
from ..progress import shown

if TYPE_CHECKING:
    from ..session import Session


def run(arguments: Arguments, session: Session) -> int:
    from diskmill.commands import create
    from diskmill.commands.measure import measure
    from diskmill.contract.options import HelpAsked
    from diskmill.errors import UsageError

    format = common.format_of(arguments, "output_format")
    context = common.context_of(arguments, session)
    try:
        options = common.driver_options(arguments)
    except HelpAsked:
        found = create.options_for(format, context=context)
        return common.show_options(found, f"Supported {format} options", session)
    if len(arguments.operands) > 1:
        raise UsageError("expecting one image file name, or --size")
    common.refuse_overridden(arguments, lambda: create.options_for(format, context=context))
    with shown(arguments, session, "measure") as report:
        result = measure(
            arguments.operands[0] if arguments.operands else None,
            size=arguments.size("size", "image size") if arguments.has("size") else None,
            output_format=format,
            options=options,
            format=arguments.one("format"),
            snapshot=arguments.one("snapshot"),
            image_opts=arguments.has("image_opts"),
            context=context,
            progress=report,
        )
    if arguments.one("output") == "json":
        from diskmill.qapi import measurement

        session.json(measurement(result))
    elif session.fancy(arguments):
        from ..terminal import show_measurement

        show_measurement(result, session.console())
    else:
        session.print(f"required size: {result.required}", f"fully allocated size: {result.fully_allocated}")
        if result.bitmaps is not None:
            session.print(f"bitmaps size: {result.bitmaps}")
    return 0


COMMAND = Command(
    "measure",
    "Tell how large an image would be.",
    "[NAME]",
    (
        replace(common.FORMAT, flags=("-f", "--format", "--source-format")),
        replace(common.IMAGE_OPTS, flags=("--image-opts", "--source-image-opts")),
        common.SNAPSHOT,
        Option("size", ("-s", "--size"), "Measure for an empty disk of this size.", "SIZE", panel="The image"),
        common.TARGET_FORMAT,
        common.OPTIONS,
        replace(common.PROGRESS, ours=True),
        common.OUTPUT,
        *common.ACCESS,
    ),
    run,
    about="The required size is what the image takes now; the fully allocated size is what it can grow to.",
    examples=(
        Example("diskmill measure -O qcow2 disk.img", "the size of the file that convert would make"),
        Example("diskmill measure -O qcow2 --size 20G", "of a new image"),
    ),
)
