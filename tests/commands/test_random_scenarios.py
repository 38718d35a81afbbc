"""Random sequences of commands, through qemu-img and through the drop-in: the same exit status, the same guest bytes.

Both work on images of their own, in two folders; qemu-io writes the same into both. See scenarios.py for longer runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from scenarios import for_a_while
from tools import qemu_img, qemu_io

sys.path[:0] = [str(Path(__file__).parents[2] / "dropin" / "src")]

FORMATS = ("raw", "qcow2", "qcow2", "qcow2", "qed", "qcow", "vmdk", "vdi", "vpc", "vhdx", "parallels")
CHAINED = ("qcow2", "qcow2", "qed", "qcow", "vmdk")
KINDS = {
    "qcow2": ("", "", "cluster_size=4k", "cluster_size=512", "compat=0.10", "extended_l2=on", "lazy_refcounts=on"),
    "qed": ("", "cluster_size=4k"),
    "vmdk": ("", "subformat=monolithicFlat", "subformat=twoGbMaxExtentSparse", "zeroed_grain=on"),
    "vpc": ("", "force_size=on"),  # not fixed, of which qemu-img 7.2 cannot read the last sector
    "vhdx": ("", "subformat=fixed", "block_size=1M"),
    "vdi": ("", "static=on"),
    "parallels": ("", "cluster_size=64k"),
}
UNREADABLE = "unreadable"


@dataclass
class Disk:
    """What the scenario believes of an image."""

    format: str
    size: int
    backing: str = ""
    shrunk: bool = False
    old: bool = False


class Scenario:
    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.theirs, self.ours = folder / "theirs", folder / "ours"
        self.theirs.mkdir()
        self.ours.mkdir()
        self.disks: dict[str, Disk] = {}
        self.steps: list[str] = []
        self.number = 0
        self.pattern = 0

    # -- running ------------------------------------------------------------------------------------------------------

    def both(self, *words: str) -> int:
        """The exit status, which must be the same."""
        self.steps.append("qemu-img " + " ".join(words))
        there = qemu_img(*words, check=False, cwd=self.theirs)
        from diskmill_cli.main import run as run_line
        from diskmill_qemu_img import QemuImg

        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(self.ours), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run_line(words, QemuImg())
        if there.returncode < 0:
            return 1  # it crashed, as with a VMDK of no bytes: there is nothing to be as
        if status != there.returncode:
            self.fail(f"exit status {there.returncode} and {status}\n{there.stderr}{err.getvalue()}")
        return status

    def fail(self, why: str) -> None:
        pytest.fail(f"seed {self.seed}: {why}\n" + "\n".join(self.steps), pytrace=False)

    def bytes_of(self, folder: Path, name: str, format: str) -> str:
        out = folder / "bytes.raw"
        done = qemu_img("convert", "-f", format, "-O", "raw", name, out.name, check=False, cwd=folder)
        if done.returncode:
            return UNREADABLE
        digest = hashlib.sha256(out.read_bytes()).hexdigest()
        out.unlink()
        return digest

    def compare(self) -> None:
        for name, disk in self.disks.items():
            one, other = (self.bytes_of(folder, name, disk.format) for folder in (self.theirs, self.ours))
            if one != other:
                self.fail(f"{name} does not read the same: {one[:10]} and {other[:10]}")

    def same_again(self) -> None:
        """What fails may have changed images of qemu-img's, not of the drop-in's."""
        shutil.rmtree(self.theirs)
        shutil.copytree(self.ours, self.theirs)

    # -- steps --------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        self.create()
        for _ in range(self.random.randint(3, 10)):
            often = (self.write, self.write, self.write, self.overlay, self.overlay, self.convert, self.convert)
            changes = (self.resize, self.commit, self.rebase, self.snapshot, self.bitmap, self.amend)
            self.random.choice((*often, *changes, self.create, self.look, self.dd))()
        self.compare()

    def new_name(self) -> str:
        self.number += 1
        return f"disk{self.number}"

    def any(self, *formats: str) -> str | None:
        found = [name for name, disk in self.disks.items() if not formats or disk.format in formats]
        return self.random.choice(found) if found else None

    def depth(self, name: str) -> int:
        return 1 + self.depth(self.disks[name].backing) if self.disks[name].backing else 1

    def is_backing(self, name: str) -> bool:
        return any(disk.backing == name for disk in self.disks.values())

    def stands_on(self, name: str, format: str) -> bool:
        while name:
            if self.disks[name].format == format:
                return True
            name = self.disks[name].backing
        return False

    def size(self) -> int:
        return self.random.choice((1, 3, 128, 1000, 2048, 4096, 5001)) * 512

    def options(self, format: str) -> tuple[str, ...]:
        kind = self.random.choice(KINDS.get(format, ("",)))
        return ("-o", kind) if kind else ()

    def create(self) -> None:
        name, format, size = self.new_name(), self.random.choice(FORMATS), self.size()
        if not self.both("create", "-f", format, *self.options(format), name, str(size)):
            self.disks[name] = Disk(format, size)
            self.learn(name)
            self.write(name)

    def overlay(self) -> None:
        base = self.any()
        if base is None or self.depth(base) >= 4:
            return
        kind = self.disks[base].format
        name = self.new_name()
        format = "vmdk" if kind == "vmdk" and self.random.random() < 0.5 else self.random.choice(CHAINED)
        size = self.random.choice((self.disks[base].size, self.size()))
        kinds = self.options(format) if format != "vmdk" else ()
        if not self.both("create", "-f", format, "-b", base, "-F", kind, *kinds, name, str(size)):
            self.disks[name] = Disk(format, size, base)
            self.learn(name)
            self.write(name)

    def learn(self, name: str) -> None:
        """The size is the one that the image has."""
        import json

        done = qemu_img("info", "--output=json", "-f", self.disks[name].format, name, check=False, cwd=self.ours)
        if done.returncode == 0:
            told = json.loads(done.stdout)
            self.disks[name].size = told["virtual-size"]
            data = told.get("format-specific", {}).get("data", {})
            self.disks[name].old |= data.get("compat") == "0.10"

    def write(self, name: str | None = None) -> None:
        name = name or self.any()
        if name is None or self.is_backing(name):
            return  # what an overlay leaves to it after a rebase or a commit is up to the program
        disk, commands = self.disks[name], []
        for _ in range(self.random.randint(1, 3)):
            start = self.random.randrange(0, max(disk.size, 512), 512)
            count = min(disk.size - start, self.random.choice((512, 4096, 65536, 300 * 512)))
            if count <= 0:
                continue
            self.pattern = self.pattern % 250 + 1
            way = self.random.random()
            word = f"write -P {self.pattern}" if way < 0.7 else "write -z" if way < 0.9 else "discard"
            # What a discarded range reads as is nobody's promise, and not the same with and without a backing image.
            if word == "discard" and disk.format != "qcow2":
                continue
            commands.append(f"{word} {start} {count}")
        if commands:
            self.steps.append(f"qemu-io {name}: {'; '.join(commands)}")
            for folder in (self.theirs, self.ours):
                qemu_io(name, *commands, format=disk.format, check=False, cwd=folder)

    def convert(self) -> None:
        name = self.any()
        if name is None:
            return
        disk, output, format = self.disks[name], self.new_name(), self.random.choice(FORMATS)
        words = ["-f", disk.format, "-O", format, *self.options(format)]
        base = ""
        if disk.backing and format in CHAINED and self.random.random() < 0.3:
            base = disk.backing
            words += ["-B", base, "-F", self.disks[base].format]
        if format in ("qcow2", "qcow") and self.random.random() < 0.3:
            words.append("-c")
        if self.random.random() < 0.3:
            words += ["-S", self.random.choice(("0", "4k", "64k"))]
        if format == "qcow" and "-c" in words:
            return  # qemu-img makes it, and fails: docs/differences.md, qcow-compress
        if format == "vmdk" and base:
            words = [word for word in words if not word.startswith("subformat") and not word.startswith("zeroed")]
            words = [word for word in words if word != "-o"]
        if not self.both("convert", *words, name, output):
            self.disks[output] = Disk(format, disk.size, base)
            self.learn(output)
        else:
            self.remove(output)

    def remove(self, name: str) -> None:
        for folder in (self.theirs, self.ours):
            for path in folder.glob(f"{name}*"):
                path.unlink()

    def resize(self) -> None:
        name = self.any("raw", "qcow2", "qed")
        if name is None:
            return
        disk, size = self.disks[name], self.size()
        if disk.shrunk and size > disk.size:
            return  # docs/differences.md, resize-again
        if disk.backing and size > disk.size < self.disks[disk.backing].size:
            return  # qemu-img cannot hide what a longer backing image has, except in qcow2 of version 3
        words = ["--shrink"] if size < disk.size and disk.format != "qed" and self.random.random() < 0.8 else []
        if not self.both("resize", "-f", disk.format, *words, name, str(size)):
            disk.shrunk |= size < disk.size
            disk.size = size
        else:
            self.same_again()

    def commit(self) -> None:
        name = self.random.choice([name for name, disk in self.disks.items() if disk.backing] or [""])
        if not name or self.is_backing(name):
            return
        words = ["-d"] if self.random.random() < 0.3 else []
        base = self.disks[name].backing
        if self.disks[base].format in ("parallels", "vhdx", "vdi", "vpc"):
            return  # some of which qemu-img cannot commit into, or cannot make larger
        if self.disks[base].shrunk and self.disks[base].size < self.disks[name].size:
            return  # docs/differences.md, resize-again
        if self.disks[base].format == "vmdk" and self.disks[base].size < self.disks[name].size:
            return  # which it cannot make larger either
        if self.disks[name].format == self.disks[base].format == "vmdk":
            return  # the base gets a new CID, and qemu-img does not tell the overlay, which it then cannot read
        # An image between two of a chain, or beside it, reads otherwise afterwards, in both alike.
        if self.both("commit", "-f", self.disks[name].format, *words, name):
            self.same_again()
        self.learn(base)

    def rebase(self) -> None:
        name = self.any("qcow2", "qed")
        base = self.any()
        if name is None or base is None or self.is_backing(name):
            return
        disk = self.disks[name]
        below: str = base
        while below:
            if below == name:
                return
            below = self.disks[below].backing
        if self.depth(base) >= 4:
            return
        to = base if self.random.random() < 0.8 else ""
        if to and not disk.backing and disk.old:
            return  # qemu-img 7.2 writes no zeros into version 2 here, and what the base has comes up
        words = ["-F", self.disks[base].format] if to else []
        if self.both("rebase", "-f", disk.format, "-b", to, *words, name):
            self.same_again()
        else:
            disk.backing = to

    def snapshot(self) -> None:
        name = self.any("qcow2")
        if name is not None and self.both(
            "snapshot", self.random.choice(("-c", "-c", "-a", "-d")), self.random.choice("ab"), name
        ):
            self.same_again()
        if name is not None:
            self.learn(name)

    def bitmap(self) -> None:
        name = self.any("qcow2")
        action = self.random.choice(("--add", "--add", "--remove", "--clear", "--enable", "--disable"))
        if name is not None and not self.disks[name].size:
            return  # qemu-img makes one that it cannot open
        if name is not None and self.both("bitmap", action, name, self.random.choice("ab")):
            self.same_again()

    def amend(self) -> None:
        name = self.any("qcow2")
        option = self.random.choice(("compat=1.1", "lazy_refcounts=on", "lazy_refcounts=off", "refcount_bits=16"))
        if name is not None and self.both("amend", "-f", "qcow2", "-o", option, name):
            self.same_again()

    def look(self) -> None:
        name = self.any()
        if name is None:
            return
        format = self.disks[name].format
        words = self.random.choice((["info"], ["map"], ["measure", "-O", "raw"], ["check"]))
        if words == ["map"] and self.stands_on(name, "vhdx"):
            return  # docs/differences.md, vhdx-map
        if words == ["check"] and format not in ("qcow2", "qed", "vmdk", "vdi", "parallels"):
            return
        self.both(*words, "-f", format, name)
        other = self.any()
        if other is not None:
            self.both("compare", "-f", format, "-F", self.disks[other].format, name, other)

    def dd(self) -> None:
        name, format = self.any(), self.random.choice(("raw", "qcow2", "qed"))
        if name is None:
            return
        output = self.new_name()
        words = [f"bs={self.random.choice((512, 4096, 10000))}", f"if={name}", f"of={output}"]
        words += self.random.choice(([], ["skip=1"], ["count=7"]))
        if not self.both("dd", "-f", self.disks[name].format, "-O", format, *words):
            self.disks[output] = Disk(format, 0)
            self.learn(output)
        else:
            self.remove(output)


def scenario(seed: int, folder: Path) -> None:
    Scenario(seed, folder).run()


def test_as_qemu_img_does(tmp_path: Path) -> None:
    for_a_while(12, scenario, tmp_path)
