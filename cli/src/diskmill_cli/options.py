"""The options that our commands share, for typer apps of other packages: annotations, and what becomes of them.

>>> @app.command()                                                               # doctest: +SKIP
... def peek(name: str, trust: options.Trust = None, object: options.Objects = None) -> None:
...     with diskmill.open(name, context=options.context(trust=trust, object=object)) as image:
...         print(image.size)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from diskmill.records import replace

from . import common
from .arguments import Arguments
from .arguments import Option as Declared
from .session import Session

if TYPE_CHECKING:
    from diskmill.opening.context import Context

    from .progress import State


def _option(declared: Declared) -> typer.models.OptionInfo:
    found: typer.models.OptionInfo = typer.Option(
        *declared.flags, help=declared.description, metavar=declared.metavar or None, show_default=False
    )
    return found


Trust = Annotated[list[str] | None, _option(common.TRUST)]
"""``--trust``, repeatable."""
Objects = Annotated[list[str] | None, _option(common.OBJECT)]
"""``--object``, repeatable."""
Limits = Annotated[str | None, _option(common.LIMITS)]
"""``--limits``."""
Share = Annotated[bool, _option(common.SHARE)]
"""``-U``, ``--force-share``."""
Output = Annotated[str, _option(common.OUTPUT)]
"""``--output``: ``human`` (give that as default) or ``json``."""
Progress = Annotated[bool, _option(replace(common.PROGRESS, metavar="", choices=()))]
"""``-p``, ``--progress``."""


def context(
    *,
    trust: Sequence[str] | None = None,
    object: Sequence[str] | None = None,
    limits: str | None = None,
    share: bool = False,
) -> Context:
    """What images are opened with, as the options ask for.

    :raises UsageError: one of them makes no sense.
    """
    given = [("trust", one) for one in trust or ()] + [("object", one) for one in object or ()]
    given += [("limits", limits)] if limits is not None else []
    given += [("share", "")] if share else []
    return common.context_of(Arguments(given, []), Session())


@contextmanager
def progress(shown: bool, phase: str) -> Iterator[State]:
    """What to report to, as (bytes dealt with, bytes in all), while *phase* is at work.

    :param shown: whether a person wants to see it.
    """
    from .progress import shown as showing

    with showing(Arguments([("progress", "")] if shown else [], []), Session(), phase) as state:
        yield state
