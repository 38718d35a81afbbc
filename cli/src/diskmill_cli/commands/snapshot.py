"""``diskmill snapshot``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import common
from ..arguments import Arguments, Command, Example, Option

if TYPE_CHECKING:
    from diskmill.contract.calls import SnapshotAction

    from ..session import Session

_DO = "What to do"
_ACTIONS: tuple[SnapshotAction, ...] = ("list", "apply", "create", "delete")


def run(arguments: Arguments, session: Session) -> int:
    from diskmill.commands.snapshot import snapshot
    from diskmill.errors import UsageError

    asked = [key for key in _ACTIONS if arguments.has(key)]
    if len(asked) > 1 or any(len(arguments.all(key)) > 1 for key in asked):
        raise UsageError("cannot mix -l, -a, -c and -d, or give one twice")
    action: SnapshotAction = asked[0] if asked else "list"
    found = snapshot(
        arguments.operand(),
        action,
        (arguments.one(action) or "") if action != "list" else "",
        format=arguments.one("format"),
        image_opts=arguments.has("image_opts"),
        context=common.context_of(arguments, session),
    )
    if arguments.one("output") == "json":
        from diskmill.qapi import snapshot as as_object

        session.json([as_object(one) for one in found])
    elif action == "list" and session.fancy(arguments):
        from ..terminal import snapshot_table

        session.console().print(snapshot_table(found) if found else "The image has no snapshots.")
    elif action == "list" and found:
        from ..output import snapshot_lines

        session.print("Snapshot list:", *snapshot_lines(found, plain=session.plain))
    return 0


COMMAND = Command(
    "snapshot",
    "List, take, go back to or delete snapshots inside an image.",
    "NAME",
    (
        common.FORMAT,
        common.IMAGE_OPTS,
        Option("list", ("-l", "--list"), "List them; this is also what is done without an option.", panel=_DO),
        Option("apply", ("-a", "--apply"), "Make the disk what it was then.", "SNAP", panel=_DO),
        Option("create", ("-c", "--create"), "Take one.", "SNAP", panel=_DO),
        Option("delete", ("-d", "--delete"), "Delete one.", "SNAP", panel=_DO),
        common.OUTPUT,
        common.QUIET,
        *common.ACCESS,
    ),
    run,
    about="SNAP is a snapshot's id or name.",
    examples=(
        Example("diskmill snapshot -c before-upgrade disk.qcow2", "take one"),
        Example("diskmill snapshot -l disk.qcow2", "list them"),
    ),
)
