"""qcow images that are damaged, and what a crash leaves of those with a backing image or compressed clusters."""

from __future__ import annotations

import random
import struct

import pytest
from diskmill.engine.copy import CopyPlan, copy
from diskmill.sizes import KiB, MiB
from diskmill_testkit.journals import Workload, crash_states, random_workload
from formats import Machine
from mutations import mutants, withstand

SIZE = 2 * MiB


def compressed(machine: Machine, name: str) -> bytearray:
    """An image of compressed and plain clusters; what its disk holds."""
    model = bytearray(b"".join(b"%07d " % number for number in range(SIZE // 8)))
    model[MiB : MiB + 64 * KiB] = random.Random(1).randbytes(64 * KiB)
    machine.put("raw", bytes(model))
    machine.create(name, "qcow", SIZE)
    with machine.open("raw", "raw") as source, machine.open(name, "qcow", writable=True) as target:
        copy(source, target, CopyPlan(compress=True, zeroed=True))
    return model


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", ["compressed", "plain"])
def test_damage_in_header_and_tables(kind: str, seed: int) -> None:
    machine = Machine()
    if kind == "compressed":
        compressed(machine, "sample")
    else:
        machine.create("sample", "qcow", 4 * MiB)
        with machine.open("sample", "qcow", writable=True) as image:
            for number in (5, 3, 40, 9, 1):
                image.write(number * 64 * KiB + 777, bytes([number]) * 9000)
    data = bytes(machine.files["sample"])
    (l2,) = struct.unpack_from(">Q", data, 48)
    counts = withstand("qcow", mutants(data, [(0, 64), (l2, 200), (l2 + 2048, 128)], seed=seed, count=600))
    assert counts["read"] > 20 and counts["refused"] > 20 and counts["written"] > 20, counts


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", ["compressed", "overlay"])
def test_a_crash_while_writing(kind: str, seed: int) -> None:
    chance = random.Random(seed)
    machine = Machine()
    if kind == "compressed":
        model = compressed(machine, "disk")
    else:
        model = bytearray(chance.randbytes(SIZE))
        machine.put("base", bytes(model))
        machine.create("disk", "qcow", SIZE, backing=machine.backing("base", "raw"))
    image = machine.open("disk", "qcow", writable=True)
    load = Workload(image, model)
    load.write(SIZE - 8 * KiB, bytes(8 * KiB))  # the file's end, of which nothing must go before the table says so
    random_workload(load, chance, steps=30, longest=30 * KiB)
    load.flush()
    image.close()
    for point, state in crash_states(load.before, load.journal, chance, 60):
        machine.files["state"] = state
        with machine.open("state", "qcow") as after:
            load.verify(point, after.read(0, after.size))
