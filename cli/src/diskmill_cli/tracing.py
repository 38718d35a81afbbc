"""``-T [enable=]PATTERN,events=FILE,file=FILE``: which operations are told, and where."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diskmill.errors import StorageError, UsageError
from diskmill.registry import default_registry
from diskmill.trace import attach, events

if TYPE_CHECKING:
    from .session import Session


def start(texts: Sequence[str], session: Session) -> bool:
    """Begin to trace as *texts* ask. True where only the list of events was asked for, and has been printed.

    :raises UsageError: a malformed text.
    """
    patterns: list[str] = []
    target = None
    for text in texts:
        for part in text.split(","):
            key, equals, value = part.partition("=")
            if part in ("help", "?"):
                session.print("\n".join(events()))
                return True
            if not equals or key == "enable":
                patterns.append(value if equals else key)
            elif key == "events":
                patterns += _listed(value)
            elif key == "file":
                target = value
            else:
                raise UsageError(f"invalid trace option '{part}'")
    try:
        out = open(target, "a", encoding="utf-8") if target else sys.stderr  # noqa: SIM115  open to the program's end
    except OSError as error:
        raise StorageError.from_os(error, str(target)) from None
    attach(default_registry().plugins, patterns, lambda line: print(line, file=out, flush=True))
    return False


def _listed(path: str) -> list[str]:
    """The patterns in a file, one a line; ``#`` begins a comment."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the events file '{path}': {error}") from None
    return [line for line in lines if line and not line.startswith("#")]
