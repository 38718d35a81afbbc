"""Files that cost more than they look: a corpus of generators, each of which writes one in milliseconds.

A module holds what is alike. To add a file, write a function that is given a path to write it to, and decorate it::

    @attack("qcow2/my kind")
    def my_kind(path: Path) -> None: ...

    @attack("qcow2/my kind", bits=(9, 16))  # one file for each value
    def my_kind(path: Path, bits: int) -> None: ...

``test_attacks.py`` runs each with every command (by turns, one each, unless ``DISKMILL_ATTACKS=all`` is set), and holds
it against the budgets. What stands beside the
file (extents, backing images) goes into the same folder, which is its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

MODULES = ("qcow2", "flat", "levels", "vmdk", "chunks", "chains", "references", "parsers")
"""The modules of the corpus."""


class Attack(NamedTuple):
    """A file of the corpus."""

    name: str
    write: Callable[[Path], None]
    module: str


_corpus: list[Attack] = []


def attack(name: str, **values: tuple[Any, ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Put the decorated function into the corpus: once for each combination of *values*, which are its arguments."""

    def add(write: Callable[..., None]) -> Callable[..., None]:
        home = write.__module__.rpartition(".")[2]
        for chosen in itertools.product(*values.values()):
            given = dict(zip(values, chosen, strict=True))
            full = " ".join((name, *(f"{key}={value}" for key, value in given.items())))
            _corpus.append(Attack(full, lambda path, given=given: write(path, **given), home))
        return write

    return add


def corpus() -> list[Attack]:
    """Every file there is."""
    for module in MODULES:
        import_module(f"attacks.{module}")
    from .parsers import ATTACKS

    return [*_corpus, *(Attack(name, write, "parsers") for name, write in ATTACKS)]


def put(path: Path, *pieces: tuple[int, bytes], size: int = 0) -> None:
    """Write *pieces*, (offset, bytes), to *path*; all else are holes, up to *size*."""
    with path.open("wb") as file:
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
        file.truncate(max(size, file.seek(0, 2)))
