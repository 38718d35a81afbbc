"""Environments with some of the packages, for tests of what is installed and what is not: see packages.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import packages
import pytest


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment with all packages."""
    return packages.everything(tmp_path_factory)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory, everything: Path) -> Callable[..., packages.Python]:
    """Makes an environment with the packages that are named and what they need."""
    return lambda *names: packages.environment(tmp_path_factory.mktemp("bare") / "environment", everything, *names)
