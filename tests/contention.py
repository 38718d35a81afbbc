"""Threads that use one image at once, and a model of what each of its sectors may read as.

Every sector that is written carries its own offset and the number of the write, so that bytes that belong elsewhere
are recognised wherever they turn up. Each block of the disk has one writer; what a reader may find in it is what it
held when the reader began, and whatever was begun before the reader was done.

Run as a program, it keeps on for as long as it is told: `python tests/contention.py SECONDS [LAYOUT...]`.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import diskmill
from diskmill.contract import calls
from diskmill.contract.node import Image
from diskmill.opening.context import Context
from diskmill.opening.creation import create_image
from diskmill.sizes import KiB, MiB
from formats import REGISTRY

SIZE = 4 * MiB
BLOCK, SECTOR = 4 * KiB, 512
BLOCKS = SIZE // BLOCK
WRITERS, READERS = 2, 3
_STAMP = struct.Struct("<QQ")
_SECRET = ("--object", "secret,id=key,data=open sesame")

LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "raw": ("raw", {}),
    "qcow2": ("qcow2", {"cluster_size": 4096}),
    "qcow2-64k": ("qcow2", {}),
    "qcow2-subclusters": ("qcow2", {"extended_l2": True}),
    "qcow2-old": ("qcow2", {"compat": "0.10", "cluster_size": 8192}),
    "qcow2-luks": ("qcow2", {"cluster_size": 8192, "encrypt.format": "luks", "encrypt.key-secret": "key"}),
    "qcow": ("qcow", {}),
    "qed": ("qed", {}),
    "qed-4k": ("qed", {"cluster_size": 4096}),
    "vdi": ("vdi", {}),
    "vhdx": ("vhdx", {"block_size": 1 * MiB}),
    "vpc": ("vpc", {}),
    "vmdk": ("vmdk", {}),
    "vmdk-flat": ("vmdk", {"subformat": "monolithicFlat"}),
    "parallels": ("parallels", {"cluster_size": 64 * KiB}),
    "luks": ("luks", {"key-secret": "key"}),
    "blk": ("blk", {"block_size": 4 * KiB}),
    "nbd-qcow2": ("qcow2", {"cluster_size": 4096}),
    "nbd-vmdk": ("vmdk", {}),
}
"""What the threads fight over: a format, and options to create an image of it with. Where the name begins with "nbd" it
is served, and each thread is a client."""

CHECKED = {"qcow2", "qed", "vdi", "vhdx", "parallels"}
"""Formats of which `qemu-img check` can say whether an image is sound."""

Values = frozenset[int]
"""What a block may read as: numbers of writes; 0 stands for zeros."""


def context() -> Context:
    return Context(secrets={"key": b"open sesame"}, registry=REGISTRY)


def owner(block: int) -> int:
    """The writer of *block*: they take turns, by blocks in one half of the disk, by longer stretches in the other."""
    return (block if block < BLOCKS // 2 else block // 32) % WRITERS


class Contest:
    """An image at *path* in the layout *layout*, and what each block of it may read as."""

    def __init__(self, path: Path, layout: str, seed: int) -> None:
        self.path, self.seed = path, seed
        self.format, options = LAYOUTS[layout]
        options = dict(options)
        self.encrypted = "luks" in layout
        if self.encrypted:
            options["encrypt.iter-time" if self.format == "qcow2" else "iter-time"] = 10
        with create_image(str(path), self.format, SIZE, options, context=context()) as image:
            if not image.blank:
                image.zero(0, image.size)
            image.settle()
        zeros: Values = frozenset((0,))
        self.states: list[list[Values]] = [[zeros] for _ in range(BLOCKS)]
        self.done = [0] * BLOCKS
        """Of each block, which of its states is reached for sure."""
        self.snapshots: dict[str, list[Values]] = {}
        self.failures: list[str] = []
        self.counts: dict[str, int] = {}
        self.gates = [threading.Lock() for _ in range(WRITERS)]
        """Each is held by its writer while that changes the disk: who goes back to a snapshot keeps both out."""
        self.stopping = threading.Event()
        self.served = layout.startswith("nbd")
        self.images: list[Image] = []
        """What each thread uses, writers first."""

    @property
    def name(self) -> str:
        """The image as diskmill and qemu-img open it."""
        node: dict[str, Any] = {"driver": self.format, "file": {"driver": "file", "filename": str(self.path)}}
        if self.format == "luks":
            node["key-secret"] = "key"
        elif self.encrypted:
            node["encrypt"] = {"format": "luks", "key-secret": "key"}
        return "json:" + json.dumps(node)

    # -- the model ----------------------------------------------------------------------------------------------

    def change(self, first: int, count: int, values: Callable[[Values], Values], act: Callable[[], object]) -> None:
        """Do *act*, by which each of *count* blocks may become what *values* says of what it may be before."""
        for block in range(first, first + count):
            self.states[block].append(values(self.states[block][-1]))
        act()
        for block in range(first, first + count):
            self.done[block] = len(self.states[block]) - 1

    def between(self, block: int, low: int) -> Values:
        """What *block* may be, seen by who began when it was in state *low*, and is done now."""
        return frozenset().union(*self.states[block][low:])

    def judge(self, start: int, data: bytes, may: Callable[[int], Values], what: str) -> None:
        """Hold *data*, read from byte *start* on, against what the blocks *may* be."""
        for at in range(0, len(data), SECTOR):
            offset, sector = start + at, data[at : at + SECTOR]
            values = may(offset // BLOCK)
            stamps = {sector[:16]} if sector == sector[:16] * (SECTOR // 16) else {*_STAMP.iter_unpack(sector)}
            # A sector that is written while it is read may come in parts, a word of the one and a word of the other.
            for where, number in (_STAMP.unpack(one) if isinstance(one, bytes) else one for one in stamps):
                if where != offset and not (where == 0 and 0 in values):
                    self.fail(f"{what}: offset {offset} has foreign bytes, of offset {where}, write {number}")
                elif number not in values:
                    self.fail(f"{what}: offset {offset} has write {number}, but can only have {sorted(values)}")

    def fail(self, text: str) -> None:
        self.failures.append(text)
        self.stopping.set()

    # -- the threads --------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let the threads go for *seconds*, then look at all of the image: what is wrong is in ``failures``."""
        with ExitStack() as stack:
            if self.served:
                server = diskmill.serve(
                    str(self.path), format=self.format, writable=True, context=context(), max_clients=64
                )
                uri = stack.enter_context(server).uri
                self.images = [
                    stack.enter_context(diskmill.open(uri, "raw", writable=True)) for _ in range(WRITERS + READERS)
                ]
            else:
                image = stack.enter_context(diskmill.open(self.name, writable=True, context=context()))
                self.images = [image] * (WRITERS + READERS)
            jobs = [*((self.writer, number) for number in range(WRITERS)), *((self.reader, n) for n in range(READERS))]
            threads = [threading.Thread(target=self.guarded, args=job) for job in jobs]
            for thread in threads:
                thread.start()
            self.stopping.wait(seconds)
            self.stopping.set()
            for thread in threads:
                thread.join()
        if not self.failures:
            self.settled()

    def guarded(self, work: Callable[[random.Random, int], None], number: int) -> None:
        try:
            work(random.Random(f"{self.seed} {work.__name__} {number}"), number)
        except BaseException as error:
            self.fail(f"{work.__name__}: {type(error).__name__}: {error}")
            raise

    def writer(self, chance: random.Random, number: int) -> None:
        version, image = number, self.images[number]
        while not self.stopping.is_set():
            version += WRITERS
            kind = chance.choices(("write", "zero", "discard", "flush", "snapshot"), (50, 12, 25, 12, 1))[0]
            if kind == "snapshot":
                if "snapshots" not in image.driver.capabilities:
                    continue
                kind = self.snapshot(chance, number, str(version))
            else:
                with self.gates[number]:
                    self.step(image, kind, *self.own(chance, number), version, unmap=chance.random() < 0.7)
            self.counts[kind] = self.counts.get(kind, 0) + 1

    def step(self, image: Image, kind: str, first: int, count: int, version: int, *, unmap: bool) -> None:
        """One thing done to *count* blocks from *first* on."""
        offset, length = first * BLOCK, count * BLOCK
        if kind == "write":
            numbered: Values = frozenset((version,))
            data = b"".join(_STAMP.pack(at, version) * (SECTOR // 16) for at in range(offset, offset + length, SECTOR))
            self.change(first, count, lambda _: numbered, lambda: image.write(offset, data))
        elif kind == "zero":
            zeros: Values = frozenset((0,))
            self.change(first, count, lambda _: zeros, lambda: image.zero(offset, length, unmap=unmap))
        elif kind == "discard":
            self.change(first, count, lambda before: before | {0}, lambda: image.discard(offset, length))
        else:
            image.flush()

    def own(self, chance: random.Random, number: int) -> tuple[int, int]:
        """Some neighbouring blocks of the writer *number*."""
        while True:
            first = chance.randrange(BLOCKS)
            if owner(first) != number:
                continue
            count, most = 1, chance.choice((1, 4, 16, 32))
            while count < most and first + count < BLOCKS and owner(first + count) == number:
                count += 1
            return first, count

    def snapshot(self, chance: random.Random, number: int, name: str) -> str:
        """Take a snapshot, or go back to one, or delete one."""
        registry, image = REGISTRY, self.images[number]
        if number or not self.snapshots:  # one writer takes them, the other does all of the three
            action = "create" if len(self.snapshots) < 4 else "none"
        else:
            action = chance.choice(("create", "apply", "delete", "delete"))
        if action == "create":
            low = self.done[:]
            calls.snapshot(registry, image, "create", name)
            self.snapshots[name] = [self.between(block, low[block]) for block in range(BLOCKS)]
        elif action == "delete":
            name = chance.choice(list(self.snapshots))
            del self.snapshots[name]
            calls.snapshot(registry, image, "delete", name)
        elif action == "apply":
            name = chance.choice(list(self.snapshots))
            with self.gates[0], self.gates[1]:
                values = self.snapshots[name]
                for block in range(BLOCKS):
                    self.states[block].append(values[block])
                calls.snapshot(registry, image, "apply", name)
                self.done = [len(states) - 1 for states in self.states]
        return action

    def reader(self, chance: random.Random, number: int) -> None:
        image = self.images[WRITERS + number]
        while not self.stopping.is_set():
            first = chance.randrange(BLOCKS)
            count = min(chance.choice((1, 2, 8, 64, 256)), BLOCKS - first)
            low = [self.done[block] for block in range(first, first + count)]
            data = image.read(first * BLOCK, count * BLOCK)
            known: dict[int, Values] = {}

            def may(block: int, low: list[int] = low, first: int = first, known: dict[int, Values] = known) -> Values:
                if block not in known:
                    known[block] = self.between(block, low[block - first])
                return known[block]

            self.judge(first * BLOCK, data, may, f"reader {number}")
            self.counts["read"] = self.counts.get("read", 0) + 1

    # -- afterwards ---------------------------------------------------------------------------------------------

    def settled(self) -> None:
        """The image is closed: it must be sound, and read as the model says, its snapshots too."""
        import tools

        with diskmill.open(self.name, context=context()) as image:
            self.judge(0, image.read(0, SIZE), lambda block: self.states[block][-1], "afterwards")
        for name, values in self.snapshots.items():
            with diskmill.open(self.name, snapshot=name, context=context()) as image:
                self.judge(0, image.read(0, SIZE), lambda block, had=values: had[block], f"snapshot {name}")
        driver = context().registry.format(self.format)
        if "check" in driver.capabilities:
            result = diskmill.check(self.name, context=context())
            if result.corruptions or result.leaks:
                self.fail(f"check: {result.corruptions} corruptions, {result.leaks} leaks: {result.findings[:3]}")
        if self.format in CHECKED:
            done = tools.qemu_img("check", *_SECRET, self.name, check=False)
            if done.returncode:
                self.fail(f"qemu-img check: {done.stdout}{done.stderr}")
        if self.format == "blk":  # nobody else knows it
            return
        flat = self.path.with_suffix(".flat")
        tools.qemu_img("convert", *_SECRET, self.name, "-O", "raw", flat)
        self.judge(0, flat.read_bytes()[:SIZE], lambda block: self.states[block][-1], "qemu-img")
        flat.unlink()


def contend(folder: Path, layout: str, seconds: float, seed: int) -> Contest:
    """One contest, done; the image is gone afterwards, unless something is wrong with it."""
    contest = Contest(folder / f"{layout}-{seed}.img", layout, seed)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads change places in the middle of everything
    try:
        contest.run(seconds)
    finally:
        sys.setswitchinterval(before)
    if not contest.failures:
        contest.path.unlink()
    return contest


def main(seconds: float, layouts: list[str]) -> int:
    import tempfile

    totals: dict[str, int] = {}
    status = 0
    with tempfile.TemporaryDirectory() as name:
        end, spent, seed = time.monotonic() + seconds, 0.0, int(time.time())
        while time.monotonic() < end:
            for layout in layouts:
                begin = time.monotonic()
                contest = contend(Path(name), layout, 3, seed)
                spent += time.monotonic() - begin
                for key, count in contest.counts.items():
                    totals[key] = totals.get(key, 0) + count
                for text in contest.failures[:3]:
                    status = 1
                    print(f"{layout}, seed {seed}: {text[:600]}", flush=True)
            seed += 1
        print(f"{spent:.0f} s: {totals}")
    return status


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:] or list(LAYOUTS)))
