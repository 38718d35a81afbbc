"""A disk that grows over a longer backing image: at no moment does it show what that has behind the old end."""

from __future__ import annotations

import random
from typing import Any

import pytest
from diskmill.commands.resize import set_size
from diskmill.errors import DiskmillError
from diskmill.sizes import SECTOR, KiB, MiB
from diskmill_testkit.journals import apply, crash_states
from formats import Machine, formats
from twins import MemoryStorage

SIZE = MiB + 5 * SECTOR
LONGER = 3 * MiB
LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "qcow2": [{"cluster_size": 4 * KiB}, {"cluster_size": 16 * KiB, "extended_l2": True}, {"compat": "0.10"}],
    "qed": [{"cluster_size": 16 * KiB, "table_size": 2}, {"cluster_size": 4 * MiB, "table_size": 2}],
    "vmdk": [{}, {"zeroed_grain": True}],
}


growing = pytest.mark.parametrize(
    ("format", "options", "size"),
    [
        (name, options, size)
        for name in formats("create", "write", "backing", "resize")
        for options in LAYOUTS.get(name, [{}])
        for size in (2 * MiB, 100 * MiB)
    ],
    ids=str,
)


def made(format: str, options: dict[str, Any]) -> tuple[Machine, bytearray]:
    """The image "disk" over a longer one, and what it holds."""
    machine = Machine()
    machine.create("base", format, LONGER, options)
    with machine.open("base", format, writable=True) as image:
        image.write(0, b"base" * (LONGER // 4))
    machine.create("disk", format, SIZE, options, backing=machine.backing("base", format))
    model = bytearray(b"base" * (LONGER // 4))[:SIZE]
    with machine.open("disk", format, writable=True) as image:
        image.write(300 * KiB, b"disk" * KiB)
        model[300 * KiB : 304 * KiB] = b"disk" * KiB
    return machine, model


def examine(machine: Machine, format: str, model: bytearray) -> int:
    """The size of the disk, which holds *model* and zeros."""
    with machine.open("disk", format) as image:
        assert image.read(0, SIZE) == model
        assert not any(image.read(SIZE, min(image.size - SIZE, LONGER)))
        return image.size


@growing
def test_a_crash_while_growing(format: str, options: dict[str, Any], size: int) -> None:
    chance = random.Random(size)
    machine, model = made(format, options)
    image = machine.open("disk", format, writable=True)
    storage = image.file
    assert isinstance(storage, MemoryStorage)
    before = storage.content.copy()
    storage.journal = []
    set_size(image, size, machine.context)
    image.close()
    states = [state for _, state in crash_states(before, storage.journal, chance, 80)]
    for number in range(len(storage.journal) + 1):
        state = before.copy()
        for change in storage.journal[:number]:
            apply(state, change)
        states.append(state)
    sizes = set()
    for state in states:
        machine.files["disk"] = state
        sizes.add(examine(machine, format, model))
    assert sizes == {SIZE, size}
    machine.check("disk", format)


@growing
def test_a_write_that_fails_while_growing(format: str, options: dict[str, Any], size: int) -> None:
    machine, model = made(format, options)
    driver = machine.context.registry.protocol("memory")
    before = {name: content.copy() for name, content in machine.files.items()}
    model[:512] = b"more" * 128
    for number in range(60):
        machine.files.update({name: content.copy() for name, content in before.items()})
        with machine.open("disk", format, writable=True) as image:
            driver.failures, driver.broken = 0, number
            try:
                set_size(image, size, machine.context)
                assert not driver.failures
            except DiskmillError:
                assert driver.failures
            finally:
                driver.broken = None
            image.write(0, b"more" * 128)
        assert examine(machine, format, model) in (SIZE, size)
        if not driver.failures:
            break
    assert number
