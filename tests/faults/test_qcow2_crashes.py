"""Operations on qcow2 images in place, and the power gone in between: what is there is old or new, and consistent.

Every change of every file is recorded. After each prefix of the record, with all of it on disk, and with only some of
the sectors that changed since the last barrier, the image opens, checks without corruption, and its disk and each of
its snapshots read as before the operation or as after it. So they do when
the disk is full, or a write fails, and the operation with it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from diskmill.commands.amend import amend
from diskmill.commands.commit import commit
from diskmill.commands.rebase import rebase
from diskmill.commands.resize import resize
from diskmill.commands.snapshot import snapshot
from diskmill.engine.copy import CopyPlan, copy
from diskmill.errors import DiskmillError, ImageError
from diskmill.sizes import KiB, MiB
from diskmill_testkit.journals import crash_of_several
from formats import Machine
from mutations import bounded
from twins import Content, memory

SIZE = 160 * KiB
LAYOUTS: dict[str, dict[str, object]] = {
    "plain": {"cluster_size": 1024},
    "tiny": {"cluster_size": 512, "refcount_bits": 64},
    "old": {"cluster_size": 2048, "compat": "0.10"},
    "narrow": {"cluster_size": 1024, "refcount_bits": 8},
    "subclusters": {"cluster_size": 16 * KiB, "extended_l2": True},
}
Operation = Callable[[Machine], None]

State = tuple[bytes, dict[str, bytes]]
"""The guest disk, and the disk of each snapshot by id and name."""


def scatter(machine: Machine, seed: int, *, compressed: bool = True) -> None:
    """Write here and there; some of it compressed, some of it zeros."""
    chance = random.Random(seed)
    with machine.open("disk", "qcow2", writable=True) as image:
        for _ in range(12):
            start = chance.randrange(image.size // 512) * 512
            length = min(chance.choice((512, 3 * KiB, 17 * KiB)), image.size - start)
            if chance.random() < 0.25:
                image.zero(start, length, unmap=chance.random() < 0.5)
            elif compressed and chance.random() < 0.3:
                low, high = start // image.unit * image.unit, -(-(start + length) // image.unit) * image.unit
                text = memory(bytes(chance.choices(b"abcd", k=min(high, image.size) - low)))
                copy(text, image, CopyPlan(compress=True), target_offset=low, length=text.size)
            else:
                image.write(start, chance.randbytes(length))


def state(machine: Machine, name: str = "disk") -> State:
    """What the image holds; it must be consistent."""
    with machine.open(name, "qcow2") as image:
        found = machine.context.registry.call(image.driver, "check", image=image, repair="")
        assert not found.corruptions and not found.check_errors, found.findings
        disk = image.read(0, image.size)
        listed = machine.context.registry.call(image.driver, "snapshot", image=image, action="list", name="")
    snapshots = {}
    for one in listed:
        with machine.open(name, "qcow2") as image:
            machine.context.registry.call(image.driver, "snapshot", image=image, action="load", name=one.id)
            snapshots[f"{one.id} {one.name}"] = image.read(0, image.size)
    return disk, snapshots


def holds(old: State, new: State, found: State) -> None:
    """Fail unless *found* is what was before or what came after."""
    assert found[1] in (old[1], new[1]), "the snapshots are neither those before nor those after"
    assert found[0] in (old[0], new[0]), "the disk is neither as before nor as after"


def survives(machine: Machine, operation: Operation, seed: int, *, samples: int = 3) -> None:
    """Run *operation*, and look at every state that a crash may leave."""
    chance = random.Random(seed)
    driver = machine.context.registry.protocol("memory")
    before = {name: content.copy() for name, content in machine.files.items()}
    old = state(machine)
    journal: list[tuple[str, tuple[object, ...]]] = []
    driver.journal = journal
    try:
        operation(machine)
    finally:
        driver.journal = None
    new = state(machine)
    assert len(journal) > 1
    for point in range(len(journal) + 1):
        for sample in range(samples + 1):
            after = crash_of_several(before, journal[:point], chance if sample else None)
            machine.files.update(after)
            holds(old, new, state(machine))

    for full in (True, False):
        fails(machine, operation, before, (old, new), journal, chance, full=full)


def fails(
    machine: Machine,
    operation: Operation,
    before: dict[str, Content],
    states: tuple[State, State],
    journal: list[tuple[str, tuple[Any, ...]]],
    chance: random.Random,
    *,
    full: bool,
) -> None:
    """Run *operation* while the disk gets full, or while one write fails, and look at what it leaves."""
    driver = machine.context.registry.protocol("memory")
    most = growth(before, journal) if full else sum(change[0] == "write" for _, change in journal)
    for point in {0, most - 1, *(chance.randrange(most + 1) for _ in range(6))}:
        machine.files.update({name: content.copy() for name, content in before.items()})
        driver.room, driver.broken = (point, None) if full else (None, point)
        cause = ""
        try:
            operation(machine)
        except DiskmillError as error:
            cause = str(error)
        finally:
            driver.room = driver.broken = None
        assert not cause or ("No space left" if full else "Input/output error") in cause
        for name in before:
            found = state(machine, name)
            if name == "disk":
                holds(*states, found)


def growth(before: dict[str, Content], journal: list[tuple[str, tuple[Any, ...]]]) -> int:
    """By how many bytes the files grow, at most."""
    largest = {name: content.size for name, content in before.items()}
    for name, change in journal:
        if change[0] == "write":
            largest[name] = max(largest[name], change[1] + len(change[2]))
    return sum(largest.values()) - sum(content.size for content in before.values()) + 1


def made(layout: str, seed: int) -> Machine:
    """An image with three snapshots, all different, the last with the disk's size of then."""
    machine = Machine()
    machine.create("disk", "qcow2", SIZE, LAYOUTS[layout])
    for number in range(3):
        scatter(machine, seed * 10 + number)
        snapshot("memory:disk", "create", f"s{number}", context=machine.context)
    scatter(machine, seed * 10 + 9)
    return machine


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("action", "name"), [("create", "new"), ("apply", "s1"), ("delete", "s0"), ("delete", "s2")])
def test_snapshots(layout: str, action: str, name: str) -> None:
    machine = made(layout, seed=1)
    survives(machine, lambda one: snapshot("memory:disk", action, name, context=one.context) and None, seed=2)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "old"])
