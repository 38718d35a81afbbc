"""``diskmill drivers``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .. import common
from ..arguments import Arguments, Command, Example

if TYPE_CHECKING:
    from diskmill.commands.drivers import DriverInfo

    from ..session import Session


def run(arguments: Arguments, session: Session) -> int:
    from diskmill.commands.drivers import list_drivers
    from diskmill.errors import UsageError

    if len(arguments.operands) > 1:
        raise UsageError(f"unexpected argument: '{arguments.operands[1]}'")
    name = arguments.operands[0] if arguments.operands else None
    found = list_drivers(name=name)
    if arguments.one("output") == "json":
        from dataclasses import asdict

        session.json([asdict(one) for one in found])
        return 0
    if session.fancy(arguments):
        from ..terminal import show_driver, show_drivers

        if name is None:
            show_drivers(found, session.console())
        else:
            show_driver(found, session.console())
        return 0
    for one in found:
        session.print(*(_line(one) if name is None else lines(one)))
    return 0


def _line(one: DriverInfo) -> Iterator[str]:
    what = f"broken: {one.broken}" if one.broken else one.title or "no title"
    yield f"{one.kind} {one.name}: {what}"


def lines(one: DriverInfo) -> Iterator[str]:
    """All about one driver."""
    yield from _line(one)
    if one.package:
        yield f"    package: {one.package} {one.version}"
    if one.origin:
        yield f"    from: {one.origin}"
    if one.prefixes:
        yield f"    names: {', '.join(f'{prefix}:…' for prefix in one.prefixes)}"
    if one.capabilities:
        yield f"    can: {', '.join(one.capabilities)}"
    for option in one.options:
        more = common.choices_and_default(option)
        yield f"    {option.name}=<{option.type}> - {option.help}{more} [{', '.join(option.when)}]"


COMMAND = Command(
    "drivers",
    "List the installed drivers, or show one in full.",
    "[NAME]",
    (common.OUTPUT,),
    run,
    about="Each format, protocol, filter and cipher, and what else packages bring: plugins that are no drivers, and "
    "commands. What is broken is named with the cause. With a name: its package, where it comes from, what it can do "
    "and all of its options.",
    examples=(
        Example("diskmill drivers", "what is installed"),
        Example("diskmill drivers qcow2", "all about one, with its options"),
    ),
)
