"""Crashes in the middle of repairs and of work with bitmaps: no worse than before, and mendable."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from diskmill.contract.node import Image
from diskmill.contract.results import Bitmap, CheckResult
from diskmill.errors import ImageError
from diskmill.opening.graph import open_image
from diskmill.sizes import KiB, MiB
from diskmill_testkit.journals import Change, Workload, apply, crash_states, random_workload
from formats import Machine
from qcow2_damage import LAYOUTS, Anatomy, sample
from tools import assert_clean
from twins import Content, MemoryStorage

SIZE = 3 * MiB


def opened(machine: Machine, name: str, repair: str = "") -> Image:
    spec = {"file": {"driver": "memory", "filename": f"memory:{name}"}}
    return open_image(spec, "qcow2", context=machine.context, writable=True, backing=False, repair=repair)


def look(machine: Machine, image: Image, repair: str = "") -> CheckResult:
    result: CheckResult = machine.context.registry.call(image.driver, "check", image=image, repair=repair)
    return result


def mend(machine: Machine, name: str) -> str:
    """Repair the image *name*, as gently as it goes; how."""
    for how in ("all", "lost"):
        try:
            with opened(machine, name, how) as image:
                look(machine, image, "all")
                left = look(machine, image)
        except ImageError as error:
            if how == "lost" or "-r lost" not in str(error):
                raise
        else:
            assert not (left.corruptions or left.leaks or left.check_errors), left.findings
            return how
    raise AssertionError("unreachable")


def contents(machine: Machine, name: str) -> bytes:
    with machine.open(name, "qcow2") as image:
        return image.read(0, image.size)


def states(before: Content, journal: list[Change], chance: random.Random) -> Iterator[tuple[int, Content]]:
    """After every prefix of the journal, and some more with what was not on disk yet reordered, dropped or torn."""
    yield from prefixes(before, journal)
    yield from crash_states(before, journal, chance, 25)


def prefixes(before: Content, journal: list[Change]) -> Iterator[tuple[int, Content]]:
    """After about 60 prefixes of the journal, and after all of it."""
    state = before.copy()
    step = max(len(journal) // 60, 1)
    for point, change in enumerate(journal):
        if point % step == 0:
            yield point, state.copy()
        apply(state, change)
    yield len(journal), state


@pytest.mark.parametrize("layout", LAYOUTS[:6])
def test_a_crash_while_repairing(tmp_path: Path, layout: str) -> None:
    """The image is the damaged one or the mended one: a repair after the crash ends like one without it."""
    machine, chance = Machine(), random.Random(layout)
    sample(tmp_path / "sample", layout)
    anatomy = Anatomy((tmp_path / "sample").read_bytes())
    for case in range(4):
        data, done = anatomy.damaged(chance)
        machine.put("mended", data)
        how = mend(machine, "mended")
        truth = contents(machine, "mended")
        machine.put("image", data)
        with opened(machine, "image", how) as image:
            storage = image.file
            assert isinstance(storage, MemoryStorage)
            before, storage.journal = storage.content.copy(), []
            look(machine, image, "all")
        for point, state in states(before, storage.journal, chance):
            machine.files["state"] = state
            again = mend(machine, "state")
            assert how == "lost" or again == "all", done
            assert contents(machine, "state") == truth, (done, point)
        if not case:
            (tmp_path / "last").write_bytes(bytes(machine.files["state"]))
            assert_clean(tmp_path / "last")


@pytest.mark.parametrize("options", [{"cluster_size": 4096}, {"cluster_size": 512}, {"extended_l2": True}], ids=str)
def test_a_crash_while_writing_is_mended(options: dict[str, Any]) -> None:
    """Whatever a crash leaves of new L2 tables and of copies that snapshots make necessary is space, and given back.

    Where refcounts got to the disk before the data that they count, an L2 table that was freed may still be there, as
    if it had been lost: that is in doubt, and is given back when told so.
    """
    machine, chance = Machine(), random.Random(7)
    machine.create("disk", "qcow2", SIZE, options)
    with machine.open("disk", "qcow2", writable=True) as image:
        image.write(0, b"old!" * 200 * KiB)
        machine.context.registry.call(image.driver, "snapshot", image=image, action="create", name="s")
    model = bytearray(SIZE)
    model[: 800 * KiB] = b"old!" * 200 * KiB
    image = machine.open("disk", "qcow2", writable=True)
    load = Workload(image, model)
    random_workload(load, chance, steps=20, longest=100 * KiB)
    image.close()
    in_order = [(*one, True) for one in prefixes(load.before, load.journal)]
    loose = [(*one, False) for one in crash_states(load.before, load.journal, chance, 25)]
    for point, state, ordered in in_order + loose:
        machine.files["state"] = state
        with machine.open("state", "qcow2") as after:
            found = look(machine, after)
            assert not found.corruptions, found.findings
        assert mend(machine, "state") == "all" or not ordered
        load.verify(point, contents(machine, "state"))


def act(machine: Machine, image: Image, action: str, name: str, **options: Any) -> list[Bitmap]:
    result: list[Bitmap] = machine.context.registry.call(
        image.driver, "bitmap", image=image, action=action, name=name, options=options
    )
    return result


def marked(bitmap: Bitmap) -> list[tuple[int, int]]:
    return list(bitmap.ranges())


@pytest.mark.parametrize("cluster", [512, 4 * KiB, 64 * KiB])
def test_a_crash_while_bitmaps_record(cluster: int) -> None:
    """A bitmap that is not void tells of every write that may have reached the disk."""
    machine, chance = Machine(), random.Random(cluster)
    machine.create("disk", "qcow2", SIZE, {"cluster_size": cluster})
    with machine.open("disk", "qcow2", writable=True) as image:
        image.write(0, b"old" * 100)
        for name, granularity in (("fine", 512), ("coarse", 64 * KiB)):
            act(machine, image, "add", name, granularity=granularity)
        act(machine, image, "add", "still", disabled=True)
    image = machine.open("disk", "qcow2", writable=True)
    model = bytearray(SIZE)
    model[:300] = b"old" * 100
    load = Workload(image, model)
    random_workload(load, chance, steps=12, longest=200 * KiB)
    image.close()
    for point, state in states(load.before, load.journal, chance):
        machine.files["state"] = state
        with machine.open("state", "qcow2") as after:
            found = look(machine, after)
            assert not found.corruptions, found.findings
            disk = after.read(0, SIZE)
            load.verify(point, disk)
            shown = {one.name: one for one in act(machine, after, "list", "")}
            assert set(shown) == {"fine", "coarse", "still"}
            assert not shown["still"].inconsistent and not marked(shown["still"])
            for name in ("fine", "coarse"):
                if shown[name].inconsistent:
                    continue
                covered = bytearray(SIZE)
                for offset, length in marked(shown[name]):
                    covered[offset : offset + length] = b"\1" * length
                changed = [at for at in range(300, SIZE, 512) if disk[at : at + 1] != b"\0" and not covered[at]]
                assert not changed, (point, changed)
        if point % 5 == 0:
            assert mend(machine, "state") == "all"


def test_a_bitmap_is_in_use_before_what_it_tells_of_changes() -> None:
    """Where the clusters are there, nothing else has to reach the disk before the data."""
    machine, chance = Machine(), random.Random(4)
    machine.create("disk", "qcow2", SIZE, {"cluster_size": 4 * KiB})
    model = bytearray(chance.randbytes(256 * KiB).ljust(SIZE, b"\0"))
    with machine.open("disk", "qcow2", writable=True) as image:
        image.write(0, bytes(model[: 256 * KiB]))
        act(machine, image, "add", "a", granularity=512)
    image = machine.open("disk", "qcow2", writable=True)
    load = Workload(image, bytearray(model))
    load.write(8 * KiB, b"new!" * KiB)
    load.flush()
    image.close()
    changed = 0
    for _, state in crash_states(load.before, load.journal, chance, 40):
        machine.files["state"] = state
        with machine.open("state", "qcow2") as after:
            (bitmap,) = act(machine, after, "list", "")
            if not bitmap.inconsistent and not marked(bitmap):
                assert after.read(0, SIZE) == model
            else:
                changed += 1
    assert changed


def test_a_crash_while_bitmaps_change() -> None:
    """Each bitmap is as it was, or as it should be."""
    machine, chance = Machine(), random.Random(3)
    machine.create("disk", "qcow2", SIZE, {"cluster_size": 4 * KiB})
    with machine.open("disk", "qcow2", writable=True) as image:
        act(machine, image, "add", "a", granularity=512)
        act(machine, image, "add", "b", granularity=4 * KiB)
    with machine.open("disk", "qcow2", writable=True) as image:
        image.write(1 * MiB, b"x" * 300 * KiB)

    def told(name: str) -> dict[str, tuple[bool, bool, list[tuple[int, int]]]]:
        with machine.open(name, "qcow2") as image:
            return {
                one.name: (one.enabled, one.inconsistent, [] if one.inconsistent else marked(one))
                for one in act(machine, image, "list", "")
            }

    steps: list[tuple[str, str]] = [
        ("remove", "a"),
        ("disable", "b"),
        ("clear", "b"),
        ("add", "c"),
        ("enable", "b"),
        ("add", "a"),
        ("remove", "b"),
        ("remove", "c"),
        ("remove", "a"),
    ]
    for action, name in steps:
        old = told("disk")
        image = machine.open("disk", "qcow2", writable=True)
        assert isinstance(image.file, MemoryStorage)
        before, image.file.journal = image.file.content.copy(), []
        journal = image.file.journal
        act(machine, image, action, name)
        image.close()
        new = told("disk")
        assert new != old
        for _, state in states(before, journal, chance):
            machine.files["state"] = state
            assert told("state") in (old, new)
            assert mend(machine, "state") == "all"
            assert told("state") in (old, new)
