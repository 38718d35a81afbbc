"""``-T [enable=]PATTERN,events=FILE,file=FILE``: which operations are told, and where."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from diskmill.errors import StorageError, UsageError, printable
from diskmill.opening.registry import default_registry
from diskmill.trace import events, traced

if TYPE_CHECKING:
    from .session import Session


def start(texts: Sequence[str], session: Session, until: ExitStack) -> bool:
    """Trace as *texts* ask, up to the end of *until*. True where only the list of events was wanted, and was printed.

    :raises UsageError: a malformed text.
    """
    patterns: list[str] = []
    target = None
    for text in texts:
        for part in text.split(","):
            key, equals, value = part.partition("=")
            if part in ("help", "?"):
                session.print(*events())
                return True
            if not equals or key == "enable":
                patterns.append(value if equals else key)
            elif key == "events":
                patterns += _listed(value)
            elif key == "file":
                target = value
            else:
                raise UsageError(f"invalid trace option '{part}'")
    known = set(events())
    for pattern in patterns:
        if pattern not in known and not any(mark in pattern for mark in "*?["):
            session.warn(f"trace event '{pattern}' does not exist")
    try:
        out = until.enter_context(open(target, "a", encoding="utf-8")) if target else sys.stderr  # noqa: SIM115
    except OSError as error:
        raise StorageError.from_os(error, str(target)) from None
    until.enter_context(
        traced(default_registry().plugins, patterns, lambda line: print(printable(line), file=out, flush=True))
    )
    return False


def _listed(path: str) -> list[str]:
    """The patterns in a file, one a line; ``#`` begins a comment."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"cannot read the events file '{path}': {why}") from None
    return [line for line in lines if line and not line.startswith("#")]
