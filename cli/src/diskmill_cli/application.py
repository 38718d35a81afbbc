"""All commands as one typer app, to be mounted in the program of somebody else: ``app.add_typer(diskmill_cli.app)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from .catalogue import brought, load, summary
from .commands import NAMES
from .main import run
from .session import Session


class _Whole(typer.core.TyperCommand):
    """Takes all words as they stand: ours are parsed as getopt does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return ctx.args  # type: ignore[no-any-return]


def _running(name: str) -> Callable[[typer.Context], None]:
    def command(context: typer.Context) -> None:
        raise typer.Exit(run([name, *context.args], Session()))

    return command


app = typer.Typer(name="diskmill", help="Virtual disk images.", add_completion=False, no_args_is_help=True)
for _name in (*NAMES, *sorted(brought())):
    _help = load(_name).help if _name in NAMES else summary(_name)
    app.command(_name, cls=_Whole, help=_help, context_settings={"help_option_names": []})(_running(_name))
