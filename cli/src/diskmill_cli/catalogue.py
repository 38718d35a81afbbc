"""Which commands there are, the program's own and those of packages, and their declarations.

No command is imported but one that is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diskmill.opening.discovery import EntryPoint

    from .arguments import Command, Option
    from .session import Session

ASKING = ("help", "version")
"""Words that stand where a command does, and ask about the program."""
GROUP = "diskmill.command"
"""Entry points of commands that packages bring: each names a
:class:`~diskmill_cli.arguments.Command`, or a typer app."""


def known(name: str, session: Session) -> bool:
    """Whether there is a command *name*: one of the program's own, or one that a package brings."""
    from .commands import NAMES, OWN

    if session.plain:
        return name in NAMES and name not in OWN
    return name in NAMES or name in brought()


def brought() -> dict[str, EntryPoint]:
    """The commands that packages bring, by name; none is imported."""
    from diskmill.opening.discovery import installed

    from .commands import NAMES

    return {one.name: one for one in installed() if one.group == GROUP and one.name not in NAMES}


def load(name: str) -> Command:
    """The declaration of the command *name*.

    :raises DriverError: the package that brings it is broken.
    """
    from .commands import NAMES

    if name not in NAMES:
        return _load_brought(name)
    from importlib import import_module

    command: Command = import_module(f"diskmill_cli.commands.{name}").COMMAND
    return command


def _load_brought(name: str) -> Command:
    from diskmill.errors import DriverError

    from .arguments import Command

    try:
        command = brought()[name].load()
    except Exception as error:  # whatever a stranger's module raises
        why = f"{type(error).__name__}: {error}"
        raise DriverError(f"command '{name}' could not be loaded: {why}") from None
    if type(command).__module__.startswith("typer"):
        from .foreign import command_of

        command = command_of(name, command)
    if not isinstance(command, Command) or command.name != name:
        raise DriverError(f"command '{name}' could not be loaded: its entry point is not a command of that name")
    return command


def summary(name: str) -> str:
    """What a package says of itself that brings the command *name*: help needs no more, and imports nothing of it."""
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP, name=name):
        if point.dist is not None:
            told = point.dist.metadata.json.get("summary")
            return told if isinstance(told, str) else ""
    return ""


def standard_options(*, plain: bool = False) -> tuple[Option, ...]:
    """The options that stand before the command, beside those that stand everywhere; *plain*: qemu-img's."""
    from .arguments import Option

    ours = Option(
        "show_completion",
        ("--show-completion",),
        "Print the script that lets a shell complete what is typed.",
        "SHELL",
        choices=("bash", "zsh", "fish"),
    )
    return (
        Option("version", ("-V", "--version"), "Show the version and exit."),
        Option("trace", ("-T", "--trace"), "Trace operations: [enable=]PATTERN,events=FILE,file=FILE.", "SPEC"),
        *(() if plain else (ours,)),
    )
