"""What could be typed next: asked by the shells, whose scripts are in ``share``.

A script runs the program with ``_DISKMILL_COMPLETE`` set and the words that follow the program's name, the one that is
being typed last (of bash: the line itself, in ``COMP_LINE`` and ``COMP_POINT``). The answer is a candidate a line, for
the whole of that word, with a tab and what it is behind it. The line ``:files`` asks for names of files, after what
follows it there and stays as it is. typer is not imported: all comes from the commands' declarations.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .arguments import EVERYWHERE, Command, Option

if TYPE_CHECKING:
    from diskmill.contract.options import Option as DriverOption
    from diskmill.contract.results import ImageInfo

    from .session import Session

VARIABLE = "_DISKMILL_COMPLETE"
SHELLS = ("bash", "zsh", "fish")
FILES = ":files"


class Candidate(NamedTuple):
    """Something that could stand there, and what it is."""

    word: str
    help: str = ""


def complete(words: Sequence[str], session: Session) -> int:
    """Answer the shell."""
    if os.environ[VARIABLE] == "bash":
        words = _typed(os.environ.get("COMP_LINE", ""), os.environ.get("COMP_POINT", ""))
    from diskmill.errors import DiskmillError, printable

    try:
        for one in candidates(words or [""], session):
            sys.stdout.write("\t".join(printable(part) for part in one if part) + "\n")
    except DiskmillError:  # a package is broken: who is typing wants no message now
        return 1
    return 0


def show_script(shell: str, session: Session) -> int:
    """Print the script that sets completion up in *shell*."""
    from importlib.resources import files

    session.print(*files(__package__).joinpath("share", f"completion.{shell}").read_text().splitlines())
    return 0


def _typed(line: str, point: str) -> list[str]:
    """The words of *line* up to the cursor, without the program's name, quotes taken away."""
    import shlex

    text = os.fsencode(line)[: int(point)].decode(errors="surrogateescape") if point.isdigit() else line
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    try:
        words.extend(lexer)
    except ValueError:  # a quote that is still open
        words.append(lexer.token)
    if text[-1:].isspace():
        words.append("")
    return words[1:]


def candidates(words: Sequence[str], session: Session) -> Iterator[Candidate]:
    """What the last of *words* could become."""
    from .catalogue import ASKING, brought, known, load, standard_options
    from .commands import NAMES

    *before, current = words
    at = 0
    while at < len(before) and before[at].startswith("-"):
        at += 2 if before[at] in ("-T", "--trace", "--color", "--show-completion") else 1
    if at > len(before):
        option = next(one for one in (*standard_options(), *EVERYWHERE) if before[-1] in one.flags)
        yield from _starting(option.choices, current)
        return
    if at == len(before):
        if current.startswith("-"):
            yield from _flags((*standard_options(), *EVERYWHERE), current)
        else:
            for name in (*NAMES, *sorted(brought())):
                if name.startswith(current):
                    yield Candidate(name, load(name).help if name in NAMES else "")
            yield from _starting(ASKING, current)
        return
    name, *rest = before[at:]
    if name == "help":
        yield from _starting((*NAMES, *sorted(brought())), current)
    elif known(name, session):
        yield from _Line(load(name), rest).ending(current)


def _flags(options: Iterable[Option], current: str) -> Iterator[Candidate]:
    for option in options:
        flags = [f"{flag}=" if option.loose and current.startswith(flag) else flag for flag in option.flags]
        flags = [flag for flag in flags if flag.startswith(current)]
        if current == "-" and len(option.flags) > 1:  # the long one says what it is
            flags = [flag for flag in flags if flag.startswith("--")][:1] or flags[:1]
        yield from (Candidate(flag, option.help) for flag in flags)


def _starting(words: Iterable[str], current: str, prefix: str = "") -> Iterator[Candidate]:
    yield from (Candidate(prefix + word) for word in words if word.startswith(current))


