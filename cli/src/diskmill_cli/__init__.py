"""The diskmill command line: parses what the user typed, calls the library, prints what it returns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .application import app as app


def __getattr__(name: str) -> Any:
    """``app``, the commands as a typer app, imported when it is asked for."""
    if name != "app":
        raise AttributeError(f"module 'diskmill_cli' has no attribute '{name}'")
    from .application import app

    return app
