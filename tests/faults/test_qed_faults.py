"""QED images that are damaged, and what a crash leaves of them while they are written over a backing image, or
repaired."""

from __future__ import annotations

import itertools
import random
import struct
from pathlib import Path
from typing import Any

import diskmill
import pytest
from diskmill.commands.rebase import rebase
from diskmill.sizes import KiB, MiB
from diskmill_testkit.journals import Change, Workload, crash_of_several, crash_states, random_workload
from formats import Machine
from mutations import bounded, mutants, withstand
from twins import MemoryStorage

SIZE = 2 * MiB


def image_of(machine: Machine, name: str, options: dict[str, Any], *, backing: str | None = None) -> bytearray:
    """A fragmented image; what its disk holds."""
    base = machine.backing(backing, "raw") if backing else None
    machine.create(name, "qed", SIZE, options, backing=base)
    model = bytearray(bytes(machine.files[backing]) if backing else bytes(SIZE))
    with machine.open(name, "qed", writable=True) as image:
        for number in (5, 3, 4, 9, 1, 30, 31, 2):
            piece = bytes([number]) * 5000
            image.write(number * 64 * KiB + 512, piece)
            model[number * 64 * KiB + 512 : number * 64 * KiB + 5512] = piece
        image.zero(16 * 64 * KiB, 3 * 64 * KiB)
        model[16 * 64 * KiB : 19 * 64 * KiB] = bytes(3 * 64 * KiB)
    return model


@pytest.mark.parametrize(
    "options", [{"cluster_size": 4096, "table_size": 2}, {"cluster_size": 16 * KiB, "table_size": 2}], ids=str
)
@pytest.mark.parametrize("seed", range(2))
def test_damage_in_header_and_tables(options: dict[str, Any], seed: int) -> None:
    machine = Machine()
    image_of(machine, "sample", options)
    data = bytes(machine.files["sample"])
    cluster = options["cluster_size"]
    (l2,) = struct.unpack_from("<Q", data, cluster)
    regions = [(0, 64), (cluster, 64), (l2, 600)]
    counts = withstand("qed", mutants(data, regions, seed=seed, count=600))
    assert counts["read"] > 20 and counts["refused"] > 20 and counts["written"] > 20, counts


def test_every_repaired_image_is_sound() -> None:
    """Whatever was wrong: what a repair leaves, a check finds nothing in, and it takes writes."""
    machine = Machine()
    image_of(machine, "sample", {"cluster_size": 4096, "table_size": 2})
    data = bytes(machine.files["sample"])
    (l2,) = struct.unpack_from("<Q", data, 4096)
    used = [at for at in range(l2, l2 + 8192, 8) if data[at : at + 8].strip(b"\0")]
    chance = random.Random(1)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(chance.randrange(1, 6)):
            place = chance.choice([*used, 4096, 4104, 4112, l2 + 4096])
            value = chance.choice([0, 1, l2, 4096, 8192, len(data), len(data) - 4096, chance.getrandbits(20) * 512])
            struct.pack_into("<Q", damaged, place, value)
        machine.put("disk", bytes(damaged[: len(data) - chance.choice((0, 0, 0, 1000, 9000))]))
        with machine.open("disk", "qed", writable=True) as image:
            done = machine.context.registry.call(image.driver, "check", image=image, repair="all")
            assert done.corruptions == done.corruptions_fixed, done.findings
        with machine.open("disk", "qed", writable=True) as image:
            found = machine.context.registry.call(image.driver, "check", image=image, repair="")
            assert not found.corruptions, found.findings
            before = image.read(0, SIZE)
            image.write(9 * 64 * KiB, b"new" * 30_000)
            assert image.read(0, SIZE) == before[: 9 * 64 * KiB] + b"new" * 30_000 + before[9 * 64 * KiB + 90_000 :]
        machine_check = machine.open("disk", "qed")
        with machine_check as image:
            found = machine.context.registry.call(image.driver, "check", image=image, repair="")
            assert not found.corruptions, found.findings


@pytest.mark.parametrize("cluster", [16 * KiB, 4 * MiB])
@pytest.mark.parametrize("seed", range(2))
def test_a_crash_while_writing_over_a_backing_image(cluster: int, seed: int) -> None:
    """Also where clusters are larger than the engine writes whole: never zeros where the backing image has data."""
    chance = random.Random(seed)
    machine = Machine()
    machine.put("base", chance.randbytes(SIZE))
    options = {"cluster_size": cluster, "table_size": 2}
    machine.create("disk", "qed", SIZE, options, backing=machine.backing("base", "raw"))
    image = machine.open("disk", "qed", writable=True)
    load = Workload(image, bytearray(bytes(machine.files["base"])))
    random_workload(load, chance, steps=30, longest=60 * KiB)
    load.flush()
    image.close()
    for point, state in crash_states(load.before, load.journal, chance, 60):
        machine.files["state"] = state
        with machine.open("state", "qed") as after:
            found = machine.context.registry.call(after.driver, "check", image=after, repair="")
            assert not found.corruptions and not found.check_errors, found.findings
            load.verify(point, after.read(0, after.size))


def survives_repair(machine: Machine, model: bytes, chance: random.Random) -> None:
    """Repair "disk", and look at what a crash may leave: it reads the same, and is sound once the mark is gone."""
    image = machine.open("disk", "qed", writable=True)
    storage = image.file
    assert isinstance(storage, MemoryStorage)
    before, marked = storage.content.copy(), image.dirty
    storage.journal = []
    result = machine.context.registry.call(image.driver, "check", image=image, repair="all")
    assert result.leaks == result.leaks_fixed > 0
    image.close()
    for _, state in crash_states(before, storage.journal, chance, 100):
        machine.files["state"] = state
        with machine.open("state", "qed") as after:
            assert after.read(0, after.size) == model
            if marked and not after.dirty:
                found = machine.context.registry.call(after.driver, "check", image=after, repair="")
                assert not found.corruptions and not found.check_errors, found.findings
    machine.check("disk", "qed")


