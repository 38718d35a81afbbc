"""Sparse VMDKs after a crash at any write: in place, while they grow, and while an overlay is committed."""

from __future__ import annotations

import random
import struct
from typing import Any

import diskmill
import pytest
from diskmill.contract.node import Image
from diskmill.sizes import KiB, MiB
from diskmill_testkit.journals import Change, Workload, apply, crash_of_several, crash_states, random_workload
from formats import Machine, refused
from twins import Content, MemoryDriver, MemoryStorage

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
    known = ("redundant copy differ", "only one of the grain directories")
    wrong = [one.text for one in check(machine, "disk").findings if not any(text in one.text for text in known)]
    assert not wrong


def read(machine: Machine, state: Content) -> bytes:
    """What the guest disk in *state* holds."""
    machine.files["disk"] = state
    examine(machine)
    with machine.open("disk", "vmdk") as image:
        return image.read(0, image.size)


def sound_unless_marked(machine: Machine) -> None:
    """Where nothing says that "disk" is being written, its tables and their copies agree."""
    with machine.open("disk", "vmdk") as image:
        marked = image.dirty
    assert marked or check(machine, "disk").findings == []


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
        sound_unless_marked(machine)
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


def test_a_crash_while_an_image_is_closed() -> None:
    chance = random.Random(2)
    machine = Machine()
    image, _ = start(machine, {}, chance, overlay=False)
    load = Workload(image, bytearray(image.read(0, SIZE)))
    hole = next(extent for extent in image.extents(0, SIZE) if extent.node is None)
    load.write(hole.start, b"last" * 128)
    image.close()
    for point, state in crash_states(load.before, load.journal, chance, 60):
        disk = read(machine, state)
        load.verify(point, disk)
        sound_unless_marked(machine)
        check(machine, "disk", repair="all")
        assert read(machine, machine.files["disk"]) == disk, "a repair brings up what was not there"


@pytest.mark.parametrize("damaged", ["primary", "redundant", "entry"])
def test_a_crash_while_repairing(damaged: str) -> None:
    chance = random.Random(damaged)
    machine = Machine()
    image, model = start(machine, {}, chance, overlay=False)
    image.close()
    content = machine.files["disk"]
    redundant, primary = struct.unpack("<QQ", content.read(48, 16))
    if damaged == "entry":  # of the first table, a grain far beyond the end
        (table,) = struct.unpack("<I", content.read(primary * SECTOR, 4))
        at = table * SECTOR + next(at for at in range(0, 2048, 4) if any(content.read(table * SECTOR + at, 4)))
    else:
        at = {"primary": primary, "redundant": redundant}[damaged] * SECTOR
    content.write(at, struct.pack("<I", 1 << 30))
    content.write(72, b"\1")  # uncleanShutdown
    image = machine.open("disk", "vmdk", writable=True)
    storage = image.file
    assert isinstance(storage, MemoryStorage)
    before = storage.content.copy()
    storage.journal = []
    machine.context.registry.call(image.driver, "check", image=image, repair="all")
    image.close()
    readable = 0
    for _, state in crash_states(before, storage.journal, chance, 60):
        machine.files["disk"] = state
        try:
            with machine.open("disk", "vmdk") as again:
                assert again.read(0, SIZE) == model
            readable += 1
        except diskmill.DiskmillError:
            assert damaged != "redundant"
            assert state.read(primary * SECTOR, 4) == before.read(primary * SECTOR, 4), "not as it was before"
        sound_unless_marked(machine)
    assert readable


