"""Random sequences of commands, through qemu-img and through the drop-in: the same exit status, the same output, and of
each image afterwards the same guest bytes, `info`, `map`, `check`, snapshots and bitmaps.

Both work on images of their own, in two folders; qemu-io writes the same into both. Now and then an image is damaged,
the same one in both folders. See scenarios.py for longer runs; there ``DISKMILL_TALLY=FILE`` adds up what was run.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diskmill
import pytest
from diskmill.commands.bitmap import bitmaps_of
from diskmill.opening.context import Context
from mutations import mutants
from qcow2_damage import Anatomy
from scenarios import for_a_while
from tools import dropin, qemu_img, qemu_io, without_newer

FORMATS = ("raw", "qcow2", "qcow2", "qcow2", "qed", "qcow", "vmdk", "vdi", "vpc", "vhdx", "parallels")
CHAINED = ("qcow2", "qcow2", "qed", "qcow", "vmdk")
CHECKED = ("qcow2", "qed", "vmdk", "vdi", "parallels", "vhdx")
KINDS = {
    "qcow2": ("", "", "cluster_size=4k", "cluster_size=512", "compat=0.10", "extended_l2=on", "lazy_refcounts=on"),
    "qed": ("", "cluster_size=4k"),
    "vmdk": ("", "subformat=monolithicFlat", "subformat=twoGbMaxExtentSparse", "zeroed_grain=on"),
    "vpc": ("", "force_size=on"),  # not fixed, of which qemu-img 7.2 cannot read the last sector
    "vhdx": ("", "subformat=fixed", "block_size=1M"),
    "vdi": ("", "static=on"),
    "parallels": ("", "cluster_size=64k"),
}
CHANGING = {"actual-size", "date-sec", "date-nsec", "vm-clock-sec", "vm-clock-nsec", "cid", "parent-cid", "filename"}
TALLY: Counter[str] = Counter()
REFUSED = (
    r"end of the file|file ends within|outside the data area|not inside the file|of \d+$|the data cannot begin|"
    r"not all inside the file|in no L1 table|in the middle of it|cannot be at offset|a descriptor with a createType|"
    r"transferred as text|belongs to the metadata"
)
"""What the drop-in refuses, and qemu-img reads as zeros: see docs/differences.md, damaged."""
READ = (
    r"Incorrect header checksum|is cut short|points after the end|[Bb]itmap|Unsupported image type|(link|parent) UUID|"
    r"Too much extra metadata|(Reference count|[Ss]napshot) table offset invalid|extent without a descriptor|"
    r"invalid VPC image"
)
"""What qemu-img refuses, and the drop-in opens: see docs/differences.md, vpc-checksums, cut-short and damaged."""


@dataclass
class Disk:
    """What the scenario believes of an image."""

    format: str
    size: int
    backing: str = ""
    shrunk: bool = False
    old: bool = False


def normal(text: str) -> str:
    """*text* without what depends on the moment and on how files are laid out."""
    text = re.sub(r"^(disk size|Image end offset): .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "DATE", text)
    text = re.sub(r"^\d+/\d+ = .*% allocated.*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"completed in [\d.]+ seconds", "completed", text)
    return re.sub(r"\bcid: \d+", "cid: …", text)


def steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: steady(one) for key, one in value.items() if key not in CHANGING}
    return [steady(one) for one in value] if isinstance(value, list) else value


def runs(entries: list[dict[str, Any]]) -> list[list[Any]]:
    """Entries of a map, neighbours that say the same as one. Data over a hole of its file may be told to be zeros."""
    found: list[list[Any]] = []
    for one in entries:
        says = [one["depth"], one["present"], one["zero"] and not one["data"], one["data"]]
        if found and found[-1][2:] == says:
            found[-1][1] += one["length"]
        else:
            found.append([one["start"], one["length"], *says])
    return found


def within(ranges: list[tuple[int, int]], others: list[tuple[int, int]]) -> bool:
    """Whether all of *ranges*, (offset, length) each, lies inside *others*."""
    return all(any(low <= at and at + length <= low + many for low, many in others) for at, length in ranges)


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
        self.committed = False
        """From a commit or rebase on qemu-img's bitmaps may mark more: all that it writes, 64 KiB at once."""
        self.resized = False
        """From then on ours may mark more: the rest of the last cluster, which is made zeros."""

    # -- running ------------------------------------------------------------------------------------------------------

    def both(self, *words: str) -> int:
        """The exit status, which must be the same, and so must be what is printed."""
        self.steps.append("qemu-img " + " ".join(words))
        TALLY[words[0]] += 1
        # What measure tells depends on where the file has holes, so both look at the same file.
        there = qemu_img(*words, check=False, cwd=self.ours if words[0] == "measure" else self.theirs)
        with contextlib.chdir(self.ours):
            status, out, err = dropin(*words)
        if there.returncode < 0:
            return 1  # it crashed, as with a VMDK of no bytes: there is nothing to be as
        if status != there.returncode:
            self.fail(f"exit status {there.returncode} and {status}\n{there.stderr}{err}")
        tells = words[0] in ("check", "compare") or (status == 0 and words[0] != "map")  # where data lies is free
        if tells and normal(there.stdout) != normal(out):
            self.fail(f"{words}: output\n{there.stdout}--- and\n{out}")
        return status

    def fail(self, why: str) -> None:
        why = why.encode(errors="backslashreplace").decode()
        pytest.fail(f"seed {self.seed}: {why}\n" + "\n".join(self.steps), pytrace=False)

    def told(self, folder: Path, *words: str) -> Any:
        """What qemu-img tells as JSON, or its exit status where it fails."""
        done = qemu_img(words[0], "--output=json", *words[1:], check=False, cwd=folder)
        return steady(json.loads(done.stdout)) if done.returncode == 0 else done.returncode

    # -- comparing ----------------------------------------------------------------------------------------------------

    def compare(self) -> None:
        """Both programs say the same of the drop-in's images, and of both programs' images."""
        with contextlib.chdir(self.ours):
            for name, disk in self.disks.items():
                TALLY["images compared"] += 1
                self.compare_info(name, disk.format)
                self.compare_bytes(name, disk.format)
                self.compare_map(name, disk.format)
                if disk.format in CHECKED:
                    words = ("check", "-f", disk.format, name)
                    checks = [qemu_img(*words, check=False, cwd=folder) for folder in (self.theirs, self.ours)]
                    if len({one.returncode for one in checks} | {dropin(*words)[0]}) > 1:
                        self.fail(f"check of {name}: {checks[0].stdout} and {checks[1].stdout}{checks[1].stderr}")

    def compare_info(self, name: str, format: str) -> None:
        told = [self.told(folder, "info", "-f", format, name) for folder in (self.theirs, self.ours)]
        status, out, _ = dropin("info", "--output=json", "-f", format, name)
        told.append(steady(without_newer(json.loads(out))) if status == 0 else status)
        if format == "parallels" and isinstance(told[2], dict):
            told[2].pop("dirty-flag", None)  # docs/differences.md, parallels-dirty
        if told[0] != told[1] or told[1] != told[2]:
            self.fail(f"info of {name}: {told}")
        if format == "qcow2" and isinstance(told[0], dict):
            for snapshot in told[0].get("snapshots", []):
                TALLY["snapshots compared"] += 1
                self.compare_bytes(name, format, "-l", "snapshot.id=" + snapshot["id"])
            self.compare_bitmaps(name, told[0]["format-specific"]["data"].get("bitmaps", []))

    def compare_bitmaps(self, name: str, bitmaps: list[Any]) -> None:
        """qemu-img tells which there are; what is dirty we read, which test_qcow2_bitmaps.py holds against QEMU."""
        dirty = []
        for folder in (self.theirs, self.ours) if bitmaps else ():
            with diskmill.open(str(folder / name), "qcow2", backing=False) as image:
                dirty.append({one.name: list(one.ranges()) for one in bitmaps_of(image, Context())})
            TALLY["bitmaps compared"] += len(bitmaps)
        for theirs, ours in zip(*(one.values() for one in dirty), strict=True) if dirty else ():
            less, more = within(ours, theirs), within(theirs, ours)
            if not (less or self.resized) or not (more or self.committed):
                self.fail(f"bitmaps of {name}: {dirty}")

    def compare_bytes(self, name: str, format: str, *snapshot: str) -> None:
        """All three: qemu-img reads the same in both folders, and the drop-in the same as qemu-img."""
        folders, found = (self.theirs, self.ours), []
        for folder in folders:
            words = ("convert", "-f", format, *snapshot, "-O", "raw", name, "bytes")
            found.append(qemu_img(*words, check=False, cwd=folder).returncode)
        words = ("convert", "-f", format, *snapshot, "-O", "raw", name, "dropin")
        status, _, err = dropin(*words)
        if "has changed since" in err:
            return  # the parent of a VMDK: docs/differences.md
        if len({*found, status}) > 1:
            self.fail(f"reading {name}: {found} and {status} {err}")
        if status == 0:
            one, other, third = self.theirs / "bytes", self.ours / "bytes", self.ours / "dropin"
            if snapshot:  # docs/differences.md, snapshot-size
                shorter = min(other.stat().st_size, third.stat().st_size)
                os.truncate(third, shorter)
                os.truncate(one, shorter)
                os.truncate(other, shorter)
            if len({path.read_bytes() for path in (one, other, third)}) > 1:
                self.fail(f"{name} {snapshot} does not read the same")
        for folder in folders:
            for file in ("bytes", "dropin"):
                (folder / file).unlink(missing_ok=True)

    def compare_map(self, name: str, format: str) -> None:
        if self.stands_on(name, "vhdx"):
            return  # docs/differences.md, vhdx-map
        there = qemu_img("map", "--output=json", "-f", format, name, check=False, cwd=self.ours)
        status, out, err = dropin("map", "--output=json", "-f", format, name)
        if status and "has changed since" in err:
            return
        if status != there.returncode:
            self.fail(f"map of {name}: {there.stderr} and {err}")
        if status == 0 and (one := runs(json.loads(there.stdout))) != (other := runs(json.loads(out))):
            self.fail(f"map of {name}: {one} and {other}")

    def same_again(self) -> None:
        """What fails may have changed images of qemu-img's, not of the drop-in's."""
        shutil.rmtree(self.theirs)
        shutil.copytree(self.ours, self.theirs)

    # -- steps --------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        self.create()
        for _ in range(self.random.choice((0, 0, 0, 0, 1, 3))):
            self.overlay()
        for _ in range(self.random.randint(3, 10)):
            often = (self.write, self.write, self.write, self.overlay, self.overlay, self.convert, self.convert)
            changes = (self.resize, self.commit, self.rebase, self.snapshot, self.bitmap, self.bitmap, self.amend)
            others = (self.create, self.look, self.look, self.dd, self.bench, self.damage)
            self.random.choice((*often, *changes, *others))()
        self.compare()
        TALLY["scenarios"] += 1
        TALLY[f"scenarios with a chain of {max(map(self.depth, self.disks), default=0)}"] += 1

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

    def add(self, name: str, disk: Disk) -> None:
        self.disks[name] = disk
        TALLY[f"images of {disk.format}"] += 1
        self.learn(name)

    def create(self) -> None:
        name, format, size = self.new_name(), self.random.choice(FORMATS), self.size()
        if not self.both("create", "-f", format, *self.options(format), name, str(size)):
            self.add(name, Disk(format, size))
            self.write(name)

    def overlay(self) -> None:
        base = self.any() if self.random.random() < 0.5 else max(self.disks, key=self.depth, default=None)
        if base is None or self.depth(base) >= 4:
            return
        kind = self.disks[base].format
        name = self.new_name()
        format = "vmdk" if kind == "vmdk" and self.random.random() < 0.5 else self.random.choice(CHAINED)
        size = self.random.choice((self.disks[base].size, self.size()))
        kinds = self.options(format) if format != "vmdk" else ()
        if not self.both("create", "-f", format, "-b", base, "-F", kind, *kinds, name, str(size)):
            self.add(name, Disk(format, size, base))
            self.write(name)

    def learn(self, name: str) -> None:
        """The size is the one that the image has."""
        told = self.told(self.ours, "info", "-f", self.disks[name].format, name)
        if isinstance(told, dict):
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
            TALLY["qemu-io"] += 1
            for folder in (self.theirs, self.ours):
                qemu_io(name, *commands, format=disk.format, check=False, cwd=folder)

    def convert(self) -> None:
        name = self.any()
        if name is None:
            return
        disk, output, format = self.disks[name], self.new_name(), self.random.choice(FORMATS)
        if format == "vmdk" and not disk.size:
            return  # which qemu-img 7.2 makes, and cannot open again
        words = ["-f", disk.format, "-O", format, *self.options(format)]
        base = ""
        if disk.backing and format in CHAINED and self.random.random() < 0.3:
            base = disk.backing
            words += ["-B", base, "-F", self.disks[base].format]
        elif disk.format == format == "qcow2" and "compat=0.10" not in words and self.random.random() < 0.3:
            words.append("--bitmaps")
        if format in ("qcow2", "qcow") and self.random.random() < 0.3:
            words.append("-c")
        if self.random.random() < 0.3:
            # Of zeros that are to be stored compressed, diskmill stores none: docs/differences.md.
            words += ["-S", self.random.choice(("4k", "4k", "64k") if "-c" in words else ("0", "4k", "64k"))]
        if format == "qcow" and "-c" in words:
            return  # qemu-img makes it, and fails: docs/differences.md, qcow-compress
        if format == "vmdk" and base:
            words = [word for word in words if not word.startswith("subformat") and not word.startswith("zeroed")]
            words = [word for word in words if word != "-o"]
        if not self.both("convert", *words, name, output):
            self.add(output, Disk(format, disk.size, base))
        else:
            self.remove(output)

    def remove(self, name: str) -> None:
        for folder in (self.theirs, self.ours):
            for path in [*folder.glob(name), *folder.glob(f"{name}-*")]:
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
            self.resized = True
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
        if any(self.stands_on(base, one) for one in ("parallels", "vhdx", "vdi", "vpc")):
            return  # which qemu-img cannot open again on the way
        self.committed = True
        self.resized |= self.disks[base].size < self.disks[name].size
        if self.disks[base].format == "vmdk" and self.disks[base].size < self.disks[name].size:
            return  # which it cannot make larger either
        if self.disks[name].format == self.disks[base].format == "vmdk":
            return  # the base gets a new CID, and qemu-img does not tell the overlay, which it then cannot read
        if sum(disk.backing == base for disk in self.disks.values()) > 1:
            return  # what another overlay leaves to the base after a commit or a rebase is up to the program
        # An image between two of a chain reads otherwise afterwards, in both alike.
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
        self.committed = True
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
        action = self.random.choice(("--add", "--add", "--add", "--remove", "--clear", "--enable", "--disable"))
        more = ["-g", self.random.choice(("512", "4k"))] if action == "--add" and self.random.random() < 0.5 else []
        if self.random.random() < 0.1:
            action, more = "--merge", [self.random.choice("ab")]
        if name is not None and not self.disks[name].size:
            return  # qemu-img makes one that it cannot open
        if name is not None and self.both("bitmap", action, *more, name, self.random.choice("ab")):
            self.same_again()

    def amend(self) -> None:
        name = self.any("qcow2")
        option = self.random.choice(("compat=1.1", "lazy_refcounts=on", "lazy_refcounts=off", "refcount_bits=16"))
        if name is not None and self.both("amend", "-f", "qcow2", "-o", option, name):
            self.same_again()

    def bench(self) -> None:
        """Reads; what is written by several requests at once depends on their order."""
        name = self.any()
        if name is not None:
            size, count = self.random.choice((512, 4096)), self.random.choice((1, 7, 30))
            if self.disks[name].size % size and size * count > self.disks[name].size:
                return  # docs/differences.md, bench-end
            self.both("bench", "-f", self.disks[name].format, "-c", str(count), "-s", str(size), name)

    def look(self) -> None:
        name = self.any()
        if name is None:
            return
        format = self.disks[name].format
        words = self.random.choice((["info"], ["map"], ["measure", "-O", "raw"], ["measure", "-O", "qcow2"], ["check"]))
        if words == ["map"] and self.stands_on(name, "vhdx"):
            return  # docs/differences.md, vhdx-map
        if words == ["measure", "-O", "qcow2"] and self.stands_on(name, "vhdx"):
            return
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
            self.add(output, Disk(format, 0))
        else:
            self.remove(output)

    # -- damage -------------------------------------------------------------------------------------------------------

    def damage(self) -> None:
        """The same damage to the same image in both folders: who opens it reads the same, and who cannot says so."""
        name = self.any(*(one for one in FORMATS if one != "raw"))
        if name is None or self.is_backing(name) or (self.disks[name].format == "vmdk" and self.disks[name].backing):
            return  # what a VMDK stands on has another CID in the other folder
        disk, data = self.disks.pop(name), (self.ours / name).read_bytes()
        if disk.format == "qcow2" and self.random.random() < 0.7:
            data, done = Anatomy(data).damaged(self.random)
            self.steps.append(f"damage {name}: {done}")
        else:
            what, data = next(mutants(data, [(0, min(len(data), 4096))], seed=self.random.getrandbits(32), count=1))
            self.steps.append(f"damage {name}: {what}")
        TALLY[f"damaged images of {disk.format}"] += 1
        for folder in (self.theirs, self.ours):
            for path in self.ours.glob(f"{name}-*"):
                if folder != self.ours:
                    shutil.copy(path, folder)
            (folder / name).write_bytes(data)
        self.look_at_damage(name, disk.format)
        self.remove(name)

    def look_at_damage(self, name: str, format: str) -> None:
        """docs/differences.md, damaged: who reads it reads the same, and both find it damaged or neither does."""
        words = ("convert", "-f", format, "-O", "raw", name, "bytes")
        there, status, err = self.on_damage("info", "-f", format, name)
        known = REFUSED if status else READ
        if status != there.returncode and not re.search(known, err + there.stderr):
            self.fail(f"info of a damaged image: {there.returncode} and {status}\n{there.stderr}{err}")
        there, status, err = self.on_damage(*words)
        known = REFUSED if status else READ
        if status != there.returncode and not re.search(known, err + there.stderr):
            self.fail(f"reading a damaged image: {there.returncode} and {status}\n{there.stderr}{err}")
        if status == there.returncode == 0:
            TALLY["damaged images read alike"] += 1
            if (self.theirs / "bytes").read_bytes() != (self.ours / "bytes").read_bytes():
                self.fail(f"damaged {name} does not read the same")
        if format not in CHECKED:
            return
        there, status, err = self.on_damage("check", "-f", format, name)
        if bool(status) != bool(there.returncode) and not re.search(f"{REFUSED}|{READ}", err + there.stderr):
            self.fail(f"check of a damaged image: {there.returncode} and {status}\n{there.stdout}{there.stderr}{err}")
        if format != "qcow2":
            return
        with contextlib.chdir(self.ours):  # qemu-img may take for ever over it
            status = dropin("check", "-f", format, "-r", "all", name)[0]
        if status == 0:
            TALLY["damaged images mended"] += 1
            done = qemu_img("check", "-f", format, name, check=False, cwd=self.ours)
            if done.returncode:
                self.fail(f"after a repair: {done.stdout}{done.stderr}")

    def on_damage(self, *words: str) -> tuple[Any, int, str]:
        self.steps.append("qemu-img " + " ".join(words))
        TALLY[words[0]] += 1
        there = qemu_img(*words, check=False, cwd=self.theirs)
        with contextlib.chdir(self.ours):
            status, _, err = dropin(*words)
        if there.returncode < 0:
            there.returncode = 1  # it crashed
        return there, status, err


def scenario(seed: int, folder: Path) -> None:
    Scenario(seed, folder).run()
    if tally := os.environ.get("DISKMILL_TALLY"):
        Path(tally).write_text(json.dumps(dict(sorted(TALLY.items())), indent=1))


def test_as_qemu_img_does(tmp_path: Path) -> None:
    for_a_while(14, scenario, tmp_path)
