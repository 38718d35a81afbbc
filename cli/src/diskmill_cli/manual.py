"""Help texts and the manual page, made from the commands' declarations.

typer does the work: for each command a function is made up whose parameters are the declared options.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import typer
from diskmill.errors import DriverError

from . import __version__
from .arguments import EVERYWHERE, HELP, Command, Option
from .commands import NAMES
from .main import brought, load, standard_options
from .session import Session

_TITLE = "Virtual disk images: create, convert, inspect, check and change them."


def show_overview(session: Session) -> int:
    """Print what commands there are."""
    if session.plain:
        print("\n".join(_classic(session)))
        return 0
    return _typer(session)


def show_command(command: Command, session: Session) -> int:
    """Print the help of one command."""
    if session.plain:
        return show_overview(session)
    return _typer(session, command.name)


def _typer(session: Session, name: str | None = None) -> int:
    """Let typer print the help of the command *name*, or of the program."""
    app = typer.Typer(
        help=_TITLE,
        rich_markup_mode="rich" if sys.stdout.isatty() else None,
        pretty_exceptions_enable=False,
        add_completion=False,
        context_settings={"help_option_names": []},  # ours is declared as the others are
    )
    app.callback()(_function((*standard_options(), *EVERYWHERE)))
    for one in (*NAMES, *sorted(brought())) if name is None else (name,):
        try:
            command = load(one)
        except DriverError as error:  # one package that is broken does not take the help from all the others
            session.warn(str(error))
            continue
        app.command(
            one,
            help=_escaped(_text(command)),
            short_help=_escaped(command.help),
            epilog=_escaped(_epilog(command)),
            options_metavar=f"[OPTIONS] {command.operands}".rstrip(),
            context_settings={"help_option_names": []},
        )(_function((*command.options, *EVERYWHERE)))
    shown: Any = typer.main.get_command(app)
    context = shown.make_context(session.program, [], resilient_parsing=True)
    if name is not None:
        shown = shown.commands[name]
        context = shown.make_context(name, [], parent=context, resilient_parsing=True)
    text = shown.get_help(context)  # printed already, where rich does it
    if text:
        print(text)
    return 0


def _escaped(text: str) -> str:
    """*text* for typer, which takes what is in brackets for markup where it prints with rich."""
    if not sys.stdout.isatty():
        return text
    from rich.markup import escape

    return escape(text)


def _text(command: Command) -> str:
    return f"{command.help}\n\n{command.about}" if command.about else command.help


def _epilog(command: Command) -> str:
    """The examples, each with what it does."""
    return "\n\n".join(["Examples:", *(f"$ {one.line}\n\n    {one.does}" for one in command.examples)])


def _function(options: Sequence[Option]) -> Callable[..., None]:
    """A function that typer takes for a command with *options*."""

    def function(**values: object) -> None:
        """Only its signature is used."""

    parameters = [_parameter(option) for option in options]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {one.name: one.annotation for one in parameters}
    return function


def _parameter(option: Option) -> inspect.Parameter:
    switch = not option.metavar or option.loose
    declared = typer.Option(
        False if switch else None,
        *option.flags,
        help=_escaped(option.description),
        metavar=_loose(option) if switch else option.metavar,
        rich_help_panel=option.panel,
        show_default=False,
    )
    return inspect.Parameter(
        option.key, inspect.Parameter.KEYWORD_ONLY, default=declared, annotation=bool if switch else str
    )


def _loose(option: Option) -> str:
    return _escaped(f"[={option.metavar}]") if option.metavar else ""


def formats() -> list[str]:
    """The names of the installed format drivers."""
    from diskmill.contract.drivers import FormatDriver
    from diskmill.opening.registry import default_registry

    return [driver.name for driver in default_registry().all(FormatDriver.group)]


_WORDS = {"OPTS": "options", "OBJ": "objectdef", "MODE": "cache", "FORM": "ofmt", "SNAP": "snapshot_param"}


def _classic(session: Session) -> Iterator[str]:
    """Help in qemu-img's form, which programs search for options and formats."""
    yield f"{session.program} {session.version}"
    yield f"usage: {session.program} [standard options] command [command options]"
    yield "Disk image utility"
    yield ""
    for option in (HELP, *standard_options(plain=True)):
        yield f"    {', '.join(repr(flag) for flag in option.flags):<21} {option.help}"
    yield ""
    yield "Command syntax:"
    for name in NAMES:
        command = load(name)
        options = " ".join(_synopsis(option) for option in command.options if not option.ours)
        yield f"  {name} {options} {command.operands}".rstrip()
    yield ""
    yield "Command options:"
    seen = set()
    for name in NAMES:
        for option in load(name).options:
            if not option.ours and (option.flags, option.help) not in seen:
                seen.add((option.flags, option.help))
                yield f"  {', '.join(repr(flag) for flag in option.flags)} ({name}): {option.help}"
    yield ""
    yield f"Supported formats: {' '.join(formats())}"


