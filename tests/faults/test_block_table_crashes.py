"""VDI, VHD, VHDX, Parallels, QED and qcow images after a crash: what the kit does not know of it."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest
from diskmill.contract.node import Image
from diskmill.opening.graph import open_image
from diskmill.sizes import KiB, MiB
from diskmill_testkit.journals import Workload, crash_states
from diskmill_testkit.suites.crashes import examine
from formats import Machine
from twins import MemoryStorage

FORMATS = {
    "vdi": {"cluster_size": 16 * KiB},
    "vpc": {"force_size": True},
    "vhdx": {"block_size": MiB},
    "parallels": {"cluster_size": 16 * KiB},
    "qed": {"cluster_size": 16 * KiB, "table_size": 2},
    "qcow": {},
}
SIZE = 3 * MiB
SIZES = {"vhdx": 8 * MiB + 512, "vpc": 16 * MiB}
"""Larger ones, so that some blocks are not there yet after the first writes."""


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
