"""``diskmill amend``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import common
from ..arguments import Arguments, Command, Example, Option
from ..progress import shown

if TYPE_CHECKING:
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
            raise UsageError("the options depend on the format: name it with -f") from None
        found = amend.options_for(format, context=context)
        return common.show_options(found, f"Amend options for '{format}'", session)
    name = arguments.operand()
    with shown(arguments, session, "amend") as report:
        amend.amend(
            name,
            options,
            format=arguments.one("format"),
            force=arguments.has("force"),
            image_opts=arguments.has("image_opts"),
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
        common.OPTIONS._replace(flags=("-o", "--options"), panel="The image"),
        Option("force", ("--force",), "Allow what can make data unreachable.", panel="The image"),
        common.CACHE,
        common.PROGRESS,
        common.OUTPUT._replace(ours=True),
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
