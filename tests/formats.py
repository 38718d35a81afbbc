"""Our own drivers, and the one of docs/, for the tests that go over all formats."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import traits  # noqa: F401  it tells the kit of them
from diskmill_testkit import machine
from diskmill_testkit.machine import (
    FORMATS,
    REGISTRY,
    Machine,
    adopt,
    fragments,
    merged,
    pattern,
    refused,
    unit_of,
    variants,
)
from diskmill_testkit.machine import names as formats
from diskmill_testkit.selection import Everything

__all__ = [
    "FORMATS",
    "REGISTRY",
    "Machine",
    "formats",
    "fragments",
    "merged",
    "pattern",
    "refused",
    "subformats",
    "unit_of",
    "variants",
]

sys.path.append(str(Path(__file__).parents[1] / "docs" / "example-driver" / "src"))
if "blk" not in FORMATS:  # the example need not be installed to be tested
    import diskmill_blk

    adopt(diskmill_blk.driver)


def subformats(*capabilities: str) -> list[Any]:
    """(format, options) of all formats that have *capabilities*, as parameters."""
    return list(machine.subformats(*capabilities)(Everything()))
