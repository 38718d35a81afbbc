"""Images after a crash at any write: the storage below records what was asked of it, and in which order.

What was flushed is there, and nothing that never was. A check may find lost space, and what the driver's traits call
harmless.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from diskmill.contract.node import Image
from diskmill.sizes import KiB, MiB

from ..journals import Workload, apply, crash_states, random_workload
from ..machine import FORMATS, Machine, formats, unit_of
from ..selection import Cases, over
from ..traits import traits_of
from ..twins import Content, MemoryStorage
from .failing_writes import check, harm

__all__ = [
    "test_a_crash_while_resizing",
    "test_a_crash_while_writing",
]
"""What a test module takes."""


def seeded(*capabilities: str) -> Cases:
    """Some cases for each chosen format that can be written and has *capabilities*, in the first of its ways to write:
    one, where each open derives a key, which is slow on purpose."""
    return lambda chosen: [
        pytest.param(name, traits_of(name).layouts[0], seed, id=f"{name}-{seed}")
        for name in formats("create", "write", *capabilities)(chosen)
        for seed in range(1 if any(option.name == "key-secret" for option in FORMATS[name].options) else 3)
    ]


def examine(machine: Machine, format: str, state: Content) -> bytes:
    """What the guest disk in *state* holds; its tables are sound."""
    machine.files["state"] = state
    result = check(machine, "state", format)
    assert not harm(format, result) and not result.check_errors, result.findings
    with machine.open("state", format) as image:
        return image.read(0, image.size)


def start(machine: Machine, format: str, options: dict[str, Any], chance: random.Random) -> tuple[Image, bytearray]:
    """An image with some blocks, but not all, open for writing; and what its guest disk holds."""
    size = max(3 * MiB, 8 * unit_of(machine, format, options) + 512)
    machine.create("disk", format, size, options)
    with machine.open("disk", format, writable=True) as image:
        model = bytearray(image.size)
        for _ in range(6):
            at = chance.randrange(size // 512) * 512
            data = chance.randbytes(min(40_000 // 512 * 512, size - at))
            image.write(at, data)
            model[at : at + len(data)] = data
    return machine.open("disk", format, writable=True), model


@over("format,options,seed", seeded())
def test_a_crash_while_writing(format: str, options: dict[str, Any], seed: int) -> None:
    chance = random.Random(seed)
    machine = Machine()
    image, model = start(machine, format, options, chance)
    load = Workload(image, model)
    random_workload(load, chance, steps=40, longest=60 * KiB)
    load.flush()
    image.close()
    states = list(crash_states(load.before, load.journal, chance, 60))
    for point, state in states:
        load.verify(point, examine(machine, format, state))
    # Life goes on with what a crash left: nothing of it comes up where nothing was written.
    repairs = "repair" in FORMATS[format].capabilities
    for _, state in chance.sample(states, 10):
        machine.files["state"] = state
        if repairs:
            check(machine, "state", format, repair="all")
        disk = bytearray(examine(machine, format, machine.files["state"]))
        with machine.open("state", format, writable=True) as again:
            for _ in range(10):
                at = chance.randrange(len(disk) // 512) * 512
                again.write(at, b"new!" * 128)
                disk[at : at + 512] = b"new!" * 128
        assert not repairs or check(machine, "state", format).findings == []
        assert examine(machine, format, machine.files["state"]) == disk


@over("format,options,seed", seeded("resize", "check"))
def test_a_crash_while_resizing(format: str, options: dict[str, Any], seed: int) -> None:
    chance = random.Random(seed)
    machine = Machine()
    image, model = start(machine, format, options, chance)
    storage = image.file
    assert isinstance(storage, MemoryStorage)
    # A table that has no room to grow: the first blocks must go out of its way.
    size = traits_of(format).grown
    before = storage.content.copy()
    storage.journal = []
    assert machine.context.registry.call(image.driver, "resize", image=image, size=size, preallocation="off")
    image.close()
    done = before.copy()
    for change in storage.journal:
        apply(done, change)
    seen = set()
    for _, state in [*crash_states(before, storage.journal, chance, 150), (0, before), (0, done)]:
        machine.files["state"] = state
        result = check(machine, "state", format)
        assert not harm(format, result) and not result.check_errors, result.findings
        with machine.open("state", format) as again:
            assert again.size in (len(model), size)
            seen.add(again.size)
            assert again.read(0, len(model)) == model
            assert not any(again.read(again.size - 64 * KiB, 64 * KiB)) or again.size == len(model)
    assert seen == {len(model), size}