@pytest.mark.parametrize("seed", range(6))
def test_a_crash_while_repairing(seed: int) -> None:
    """Copies for shared places, and clusters that move: all that was there is there, at every moment."""
    chance = random.Random(seed)
    machine = Machine()
    model = image_of(machine, "disk", {"cluster_size": 4096, "table_size": 2})
    data = bytearray(bytes(machine.files["disk"]))
    (l2,) = struct.unpack_from("<Q", data, 4096)
    entries = [block for block, entry in enumerate(struct.unpack_from("<1024Q", data, l2)) if entry > 1]
    for block in chance.sample(entries, 6 if seed % 3 else 0):  # lost
        struct.pack_into("<Q", data, l2 + block * 8, 0)
        model[block * 4096 : block * 4096 + 4096] = bytes(4096)
    if seed % 2:  # shared
        one, other = chance.sample(entries, 2)
        data[l2 + one * 8 : l2 + one * 8 + 8] = data[l2 + other * 8 : l2 + other * 8 + 8]
        model[one * 4096 : one * 4096 + 4096] = model[other * 4096 : other * 4096 + 4096]
    if seed % 3 == 0:  # the table goes before the last cluster, which must take its place again
        table = list(struct.unpack_from("<1024Q", data, l2))
        last = max(table)
        table[table.index(last)] = last + 8192
        data[last:] = struct.pack("<1024Q", *table) + data[last : last + 4096]
        struct.pack_into("<Q", data, 4096, last)
    if seed % 2:
        data[16] |= 2  # QED_F_NEED_CHECK
    machine.put("disk", bytes(data))
    survives_repair(machine, bytes(model), chance)


def test_a_crash_while_tables_that_overlap_are_parted() -> None:
    """What the copy of a table leaves behind is free when the table on disk is the copy, and no moment sooner."""
    chance = random.Random(1)
    machine = Machine()
    cluster, size = 4 * KiB, 8 * MiB
    machine.create("disk", "qed", size, {"cluster_size": cluster, "table_size": 2})
    data = bytearray(bytes(machine.files["disk"]).ljust(16 * cluster, b"\0"))
    model = bytearray(size)
    struct.pack_into("<2Q", data, cluster, 3 * cluster, 4 * cluster)  # of two clusters each; nothing names cluster 6
    for table, block, place in ((3, 0, 7), (3, 300, 9), (5, 1024 + 512, 8), (5, 1024 + 900, 10)):
        struct.pack_into("<Q", data, table * cluster + block % 512 * 8, place * cluster)
        content = chance.randbytes(cluster)
        data[place * cluster : (place + 1) * cluster] = model[block * cluster : (block + 1) * cluster] = content
    machine.put("disk", bytes(data[: 11 * cluster]))
    survives_repair(machine, bytes(model), chance)


@pytest.mark.parametrize("length", [20, 180, 600])
def test_a_crash_while_the_backing_file_changes(length: int) -> None:
    """The header names the old one or the new one, whole, and the disk reads the same."""
    chance = random.Random(length)
    machine = Machine()
    driver = machine.context.registry.protocol("memory")
    names = [f"memory:{letter * length}" for letter in "abc"]
    disk = chance.randbytes(SIZE)
    for name in names:
        machine.put(name.removeprefix("memory:"), disk)
    machine.create("disk", "qed", SIZE, {"cluster_size": 4 * KiB}, backing=machine.backing("a" * length, "raw"))
    for old, new in [*itertools.pairwise(names), (names[2], "")]:
        before = {name: content.copy() for name, content in machine.files.items()}
        journal: list[tuple[str, Change]] = []
        driver.journal = journal
        try:
            rebase("memory:disk", new, backing_format="raw" if new else None, context=machine.context)
        finally:
            driver.journal = None
        after, seen = machine.files["disk"], set()
        for point in range(len(journal) + 1):
            for sample in range(8):
                state = crash_of_several(before, journal[:point], chance if sample else None)
                machine.files["disk"] = state["disk"]
                with machine.open("disk", "qed") as image:
                    seen.add(image.references[0].name if image.references else "")
                    assert image.read(0, SIZE) == disk
        assert seen == {old, new}
        machine.files["disk"] = after


def test_a_thousand_tables_of_a_gigabyte_that_are_holes(tmp_path: Path) -> None:
    """Eight bytes each in the image of a stranger: nothing must read through them."""
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.write(struct.pack("<4sIIIQQQQQII", b"QED\0", 64 * MiB, 16, 1, 0, 0, 0, 64 * MiB, MiB, 0, 0))
        file.seek(64 * MiB)
        file.write(b"".join(struct.pack("<Q", (1 << 31) + (number << 30)) for number in range(1000)))
        file.truncate((1 << 31) + (1001 << 30))
        file.seek(48)
        file.write(struct.pack("<Q", 1 << 62))
    with bounded("a thousand tables"):
        assert diskmill.check(str(image)).corruptions == 0
        with diskmill.open(str(image), writable=True) as disk:
            assert not any(disk.read((1 << 62) - 4096, 4096))
            assert len(list(disk.extents(0, disk.size))) == 1
            disk.write(0, b"x" * 512)
            assert disk.read(0, 512) == b"x" * 512
