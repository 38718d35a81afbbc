"""The command line as GNU getopt reads it, from options that are declared as data.

qemu-img's callers rely on getopt's rules: options anywhere among the operands, values attached (``-Oqcow2``,
``--output=json``) or not, switches in one word (``-pq``), long options cut short as long as they are unambiguous, the
last value given counting, ``--`` ending the options. Help, completion and the manual page come from the same
declarations (:mod:`diskmill_cli.manual`), with typer; parsing does not, because importing typer takes longer than
``info`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from diskmill.errors import UsageError, did_you_mean
from diskmill.records import record

if TYPE_CHECKING:
    from .session import Session


@record(frozen=True)
class Option:
    """One option of a command.

    :param key: what the command's code knows it by.
    :param flags: every spelling, dashes included.
    :param metavar: what its value is called in help; empty: a switch.
    :param choices: the only values it takes.
    :param loose: the value may be left out, and is only taken when attached with ``=``.
    :param default: what holds where it is not given, in words.
    :param ours: the drop-in does not take it, as qemu-img does not.
    :param panel: the heading under which help lists it.
    """

    key: str
    flags: tuple[str, ...]
    help: str
    metavar: str = ""
    choices: tuple[str, ...] = ()
    loose: bool = False
    panel: str = "Options"
    default: str = ""
    ours: bool = False

    @property
    def description(self) -> str:
        """What help says of it: with its choices, and what holds where it is not given."""
        words = [self.help]
        if self.choices and not all(choice in self.help for choice in self.choices):
            words.append(f"({', '.join(self.choices)})")
        if self.default:
            words.append(f"[default: {self.default}]")
        return " ".join(words)


@record(frozen=True)
class Example:
    """A command line for the help text, and what it is good for."""

    line: str
    does: str


@record(frozen=True)
class Command:
    """One command, as help tells it and as it is run.

    :param operands: the words after the options, as in a synopsis.
    :param run: does the work and gives the exit status.
    :param about: what help says beyond one line.
    :param whole: runs with all words of the command as they stand, in place of *run*; None: they are parsed here.
    """

    name: str
    help: str
    operands: str
    options: tuple[Option, ...]
    run: Callable[[Arguments, Session], int]
    about: str = ""
    examples: tuple[Example, ...] = ()
    whole: Callable[[Sequence[str], Session], int] | None = None


class HelpWanted(Exception):
    """``-h`` or ``--help`` stood among the options."""


class Arguments:
    """What was given for a command."""

    def __init__(self, given: list[tuple[str, str]], operands: list[str], mark: int | None = None) -> None:
        self.given = given
        """The options' keys and values, in the order of the command line."""
        self.operands = operands
        self.mark = len(operands) if mark is None else mark
        """How many of the operands stand before ``--``."""
        self._values: dict[str, list[str]] = {}
        for key, value in given:
            self._values.setdefault(key, []).append(value)

    def has(self, key: str) -> bool:
        """Whether the option was given."""
        return key in self._values

    def one(self, key: str) -> str | None:
        """The option's value; the last one where there are several."""
        values = self._values.get(key)
        return values[-1] if values else None

    def all(self, key: str) -> list[str]:
        """The option's values in order."""
        return self._values.get(key, [])

    def size(self, key: str, what: str, default: int = 0) -> int:
        """The option's value in bytes.

        :raises UsageError: it is not a size.
        """
        text = self.one(key)
        if text is None:
            return default
        from diskmill.sizes import parse_size

        return parse_size(text, what=what)

    def number(self, key: str, what: str, default: int, low: int, high: int) -> int:
        """The option's value, a whole number from *low* to *high*.

        :raises UsageError: it is not.
        """
        text = self.one(key)
        if text is None:
            return default
        try:
            value = int(text, 0)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise UsageError(f"invalid {what} '{text}': a number from {low} to {high} is needed")
        return value

    def operand(self, what: str = "image file name") -> str:
        """The only operand.

        :raises UsageError: there is none, or more than one.
        """
        if len(self.operands) != 1:
            raise UsageError(f"expecting one {what}")
        return self.operands[0]


HELP = Option("help", ("-h", "--help"), "Show this help and exit.")
COLOR = Option(
    "color",
    ("--color",),
    "Colours and tables: at a terminal, always or never.",
    "WHEN",
    choices=("auto", "always", "never"),
    default="auto",
)
EVERYWHERE = (COLOR, HELP)
"""What every command takes, and the program before the command."""


def parse(options: Iterable[Option], words: Sequence[str]) -> Arguments:
    """Sort *words* into the values of *options* and operands.

    :raises UsageError: an option is unknown, ambiguous, lacks its value, or has a value it cannot have.
    :raises HelpWanted: help was asked for.
    """
    declared = (HELP, *options)
    short = {flag[1]: option for option in declared for flag in option.flags if not flag.startswith("--")}
    long = {flag[2:]: option for option in declared for flag in option.flags if flag.startswith("--")}
    given: list[tuple[str, str]] = []
    operands: list[str] = []
    mark: int | None = None
    rest = list(reversed(words))
    while rest:
        word = rest.pop()
        if word == "--":
            mark = len(operands)
            operands += reversed(rest)
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            option = _long(long, name)
            if not option.metavar and equals:
                raise UsageError(f"option '--{name}' takes no value")
            if not equals:
                value = _value(option, f"--{name}", rest)
            _store(given, option, f"--{name}", value)
        elif word.startswith("-") and word != "-" and (not word[1].isdigit() or word[1] in short):
            for at, letter in enumerate(word[1:], 2):
                option = _short(short, letter)
                if option.metavar and not option.loose:
                    _store(given, option, f"-{letter}", word[at:] or _value(option, f"-{letter}", rest))
                    break
                _store(given, option, f"-{letter}", "")
        else:
            operands.append(word)
    return Arguments(given, operands, mark)


def _short(options: dict[str, Option], letter: str) -> Option:
    if letter not in options:
        raise UsageError(f"unrecognized option '-{letter}'")
    return options[letter]


def _long(options: dict[str, Option], name: str) -> Option:
    if name in options:
        return options[name]
    found = {flag: option for flag, option in options.items() if name and flag.startswith(name)}
    if len({option.key for option in found.values()}) == 1:
        return next(iter(found.values()))
    if found:
        raise UsageError(f"option '--{name}' is ambiguous: --{', --'.join(sorted(found))}")
    hint = did_you_mean(f"--{name}", [f"--{flag}" for flag in options])
    raise UsageError(f"unrecognized option '--{name}'", hint=hint)


def _value(option: Option, flag: str, rest: list[str]) -> str:
    if not option.metavar or option.loose:
        return ""
    if not rest:
        raise UsageError(f"missing argument for option '{flag}'")
    return rest.pop()


def _store(given: list[tuple[str, str]], option: Option, flag: str, value: str) -> None:
    if option.key == HELP.key:
        raise HelpWanted
    if option.choices and value not in option.choices and not (option.loose and not value):
        hint = did_you_mean(value, option.choices)
        raise UsageError(f"option '{flag}' takes {_either(option.choices)}, not '{value}'", hint=hint)
    given.append((option.key, value))


def _either(choices: Sequence[str]) -> str:
    words = [f"'{choice}'" for choice in choices]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
