"""VHDX images after a crash, as their log has it; the crash may come while that is put in place, too."""

from __future__ import annotations

import random

import pytest
from diskmill.contract.node import Image
from diskmill.sizes import KiB, MiB
from diskmill_testkit.journals import Workload, apply, crash_states, random_workload
from formats import Machine
from twins import MemoryDriver

SIZE = 8 * MiB + 512


def change(machine: Machine, image: Image, what: str, chance: random.Random) -> Workload:
    """Write to *image*, or let it grow past what its table has room for."""
    load = Workload(image, bytearray(image.read(0, SIZE)))
    if what == "write":
        random_workload(load, chance, steps=20, longest=60 * KiB)
        load.write(7 * MiB, b"last" * 128)
    else:
        machine.context.registry.call(image.driver, "resize", image=image, size=130 << 30, preallocation="off")
    image.close()
    return load


@pytest.mark.parametrize("what", ["write", "grow"])
def test_a_log_that_is_announced_is_there(what: str) -> None:
    """[MS-VHDX] 2.3.3: where the header names a log, it is replayed, and without an entry the file is corrupt."""
    chance = random.Random(what)
    machine = Machine()
    machine.create("disk", "vhdx", SIZE, {"block_size": MiB})
    load = change(machine, machine.open("disk", "vhdx", writable=True), what, chance)
    named = 0
    for _, state in crash_states(load.before, load.journal, chance, 120):
        machine.files["state"] = state
        with machine.open("state", "vhdx") as image:
            if any(image.headers.current.LogGuid):
                named += 1
                assert image.log.pending() is not None
    assert named > 3


@pytest.mark.parametrize("what", ["write", "grow"])
def test_a_crash_while_a_log_is_put_in_place(what: str) -> None:
    chance = random.Random(what)
    machine = Machine()
    machine.create("disk", "vhdx", SIZE, {"block_size": MiB})
    load = change(machine, machine.open("disk", "vhdx", writable=True), what, chance)
    driver = machine.context.registry.protocol("memory")
    assert isinstance(driver, MemoryDriver)
    state, replayed = load.before.copy(), 0
    for made in load.journal:
        apply(state, made)
        if made[0] != "barrier":
            continue
        machine.files["state"] = state.copy()
        with machine.open("state", "vhdx") as image:
            pending, size, disk = any(image.headers.current.LogGuid), image.size, image.read(0, SIZE)
        if not pending:
            continue
        replayed += 1
        driver.journal = []
        machine.open("state", "vhdx", writable=True).close()
        journal = [one for _, one in driver.journal]
        driver.journal = None
        for _, again in crash_states(state, journal, chance, 20):
            machine.files["state"] = again
            with machine.open("state", "vhdx") as image:
                assert image.size == size
                assert image.read(0, SIZE) == disk
    assert replayed
