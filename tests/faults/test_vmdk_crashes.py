"""Sparse VMDKs after a crash at any write: in place, while they grow, and while an overlay is committed."""

from __future__ import annotations

import random
import struct
from typing import Any

import diskmill
import pytest
from crashes import Change, Workload, apply, crash_states, random_workload
from diskmill.node import Image
from diskmill.sizes import KiB, MiB
from formats import Machine
from twins import Content, MemoryStorage

SECTOR = 512
GRAIN = 64 * KiB
SIZE = 3 * MiB + 3 * SECTOR
"""The last grain goes on beyond the end of the disk."""
OPTIONS: list[dict[str, Any]] = [{}, {"zeroed_grain": True}]


def check(machine: Machine, name: str, repair: str = "") -> Any:
    with machine.open(name, "vmdk", writable=bool(repair)) as image:
        return machine.context.registry.call(image.driver, "check", image=image, repair=repair)


def examine(machine: Machine) -> None:
    """Of the tables of "disk", all that may be wrong is that one copy is behind the other."""
    wrong = [one.text for one in check(machine, "disk").findings if "redundant copy differ" not in one.text]
    assert not wrong


def read(machine: Machine, state: Content) -> bytes:
    """What the guest disk in *state* holds."""
    machine.files["disk"] = state
    examine(machine)
    with machine.open("disk", "vmdk") as image:
        return image.read(0, image.size)


def start(
    machine: Machine, options: dict[str, Any], chance: random.Random, *, overlay: bool
) -> tuple[Image, bytearray]:
    """An image with some grains, open for writing, and what its guest disk holds."""
    model, backing = bytearray(SIZE), None
    if overlay:
        machine.create("base", "vmdk", SIZE)
        data = chance.randbytes(4 * GRAIN)
        with machine.open("base", "vmdk", writable=True) as image:
            image.write(MiB, data)
        model[MiB : MiB + len(data)] = data
        backing = machine.backing("base", "vmdk")
    machine.create("disk", "vmdk", SIZE, options, backing=backing)
    with machine.open("disk", "vmdk", writable=True) as image:
        for _ in range(6):
            at = chance.randrange(SIZE // SECTOR) * SECTOR
            data = chance.randbytes(min(80 * SECTOR, SIZE - at))
            image.write(at, data)
            model[at : at + len(data)] = data
    return machine.open("disk", "vmdk", writable=True), model


def ended(before: Content, journal: list[Change]) -> Content:
    content = before.copy()
    for change in journal:
        apply(content, change)
    return content


@pytest.mark.parametrize("overlay", [False, True], ids=["alone", "overlay"])
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "zeroed"])
def test_a_crash_while_writing(options: dict[str, Any], overlay: bool) -> None:
    chance = random.Random(str(options))
    machine = Machine()
    image, model = start(machine, options, chance, overlay=overlay)
    load = Workload(image, model)
    random_workload(load, chance, steps=30, longest=3 * GRAIN)
    load.write(SIZE - SECTOR, b"last" * 128)
    load.flush()
    image.close()
    states = list(crash_states(load.before, load.journal, chance, 40))
    for point, state in states:
        load.verify(point, read(machine, state))
    # Life goes on with what a crash left, repaired or not.
    for number, (_, state) in enumerate(chance.sample(states, 10)):
        disk = bytearray(read(machine, state))
        if number % 2:
            check(machine, "disk", repair="all")
            assert check(machine, "disk").findings == []
        with machine.open("disk", "vmdk", writable=True) as again:
            for _ in range(10):
                at = chance.randrange(SIZE // SECTOR) * SECTOR
                again.write(at, b"new!" * 128)
                disk[at : at + SECTOR] = b"new!" * 128
        check(machine, "disk", repair="all")
        assert check(machine, "disk").findings == []
        with machine.open("disk", "vmdk") as again:
            assert again.read(0, SIZE) == disk
            assert number % 2 == 0 or not again.dirty


@pytest.mark.parametrize("overlay", [False, True], ids=["alone", "overlay"])
@pytest.mark.parametrize("size", [SIZE + SECTOR, 32 * MiB, 64 * MiB + SECTOR, 9 << 30])
def test_a_crash_while_growing(size: int, overlay: bool) -> None:
    chance = random.Random(size)
    machine = Machine()
    image, model = start(machine, {}, chance, overlay=overlay)
    # What other writers leave behind the end of the disk must not come up.
    last = struct.pack("<Q", SIZE)
    image.write(SIZE - 3 * SECTOR, last)
    model[SIZE - 3 * SECTOR : SIZE - 3 * SECTOR + 8] = last
    image.flush()
    storage = image.file
    assert isinstance(storage, MemoryStorage)
    (extent,) = image.extents(SIZE - SECTOR, SECTOR)
    storage.write(extent.offset + SECTOR, b"\xee" * SECTOR)
    before = storage.content.copy()
    storage.journal = []
    assert machine.context.registry.call(image.driver, "resize", image=image, size=size, preallocation="off")
    journal = storage.journal
    image.close()
    states = [state for _, state in crash_states(before, journal, chance, 60)]
    # The descriptor's text moves: a tear between any two of its sectors too.
    for number, change in enumerate(journal):
        if change[0] == "write" and len(change[2]) > SECTOR:
            torn = ended(before, journal[:number])
            apply(torn, ("write", change[1], change[2][:SECTOR]))
            states.append(torn)
    sizes = set()
    for state in [before, ended(before, journal), *states]:
        machine.files["disk"] = state
        examine(machine)
        with machine.open("disk", "vmdk") as again:
            sizes.add(again.size)
            assert again.read(0, SIZE) == model
            assert not any(again.read(SIZE, min(again.size - SIZE, MiB)))
    assert sizes == {SIZE, size}


def test_a_crash_while_an_overlay_is_committed() -> None:
    chance = random.Random(5)
    machine = Machine()
    image, model = start(machine, {}, chance, overlay=True)
    image.close()
    before = {name: content.copy() for name, content in machine.files.items()}
    journal: list[tuple[str, Change]] = []

    class Journal(list[Change]):
        """Of one file, put down in the one of both."""

        def __init__(self, name: str) -> None:
            self.name = name

        def append(self, change: Change) -> None:
            journal.append((self.name, change))

    make = MemoryStorage.__init__

    def make_recorded(self: MemoryStorage, driver: Any, name: str, content: Content, **keywords: Any) -> None:
        make(self, driver, name, content, **keywords)
        self.journal = Journal(name.removeprefix("memory:"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryStorage, "__init__", make_recorded)
        diskmill.commit("memory:disk", format="vmdk", context=machine.context)
    assert {name for name, _ in journal} == {"base", "disk"}
    state = {name: content.copy() for name, content in before.items()}
    refused = []
    for number, (name, change) in enumerate(journal):
        apply(state[name], change)
        if change[0] == "barrier":
            continue
        machine.files.update({one: content.copy() for one, content in state.items()})
        try:
            with machine.open("disk", "vmdk") as again:
                assert again.read(0, SIZE) == model, f"after change {number}"
        except diskmill.DiskmillError as error:
            refused.append(str(error))
    # Between the two writes that give the parent a new content id, and the overlay the same.
    assert len(refused) <= 1
    assert all("has changed since" in error for error in refused)
