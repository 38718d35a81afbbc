"""``diskmill amend``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.records import replace

from .. import common
from ..arguments import Arguments, Command, Example, Option
from ..progress import shown

if TYPE_CHECKING:
    from diskmill.contract.options import Option as DriverOption

    from ..session import Session


def run(arguments: Arguments, session: Session) -> int:
    from diskmill.commands import amend
    from diskmill.contract.options import HelpAsked
    from diskmill.errors import UsageError

    if not arguments.has("options"):
        raise UsageError("must specify options (-o)")
    context = common.context_of(arguments, session)
    try:
        options = common.driver_options(arguments)
    except HelpAsked:
        format = arguments.one("format")
        if format is None:
            if not arguments.operands:
                raise UsageError("the options depend on the format: name it with -f, or an image") from None
            format = amend.format_of(arguments.operand(), image_opts=arguments.has("image_opts"), context=context)
        found = amend.options_for(format, context=context)
        return common.show_options(found, f"Amend options for '{format}'", session)
    name = arguments.operand()
    format, image_opts = arguments.one("format"), arguments.has("image_opts")

    def declared() -> list[DriverOption]:
        return amend.options_for(
            format or amend.format_of(name, image_opts=image_opts, context=context), context=context
        )

    common.refuse_overridden(arguments, declared)
    with shown(arguments, session, "amend") as report:
        amend.amend(
            name,
            options,
            format=format,
            force=arguments.has("force"),
            image_opts=image_opts,
            context=context,
            progress=report,
        )
    if arguments.one("output") == "json":
        session.json({"filename": name, "options": options})
    return 0


COMMAND = Command(
    "amend",
    "Change options of an image in place.",
    "NAME",
    (
        common.FORMAT,
        common.IMAGE_OPTS,
        replace(common.OPTIONS, flags=("-o", "--options"), panel="The image"),
        Option("force", ("--force",), "Allow what can make data unreachable.", panel="The image"),
        common.CACHE,
        common.PROGRESS,
        replace(common.OUTPUT, ours=True),
        common.QUIET,
        common.OBJECT,
        common.TRUST,
        common.LIMITS,
    ),
    run,
    examples=(
        Example("diskmill amend -f qcow2 -o help", "the options that can be changed"),
        Example("diskmill amend -o compat=1.1 disk.qcow2", "a newer version of the format"),
    ),
)
