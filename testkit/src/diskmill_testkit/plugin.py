"""The pytest plugin: it gives the suites' tests their cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import pytest

from .selection import MARK, Chosen, Everything, chosen

pytest.register_assert_rewrite("diskmill_testkit")
_NOTHING = "diskmill_nothing"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARK}(arguments, cases): the cases of a conformance test")
    config.addinivalue_line("markers", f"{_NOTHING}: a conformance test that has no case for the chosen drivers")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for mark in metafunc.definition.iter_markers(MARK):
        arguments, cases = mark.args
        drivers = chosen(metafunc.module)
        _expect_installed(drivers)
        found = list(cases(drivers))
        if not found:  # parametrize would make of that a test that is skipped
            nothing = [None] * len(arguments.split(","))
            found = [pytest.param(*nothing, marks=getattr(pytest.mark, _NOTHING))]
        metafunc.parametrize(arguments, found)


def _expect_installed(drivers: Chosen) -> None:
    """Fail where one of the chosen drivers is not there: no test would run, and that would look like success."""
    if isinstance(drivers, Everything):
        return
    from diskmill.contract.drivers import CryptoDriver, FilterDriver, FormatDriver

    from .machine import REGISTRY

    for name in cast("Sequence[str]", drivers):
        if not any(REGISTRY.has(kind.group, name) for kind in (FormatDriver, FilterDriver, CryptoDriver)):
            pytest.fail(f"DRIVERS names '{name}', and no driver of that name is installed", pytrace=False)


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
