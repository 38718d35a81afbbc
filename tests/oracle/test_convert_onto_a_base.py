"""``convert`` onto a backing image, over random chains: the output reads as the source, whatever lies between.

qemu-img and qemu-io make every image, and read every output. See scenarios.py for longer runs.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import diskmill
import pytest
from diskmill.sizes import KiB, MiB
from scenarios import for_a_while
from tools import qemu_img, qemu_img_json, qemu_io

CHAINED = ("qcow2", "qed", "qcow", "vmdk")
TARGETS: dict[str, tuple[dict[str, str], ...]] = {
    "qcow2": (
        {},
        {"cluster_size": "4096"},
        {"compat": "0.10"},
        {"cluster_size": "2097152"},
        {"cluster_size": "65536", "extended_l2": "on"},
    ),
    "qed": ({}, {"cluster_size": "4096"}),
    "qcow": ({},),
    "vmdk": ({}, {"subformat": "streamOptimized"}, {"zeroed_grain": "on"}, {"subformat": "twoGbMaxExtentSparse"}),
}
SECTOR = 512


class Scenario:
    """One source of up to four images, one base, one output."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.pattern = 0
        self.steps: list[str] = []

    def make(self, name: str, format: str, size: int, *options: str) -> None:
        words = ("create", "-q", "-f", format, *options, name, str(size))
        self.steps.append(" ".join(words))
        qemu_img(*words, cwd=self.folder)

    def scribble(self, name: str, format: str, size: int, most: int = 5) -> None:
        """Some data and some zeros, at sectors."""
        commands = []
        for _ in range(self.random.randint(0, most)):
            start = self.random.randrange(0, max(size - SECTOR, 1), SECTOR)
            count = min(size - start, self.random.choice((SECTOR, 4 * KiB, 64 * KiB, 200 * KiB, MiB)))
            if count <= 0:
                continue
            self.pattern = self.pattern % 250 + 1
            data = f"write -P {self.pattern}" if self.random.random() < 0.75 else "write -z"
            commands.append(f"{data} {start} {count}")
        if commands:
            self.steps.append(f"{name}: {'; '.join(commands)}")
            qemu_io(name, *commands, format=format, cwd=self.folder)

    def size(self) -> int:
        return self.random.randint(1, 3 * MiB // SECTOR) * SECTOR

    def run(self) -> None:
        choose = self.random.choice
        target = choose(CHAINED)
        chain = self.chain(target)
        top, kind = chain[-1]
        arguments: dict[str, Any] = {"format": kind, "output_format": target}
        if kind == "qcow2" and self.random.random() < 0.25:
            self.steps.append("snapshot")
            qemu_img("snapshot", "-c", "then", top, cwd=self.folder)
            self.scribble(top, kind, self.sizes[top])
            arguments["snapshot"] = "then"
            self.read("expected", top, "-f", kind, "-l", "then")
        else:
            self.read("expected", top, "-f", kind)
        base, base_kind = self.base(target, chain)
        self.convert(top, base, base_kind, arguments)
        self.read("got", "out", "-f", target)
        expected, got = (self.folder / name for name in ("expected.raw", "got.raw"))
        one, other = expected.read_bytes(), got.read_bytes()
        if one != other[: len(one)]:
            at = next(at for at in range(len(one)) if one[at] != other[at])
            pytest.fail(f"byte {at} reads {other[at]}, not {one[at]}\n" + "\n".join(self.steps), pytrace=False)

    def chain(self, target: str) -> list[tuple[str, str]]:
        """The source's images, from the lowest up; a VMDK stands on VMDKs only."""
        chain: list[tuple[str, str]] = []
        self.sizes: dict[str, int] = {}
        alone = target == "vmdk" or self.random.random() < 0.1
        for number in range(self.random.randint(1, 4)):
            size = self.size() if self.random.random() < 0.5 or not chain else self.sizes[chain[-1][0]]
            kinds = ("vmdk",) if alone else ("qcow2", "qcow2", "qed", "qcow") if chain else ("raw", *CHAINED)
            kind = self.random.choice(kinds)
            if chain and chain[-1][1] == "vmdk" and not alone:
                kind = "qcow2"
            name = f"source{number}"
            options = ("-b", chain[-1][0], "-F", chain[-1][1]) if chain else ()
            if kind == "qcow2" and self.random.random() < 0.5:
                options = (*options, "-o", f"cluster_size={self.random.choice((512, 4096, 1 << 20))}")
            self.make(name, kind, size, *options)
            self.sizes[name] = size
            self.scribble(name, kind, size)
            chain.append((name, kind))
        return chain

    def base(self, target: str, chain: list[tuple[str, str]]) -> tuple[str, str]:
        """An image of the chain, or a copy of what the source stands on, or any where it stands on nothing."""
        kinds = ("vmdk",) if target == "vmdk" else ("raw", "qcow2", "qed")
        kind = self.random.choice(kinds)
        if target == "qcow2" and self.random.random() < 0.1:
            kind = "vmdk"
        way = self.random.random()
        fitting = [one for one in chain if (one[1] == "vmdk" if target == "vmdk" else True)]
        if way < 0.6 and fitting:
            return self.random.choice(fitting)
        if len(chain) == 1:
            size = self.size()
            self.make("base", kind, size)
            self.scribble("base", kind, size)
            return "base", kind
        below, below_kind = chain[-2]
        if self.random.random() < 0.3:  # it gives the first part only
            self.read("below", below, "-f", below_kind)
            os.truncate(self.folder / "below.raw", self.random.randint(0, self.sizes[below] // SECTOR) * SECTOR)
            below, below_kind = "below.raw", "raw"
        self.steps.append(f"convert -O {kind} {below} base")
        qemu_img("convert", "-f", below_kind, "-O", kind, below, "base", cwd=self.folder)
        return "base", kind

    def convert(self, top: str, base: str, base_kind: str, arguments: dict[str, Any]) -> None:
        target, out = arguments["output_format"], str(self.folder / "out")
        options = dict(self.random.choice(TARGETS[target]))
        stream = options.get("subformat") == "streamOptimized"
        if self.random.random() < 0.2 and not stream:
            size = self.sizes[top] + self.random.choice((0, 0, 64 * KiB))
            words = [f"{key}={value}" for key, value in options.items()]
            self.make("out", target, size, "-b", base, "-F", base_kind, *(("-o", ",".join(words)) if words else ()))
            if self.random.random() < 0.4:
                self.scribble("out", target, size)
            arguments["existing"] = True
        else:
            arguments["options"] = options
        if target in ("qcow2", "qcow") and self.random.random() < 0.3 or stream:
            arguments["compress"] = True
        arguments["sparse"] = self.random.choice((4096, 4096, 0, 64 * KiB))
        arguments["in_order"] = self.random.random() < 0.8
        if self.random.random() < 0.2 and "compress" not in arguments:  # the two contradict each other, as does sparse
            arguments |= {"offload": True, "sparse": 0}
        if "existing" not in arguments and self.random.random() < 0.2:
            options |= {"backing_file": base, "backing_fmt": base_kind}
        else:
            arguments |= {"backing": base, "backing_format": base_kind}
        self.steps.append(f"convert {top} {arguments}")
        diskmill.convert([str(self.folder / top)], out, **arguments)

    def read(self, name: str, image: str, *options: str) -> None:
        qemu_img("convert", *options, "-O", "raw", image, f"{name}.raw", cwd=self.folder)


def scenario(seed: int, folder: Path) -> None:
    """Fails with the steps that lead to the difference."""
    one = Scenario(seed, folder)
    try:
        one.run()
    except diskmill.DiskmillError as error:
        pytest.fail(f"seed {seed}: {error}\n" + "\n".join(one.steps), pytrace=False)
    except BaseException:
        print(f"seed {seed}")
        raise


def test_the_copy_reads_as_the_source(tmp_path: Path) -> None:
    for_a_while(25, scenario, tmp_path)


def test_units_are_compressed_whole_with_what_the_base_has_of_them(tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "raw", "base", "1M", cwd=tmp_path)
    qemu_io("base", "write -P 1 0 1M", format="raw", cwd=tmp_path)
    options = ("-o", "cluster_size=4k")
    qemu_img("create", "-q", "-f", "qcow2", *options, "-b", "base", "-F", "raw", "top", cwd=tmp_path)
    qemu_io("top", "write -z 0 128k", "write -P 0 256k 128k", "write -P 5 516k 10k", format="qcow2", cwd=tmp_path)
    qemu_img("convert", "-O", "qcow2", "-B", "base", "-F", "raw", "-c", "top", "theirs", cwd=tmp_path)
    names = {name: str(tmp_path / name) for name in ("top", "base", "ours")}
    diskmill.convert(
        names["top"], names["ours"], output_format="qcow2", backing=names["base"], backing_format="raw", compress=True
    )
    maps = [qemu_img_json("map", tmp_path / name) for name in ("theirs", "ours")]
    assert maps[0] == maps[1]
    assert qemu_img_json("check", tmp_path / "ours")["compressed-clusters"] == 1
