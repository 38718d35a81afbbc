"""VDI, VHD, VHDX, Parallels, QED and qcow images after a crash at any write.

What was flushed is there, and nothing that never was. A check may find lost space; of Parallels and VHDX images, that
nobody closed them; of VHDX, that a header is torn.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from crashes import Workload, apply, crash_states, random_workload
from diskmill.node import Image
from diskmill.results import CheckResult
from diskmill.sizes import KiB, MiB
from formats import Machine
from twins import Content, MemoryStorage

FORMATS = {
    "vdi": {"cluster_size": 16 * KiB},
    "vpc": {"force_size": True},
    "vhdx": {"block_size": MiB},
    "parallels": {"cluster_size": 16 * KiB},
    "qed": {"cluster_size": 16 * KiB, "table_size": 1},
    "qcow": {},
}
CHECKED = [format for format in FORMATS if format != "qcow"]
"""Those that have a check."""
SIZE = 3 * MiB
SIZES = {"vhdx": 8 * MiB + 512}
"""Larger ones, so that some blocks are not there yet after the first writes."""


def check(machine: Machine, name: str, format: str, repair: str = "") -> Any:
    if format not in CHECKED:
        return CheckResult()
    with machine.open(name, format, writable=bool(repair)) as image:
        return machine.context.registry.call(image.driver, "check", image=image, repair=repair)


def unclean(result: CheckResult) -> int:
    """How many of the corruptions a crash may leave: each is mended, or does no harm."""
    known = ("not closed properly", "footer", "headers", "region table")
    return sum(any(word in one.text for word in known) for one in result.findings)


def examine(machine: Machine, format: str, state: Content) -> bytes:
    """What the guest disk in *state* holds; its tables are sound."""
    machine.files["state"] = state
    result = check(machine, "state", format)
    assert result.corruptions == unclean(result) and not result.check_errors, result.findings
    with machine.open("state", format) as image:
        return image.read(0, image.size)


def start(machine: Machine, format: str, chance: random.Random) -> tuple[Image, bytearray]:
    """An image with some blocks, open for writing, and what its guest disk holds."""
    size = SIZES.get(format, SIZE)
    machine.create("disk", format, size, FORMATS[format])
    model = bytearray(size)
    with machine.open("disk", format, writable=True) as image:
        for _ in range(6):
            at = chance.randrange(size // 512) * 512
            data = chance.randbytes(min(40_000 // 512 * 512, size - at))
            image.write(at, data)
            model[at : at + len(data)] = data
    return machine.open("disk", format, writable=True), model


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("format", FORMATS)
def test_a_crash_while_writing(format: str, seed: int) -> None:
    chance = random.Random(seed)
    machine = Machine()
    image, model = start(machine, format, chance)
    load = Workload(image, model)
    random_workload(load, chance, steps=40, longest=60 * KiB)
    load.flush()
    image.close()
    states = list(crash_states(load.before, load.journal, chance, 60))
    for point, state in states:
        load.verify(point, examine(machine, format, state))
    # Life goes on with what a crash left: nothing of it comes up where nothing was written.
    for _, state in chance.sample(states, 10):
        machine.files["state"] = state
        check(machine, "state", format, repair="all")
        disk = bytearray(examine(machine, format, machine.files["state"]))
        with machine.open("state", format, writable=True) as again:
            for _ in range(10):
                at = chance.randrange(len(disk) // 512) * 512
                again.write(at, b"new!" * 128)
                disk[at : at + 512] = b"new!" * 128
        assert check(machine, "state", format).findings == []
        with machine.open("state", format) as again:
            assert again.read(0, len(disk)) == disk


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("format", CHECKED)
def test_a_crash_while_resizing(format: str, seed: int) -> None:
    chance = random.Random(seed)
    machine = Machine()
    image, model = start(machine, format, chance)
    storage = image.file
    assert isinstance(storage, MemoryStorage)
    # A table that has no room to grow: the first blocks must go out of its way.
    size = {"vdi": 6 << 30, "vpc": 6 << 30, "vhdx": 130 << 30, "parallels": 200 * MiB, "qed": 6 << 30}[format]
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
        assert result.corruptions == unclean(result) and not result.check_errors, result.findings
        with machine.open("state", format) as again:
            assert again.size in (len(model), size)
            seen.add(again.size)
            assert again.read(0, len(model)) == model
            assert not any(again.read(again.size - 64 * KiB, 64 * KiB)) or again.size == len(model)
    assert seen == {len(model), size}


@pytest.mark.parametrize("format", ["qed", "qcow"])
def test_a_crash_while_emptying(format: str) -> None:
    """An overlay that was committed: each block is its own or the backing image's, which are the same."""
    chance = random.Random(1)
    machine = Machine()
    disk = chance.randbytes(SIZE)
    machine.put("base", disk)
    machine.create("disk", format, SIZE, FORMATS[format], backing=machine.backing("base", "raw"))
    image = machine.open("disk", format, writable=True)
    for _ in range(20):
        at = chance.randrange(SIZE // 512 - 100) * 512
        image.write(at, disk[at : at + 50_000])
    image.flush()
    storage = image.file
    assert isinstance(storage, MemoryStorage)
    before = storage.content.copy()
    storage.journal = []
    assert machine.context.registry.call(image.driver, "empty", image=image)
    image.close()
    for _, state in crash_states(before, storage.journal, chance, 60):
        assert examine(machine, format, state) == disk
    assert examine(machine, format, storage.content) == disk and storage.size < 60 * KiB
