"""The pytest plugin: it gives the suites' tests their cases."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .selection import MARK, chosen

pytest.register_assert_rewrite("diskmill_testkit")
_NOTHING = "diskmill_nothing"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARK}(arguments, cases): the cases of a conformance test")
    config.addinivalue_line("markers", f"{_NOTHING}: a conformance test that has no case for the chosen drivers")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for mark in metafunc.definition.iter_markers(MARK):
        arguments, cases = mark.args
        found = list(cases(chosen(metafunc.module)))
        if not found:  # parametrize would make of that a test that is skipped
            nothing = [None] * len(arguments.split(","))
            found = [pytest.param(*nothing, marks=getattr(pytest.mark, _NOTHING))]
        metafunc.parametrize(arguments, found)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    nothing = [item for item in items if item.get_closest_marker(_NOTHING)]
    if nothing:
        config.hook.pytest_deselected(items=nothing)
        items[:] = [item for item in items if not item.get_closest_marker(_NOTHING)]


@pytest.fixture
def oracle() -> Callable[..., None]:
    """Asks another program about an image: see :data:`diskmill_testkit.suites.failing_writes.Oracle`.

    This one asks nobody. Who has such a program gives a fixture of this name in ``conftest.py``.
    """
    return lambda machine, format, options: None
