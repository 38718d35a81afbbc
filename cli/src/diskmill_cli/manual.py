"""Help texts and the manual pages, made from the commands' declarations.

typer does the work: for each command a function is made up whose parameters are the declared options.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from . import __version__
from .arguments import EVERYWHERE, HELP, Command, Option
from .catalogue import brought, load, standard_options, summary
from .commands import NAMES
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
    if command.whole is not None:
        return command.whole(["--help"], session)
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
        # What packages bring is not imported to be listed.
        command = load(one) if one in NAMES or name is not None else Command(one, summary(one), "", (), _unasked)
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


def _unasked(*_: object) -> int:
    raise AssertionError("it is only listed")


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


def _drivers() -> list[str]:
    """The names of all drivers that can be part of an image: qemu-img lists formats, protocols and filters as one."""
    from diskmill.contract.drivers import FilterDriver, ProtocolDriver
    from diskmill.opening.registry import default_registry

    kinds = (ProtocolDriver.group, FilterDriver.group)
    return sorted({*formats(), *(driver.name for kind in kinds for driver in default_registry().all(kind))})


_WORDS = {"OPTS": "options", "OBJ": "objectdef", "MODE": "cache", "FORM": "ofmt", "SNAP": "snapshot_param"}
_OPERANDS = {"NAME…": "filename [filename2 [...]]", "NAME": "filename", "OUTPUT": "output_filename", "N": "blocks"}


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
        operands = re.sub(r"[A-Z]+…?", lambda word: _OPERANDS.get(word[0], word[0].lower()), command.operands)
        yield f"  {name} {options} {operands}".rstrip()
    yield ""
    yield "Command options:"
    seen = set()
    for name in NAMES:
        for option in load(name).options:
            if not option.ours and (option.flags, option.help) not in seen:
                seen.add((option.flags, option.help))
                yield f"  {', '.join(repr(flag) for flag in option.flags)} ({name}): {option.help}"
    yield ""
    yield f"Supported formats: {' '.join(_drivers())}"


def _synopsis(option: Option) -> str:
    flag = option.flags[0]
    if not option.metavar or option.loose:
        return f"[{flag}]"
    value = _WORDS.get(option.metavar, option.metavar.lower())
    return f"[{flag}{'=' if flag.startswith('--') and option.key != 'object' else ' '}{value}]"


_DATE = "2026-11-26"
"""When the commands last changed; manual pages have a date."""


def manual_pages() -> dict[str, str]:
    """The manual pages by file name, in roff: ``diskmill.1``, and ``diskmill-NAME.1`` for each command."""
    pages = {"diskmill.1": _overview()}
    for name in NAMES:
        pages[f"diskmill-{name}.1"] = _page_of(load(name))
    return {name: "\n".join(lines) + "\n" for name, lines in pages.items()}


def dropin_page() -> str:
    """The manual page ``qemu-img(1)`` of the drop-in."""
    return "\n".join(_classic_page()) + "\n"


def _head(name: str, title: str) -> Iterator[str]:
    yield f'.TH {name.upper()} 1 {_DATE} "diskmill {__version__}" "User commands"'
    yield ".SH NAME"
    yield rf"{_roff(name)} \- {_roff(title[0].lower() + title[1:].rstrip('.'))}"
    yield ".SH SYNOPSIS"


def _overview() -> Iterator[str]:
    yield from _head("diskmill", _TITLE)
    yield r".B diskmill"
    yield r"[\fISTANDARD OPTIONS\fR] \fICOMMAND\fR [\fIOPTIONS\fR] \fINAME\fR\&.\&.\&."
    yield ".SH STANDARD OPTIONS"
    for option in (*EVERYWHERE, *standard_options()):
        yield from _entry(option)
    yield ".SH COMMANDS"
    yield _roff("Each has a page of its own.")
    for name in NAMES:
        yield ".TP"
        yield rf"\fBdiskmill\-{name}\fR(1)"
        yield _roff(load(name).help)
    yield ".SH ENVIRONMENT"
    for name, text in (
        (
            "DISKMILL_TRUST",
            "What references inside images may open, as --trust; several values are separated by colons. "
            "Empty: nothing.",
        ),
        ("DISKMILL_LIMITS", "What opening images may cost, as --limits."),
        ("DISKMILL_TRACEBACK", "When set, an internal error shows where it happened."),
        ("NO_COLOR", "When set, there are no colours at a terminal, unless --color says otherwise."),
    ):
        yield ".TP"
        yield name
        yield _roff(text)
    yield ".SH SIGNALS"
    yield _roff("SIGUSR1 (and SIGINFO) makes a command that moves data report its progress on stderr.")
    yield ".SH EXIT STATUS"
    yield _roff(
        "0 after success, 1 after an error, 130 when interrupted; check and compare have more, see their pages."
    )


def _page_of(command: Command) -> Iterator[str]:
    yield from _head(f"diskmill-{command.name}", command.help)
    yield f".B diskmill {command.name}"
    yield f"[OPTIONS] {_roff(command.operands)}".rstrip()
    if command.about:
        yield ".SH DESCRIPTION"
        yield _roff(command.about.replace("\n\n", " "))
    for panel in dict.fromkeys(option.panel for option in command.options):
        yield f".SH {panel.upper()}"
        for option in command.options:
            if option.panel == panel:
                yield from _entry(option)
    yield ".SH EVERYWHERE"
    for option in EVERYWHERE:
        yield from _entry(option)
    yield ".SH EXAMPLES"
    for number, example in enumerate(command.examples):
        if number:
            yield ".PP"
        yield f"{_roff(example.does[0].upper() + example.does[1:])}:"
        yield ".PP"
        yield ".RS 4"
        yield ".nf"
        yield _roff(example.line)
        yield ".fi"
        yield ".RE"
    yield ".SH SEE ALSO"
    yield r"\fBdiskmill\fR(1)"


def _classic_page() -> Iterator[str]:
    yield from _head("qemu-img", "the diskmill command for programs that call qemu-img")
    yield ".B qemu\\-img"
    yield r"[\fISTANDARD OPTIONS\fR] \fICOMMAND\fR [\fIOPTIONS\fR] \fINAME\fR\&.\&.\&."
    yield ".SH DESCRIPTION"
    yield _roff(
        "The commands, options, output and exit codes of qemu-img, on diskmill's drivers. References inside images are "
        "opened, and outputs are written in place, as qemu-img does; diskmill itself is more careful."
    )
    yield ".SH STANDARD OPTIONS"
    for option in (HELP, *standard_options(plain=True)):
        yield from _entry(option)
    yield ".SH COMMANDS"
    for name in NAMES:
        command = load(name)
        yield f".SS {name} [OPTIONS] {_roff(command.operands)}".rstrip()
        yield _roff(command.help)
        for option in command.options:
            if not option.ours:
                yield from _entry(option)
    yield ".SH SEE ALSO"
    yield r"\fBdiskmill\fR(1)"


def _entry(option: Option) -> Iterator[str]:
    yield ".TP"
    value = f" \\fI{_roff(option.metavar)}\\fR" if option.metavar and not option.loose else ""
    value = f"[=\\fI{_roff(option.metavar)}\\fR]" if option.loose else value
    yield ", ".join(f"\\fB{_roff(flag)}\\fR" for flag in option.flags) + value
    yield _roff(option.description)


def _roff(text: str) -> str:
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


def main(folders: Sequence[str]) -> None:
    """Write the pages into the folders of the command's and of the drop-in's package."""
    own, dropin = (Path(folder) / "share" / "man" / "man1" for folder in folders)
    for folder, pages in ((own, manual_pages()), (dropin, {"qemu-img.1": dropin_page()})):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in pages.items():
            (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":  # python -m diskmill_cli.manual CLI DROPIN
    main(sys.argv[1:])