class _Line:
    """The words of one command before the one that is being typed."""

    def __init__(self, command: Command, words: Sequence[str]) -> None:
        self.command = command
        self.given: list[tuple[str, str]] = []
        self.operands: list[str] = []
        self.open: Option | None = None
        """The option whose value comes next."""
        self.ended = False
        """Whether ``--`` ended the options."""
        for word in words:
            self._take(word)

    def _take(self, word: str) -> None:
        if self.open is not None:
            self.given.append((self.open.key, word))
            self.open = None
        elif self.ended or not word.startswith("-") or word == "-":
            self.operands.append(word)
        elif word == "--":
            self.ended = True
        else:
            flag, equals, value = self._split(word)
            option = self._option(flag)
            if option is None:
                return
            if not option.metavar or option.loose or equals or value:
                self.given.append((option.key, value))
            else:
                self.open = option

    def _split(self, word: str) -> tuple[str, str, str]:
        """The flag that *word* is or begins with, and the value that is attached to it."""
        if word.startswith("--"):
            return word.partition("=")
        for at, letter in enumerate(word[1:], 2):  # switches in one word, the last with a value
            option = self._option(f"-{letter}")
            if option is not None and option.metavar and not option.loose:
                return f"-{letter}", "", word[at:]
        return word[:2], "", ""

    def _option(self, flag: str) -> Option | None:
        return next((one for one in (*self.command.options, *EVERYWHERE) if flag in one.flags), None)

    def one(self, key: str, default: str = "") -> str:
        return next((value for name, value in reversed(self.given) if name == key), default)

    def ending(self, current: str) -> Iterator[Candidate]:
        """What *current* could become."""
        if self.open is not None:
            yield from self._values(self.open, current, "")
        elif self.ended or not current.startswith("-"):
            yield from self._operands(current)
        else:
            flag, equals, value = self._split(current)
            option = self._option(flag)
            if option is not None and option.metavar and (equals or (len(flag) == 2 and len(current) > 2)):
                yield from self._values(option, value, current[: len(current) - len(value)])
            else:
                yield from _flags((*self.command.options, *EVERYWHERE), current)

    def _operands(self, current: str) -> Iterator[Candidate]:
        name = self.command.name
        if name == "drivers":
            yield from _starting(sorted({driver for _, driver in _registry_names()}), current)
        elif name == "dd":
            key, equals, _ = current.partition("=")
            if not equals:
                yield from _starting(("if=", "of=", "bs=", "count=", "skip="), current)
            elif key in ("if", "of"):
                yield Candidate(f"{FILES} {key}=")
        elif name == "bitmap" and len(self.operands) == 1:
            yield from _starting(_bitmaps(_look(self.operands[0])), current)
        elif name != "resize" or not self.operands:
            yield Candidate(FILES)

    def _values(self, option: Option, current: str, prefix: str) -> Iterator[Candidate]:
        """Values of *option* that begin with *current*; *prefix* stands in front of them in the same word."""
        if option.choices:
            yield from _starting(option.choices, current, prefix)
        elif option.metavar == "FMT":
            yield from _starting(formats(), current, prefix)
        elif option.key in ("cache", "source_cache"):
            from diskmill.opening.context import CACHE_MODES

            yield from _starting(CACHE_MODES, current, prefix)
        elif option.key == "preallocation":
            from diskmill.commands.resize import PREALLOCATION

            yield from _starting(PREALLOCATION, current, prefix)
        elif option.key == "trust":
            yield from _starting(("nothing", "folder", "anything"), current, prefix)
            yield Candidate(f"{FILES} {prefix}".rstrip())
        elif option.key == "limits":
            yield from _list(("memory=", "work=", "chain=", "files="), current, prefix)
        elif option.key == "options":
            yield from self._driver_options(current, prefix)
        elif option.metavar == "SNAP" or option.key == "merge":
            found = _look(next((one for one in self.operands if os.path.exists(one)), ""))
            names = _bitmaps(found) if option.key == "merge" else [one.name for one in found.snapshots] if found else []
            yield from _starting(names, current, prefix)
        elif option.key == "object":
            yield from _list(("secret,id=", "tls-creds-x509,id=", "file=", "data=", "dir="), current, prefix)
        elif option.metavar == "NAME":
            yield Candidate(f"{FILES} {prefix}".rstrip())

    def _driver_options(self, current: str, prefix: str) -> Iterator[Candidate]:
        """Names and values of the format's options, of which *current* is a list."""
        name, equals, value = current.rpartition(",")[2].partition("=")
        declared = _declared(self._format(), "amend" if self.command.name == "amend" else "create")
        if not equals:
            yield from _list([f"{one}=" for one in sorted(declared)] + ["help"], current, prefix)
        elif name in declared:
            option = declared[name]
            values = ("on", "off") if option.type == "bool" else option.choices
            yield from _starting(values, value, prefix + current[: len(current) - len(value)])

    def _format(self) -> str:
        if self.command.name == "create":
            return self.one("format", "raw")
        if self.command.name == "amend":
            found = _look(self.operands[0]) if self.operands and not self.one("format") else None
            return found.format if found else self.one("format", "qcow2")
        return self.one("output_format", "raw")


def _list(words: Iterable[str], current: str, prefix: str) -> Iterator[Candidate]:
    """*words* that go on with the last part of the list *current*."""
    last = current.rpartition(",")[2]
    yield from _starting(words, last, prefix + current[: len(current) - len(last)])


def _registry_names() -> Iterator[tuple[str, str]]:
    from diskmill.opening.registry import default_registry

    return default_registry().names()


def formats() -> list[str]:
    """The names of the format drivers that are installed; none is imported."""
    from diskmill.contract.drivers import FormatDriver

    return sorted({name for group, name in _registry_names() if group == FormatDriver.group})


def _declared(format: str, when: str) -> dict[str, DriverOption]:
    from diskmill.errors import DiskmillError

    try:
        if when == "amend":
            from diskmill.commands.amend import options_for

            found = options_for(format)
        else:
            from diskmill.commands.create import options_for as options_to_create

            found = options_to_create(format)
    except DiskmillError:
        return {}
    return {one.name: one for one in found}


def _look(name: str) -> ImageInfo | None:
    """What the image *name* tells, and nothing that it refers to; None: nothing, or it is none."""
    from diskmill.errors import DiskmillError
    from diskmill.opening.context import Context
    from diskmill.opening.gate import NOTHING

    if not os.path.isfile(name):
        return None
    from diskmill.commands.info import info

    try:
        return info(name, context=Context(trust=NOTHING, share=True))
    except DiskmillError:
        return None


def _bitmaps(found: ImageInfo | None) -> list[str]:
    listed = (found.specific or {}).get("bitmaps") if found else None
    return [str(one["name"]) for one in listed or ()]
