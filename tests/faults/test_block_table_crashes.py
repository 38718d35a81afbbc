"""VDI, VHD, VHDX, Parallels, QED and qcow images after a crash at any write.

What was flushed is there, and nothing that never was. A check may find lost space; of Parallels and VHDX images, that
nobody closed them; of VHDX, that a header is torn.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from crashes import Workload, apply, crash_states, random_workload
from diskmill.contract.node import Image
from diskmill.contract.results import CheckResult
from diskmill.opening.graph import open_image
from diskmill.sizes import KiB, MiB
from formats import Machine
from twins import Content, MemoryStorage

FORMATS = {
    "vdi": {"cluster_size": 16 * KiB},
    "vpc": {"force_size": True},
    "vhdx": {"block_size": MiB},
    "parallels": {"cluster_size": 16 * KiB},
    "qed": {"cluster_size": 16 * KiB, "table_size": 2},
    "qcow": {},
}
CHECKED = [format for format in FORMATS if format != "qcow"]
"""Those that have a check."""
SIZE = 3 * MiB
SIZES = {"vhdx": 8 * MiB + 512, "vpc": 16 * MiB}
"""Larger ones, so that some blocks are not there yet after the first writes."""


def check(machine: Machine, name: str, format: str, repair: str = "") -> Any:
    if format not in CHECKED:
        return CheckResult()
    with machine.open(name, format, writable=bool(repair)) as image:
        return machine.context.registry.call(image.driver, "check", image=image, repair=repair)


def unclean(result: CheckResult) -> int:
    """How many of the corruptions a crash may leave: each is mended, or does no harm."""
    known = ("not closed properly", "footer", "headers", "region table")
    return sum(one.kind == "corruption" and any(word in one.text for word in known) for one in result.findings)


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
    machine.create("disk", format, size, FORMATS.get(format))
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


@pytest.mark.parametrize("format", [*FORMATS, "qcow2"])
def test_what_lies_behind_an_image_in_a_window_never_comes_up(format: str) -> None:
    """As behind one in a partition, or what a crash left there; such a file cannot be cut."""
    machine = Machine()
    size = 16 * MiB
    machine.create("disk", format, size, FORMATS.get(format))
    content = machine.files["disk"]
    content.write(content.size, b"\xee" * (size * 2))
    file = {"driver": "raw", "file": {"driver": "memory", "filename": "memory:disk"}}
    model = bytearray(size)
    with open_image({"file": file}, format, context=machine.context, writable=True) as image:
        for at in (5 * MiB, 12 * MiB):
            image.write(at, b"here" * 128)
            model[at : at + 512] = b"here" * 128
    with open_image({"file": file}, format, context=machine.context) as image:
        assert image.read(0, size) == model


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


def write_guid(data: bytes) -> bytes:
    """DataWriteGuid in the header of a VHDX file that holds: the one with the higher sequence number."""
    headers = [data[at : at + 4 * KiB] for at in (64 * KiB, 128 * KiB)]
    return max(headers, key=lambda header: struct.unpack_from("<Q", header, 8))[32:48]


MARKS: dict[str, tuple[int, dict[int, bytes], Callable[[bytes], bytes]]] = {
    # autoclear_features that nobody knows
    "qed": (64, {32: b"\6"}, lambda data: data[32:40]),
    # m_DiskInUse; and of the flags the one that says that the image is empty
    "parallels": (64, {52: b"\1"}, lambda data: data[44:48] + data[52:56]),
    "vhdx": (192 * KiB, {}, write_guid),
    # autoclear_features that nobody knows
    "qcow2": (64 * KiB, {88: b"\1"}, lambda data: data[88:96]),
}
"""Formats that tell of a change before it happens: how much of the file is the header, what to put into it first, and
what of it changes."""


@pytest.mark.parametrize("format", MARKS)
def test_a_change_is_told_before_it_happens(format: str) -> None:
    chance = random.Random(format)
    machine = Machine()
    front, put, mark = MARKS[format]
    image, model = start(machine, format, chance)
    image.close()
    for at, data in put.items():
        machine.files["disk"].write(at, data)
    image = machine.open("disk", format, writable=True)
    load = Workload(image, model)
    before = bytes(load.before)
    for number in range(4):
        load.write(number * 100 * KiB, chance.randbytes(60 * KiB))
    load.flush()
    image.close()
    told = 0
    for _, state in crash_states(load.before, load.journal, chance, 60):
        after = bytes(state)
        if mark(after) == mark(before):
            assert after[front:] == before[front:]
        else:
            told += 1
    assert told and mark(bytes(machine.files["disk"])) != mark(before)


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