@pytest.mark.parametrize("size", [1024, SIZE // 3 // 512 * 512, SIZE + 512, SIZE * 5])
def test_resize_with_snapshots(layout: str, size: int) -> None:
    machine = made(layout, seed=3)
    survives(machine, lambda one: resize("memory:disk", size, shrink=True, context=one.context) and None, seed=4)


def test_resize_moves_the_l1_table() -> None:
    machine = Machine()
    machine.create("disk", "qcow2", SIZE, LAYOUTS["tiny"])
    with machine.open("disk", "qcow2", writable=True) as image:
        image.write(0, random.Random(18).randbytes(SIZE))
    survives(machine, lambda one: resize("memory:disk", SIZE * 16, context=one.context) and None, seed=19, samples=1)


@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
def test_resize_with_preallocation(mode: str) -> None:
    machine = made("plain", seed=5)
    machine_size = SIZE * 3
    survives(
        machine,
        lambda one: resize("memory:disk", machine_size, preallocation=mode, context=one.context) and None,
        seed=6,
        samples=1,
    )


def test_apply_goes_back_to_another_size() -> None:
    machine = made("plain", seed=7)
    resize("memory:disk", SIZE * 4, context=machine.context)
    scatter(machine, 8)
    snapshot("memory:disk", "create", "large", context=machine.context)
    survives(machine, lambda one: snapshot("memory:disk", "apply", "s2", context=one.context) and None, seed=9)
    survives(machine, lambda one: snapshot("memory:disk", "apply", "large", context=one.context) and None, seed=9)


@pytest.mark.parametrize(
    "options",
    [
        {"refcount_bits": 64},
        {"refcount_bits": 4},
        {"compat": "0.10"},
        {"compat": "0.10", "refcount_bits": 16},
        {"lazy_refcounts": True, "refcount_bits": 32},
    ],
    ids=str,
)
def test_amend(options: dict[str, object]) -> None:
    machine = made("plain", seed=10)
    survives(machine, lambda one: amend("memory:disk", options, context=one.context), seed=11)
    if options.get("compat") == "0.10":
        survives(machine, lambda one: amend("memory:disk", {"compat": "1.1"}, context=one.context), seed=12)


def overlay(layout: str, seed: int, *, base_size: int = SIZE) -> Machine:
    """A disk over a base, both with something in them, and another base."""
    machine = Machine()
    for name, size, number in (("base", base_size, 1), ("other", SIZE // 2, 2)):
        machine.create(name, "qcow2", size, LAYOUTS[layout])
        with machine.open(name, "qcow2", writable=True) as image:
            image.write(0, random.Random(seed + number).randbytes(size))
    machine.create("disk", "qcow2", SIZE, LAYOUTS[layout], backing=machine.backing("base", "qcow2"))
    scatter(machine, seed, compressed=False)
    return machine


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("base_size", [SIZE, SIZE // 2, SIZE * 2])
def test_commit(layout: str, base_size: int) -> None:
    """The overlay reads the same all the time, whatever its base holds meanwhile."""
    machine = overlay(layout, seed=13, base_size=base_size)
    survives(machine, lambda one: commit("memory:disk", context=one.context), seed=14, samples=2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backing", ["memory:other", "memory:base", ""])
def test_rebase(layout: str, backing: str) -> None:
    machine = overlay(layout, seed=15)
    survives(
        machine,
        lambda one: rebase("memory:disk", backing, backing_format="qcow2" if backing else None, context=one.context),
        seed=16,
        samples=2,
    )


def test_data_in_a_file_of_its_own() -> None:
    """It is there before the image says that it covers what the backing image has."""
    machine = Machine()
    machine.create("base", "qcow2", SIZE)
    with machine.open("base", "qcow2", writable=True) as image:
        image.write(0, random.Random(20).randbytes(SIZE))
    options = {"cluster_size": 4 * KiB, "data_file": "memory:data"}
    machine.create("disk", "qcow2", SIZE, options, backing=machine.backing("base", "qcow2"))

    driver, chance = machine.context.registry.protocol("memory"), random.Random(21)
    before, old = {name: content.copy() for name, content in machine.files.items()}, state(machine)
    journal: list[tuple[str, tuple[object, ...]]] = []
    driver.journal = journal
    with machine.open("disk", "qcow2", writable=True) as image:
        image.write(8 * KiB, b"data" * KiB)
    driver.journal = None
    new = state(machine)
    for point in range(len(journal) + 1):
        for _ in range(8):
            machine.files.update(crash_of_several(before, journal[:point], chance))
            holds(old, new, state(machine))


@pytest.mark.parametrize(("length", "cluster_size"), [(20, 1024), (200, 2048), (500, 2048), (900, 4096)])
def test_a_long_backing_file_name_is_changed(length: int, cluster_size: int) -> None:
    """A header of several sectors changes in more than one write."""
    machine = Machine()
    names = [f"{letter * length}" for letter in "ab"]
    for name in names:
        machine.create(name, "qcow2", SIZE, {"cluster_size": cluster_size})
        with machine.open(name, "qcow2", writable=True) as image:
            image.write(0, b"same" * (SIZE // 4))
    backing = machine.backing(names[0], "qcow2")
    machine.create("disk", "qcow2", SIZE, {"cluster_size": cluster_size}, backing=backing)
    survives(
        machine,
        lambda one: rebase("memory:disk", f"memory:{names[1]}", backing_format="qcow2", context=one.context),
        seed=17,
        samples=8,
    )


def test_operations_on_damaged_images_fail_in_one_line_or_work() -> None:
    """No traceback, whatever a header, a table or the snapshot table says."""
    whole, chance = bytes(made("plain", seed=18).files["disk"]), random.Random(19)
    machine, messages = Machine(), []
    operations: tuple[Operation, ...] = (
        lambda one: snapshot("memory:disk", "create", "new", context=one.context) and None,
        lambda one: snapshot("memory:disk", "apply", "s1", context=one.context) and None,
        lambda one: snapshot("memory:disk", "delete", "s0", context=one.context) and None,
        lambda one: resize("memory:disk", SIZE // 3 // 512 * 512, shrink=True, context=one.context) and None,
        lambda one: resize("memory:disk", SIZE * 3, context=one.context) and None,
        lambda one: amend("memory:disk", {"compat": "0.10"}, context=one.context),
        lambda one: amend("memory:disk", {"refcount_bits": 64}, context=one.context),
    )
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 2, 4))):
            at = chance.randrange(112) if chance.random() < 0.1 else chance.randrange(len(data))
            data[at] = chance.choice((0, 255, chance.randrange(256)))
        for operation in operations:
            machine.put("disk", bytes(data))
            try:
                operation(machine)
            except DiskmillError as error:
                messages.append(str(error))
    assert messages and not any("\n" in message for message in messages)


@pytest.mark.parametrize(("place", "cluster"), [("L1 entries", 512), ("zero clusters", 4 * KiB)])
def test_clusters_that_are_said_to_lie_far_apart_take_no_memory(place: str, cluster: int) -> None:
    machine = Machine()
    machine.create("disk", "qcow2", 8 * MiB, {"cluster_size": cluster})
    with machine.open("disk", "qcow2", writable=True) as image:
        image.write(0, b"x" * 512)
        l1, entries = image.header.l1_table_offset, image.header.l1_size
    data = bytearray(bytes(machine.files["disk"]))
    l2 = int.from_bytes(data[l1 : l1 + 8], "big") & ((1 << 56) - 512)
    table, count, flag = (l1, entries, 0) if place == "L1 entries" else (l2, cluster // 8, 1)
    for index in range(1, count):
        data[table + index * 8 : table + index * 8 + 8] = (index << 46 | flag).to_bytes(8, "big")
    for operation in (
        lambda: snapshot("memory:disk", "create", "new", context=machine.context),
        lambda: amend("memory:disk", {"compat": "0.10"}, context=machine.context),
    ):
        machine.put("disk", bytes(data))
        with bounded(place), pytest.raises(ImageError, match="check it"):
            operation()
