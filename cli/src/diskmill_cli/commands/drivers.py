"""``diskmill drivers``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import common
from ..arguments import Arguments, Command, Example

if TYPE_CHECKING:
    from ..session import Session


def run(arguments: Arguments, session: Session) -> int:
    from diskmill.commands.drivers import list_drivers
    from diskmill.errors import UsageError

    if arguments.operands:
        raise UsageError(f"unexpected argument: '{arguments.operands[0]}'")
    found = list_drivers()
    if arguments.one("output") == "json":
        from dataclasses import asdict

        session.json([asdict(one) for one in found])
        return 0
    if session.fancy(arguments):
        from ..terminal import show_drivers

        show_drivers(found, session.console())
        return 0
    for one in found:
        session.print(f"{one.kind} {one.name}: {one.title or 'no title'}")
        if one.broken:
            session.print(f"    broken: {one.broken}")
        if one.capabilities:
            session.print(f"    can: {', '.join(one.capabilities)}")
        for option in one.options:
            choices = f" ({', '.join(option.choices)})" if option.choices else ""
            session.print(f"    {option.name}=<{option.type}> - {option.help}{choices} [{', '.join(option.when)}]")
    return 0


COMMAND = Command(
    "drivers",
    "List the installed drivers.",
    "",
    (common.OUTPUT,),
    run,
    about="Each format, protocol and cipher with what it can do and its options; a driver that is broken is named with "
    "the cause.",
    examples=(Example("diskmill drivers", "what is installed"),),
)
