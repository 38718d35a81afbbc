"""A crash while an overlay is committed or rebased, or an image repaired, of formats other than qcow2 and VMDK.

What the guest reads from the overlay is the same all the time, whichever of the writes since a barrier are on disk.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from diskmill.commands.check import check
from diskmill.commands.commit import commit
from diskmill.commands.rebase import rebase
from diskmill_testkit.journals import crash_of_several
from formats import Machine

KiB = 1024
SIZE = 512 * KiB
OPTIONS = {
    "qed": {"cluster_size": 4 * KiB, "table_size": 2},
    "qcow": {},
    "vdi": {"cluster_size": 16 * KiB},
    "parallels": {"cluster_size": 16 * KiB},
    "vhdx": {"block_size": 1024 * KiB},
    "raw": {},
}


def written(machine: Machine, name: str, format: str, chance: random.Random, count: int) -> None:
    with machine.open(name, format, writable=True) as image:
        for _ in range(count):
            at = chance.randrange(image.size // 512) * 512
            image.write(at, chance.randbytes(min(20_000 // 512 * 512, image.size - at)))


def overlay(format: str, base: str) -> Machine:
    """A disk on one of two bases, all with something in them."""
    machine, chance = Machine(), random.Random(1)
    for name in ("base", "other"):
        machine.create(name, base, SIZE, OPTIONS[base])
        written(machine, name, base, chance, 8)
    machine.create("disk", format, SIZE, OPTIONS[format], backing=machine.backing("base", base))
    written(machine, "disk", format, chance, 8)
    return machine


def survives(machine: Machine, format: str, operation: Callable[[], object], *, mended: bool = False) -> None:
    """Run *operation*, and read the disk after a crash at each of its changes."""
    chance = random.Random(2)
    driver = machine.context.registry.protocol("memory")
    with machine.open("disk", format) as image:
        expected = bytes(image.read(0, image.size))
    before = {name: content.copy() for name, content in machine.files.items()}
    journal: list[tuple[str, tuple[object, ...]]] = []
    driver.journal = journal
    try:
        operation()
    finally:
        driver.journal = None
    assert len(journal) > 1
    points = range(len(journal) + 1) if len(journal) < 60 else sorted(chance.sample(range(len(journal) + 1), 60))
    for point in points:
        for sample in range(3):
            machine.files.clear()
            machine.files.update(crash_of_several(before, journal[:point], chance if sample else None))
            with machine.open("disk", format) as image:
                assert image.read(0, image.size) == expected, f"after {point} of {len(journal)} changes"
            if mended and not sample:
                check("memory:disk", format=format, repair="all", context=machine.context)
                result = check("memory:disk", format=format, context=machine.context)
                assert not (result.corruptions or result.leaks or result.check_errors)
                with machine.open("disk", format) as image:
                    assert image.read(0, image.size) == expected


@pytest.mark.parametrize("base", ["raw", "qed", "vdi", "parallels", "vhdx"])
@pytest.mark.parametrize("format", ["qed", "qcow"])
def test_commit(format: str, base: str) -> None:
    machine = overlay(format, base)
    survives(machine, format, lambda: commit("memory:disk", format=format, context=machine.context))


@pytest.mark.parametrize("backing", ["memory:other", ""])
def test_rebase(backing: str) -> None:
    machine = overlay("qed", "raw")
    kind = "raw" if backing else None
    survives(machine, "qed", lambda: rebase("memory:disk", backing, backing_format=kind, context=machine.context))


@pytest.mark.parametrize("format", ["qed", "vdi", "parallels"])
def test_repair(format: str) -> None:
    """Of leaks: space behind the data that nothing names, and marks of an image that was not closed."""
    machine = Machine()
    machine.create("disk", format, SIZE, OPTIONS[format])
    written(machine, "disk", format, random.Random(3), 8)
    content = machine.files["disk"]
    content.truncate(content.size + (64 * KiB))
    if format == "qed":
        content.write(16, b"\2")
    if format == "parallels":
        content.write(44, b"\x70\x26\x70\x74"[::-1])
    assert check("memory:disk", format=format, context=machine.context).findings
    survives(
        machine, format, lambda: check("memory:disk", format=format, repair="all", context=machine.context), mended=True
    )
