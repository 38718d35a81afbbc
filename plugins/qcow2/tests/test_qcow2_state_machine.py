"""Everything that changes a qcow2 image, in any order, against a plain array of bytes; qemu-img has the last word.

The images live in memory, so that a run of dozens of operations takes milliseconds; at the end of each run they are
written out, and qemu-img must find them clean and read the same bytes from the disk and from every snapshot.
"""

from __future__ import annotations

import random
import re
import tempfile
from pathlib import Path

import pytest
from diskmill.commands.amend import amend
from diskmill.commands.bitmap import bitmap, bitmaps_of
from diskmill.commands.commit import commit
from diskmill.commands.rebase import rebase
from diskmill.commands.resize import resize
from diskmill.commands.snapshot import snapshot
from diskmill.engine.copy import CopyPlan, copy
from diskmill.errors import UnsupportedError
from diskmill.sizes import KiB
from formats import Machine
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tools import assert_clean, assert_identical, qemu_img
from twins import memory

LAYOUTS = (
    {"cluster_size": 512},
    {"cluster_size": 1024, "refcount_bits": 64},
    {"cluster_size": 1024, "refcount_bits": 2},
    {"cluster_size": 2048, "compat": "0.10"},
    {"cluster_size": 4096, "refcount_bits": 8, "lazy_refcounts": True},
    {"cluster_size": 16 * KiB, "extended_l2": True},
)
LARGEST = 192 * KiB
SECTORS = st.integers(0, LARGEST // 512)
SEEDS = st.integers(0, 1 << 16)


class Qcow2(RuleBasedStateMachine):
    """``disk`` may stand on ``base`` or on ``other``; `model` is what it reads as."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine()
        self.model = bytearray()
        self.bases: dict[str, bytes] = {}
        self.snapshots: list[tuple[str, str, bytes]] = []
        self.bitmaps: dict[str, set[int]] = {}
        """Of each bitmap, the pages of 4 KiB that it must have marked."""
        self.backing = ""
        self.version = 3
        self.extended = False

    @initialize(layout=st.sampled_from(LAYOUTS), sectors=SECTORS, backing=st.sampled_from(("", "base")), seed=SEEDS)
    def create(self, layout: dict[str, object], sectors: int, backing: str, seed: int) -> None:
        chance = random.Random(seed)
        for name, size in (("base", 48 * KiB), ("other", 80 * KiB)):
            data = bytearray(chance.randbytes(size))
            data[8 * KiB : 24 * KiB] = bytes(16 * KiB)
            self.machine.create(name, "qcow2", size, {"cluster_size": 4096})
            with self.machine.open(name, "qcow2", writable=True) as image:
                image.write(0, data[: 8 * KiB])
                image.write(24 * KiB, data[24 * KiB :])
            self.bases[name] = bytes(data)
        under = self.machine.backing(backing, "qcow2") if backing else None
        self.machine.create("disk", "qcow2", sectors * 512, layout, backing=under)
        self.backing = backing
        self.model = bytearray(self.below(0, sectors * 512))
        self.version = 2 if layout.get("compat") == "0.10" else 3
        self.extended = "extended_l2" in layout

    def below(self, start: int, end: int) -> bytes:
        """What the backing image reads as there."""
        data = self.bases[self.backing] if self.backing else b""
        return data[start:end].ljust(end - start, b"\0")

    def place(self, start: int, sectors: int) -> tuple[int, int]:
        """A range inside the disk: offset, length."""
        begin = start * 512 % (len(self.model) or 1)
        return begin, min(sectors * 512, len(self.model) - begin)

    def changed(self, offset: int, data: bytes) -> None:
        """The disk now holds *data* there."""
        self.model[offset : offset + len(data)] = data
        for pages in self.bitmaps.values():
            pages.update(range(offset // 4096, -(-(offset + len(data)) // 4096)))

    def snap(self, action: str, name: str) -> None:
        listed = snapshot("memory:disk", action, name, context=self.machine.context)
        assert [(one.id, one.name) for one in listed] == [(key, own) for key, own, _ in self.snapshots]

    # -- guest data ---------------------------------------------------------------------------------------------

    @rule(start=SECTORS, sectors=st.sampled_from((1, 3, 8, 40)), skip=st.sampled_from((0, 0, 77)), seed=SEEDS)
    def write(self, start: int, sectors: int, skip: int, seed: int) -> None:
        offset, length = self.place(start, sectors)
        data = random.Random(seed).randbytes(max(length - skip, 0))
        with self.machine.open("disk", "qcow2", writable=True) as image:
            image.write(offset, data)
        self.changed(offset, data)

    @precondition(lambda self: len(self.model) >= 16 * KiB)
    @rule(start=SECTORS, seed=SEEDS)
    def write_compressed(self, start: int, seed: int) -> None:
        with self.machine.open("disk", "qcow2", writable=True) as image:
            unit = image.unit
            offset = self.place(start, 1)[0] // unit * unit
            length = min(3 * unit, len(self.model) - offset)
            data = bytes(random.Random(seed).choices(b"abc", k=length))
            copy(memory(data), image, CopyPlan(compress=True), target_offset=offset, length=length)
        self.changed(offset, data)

    @rule(start=SECTORS, sectors=st.sampled_from((1, 8, 33, 200)), unmap=st.booleans())
    def zero(self, start: int, sectors: int, unmap: bool) -> None:
        offset, length = self.place(start, sectors)
        with self.machine.open("disk", "qcow2", writable=True) as image:
            image.zero(offset, length, unmap=unmap)
        self.changed(offset, bytes(length))

    @rule(start=SECTORS, sectors=st.sampled_from((8, 33, 200)))
    def discard(self, start: int, sectors: int) -> None:
        """Discarded sectors read as before or as zeros; the rest is untouched."""
        offset, length = self.place(start, sectors)
        with self.machine.open("disk", "qcow2", writable=True) as image:
            image.discard(offset, length)
            found = image.read(0, image.size)
        for at in range(offset, offset + length, 512):
            if found[at : at + 512] != self.model[at : at + 512]:
                self.changed(at, bytes(512))

    # -- the image ----------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(("a", "b", "1")))
    def take(self, name: str) -> None:
        with self.machine.open("disk", "qcow2") as image:
            bits = image.header.refcount_bits
        number = max((int(key) for key, _, _ in self.snapshots), default=0) + 1
        if len(self.snapshots) >= (2 if bits < 4 else 6):
            return
        self.snapshots.append((str(number), name, bytes(self.model)))
        try:
            self.snap("create", name)
        except UnsupportedError as error:
            if bits > 4 or "refcount too large" not in str(error):  # compressed clusters share host clusters
                raise
            self.snapshots.pop()

    @precondition(lambda self: self.snapshots and not self.bitmaps)
    @rule(which=st.integers(0, 5))
    def go_back(self, which: int) -> None:
        key, _, disk = self.snapshots[which % len(self.snapshots)]
        self.snap("apply", key)
        self.model = bytearray(disk)

    @precondition(lambda self: self.snapshots)
    @rule(which=st.integers(0, 5))
    def delete(self, which: int) -> None:
        name = self.snapshots[which % len(self.snapshots)][1]
        first = next(one for one in self.snapshots if one[1] == name)
        self.snapshots.remove(first)
        self.snap("delete", name)

    @precondition(lambda self: self.version > 2 or not self.snapshots)
    @rule(sectors=st.integers(1, LARGEST // 512), mode=st.sampled_from(("off", "off", "metadata", "falloc")))
    def resize(self, sectors: int, mode: str) -> None:
        old, new = len(self.model), sectors * 512
        mode = mode if new > old and not self.backing else "off"
        resize("memory:disk", new, shrink=True, preallocation=mode, context=self.machine.context)
        self.model = self.model[:new] + bytes(max(new - old, 0))
        for name, pages in self.bitmaps.items():
            self.bitmaps[name] = {page for page in pages if page * 4096 < new}

    @precondition(lambda self: self.backing)
    @rule()
    def commit(self) -> None:
        commit("memory:disk", context=self.machine.context)
        data = self.bases[self.backing]
        self.bases[self.backing] = bytes(self.model) + data[len(self.model) :]
        self.snapshots_must_not_stand_on_it()

    def snapshots_must_not_stand_on_it(self) -> None:
        """A snapshot reads through holes what the backing image holds now."""
        for index, (key, name, _) in enumerate(self.snapshots):
            self.snapshots[index] = key, name, self.loaded(key)

    def loaded(self, key: str) -> bytes:
        with self.machine.open("disk", "qcow2") as image:
            self.machine.context.registry.call(image.driver, "snapshot", image=image, action="load", name=key)
            return image.read(0, image.size)

    @rule(backing=st.sampled_from(("base", "other", "")), compress=st.booleans())
    def rebase(self, backing: str, compress: bool) -> None:
        named = f"memory:{backing}" if backing else ""
        kind = "qcow2" if backing else None
        rebase("memory:disk", named, backing_format=kind, compress=compress, context=self.machine.context)
        self.backing = backing
        self.snapshots_must_not_stand_on_it()

    @precondition(lambda self: not self.extended)
    @rule(bits=st.sampled_from((4, 8, 16, 32, 64)), old=st.booleans())
    def amend(self, bits: int, old: bool) -> None:
        options = {"compat": "0.10", "refcount_bits": 16} if old else {"compat": "1.1", "refcount_bits": bits}
        try:
            amend("memory:disk", options, context=self.machine.context)
            self.version = 2 if old else 3
        except UnsupportedError as error:
            if not re.search("refcount too large|version 2 (cannot hold snapshot|has no persistent)", str(error)):
                raise

    @precondition(lambda self: self.version > 2 and self.model)  # qemu-img cannot open a bitmap of no bytes
    @rule(name=st.sampled_from(("x", "y")), action=st.sampled_from(("add", "add", "clear", "remove")))
    def bitmap(self, name: str, action: str) -> None:
        if (name in self.bitmaps) != (action == "add"):
            bitmap(
                "memory:disk",
                name,
                [(action, "")],
                granularity=None if action != "add" else 4096,
                context=self.machine.context,
            )
            if action == "remove":
                del self.bitmaps[name]
            else:
                self.bitmaps[name] = set()

    # -- what must hold -----------------------------------------------------------------------------------------

    @invariant()
    def reads_as_the_model(self) -> None:
        if "disk" in self.machine.files:
            with self.machine.open("disk", "qcow2") as image:
                assert image.read(0, image.size) == self.model
                shown = {one.name: one for one in bitmaps_of(image, self.machine.context)}
                assert shown.keys() == self.bitmaps.keys()
                for name, pages in self.bitmaps.items():
                    marked = {
                        page
                        for at, length in shown[name].ranges()
                        for page in range(at // 4096, -(-(at + length) // 4096))
                    }
                    assert pages <= marked

    def teardown(self) -> None:
        if "disk" not in self.machine.files:
            return
        self.machine.check("disk", "qcow2")
        for key, _, disk in self.snapshots:
            assert self.loaded(key) == disk
        if self.backing:
            rebase("memory:disk", self.backing, backing_format="qcow2", unsafe=True, context=self.machine.context)
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            for name in ("disk", *self.bases):
                (place / name).write_bytes(bytes(self.machine.files[name]))
            assert_clean(place / "disk")
            (place / "model").write_bytes(self.model)
            assert_identical(place / "model", place / "disk", formats=("raw", "qcow2"))
            for key, _, disk in self.snapshots[:1]:
                qemu_img("convert", "-l", f"snapshot.id={key}", "-O", "raw", place / "disk", place / "copy")
                theirs = (place / "copy").read_bytes()  # as large as the disk is now
                size = min(len(theirs), len(disk))
                assert theirs[:size] == disk[:size]


TestQcow2 = pytest.mark.timeout(900)(Qcow2.TestCase)
TestQcow2.settings = settings(
    max_examples=90, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