def _synopsis(option: Option) -> str:
    flag = option.flags[0]
    if not option.metavar or option.loose:
        return f"[{flag}]"
    value = _WORDS.get(option.metavar, option.metavar.lower())
    return f"[{flag}{'=' if flag.startswith('--') and option.key != 'object' else ' '}{value}]"


_DATE = "2026-11-24"
"""When the commands last changed; manual pages have a date."""


def manual_page() -> str:
    """The manual page ``diskmill(1)``, in roff."""
    return "\n".join(_page()) + "\n"


def _page() -> Iterator[str]:
    yield f'.TH DISKMILL 1 {_DATE} "diskmill {__version__}" "User commands"'
    yield ".SH NAME"
    yield rf"diskmill \- {_roff(_TITLE[0].lower() + _TITLE[1:].rstrip('.'))}"
    yield ".SH SYNOPSIS"
    yield r".B diskmill"
    yield r"[\fISTANDARD OPTIONS\fR] \fICOMMAND\fR [\fIOPTIONS\fR] \fINAME\fR\&.\&.\&."
    yield ".SH STANDARD OPTIONS"
    for option in (*EVERYWHERE, *standard_options()):
        yield from _entry(option)
    yield ".SH COMMANDS"
    for name in NAMES:
        command = load(name)
        yield f".SS {name} [OPTIONS] {_roff(command.operands)}".rstrip()
        yield _roff(_text(command).replace("\n\n", " "))
        for option in command.options:
            yield from _entry(option)
        for example in command.examples:
            yield ".PP"
            yield f"{_roff(example.does[0].upper() + example.does[1:])}:"
            yield ".PP"
            yield ".RS 4"
            yield ".nf"
            yield _roff(example.line)
            yield ".fi"
            yield ".RE"
    yield ".SH ENVIRONMENT"
    yield ".TP"
    yield "DISKMILL_TRUST"
    text = "What references inside images may open, as --trust; several values are separated by colons. Empty: nothing."
    yield _roff(text)
    yield ".TP"
    yield "DISKMILL_LIMITS"
    yield _roff("What opening images may cost, as --limits.")
    yield ".TP"
    yield "DISKMILL_TRACEBACK"
    yield _roff("When set, an internal error shows where it happened.")
    yield ".SH SIGNALS"
    yield _roff("SIGUSR1 (and SIGINFO) makes a command that moves data report its progress on stderr.")


def _entry(option: Option) -> Iterator[str]:
    yield ".TP"
    value = f" \\fI{_roff(option.metavar)}\\fR" if option.metavar and not option.loose else ""
    value = f"[=\\fI{_roff(option.metavar)}\\fR]" if option.loose else value
    yield ", ".join(f"\\fB{_roff(flag)}\\fR" for flag in option.flags) + value
    yield _roff(option.description)


def _roff(text: str) -> str:
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":  # python -m diskmill_cli.manual >diskmill.1
    sys.stdout.write(manual_page())
