"""One run of the program: its name in messages, where it prints, and what it trusts unless told otherwise."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from diskmill.contract.results import Creation
    from diskmill.errors import DiskmillError
    from diskmill.opening.context import Habits
    from rich.console import Console

    from .arguments import Arguments


class Session:
    """What does not change between the commands of one program.

    :param program: the name in front of messages.
    :param trust: the trust policy where neither option nor environment name one.
    :param overwrite: what becomes of a file that bears an output's name where no option says; see
        :class:`~diskmill.opening.context.Context`.
    :param plain: print what qemu-img prints even on a terminal.
    """

    def __init__(
        self, program: str = "diskmill", *, trust: str = "folder", overwrite: str = "replace", plain: bool = False
    ) -> None:
        self.program = program
        self.trust = trust
        self.overwrite = overwrite
        self.plain = plain
        self.quiet = False
        self.as_json = False
        """Whether ``--output=json`` was given: then errors and warnings are objects, too, one a line on stderr."""
        self.color = "auto"
        """When there are colours: ``auto``, ``always`` or ``never``."""
        self.count_includes_skipped = False
        """Whether the blocks that ``dd`` skips are among those that it counts, as in qemu-img 7.2."""

    @property
    def version(self) -> str:
        """The version, as messages give it."""
        from . import __version__

        return __version__

    def habits(self) -> Habits:
        """What is taken for granted of images."""
        from diskmill.opening.context import Habits

        return Habits()

    def creation_words(self, made: Creation, given: Mapping[str, str]) -> Iterator[str]:
        """What ``create`` prints about the image *made*, after its name and format.

        :param given: the options as they were typed.
        """
        yield f"size={made.size}"
        if made.backing_filename is not None:
            yield f"backing_file={made.backing_filename.replace(',', ',,')}"
            if made.backing_format:
                yield f"backing_fmt={made.backing_format}"
        for key, value in made.options.items():
            text = "on" if value is True else "off" if value is False else str(value)
            yield f"{key}={text.replace(',', ',,')}"

    def message(self, error: DiskmillError) -> str:
        """*error* in one line."""
        return str(error)

    def completing(self) -> bool:
        """Whether it is the shell that asks what could be typed."""
        return not self.plain and "_DISKMILL_COMPLETE" in os.environ

    def coloured(self, stream: TextIO) -> bool:
        """Whether what is written to *stream* has colours."""
        if self.plain or self.color == "never":
            return False
        return self.color == "always" or (stream.isatty() and not os.environ.get("NO_COLOR"))

    def print(self, *lines: str) -> None:
        """Write lines of results for a person, unless ``-q`` forbids.

        This is where text leaves, as :meth:`error` is: names out of images cannot command a terminal, nor make lines
        of their own. (Bytes that are not UTF-8 go on as they are, to anything but a terminal.)
        """
        self.print_all(lines)

    def print_all(self, lines: Iterable[str], *, ours: bool = False) -> None:
        """As :meth:`print`, of any number of lines, each written when it is there.

        :param ours: they hold numbers and words of our own alone, and no name of anybody's.
        """
        from diskmill.errors import printable

        raw_bytes, write = not sys.stdout.isatty(), sys.stdout.write
        if ours and not self.quiet:
            sys.stdout.writelines(line + "\n" for line in lines)
            return
        for line in lines:
            if not self.quiet:
                write(printable(line, raw_bytes=raw_bytes) + "\n")

    def fail(self, error: DiskmillError) -> None:
        """Write the message of *error*: for programs that asked for JSON, an object with its parts."""
        if not self.as_json:
            self.error(self.message(error))
            return
        parts = {"code": error.code, "file": error.file, "place": error.place, "cause": error.cause, "hint": error.hint}
        self._object("error", parts)

    def _object(self, kind: str, parts: Mapping[str, str | None]) -> None:
        import json

        from diskmill.errors import shown

        sys.stdout.flush()
        text = {key: value and shown(value).encode(errors="replace").decode() for key, value in parts.items()}
        sys.stderr.write(json.dumps({kind: text}) + "\n")
        sys.stderr.flush()

    def error(self, text: str, colour: int = 31) -> None:
        """Write an error message, one line; red where a person reads it."""
        from diskmill.errors import printable

        if self.as_json:
            self._object("error", {"code": "error", "file": None, "place": None, "cause": text, "hint": None})
            return
        text = printable(text)
        name = f"{self.program}:"
        if self.coloured(sys.stderr):
            name = f"\x1b[1;{colour}m{name}\x1b[0m"
        sys.stdout.flush()
        sys.stderr.write(f"{name} {text}\n")
        sys.stderr.flush()

    def note(self, *lines: str) -> None:
        """Write lines that go along with results to stderr, unless ``-q`` forbids."""
        from diskmill.errors import printable

        if not self.quiet:
            sys.stderr.writelines(f"{printable(line)}\n" for line in lines)

    def warn(self, text: str) -> None:
        """Write a warning, one line; yellow where a person reads it."""
        if self.as_json:
            self._object("warning", {"cause": text})
        else:
            self.error(f"warning: {text}", 33)

    def json(self, value: Any) -> None:
        """Print *value* as JSON, unless ``-q`` forbids."""
        from .output import to_json

        if not self.quiet:
            sys.stdout.write(to_json(value) + "\n")

    def fancy(self, arguments: Arguments) -> bool:
        """Whether results go to a person at a terminal."""
        seen = sys.stdout.isatty() or self.color == "always"
        return not self.plain and not self.quiet and arguments.one("output") is None and seen

    def console(self) -> Console:
        """The terminal, for tables and colours."""
        from rich.console import Console

        if self.color == "never":
            return Console(highlight=False, color_system=None)
        if self.color == "always":
            return Console(highlight=False, force_terminal=True, color_system="standard", no_color=False)
        return Console(highlight=False)
