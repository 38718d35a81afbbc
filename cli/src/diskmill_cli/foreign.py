"""Commands that packages bring as typer apps, as people write them: run with what is left of the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer
from diskmill.errors import UsageError

from .arguments import Command

if TYPE_CHECKING:
    from .session import Session


def command_of(name: str, app: typer.Typer) -> Command:
    """The declaration of a command that *app* is."""
    shown: Any = typer.main.get_command(app)

    def run(words: Sequence[str], session: Session) -> int:
        return _run(shown, name, words, session)

    return Command(name, shown.get_short_help_str(200), "", (), _parsed, whole=run)


def _parsed(*_: object) -> int:
    raise AssertionError("a typer app parses its words itself")


def _run(shown: Any, name: str, words: Sequence[str], session: Session) -> int:
    """Run it; what it raises becomes one line and a status, as with every other command."""
    try:
        status = shown.main(args=list(words), prog_name=f"{session.program} {name}", standalone_mode=False)
    except typer.Abort:
        session.error("aborted")
        return 1
    except Exception as error:
        if not hasattr(error, "format_message"):  # of those that tell of wrong words
            raise
        hint = f"see '{session.program} {name} --help'"
        raise UsageError(" ".join(error.format_message().split()).rstrip("."), hint=hint) from None
    return status if isinstance(status, int) else 0