@pytest.mark.parametrize("entry", [0, 1], ids=["missing", "zeros"])
def test_a_crash_while_a_table_of_zeros_comes_into_being(entry: int) -> None:
    """Nothing is written behind such a table: it alone makes the file long enough for what names it.

    Where the directory said that all below it is zeros, it never reads as the parent does.
    """
    chance = random.Random(1)
    machine = Machine()
    size, at = 64 * MiB, 40 * MiB
    machine.create("base", "vmdk", size)
    data = chance.randbytes(4 * GRAIN)
    with machine.open("base", "vmdk", writable=True) as image:
        image.write(at, data)
    machine.create("disk", "vmdk", size, {"zeroed_grain": True}, backing=machine.backing("base", "vmdk"))
    content = machine.files["disk"]
    for directory in struct.unpack("<QQ", content.read(48, 16)):
        content.write(directory * SECTOR + 4, struct.pack("<I", entry))
    image = machine.open("disk", "vmdk", writable=True)
    old = image.read(at, len(data))
    assert old == (bytes(len(data)) if entry else data)
    storage = image.file
    assert isinstance(storage, MemoryStorage)
    before = storage.content.copy()
    storage.journal = []
    image.zero(at, 2 * GRAIN)
    if entry:
        image.write(at, b"disk" * 128)
    image.flush()
    journal, new = storage.journal, image.read(at, len(data))
    image.close()
    found = set()
    for _, state in crash_states(before, journal, chance, 60):
        machine.files["disk"] = state
        examine(machine)
        sound_unless_marked(machine)
        with machine.open("disk", "vmdk") as again:
            disk = again.read(at, len(data))
        found.add(disk)
        check(machine, "disk", repair="all")
        with machine.open("disk", "vmdk") as again:
            assert again.read(at, len(data)) == disk, "a repair brings up what was not there"
    assert found == {old, new} and new[SECTOR : 2 * GRAIN] == bytes(2 * GRAIN - SECTOR)


def forget_copies(content: Content) -> None:
    """Let the header say that there are no redundant tables."""
    content.write(8, bytes([content.read(8, 1)[0] & ~2]))


