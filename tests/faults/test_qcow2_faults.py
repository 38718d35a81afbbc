"""qcow2 images after a crash at any write, and damaged ones: no wrong byte, no traceback."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from diskmill.commands.resize import set_size
from diskmill.contract import calls
from diskmill.contract.node import Image
from diskmill.errors import ImageError
from diskmill.sizes import KiB, MiB
from diskmill_testkit.journals import Workload, crash_states, random_workload
from formats import REGISTRY, Machine
from mutations import mutants, withstand
from qcow2_damage import Anatomy

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


FAR = 1 << 40
"""Where no image of this module reaches."""
COPIED = 1 << 63


def _read(image: Image) -> None:
    image.read(0, image.size)


def _write(image: Image) -> None:
    image.write(0, b"y" * image.size)
    image.flush()


def _zero(image: Image) -> None:
    image.zero(0, image.size)
    image.flush()


def _discard(image: Image) -> None:
    image.discard(0, image.size)
    image.flush()


def _snapshot(action: calls.SnapshotAction) -> Callable[[Image], None]:
    def act(image: Image) -> None:
        calls.snapshot(REGISTRY, image, action, "one")

    act.__name__ = f"snapshot_{action}"
    return act


def _bitmap(image: Image) -> None:
    for one in calls.bitmaps(REGISTRY, image):
        list(one.ranges())


EVERY = (_read, _write, _zero, _discard, _bitmap, *(_snapshot(one) for one in ("load", "create", "apply", "delete")))
ENTRIES = {
    "l1": (COPIED, "_read _write _zero _discard snapshot_create snapshot_apply"),
    "l2": (COPIED, "_read _write _zero _discard snapshot_create snapshot_apply"),
    "compressed": (1 << 62, "_read _write _zero _discard snapshot_create snapshot_apply"),
    "refcount table": (0, "_write _zero _discard snapshot_create snapshot_apply snapshot_delete"),
    "snapshot table": (0, "snapshot_load snapshot_apply snapshot_delete"),
    "snapshot l1": (0, "snapshot_load snapshot_apply snapshot_delete"),
    "bitmap table": (0, "_bitmap _write _zero _discard"),
    "refcount table's place": (0, "_write _zero _discard snapshot_create snapshot_apply snapshot_delete"),
    "l1 table's place": (0, "_read _write _zero _discard snapshot_create snapshot_apply snapshot_delete"),
}
"""What is made to point far behind the end of the file, with its flags then, and what must be refused at least."""


@pytest.mark.parametrize("kind", ENTRIES)
def test_what_points_beyond_the_file_is_neither_read_nor_written_through(kind: str) -> None:
    machine = Machine()
    machine.create("disk", "qcow2", MiB, {"cluster_size": 4096})
    with machine.open("disk", "qcow2", writable=True) as image:
        image.write(0, b"x" * 256 * KiB)
        calls.snapshot(REGISTRY, image, "create", "one")
        image.write(64 * KiB, b"z" * 64 * KiB)
        if "bitmap" in kind:
            calls.bitmap(REGISTRY, image, "add", "marks", granularity=4096)
            image.write(0, b"x" * 4096)
    data = bytearray(bytes(machine.files["disk"]))
    flags, refused = ENTRIES[kind]
    place = {"refcount table's place": 48, "l1 table's place": 40}.get(kind)
    if place is None:
        parts = Anatomy(bytes(data)).parts["l2" if kind == "compressed" else kind]
        starts = [start for start, length in parts for start in range(start, start + max(length, 8), 8)]
        place = next(
            at for at in starts if any(data[at : at + 8]) and kind not in ("l2", "compressed") or data[at] >> 7
        )
    data[place : place + 8] = (FAR | flags).to_bytes(8, "big")
    for act in EVERY:
        if act is not _bitmap and "bitmap" in kind and act.__name__.startswith("snapshot"):
            continue  # bitmaps stand in their way
        machine.put("disk", bytes(data))
        went = True
        try:
            with machine.open(
                "disk", "qcow2", writable=act.__name__ not in ("_read", "_bitmap", "snapshot_load")
            ) as image:
                act(image)
                if act.__name__ == "snapshot_load":
                    _read(image)
        except ImageError:
            went = False
        assert not (went and act.__name__ in refused.split()), f"{act.__name__} went through"
        assert len(bytes(machine.files["disk"])) <= len(data) + 2 * MiB


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
