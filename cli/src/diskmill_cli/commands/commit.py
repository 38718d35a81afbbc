"""``diskmill commit``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import common
from ..arguments import Arguments, Command, Example, Option
from ..progress import shown

if TYPE_CHECKING:
    from ..session import Session


def run(arguments: Arguments, session: Session) -> int:
    from diskmill.commands.commit import commit

    name = arguments.operand()
    with shown(arguments, session, "commit") as report:
        commit(
            name,
            base=arguments.one("base"),
            drop=not arguments.has("keep"),
            rate=arguments.size("rate", "rate limit"),
            format=arguments.one("format"),
            image_opts=arguments.has("image_opts"),
            context=common.context_of(arguments, session),
            progress=report,
        )
    if arguments.one("output") == "json":
        session.json({"filename": name, "emptied": not arguments.has("keep") and arguments.one("base") is None})
    else:
        session.print("Image committed.")
    return 0


COMMAND = Command(
    "commit",
    "Write an overlay's data into its backing image.",
    "NAME",
    (
        common.FORMAT,
        common.IMAGE_OPTS,
        Option("base", ("-b", "--base"), "An image further down the chain to write into.", "NAME", panel="The image"),
        Option("keep", ("-d", "--drop"), "Do not empty the overlay afterwards: it will be dropped.", panel="The image"),
        Option("rate", ("-r", "--rate-limit"), "The most bytes a second.", "RATE", panel="The copying"),
        common.CACHE,
        common.PROGRESS,
        common.OUTPUT,
        common.QUIET,
        common.OBJECT,
        common.TRUST,
        common.LIMITS,
    ),
    run,
    about="Afterwards the overlay is empty, unless -d or -b is given. A smaller backing image is made larger.",
    examples=(Example("diskmill commit overlay.qcow2", "into the image that overlay.qcow2 stands on"),),
)
