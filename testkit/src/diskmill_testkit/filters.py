"""The suite for filters that change nothing of what is read: ``from diskmill_testkit.filters import *``.

Each of the chosen ones is opened over a raw image in memory with the options of its traits.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from diskmill.contract.drivers import FilterDriver
from diskmill.errors import DiskmillError, UnsupportedError, UsageError
from diskmill.sizes import MiB

from .machine import REGISTRY, Machine
from .selection import Chosen, over
from .traits import traits_of

__all__ = [
    "test_a_filter_opened_for_reading_changes_nothing",
    "test_what_is_written_through_a_filter_is_below_it",
]
"""What a test module takes."""


def filters(chosen: Chosen) -> list[str]:
    """The chosen filters that stand on one node."""
    found: list[FilterDriver] = REGISTRY.all(FilterDriver.group)
    return [one.name for one in found if one.name in chosen and len(one.children) == 1 and "*" not in one.children[0]]


def filtered(name: str, file: dict[str, Any]) -> dict[str, Any]:
    """The options that open the filter *name* over *file*."""
    driver = REGISTRY.get(FilterDriver.group, name)
    return {"driver": name, driver.children[0]: file, **traits_of(name).options}


@over("name", filters)
def test_what_is_written_through_a_filter_is_below_it(name: str) -> None:
    machine = Machine()
    machine.create("disk", "raw", MiB)
    model, chance = bytearray(MiB), random.Random(4)
    with machine.open("disk", "raw", writable=True, over=lambda file: filtered(name, file)) as image:
        assert image.size == MiB
        for _ in range(30):
            offset, length = chance.randrange(MiB), chance.randrange(70_000)
            data = chance.choice((chance.randbytes(length), bytes(length)))[: MiB - offset]
            if any(data):
                image.write(offset, data)
            else:
                image.zero(offset, len(data))
            model[offset : offset + len(data)] = data
            offset = chance.randrange(MiB)
            assert image.read(offset, MiB - offset) == model[offset:]
        assert sum(extent.length for extent in image.extents(0, MiB)) == MiB
    with machine.open("disk", "raw") as below:
        assert below.read(0, MiB) == model


@over("name", filters)
def test_a_filter_opened_for_reading_changes_nothing(name: str) -> None:
    machine = Machine()
    machine.put("disk", b"held" * 1024)
    try:
        image = machine.open("disk", "raw", over=lambda file: filtered(name, file))
    except (UnsupportedError, UsageError):  # it has to write
        return
    with image:
        with pytest.raises(DiskmillError):
            image.write(0, b"x")
        assert image.read(0, 4096) == b"held" * 1024
    assert bytes(machine.files["disk"]) == b"held" * 1024
