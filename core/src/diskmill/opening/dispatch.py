"""Hooks of a driver called as what they are, methods: where no plugin listens, pluggy would do no more.

What a driver may do that is not plain (wrap its own hooks, say), or what is wrong with its hooks, pluggy knows best:
:func:`is_plain` tells when to ask it.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

from ..contract import hookspecs
from ..contract.drivers import Driver
from ..contract.marks import PLAIN


def _arguments(function: FunctionType) -> tuple[str, ...]:
    """The arguments that pluggy passes: those that have no default."""
    code = function.__code__
    return code.co_varnames[: code.co_argcount - len(function.__defaults__ or ())]


HOOKS = {
    name: _arguments(spec)
    for name, spec in vars(hookspecs).items()
    if isinstance(spec, FunctionType) and hasattr(spec, "diskmill_spec")
}
"""Each hook that there is, with the names of its arguments."""


def is_plain(driver: Driver) -> bool:
    """Whether each marked method of *driver* is a plain implementation of a hook that there is."""
    for name in dir(driver):
        if name.startswith("_"):  # no hook's name does
            continue
        method = getattr(driver, name, None)
        mark = getattr(method, "diskmill_impl", None)
        if mark is None:
            continue
        if not (name in HOOKS and mark == PLAIN and isinstance(method, MethodType)):
            return False
        function = method.__func__
        if not isinstance(function, FunctionType) or hasattr(function, "__wrapped__"):
            return False
        if not {*_arguments(function)[1:]} <= {*HOOKS[name]}:
            return False
    return True


def caller(driver: Driver, hook: str) -> Callable[..., Any]:
    """What calls *hook* of *driver*, which is plain, with the arguments that it takes; gives None where it has none."""
    method: Any = getattr(driver, hook, None)
    if not hasattr(method, "diskmill_impl"):
        return lambda **arguments: None
    names = _arguments(method.__func__)[1:]
    return lambda **arguments: method(*[arguments[name] for name in names])
