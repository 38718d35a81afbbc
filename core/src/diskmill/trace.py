"""Tracing: a plugin that is not a driver, with a wrapper around every hook, so it sees each operation of every format.

Events are the hooks' names. A program traces itself with :func:`traced`.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from .contract import hookspecs
from .contract.drivers import hookimpl

if TYPE_CHECKING:
    import pluggy


def events() -> list[str]:
    """Every event there is: the names of the hooks."""
    return sorted(name for name, value in vars(hookspecs).items() if hasattr(value, "diskmill_spec"))


class Tracer:
    """Tells *write* about every operation whose name matches one of *patterns*, as one line after it ends."""

    def __init__(self, patterns: Sequence[str], write: Callable[[str], None]) -> None:
        for name in events():
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                setattr(self, name, _wrapper(name, write))


def _wrapper(name: str, write: Callable[[str], None]) -> Any:
    spec = getattr(hookspecs, name)
    names = list(inspect.signature(spec).parameters)

    def wrapper(*values: Any) -> Generator[None, Any, Any]:
        begin = time.perf_counter()
        outcome = "failed"
        try:
            result = yield
            outcome = "none" if result is None else "done"
            return result
        except Exception as error:
            outcome = f"failed: {error}"
            raise
        finally:
            told = " ".join(f"{key}={_short(value)}" for key, value in zip(names, values, strict=True))
            write(f"{name} {told} {outcome} {1000 * (time.perf_counter() - begin):.3f} ms")

    wrapper.__wrapped__ = spec  # type: ignore[attr-defined]  # where pluggy looks for the arguments' names
    return hookimpl(wrapper=True)(wrapper)


def _short(value: Any) -> str:
    """A value for a trace line: images and requests by name, data by length."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    name = getattr(value, "name", None)
    return repr(name if isinstance(name, str) else value if isinstance(value, str | int) else type(value).__name__)


@contextmanager
def traced(manager: pluggy.PluginManager, patterns: Sequence[str], write: Callable[[str], None]) -> Iterator[None]:
    """Trace what matches *patterns* meanwhile: one line to *write* for each operation that *manager* calls."""
    tracer = Tracer(patterns, write)
    manager.register(tracer)
    try:
        yield
    finally:
        manager.unregister(tracer)
