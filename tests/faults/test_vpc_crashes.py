"""Dynamic VHD images after a crash: one of their two footers is whole at any moment; each tells of a whole image."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from diskmill.contract.node import Image
from diskmill.opening.graph import open_image
from diskmill.sizes import SECTOR, MiB
from diskmill_testkit.journals import Change, crash_states, spoilt_states
from formats import Machine
from twins import Content, MemoryStorage

SIZE = 6 * MiB


def check(machine: Machine, image: Image, repair: str) -> None:
    machine.context.registry.call(image.driver, "check", image=image, repair=repair)


def repair(machine: Machine, image: Image) -> None:
    check(machine, image, "all")


def write(machine: Machine, image: Image) -> None:
    """A new block, whose bitmap comes over the footer."""
    image.write(5 * MiB, bytes(SECTOR))


def grow(size: int) -> Callable[[Machine, Image], None]:
    def change(machine: Machine, image: Image) -> None:
        assert machine.context.registry.call(image.driver, "resize", image=image, size=size, preallocation="off")

    return change


CHANGES = {"repair": repair, "write": write, "a little": grow(SIZE + MiB), "a lot": grow(6 << 30)}
DAMAGE = ["none", "first", "last", "space", "first and space", "block twice"]


def made(damage: str, chance: random.Random) -> tuple[Machine, bytes]:
    """The image "disk", damaged, and what its guest disk holds."""
    machine = Machine()
    machine.create("disk", "vpc", SIZE, {"force_size": True})
    model = bytearray(SIZE)
    with machine.open("disk", "vpc", writable=True) as image:
        for at in (0, 3 * MiB):
            model[at : at + SECTOR] = chance.randbytes(SECTOR)
            image.write(at, model[at : at + SECTOR])
    content = machine.files["disk"]
    if "space" in damage:
        footer = content.read(content.size - SECTOR, SECTOR)
        content.truncate(content.size + 4 * MiB)
        content.write(content.size, footer)
    if damage == "block twice":
        model[2 * MiB :] = model[: 2 * MiB].ljust(SIZE - 2 * MiB, b"\0")
        content.write(1536 + 4, content.read(1536, 4))
    if "first" in damage:
        content.write(0, chance.randbytes(SECTOR))
    if damage == "last":
        content.write(content.size - SECTOR, bytes(SECTOR))
    return machine, bytes(model)


def changed(machine: Machine, change: Callable[[Machine, Image], None]) -> tuple[Content, list[Change]]:
    """Do *change* to "disk": what the file was, and the journal."""
    with machine.open("disk", "vpc", writable=True) as image:
        storage = image.file
        assert isinstance(storage, MemoryStorage)
        before = storage.content.copy()
        storage.journal = []
        change(machine, image)
    assert storage.journal
    return before, storage.journal


def reads(machine: Machine, state: Content, model: bytes) -> None:
    machine.files["state"] = state
    with machine.open("state", "vpc") as image:
        assert image.read(0, SIZE) == model


@pytest.mark.parametrize(
    ("change", "damage"),
    [(change, damage) for change in CHANGES for damage in DAMAGE if (change, damage) != ("repair", "none")],
)
def test_a_footer_that_is_being_written_may_be_lost(change: str, damage: str) -> None:
    chance = random.Random(damage)
    machine, model = made(damage, chance)
    before, journal = changed(machine, CHANGES[change])
    for state in spoilt_states(before, journal, chance, b"conectix"):
        reads(machine, state, model)
    if change == "repair" and damage == "block twice":
        with pytest.raises(AssertionError, match="block 1 lies at a place that another block has"):
            machine.check("disk", "vpc")  # which of the two it belongs to, nothing tells
    elif change == "repair":
        machine.check("disk", "vpc")


@pytest.mark.parametrize("change", ["a little", "a lot", "repair"])
def test_either_footer_tells_of_a_whole_image(change: str) -> None:
    chance = random.Random(change)
    machine, model = made("space", chance)
    before, journal = changed(machine, CHANGES[change])
    lasts = set()
    for _, state in crash_states(before, journal, chance, 80):
        reads(machine, state, model)
        last = bytes(state.read(state.size - SECTOR, SECTOR))
        if last.startswith(b"conectix"):
            lasts.add(last)
            state.write(0, last)
            reads(machine, state, model)
    assert len(lasts) == (1 if change == "repair" else 2)


def test_a_fixed_image_that_is_killed_while_it_grows_says_so_when_it_is_opened() -> None:
    chance = random.Random(6)
    machine = Machine()
    warnings: list[str] = []
    machine.context.warn = warnings.append
    machine.create("disk", "vpc", MiB, {"subformat": "fixed", "force_size": True})
    model = chance.randbytes(MiB)
    with machine.open("disk", "vpc", writable=True) as image:
        image.write(0, model)
    before, journal = changed(machine, grow(2 * MiB))
    told = 0
    for _, state in crash_states(before, journal, chance, 40):
        machine.files["state"] = state
        warnings.clear()
        with machine.open("state", "vpc") as image:
            assert image.read(0, image.size) == model.ljust(image.size, b"\0")
        if warnings:
            told += 1
            assert f"old footer still lies over the disk, at offset {MiB}" in warnings[0]
            with pytest.raises(AssertionError, match="old footer"):
                machine.check("state", "vpc")
        two = state.size > MiB + SECTOR and state.read(MiB, 8) == b"conectix"
        assert bool(warnings) == two
        for mend in ("", "all"):
            machine.files["state"] = state.copy()
            spec = {"file": {"driver": "memory", "filename": "memory:state"}}
            with open_image(spec, "vpc", context=machine.context, writable=True, repair=mend) as image:
                if mend:
                    check(machine, image, mend)
            warnings.clear()
            with machine.open("state", "vpc") as image:
                assert image.window == 0
                assert image.read(0, image.size) == model.ljust(image.size, b"\0")
            assert not warnings
    assert told
