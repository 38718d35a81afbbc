"""qcow2 images after a crash at any write, and damaged ones: no wrong byte, no traceback."""

from __future__ import annotations

import random

import pytest
from crashes import Workload, crash_states, random_workload
from diskmill.commands.resize import set_size
from diskmill.errors import ImageError
from diskmill.sizes import KiB, MiB
from formats import Machine
from mutations import mutants, withstand

SIZE = 3 * MiB
LAYOUTS = [
    {"cluster_size": 4096},
    {"cluster_size": 512, "refcount_bits": 64},
    {"cluster_size": 64 * KiB},
    {"cluster_size": 16 * KiB, "extended_l2": True},
    {"compat": "0.10", "cluster_size": 1024},
]


@pytest.mark.parametrize("options", LAYOUTS, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_a_crash_while_writing(options: dict[str, object], seed: int) -> None:
    """What was flushed is there, nothing that never was, and space is lost at worst."""
    chance = random.Random(seed)
    machine = Machine()
    machine.create("disk", "qcow2", SIZE, options)
    image = machine.open("disk", "qcow2", writable=True)
    load = Workload(image, bytearray(SIZE))
    random_workload(load, chance, steps=25, longest=100 * KiB)
    image.close()
    for point, state in crash_states(load.before, load.journal, chance, 60):
        machine.files["state"] = state
        with machine.open("state", "qcow2") as after:
            found = machine.context.registry.call(after.driver, "check", image=after, repair="")
            assert not found.corruptions and not found.check_errors, found.findings
            load.verify(point, after.read(0, after.size))


def test_a_crash_while_the_refcount_table_moves() -> None:
    """It has room for 2 MiB of file here; then a larger one goes to another place."""
    chance = random.Random(1)
    machine = Machine()
    machine.create("disk", "qcow2", MiB, {"cluster_size": 512, "refcount_bits": 64})
    image = machine.open("disk", "qcow2", writable=True)
    set_size(image, SIZE, machine.context)
    model = bytearray(chance.randbytes(1900 * KiB).ljust(SIZE, b"\0"))
    image.write(0, bytes(model[: 1900 * KiB]))
    image.flush()
    load = Workload(image, model)
    place = bytes(load.before.read(48, 8))
    for number in range(6):
        load.write(2 * MiB + number * 50 * KiB, chance.randbytes(30 * KiB))
        load.flush()
    image.close()
    moved = 0
    for point, state in crash_states(load.before, load.journal, chance, 80):
        machine.files["state"] = state
        moved += bytes(state.read(48, 8)) != place
        with machine.open("state", "qcow2") as after:
            found = machine.context.registry.call(after.driver, "check", image=after, repair="")
            assert not found.corruptions and not found.check_errors, found.findings
            load.verify(point, after.read(0, after.size))
    assert 0 < moved < 80


@pytest.mark.parametrize("options", [{}, {"extended_l2": True, "cluster_size": 16 * KiB}], ids=["plain", "subclusters"])
def test_damage_in_header_and_tables(options: dict[str, object]) -> None:
    machine = Machine()
    machine.create("sample", "qcow2", 700 * KiB, {"cluster_size": 16 * KiB, **options})
    with machine.open("sample", "qcow2", writable=True) as image:
        for cluster in (5, 3, 4, 9, 1):
            image.write(cluster * 16 * KiB + 777, bytes([cluster]) * 3000)
    data = bytes(machine.files["sample"])
    regions = [(0, 128), *((at, 256) for at in range(16 * KiB, len(data), 16 * KiB))]
    counts = withstand("qcow2", mutants(data, regions, seed=1, count=500))
    assert counts["read"] > 20 and counts["refused"] > 20, counts


def test_who_tries_again_gets_the_same_answer() -> None:
    """No room can be found where the refcounts are damaged, however often it is looked for."""
    machine = Machine()
    machine.create("disk", "qcow2", MiB, {"cluster_size": 512})
    with machine.open("disk", "qcow2", writable=True) as image:
        image.write(0, b"x" * 300 * KiB)  # needs more refcount blocks than one
        place = image.header.refcount_table_offset
    data = bytearray(bytes(machine.files["disk"]))
    data[place + 8 : place + 16] = (1 << 40).to_bytes(8, "big")
    machine.put("disk", bytes(data))
    image = machine.open("disk", "qcow2", writable=True)
    for _ in range(3):
        with pytest.raises(ImageError, match="refcount block"):
            image.write(512 * KiB, b"y" * 200 * KiB)
    image.close_after_failure()
    with machine.open("disk", "qcow2") as image:
        assert image.read(0, 300 * KiB) == b"x" * 300 * KiB


def test_zeros_at_an_impossible_place_are_damage() -> None:
    """One bit makes a data cluster one of zeros; where the place is impossible, too, it is not believed."""
    machine = Machine()
    machine.create("disk", "qcow2", MiB, {})
    with machine.open("disk", "qcow2", writable=True) as image:
        image.write(0, b"x" * 4096)
    with machine.open("disk", "qcow2") as image:
        l2 = image.mapping.offset(0)
    data = bytearray(bytes(machine.files["disk"]))
    entry = int.from_bytes(data[l2 : l2 + 8], "big")
    data[l2 : l2 + 8] = (entry - 1).to_bytes(8, "big")
    machine.put("disk", bytes(data))
    with machine.open("disk", "qcow2") as image, pytest.raises(ImageError, match="L2 entry of guest offset 0"):
        image.read(0, 4096)
