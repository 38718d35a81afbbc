"""``diskmill bitmap``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.records import replace

from .. import common
from ..arguments import Arguments, Command, Example, Option

if TYPE_CHECKING:
    from ..session import Session

_DO = "What to do"


def run(arguments: Arguments, session: Session) -> int:
    from diskmill.commands.bitmap import ACTIONS, bitmap
    from diskmill.errors import UsageError

    if len(arguments.operands) not in (1, 2) or (len(arguments.operands) == 1 and not arguments.has("remove_all")):
        raise UsageError("expecting an image file name and a bitmap name")
    if arguments.has("source_format") and not arguments.has("source"):
        raise UsageError("-F only makes sense with -b")
    name, which = arguments.operands[0], arguments.operands[1] if arguments.operands[1:] else None
    actions = [
        (action, value) for key, value in arguments.given for action in ACTIONS if action.replace("-", "_") == key
    ]
    bitmap(
        name,
        which,
        actions,
        granularity=arguments.size("granularity", "granularity") if arguments.has("granularity") else None,
        source=arguments.one("source"),
        source_format=arguments.one("source_format"),
        format=arguments.one("format"),
        image_opts=arguments.has("image_opts"),
        context=common.context_of(arguments, session),
    )
    if arguments.one("output") == "json":
        named = {} if which is None else {"bitmap": which}
        session.json({"filename": name, **named, "actions": [action for action, _ in actions]})
    return 0


COMMAND = Command(
    "bitmap",
    "Manage the persistent bitmaps of an image.",
    "NAME BITMAP",
    (
        common.FORMAT,
        common.IMAGE_OPTS,
        Option("add", ("--add",), "Add the bitmap.", panel=_DO),
        Option("remove", ("--remove",), "Remove it.", panel=_DO),
        Option("remove_all", ("--remove-all",), "Remove all bitmaps; BITMAP is not needed.", panel=_DO),
        Option("clear", ("--clear",), "Mark everything as clean.", panel=_DO),
        Option("enable", ("--enable",), "Let it record writes.", panel=_DO),
        Option("disable", ("--disable",), "Let it record no writes.", panel=_DO),
        Option("merge", ("--merge",), "Mark what this bitmap marks, too.", "SOURCE", panel=_DO),
        Option("granularity", ("-g", "--granularity"), "Bytes for each bit of an added bitmap.", "SIZE", panel=_DO),
        Option("source", ("-b", "--source-file"), "The image that --merge takes from.", "NAME", panel=_DO),
        Option("source_format", ("-F", "--source-format"), "Its format.", "FMT", panel=_DO),
        replace(common.OUTPUT, ours=True),
        common.OBJECT,
        common.TRUST,
        common.LIMITS,
    ),
    run,
    about="Several actions are done in the order in which they are given.",
    examples=(
        Example("diskmill bitmap --add -g 64k disk.qcow2 backup", "start to record writes"),
        Example("diskmill bitmap --merge monday --clear disk.qcow2 week", "actions in order"),
    ),
)
