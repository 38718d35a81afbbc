"""Which drivers a test module is about, and which cases a test of a suite has for them.

A module that takes a suite's tests says so in ``DRIVERS``, a list of names, or what there is to tell of each (name →
:class:`~diskmill_testkit.traits.Traits`); without it, all that are installed are meant. The plugin asks the cases of a
test when it collects it (:mod:`diskmill_testkit.plugin`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from typing import Any

import pytest

from .traits import Traits, describe

MARK = "diskmill_cases"
Chosen = Container[str]
"""The names of the drivers that a module is about."""
Cases = Callable[[Chosen], Sequence[Any]]
"""Gives the parameters of a test for the drivers that were chosen."""


class Everything:
    """The choice of a module that has none."""

    def __contains__(self, name: object) -> bool:
        return True


def over(arguments: str, cases: Cases) -> pytest.MarkDecorator:
    """The test is run for each of *cases*, as with ``parametrize``; where there are none, it is not there at all."""
    return pytest.MarkDecorator(pytest.Mark(MARK, (arguments, cases), {}, _ispytest=True), _ispytest=True)


def chosen(module: object) -> Chosen:
    """The drivers that *module* is about; what it tells of them counts from here on."""
    found: Mapping[str, Traits] | Collection[str] | None = getattr(module, "DRIVERS", None)
    if isinstance(found, Mapping):
        for name, traits in found.items():
            describe(name, traits)
    return Everything() if found is None else found