@pytest.mark.parametrize("copied", [True, False], ids=["with copies", "without"])
@pytest.mark.parametrize("overlay", [False, True], ids=["alone", "overlay"])
def test_a_crash_while_a_resize_that_failed_is_taken_back(overlay: bool, copied: bool) -> None:
    chance = random.Random(3)
    machine = Machine()
    driver = machine.context.registry.protocol("memory")
    assert isinstance(driver, MemoryDriver)
    machine.create("base", "vmdk", 70 * MiB)
    with machine.open("base", "vmdk", writable=True) as image:
        image.write(SIZE - SIZE % GRAIN, b"base" * (GRAIN * 2 // 4))
    backing = machine.backing("base", "vmdk") if overlay else None
    machine.create("disk", "vmdk", SIZE, backing=backing)
    with machine.open("disk", "vmdk", writable=True) as image:
        image.write(MiB, b"disk" * 1024)
        model = image.read(0, SIZE)
    if not copied:
        forget_copies(machine.files["disk"])
    whole = machine.files["disk"].copy()
    for point in range(100):
        machine.files["disk"] = whole.copy()
        image = machine.open("disk", "vmdk", writable=True)
        storage = image.file
        assert isinstance(storage, MemoryStorage)
        storage.journal = []
        driver.failures, driver.broken = 0, point
        try:
            machine.context.registry.call(image.driver, "resize", image=image, size=68 * MiB, preallocation="off")
        except diskmill.DiskmillError as error:
            refused(error, "Input/output error")
        finally:
            driver.broken = None
        image.close()
        if not driver.failures:
            break
        for _, state in crash_states(whole, storage.journal, chance, 16):
            machine.files["disk"] = state
            examine(machine)
            with machine.open("disk", "vmdk") as again:
                assert again.size in (SIZE, 68 * MiB)
                assert again.read(0, SIZE) == model
                assert not any(again.read(SIZE, min(again.size - SIZE, MiB)))
    assert point > 4


PIECE = MiB
"""How large extents are here, instead of 2 GiB."""
PIECES: dict[str, dict[str, Any]] = {
    "sparse": {"subformat": "twoGbMaxExtentSparse"},
    "zeroed": {"subformat": "twoGbMaxExtentSparse", "zeroed_grain": True},
    "flat": {"subformat": "twoGbMaxExtentFlat"},
    "overlay": {"subformat": "twoGbMaxExtentSparse"},
    "zeroed overlay": {"subformat": "twoGbMaxExtentSparse", "zeroed_grain": True},
}
"""Kinds of disks, and the options that make them; overlays have a longer parent."""
OLD, NEW = PIECE + PIECE // 2 + 3 * SECTOR, 3 * PIECE + 5 * GRAIN + SECTOR


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("creating", "resizing"):
        monkeypatch.setattr(f"diskmill_vmdk.{module}.SPLIT", PIECE)


def pieces(machine: Machine, kind: str, chance: random.Random, size: int = OLD) -> bytes:
    """A disk in pieces, and what its guest disk holds."""
    options, overlay = PIECES[kind], "overlay" in kind
    longer = chance.randbytes(2 * PIECE + 20 * GRAIN + 5 * SECTOR) if overlay else b""
    model = bytearray(longer[:size].ljust(size, b"\0"))
    if overlay:
        machine.create("base", "vmdk", len(longer))
        with machine.open("base", "vmdk", writable=True) as image:
            image.write(0, longer)
    machine.create("disk.vmdk", "vmdk", size, options, backing=machine.backing("base", "vmdk") if overlay else None)
    with machine.open("disk.vmdk", "vmdk", writable=True) as image:
        # The last grain of one of the overlays is its parent's.
        for at in (0, PIECE - 5 * SECTOR, *([] if kind == "overlay" else [size - 3 * SECTOR])):
            data = chance.randbytes(min(9 * SECTOR, size - at))
            image.write(at, data)
            model[at : at + len(data)] = data
        if kind not in ("flat", "overlay"):
            # What other writers leave behind the end of the disk must not come up.
            (extent,) = image.extents(size - SECTOR, SECTOR)
            assert extent.node is not None
            extent.node.write(extent.offset + SECTOR, b"\xee" * SECTOR)
    if "zeroed_grain" in options:
        machine.files["disk.vmdk"].truncate(10 * KiB)  # as QEMU does when it has written
    return bytes(model)


def grow(machine: Machine, size: int = NEW) -> None:
    with machine.open("disk.vmdk", "vmdk", writable=True) as image:
        assert machine.context.registry.call(image.driver, "resize", image=image, size=size, preallocation="off")


def grow_again(machine: Machine, size: int) -> None:
    """A table and its copy that a crash made differ must be repaired before the disk is written."""
    try:
        grow(machine, size)
    except diskmill.DiskmillError as error:
        refused(error, "check and repair the image first")
        with machine.open("disk.vmdk", "vmdk", writable=True) as image:
            machine.context.registry.call(image.driver, "check", image=image, repair="all")
        grow(machine, size)


def found(machine: Machine, model: bytes) -> int:
    """How large the disk is, which holds *model* and zeros behind that."""
    with machine.open("disk.vmdk", "vmdk") as image:
        result = machine.context.registry.call(image.driver, "check", image=image, repair="")
        assert all("redundant copy differ" in one.text for one in result.findings), result.findings
        data = image.read(0, image.size)
        assert data == model.ljust(image.size, b"\0")
        return image.size


def copies(files: dict[str, Content]) -> dict[str, Content]:
    return {name: content.copy() for name, content in files.items()}


def restore(machine: Machine, files: dict[str, Content]) -> None:
    machine.files.clear()
    machine.files.update(copies(files))


def crash_again(machine: Machine, model: bytes, size: int, chance: random.Random) -> None:
    """The same resize, on what a crash has left, and another crash."""
    driver = machine.context.registry.protocol("memory")
    assert isinstance(driver, MemoryDriver)
    left, journal = copies(machine.files), []
    driver.journal = journal
    try:
        grow_again(machine, size)
    finally:
        driver.journal = None
    for _ in range(4):
        restore(machine, crash_of_several(left, journal[: chance.randrange(len(journal) + 1)], chance))
        if found(machine, model) == OLD:
            grow_again(machine, size)
        assert found(machine, model) == size


@pytest.mark.parametrize("size", [NEW, 2 * PIECE, OLD + SECTOR], ids=["many", "full", "sector"])
@pytest.mark.parametrize("kind", PIECES)
def test_a_crash_while_a_disk_gets_more_pieces(kind: str, size: int, small_pieces: None) -> None:
    chance = random.Random(kind)
    machine = Machine()
    driver = machine.context.registry.protocol("memory")
    assert isinstance(driver, MemoryDriver)
    model = pieces(machine, kind, chance)
    before = copies(machine.files)
    journal: list[tuple[str, Change]] = []
    driver.journal = journal
    try:
        grow(machine, size)
    finally:
        driver.journal = None
    after = set(machine.files)
    assert found(machine, model) == size
    sizes = set()
    for point in range(len(journal) + 1):
        for sample in range(4):
            state = crash_of_several(before, journal[:point], chance if sample else None)
            restore(machine, state)
            now = found(machine, model)
            sizes.add(now)
            if sample == 2 and now == OLD:
                crash_again(machine, model, size, chance)
                restore(machine, state)
            # Run again, whatever was left: the same resize, or one that needs fewer files, and then the same.
            if now == OLD:
                for target in (OLD + SECTOR, size) if sample == 3 else (size,):
                    grow_again(machine, target)
                    assert found(machine, model) == target
            assert found(machine, model) == size
            assert set(machine.files) == after
            for name in sorted(after):
                assert b"# Extents to be" not in bytes(machine.files[name].read(0, 4096))
    assert sizes == {OLD, size}


@pytest.mark.parametrize("fault", ["full", "broken"])
@pytest.mark.parametrize("kind", PIECES)
def test_a_disk_that_cannot_get_more_pieces_is_as_before(kind: str, fault: str, small_pieces: None) -> None:
    chance = random.Random(kind)
    machine = Machine()
    driver = machine.context.registry.protocol("memory")
    assert isinstance(driver, MemoryDriver)
    model = pieces(machine, kind, chance)
    before = copies(machine.files)
    failures = 0
    for point in range(10_000):
        restore(machine, before)
        driver.room, driver.broken = (point * 3 * SECTOR, None) if fault == "full" else (None, point)
        try:
            grow(machine)
            break
        except diskmill.DiskmillError as error:
            failures += 1
            refused(error, "No space left" if fault == "full" else "Input/output error")
        finally:
            driver.room = driver.broken = None
        assert found(machine, model) == OLD
        assert set(machine.files) == set(before)
        assert bytes(machine.files["disk.vmdk"]) == bytes(before["disk.vmdk"])
        assert all(machine.files[name].size <= content.size + GRAIN for name, content in before.items())
        grow_again(machine, NEW)
        assert found(machine, model) == NEW
    assert failures >= 1
    assert found(machine, model) == NEW


@pytest.mark.parametrize("size", [50 * MiB, 100 * MiB])
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "zeroed"])
def test_an_overlay_without_a_table_where_it_grows(options: dict[str, Any], size: int) -> None:
    """Not all writers make all tables; what hides a longer parent needs them."""
    old, places = 40 * MiB + SECTOR, (0, 40 * MiB, 41 * MiB, 70 * MiB, 150 * MiB)
    machine = Machine()
    driver = machine.context.registry.protocol("memory")
    assert isinstance(driver, MemoryDriver)
    machine.create("base", "vmdk", 200 * MiB)
    with machine.open("base", "vmdk", writable=True) as image:
        for at in places:
            image.write(at, b"base" * 1024)
    machine.create("disk", "vmdk", old, options, backing=machine.backing("base", "vmdk"))
    content = machine.files["disk"]
    for directory in struct.unpack("<QQ", content.read(48, 16)):
        content.write(directory * SECTOR + 4, bytes(4))
    before = copies(machine.files)
    for point in range(100):
        restore(machine, before)
        with machine.open("disk", "vmdk", writable=True) as image:
            driver.failures, driver.broken = 0, point
            try:
                machine.context.registry.call(image.driver, "resize", image=image, size=size, preallocation="off")
            except diskmill.DiskmillError as error:
                refused(error, "Input/output error")
            finally:
                driver.broken = None
            image.write(KiB, b"more" * 128)
        examine(machine)
        with machine.open("disk", "vmdk") as image:
            assert image.size in (old, size)
            assert image.read(0, 4 * KiB) == b"base" * 256 + b"more" * 128 + b"base" * 640
            assert image.read(40 * MiB, SECTOR) == b"base" * 128
            assert not any(image.read(old, min(image.size - old, 60 * MiB)))
        if not driver.failures:
            break
    assert driver.failures == 0 and image.size == size and point > 5


@pytest.mark.parametrize("copied", [True, False], ids=["with copies", "without"])
def test_a_crash_while_an_overlay_is_committed(copied: bool) -> None:
    chance = random.Random(5)
    machine = Machine()
    image, model = start(machine, {}, chance, overlay=True)
    image.close()
    if not copied:
        forget_copies(machine.files["disk"])
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
    for point in range(len(journal) + 1):
        for _ in range(4):
            machine.files.update(crash_of_several(before, journal[:point], chance))
            try:
                with machine.open("disk", "vmdk") as again:
                    assert again.read(0, SIZE) == model, f"before change {point}"
            except diskmill.DiskmillError as error:
                refused.append(str(error))
    assert all("has changed since" in error for error in refused)
