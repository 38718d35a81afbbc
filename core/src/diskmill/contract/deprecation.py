"""What is going to go: it works for two more minor versions, and says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


def deprecated(since: str, instead: str) -> Callable[[_Function], _Function]:
    """Marks a function or method that drivers should not call any more: each call gives a ``DeprecationWarning``.

    :param since: the minor version of diskmill that marked it, ``"0.4"``; from ``"0.6"`` on it may be gone.
    :param instead: what to call.
    """

    def mark(function: _Function) -> _Function:
        import functools
        import warnings

        major, minor = since.split(".")
        text = (
            f"{function.__qualname__} is deprecated since {since} and goes in {major}.{int(minor) + 2}: use {instead}"
        )

        @functools.wraps(function)
        def warned(*arguments: Any, **named: Any) -> Any:
            warnings.warn(text, DeprecationWarning, stacklevel=2)
            return function(*arguments, **named)

        return warned  # type: ignore[return-value]

    return mark
