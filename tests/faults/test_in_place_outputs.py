"""An output that is written into the file that is there bears its name all the time: what makes it an image comes last,
so that who kills it finds the old image (when nothing was written yet), the new one, or nothing that opens.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diskmill
import pytest
from diskmill.contract.requests import CreateRequest
from diskmill.errors import DiskmillError
from diskmill.opening.context import CACHE_MODES, Context
from diskmill.storages.file import driver
from replacements import GiB, KiB, Kind, killed_at
from tools import qemu_img

MOMENTS = {"convert": 5, "create": 2, "dd": 2}
"""How many moments of each format and command are tried; ``DISKMILL_MOMENTS=NUMBER`` tries that many of each."""
WRITES = ("pwrite", "pwritev", "ftruncate", "posix_fallocate", "fdatasync")
MiB = 1 << 20
SPREAD = tuple(range(0, 2 * MiB, 256 * KiB))


def kind_of(format: str, **options: Any) -> Kind:
    header = options.get("header")
    return Kind(format, options, f"disk.{format}", 2 * MiB, SPREAD, header, "in-place")


KEY = {"key-secret": "key", "iter-time": 10}
KINDS = {
    "qcow2": kind_of("qcow2"),
    "qcow2 512": kind_of("qcow2", cluster_size="512"),
    "qcow2 falloc": kind_of("qcow2", preallocation="falloc"),
    "qcow2 data file": kind_of("qcow2", data_file="data.raw"),
    "qcow": kind_of("qcow"),
    "qed": kind_of("qed"),
    "vdi": kind_of("vdi"),
    "vdi static": kind_of("vdi", preallocation="metadata"),
    "vhdx": kind_of("vhdx"),
    "vhdx fixed": kind_of("vhdx", subformat="fixed"),
    "vpc": kind_of("vpc", force_size="on"),
    "vpc fixed": kind_of("vpc", subformat="fixed", force_size="on"),
    "parallels": kind_of("parallels"),
    "luks": kind_of("luks", **KEY),
    "luks 2": kind_of("luks", **KEY, **{"version": "2", "pbkdf-memory": 1024}),
    "luks header": kind_of("luks", **KEY, header="disk.header"),
    "vmdk": kind_of("vmdk"),
    "vmdk stream": kind_of("vmdk", subformat="streamOptimized"),
    "vmdk flat": kind_of("vmdk", subformat="monolithicFlat"),
    "vmdk split": replace(
        kind_of("vmdk", subformat="twoGbMaxExtentSparse"), size=2 * GiB + MiB, probes=(0, MiB, 2 * GiB)
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.mark.parametrize("how", MOMENTS)
def test_kill_at_random_moments(kind: Kind, how: str, tmp_path: Path) -> None:
    first, work, kept = tmp_path / "first", tmp_path / "work", tmp_path / "inodes"
    first.mkdir()
    kept.mkdir()
    kind.make(first, b"A")
    assert kind.state(first) == "old"
    dice = random.Random(kind.main)

    def fresh() -> None:
        shutil.rmtree(work, ignore_errors=True)
        subprocess.run(["cp", "-a", "--sparse=always", first, work], check=True)

    make, made = partial(kind.make, work, b"B", how), "empty" if how == "create" else "new"
    noise = how == "create" and kind.format == "luks"  # what was never written to it decrypts to that

    def told() -> str:
        state = kind.state(work)
        return made if noise and state.startswith("garbage") else state

    total = 1
    fresh()
    while killed_at(WRITES, total, make):
        fresh()
        total *= 2
    inodes = {name: (work / name).stat().st_ino for name in os.listdir(work)}
    make()
    assert {name: (work / name).stat().st_ino for name in os.listdir(work)} == inodes
    assert told() == made
    seen = set()
    for moment in range(int(os.environ.get("DISKMILL_MOMENTS", MOMENTS[how]))):
        number = 2 if moment == 0 else dice.randrange(2, max(total, 3))
        fresh()
        killed = killed_at(WRITES, number, make)
        state = told()
        assert state in ("none", made) or not killed, f"killed at write {number}: {state}"
        seen.add(state)
        if killed and state == "none":
            info = qemu_img("info", "--output=json", work / kind.main, check=False)
            assert info.returncode or '"format": "raw"' in info.stdout
    assert "none" in seen


def test_a_failed_output_is_empty(kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind.make(tmp_path, b"A")
    count = 0

    def failing(function: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            nonlocal count
            count += 1
            if count > 3:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return function(*arguments)

        return call

    for name in ("pwrite", "pwritev"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    with pytest.raises(DiskmillError):
        kind.make(tmp_path, b"B")
    monkeypatch.undo()
    assert kind.state(tmp_path) == "none"


@pytest.mark.parametrize("cache", CACHE_MODES)
def test_storage_in_place_is_an_empty_file_until_it_is_settled(tmp_path: Path, cache: str) -> None:
    path = tmp_path / "out"
    path.write_bytes(random.Random(1).randbytes(200000))
    before, old = path.stat(), path.read_bytes()
    dice, expected = random.Random(cache), bytearray()
    with driver.create(CreateRequest(str(path), Context(cache=cache, overwrite="in-place"), 0)) as storage:
        storage.write(100, b"head only")
        expected[:109] = bytes(100) + b"head only"
        assert path.read_bytes() == old, "nothing was lost yet"
        storage.withhold(300000, 512)
        for _ in range(80):
            offset, length = dice.randrange(400000), dice.choice((1, 511, 512, 4096, 70000, 150000))
            what = dice.choice(("write", "write", "vector", "zero", "truncate", "allocate"))
            end = offset + length
            expected.extend(bytes(max((offset if what == "truncate" else end) - len(expected), 0)))
            if what in ("write", "vector"):
                data = dice.randbytes(length)
                storage.write(offset, data) if what == "write" else storage.write_vector(offset, [data[:7], data[7:]])
                expected[offset:end] = data
            elif what == "zero":
                storage.zero(offset, length)
                expected[offset:end] = bytes(length)
            elif what == "truncate":
                storage.truncate(offset)
                del expected[offset:]
            else:
                storage.allocate(offset, length, "falloc")
            assert storage.size == len(expected)
            at = dice.randrange(500000)
            assert storage.read(at, 100000) == bytes(expected[at : at + 100000]).ljust(100000, b"\0")
            assert sum(one.length for one in storage.extents(at, 100000)) == 100000
        storage.truncate(500000)
        expected = expected[:500000].ljust(500000, b"\0")
        storage.flush()
        assert path.read_bytes()[:65536].strip(b"\0") == b""
        assert path.read_bytes()[300000:300512].strip(b"\0") == b""
        storage.settle()
        assert path.read_bytes()[:500000] == expected
        storage.write(0, b"afterwards")
    assert path.read_bytes() == b"afterwards" + expected[10:]
    assert path.stat().st_ino == before.st_ino


def program(name: str) -> Path:
    return Path(sys.executable).with_name(name)


def test_who_holds_the_output_open_sees_what_the_drop_in_writes(tmp_path: Path) -> None:
    """A hard link, an open file, attributes and the owner's mode: they are of the file that is there."""
    source, out, link = tmp_path / "source", tmp_path / "out", tmp_path / "link"
    source.write_bytes(random.Random(2).randbytes(MiB))
    for words in (
        ("convert", "-f", "raw", "-O", "qcow2", source, out),
        ("create", "-f", "qcow2", out, "1M"),
        ("dd", "-f", "raw", "-O", "qcow2", f"if={source}", f"of={out}"),
    ):
        link.unlink(missing_ok=True)
        out.write_bytes(b"old")
        out.chmod(0o604)
        os.setxattr(out, "user.note", b"kept")
        link.hardlink_to(out)
        with out.open("rb") as held:
            subprocess.run([program("qemu-img"), *words], check=True, capture_output=True)
            assert held.read(4) == b"QFI\xfb"
        assert os.path.samefile(out, link)
        assert out.stat().st_mode & 0o777 == 0o604
        assert os.getxattr(out, "user.note") == b"kept"
        if words[0] != "create":
            qemu_img("compare", "-f", "raw", "-F", "qcow2", source, out)


def test_diskmill_replaces_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.write_bytes(random.Random(2).randbytes(MiB))
    commands: tuple[Callable[..., list[object]], ...] = (
        lambda *options: ["convert", "-f", "raw", "-O", "qcow2", *options, source, out],
        lambda *options: ["create", "-f", "qcow2", *options, out, "1M"],
        lambda *options: ["dd", "-f", "raw", "-O", "qcow2", *options, f"if={source}", f"of={out}"],
    )

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program("diskmill"), *map(str, words)], capture_output=True, text=True, check=False)

    for command in commands:
        out.unlink(missing_ok=True)
        assert run(*command("--no-clobber")).returncode == 0
        before = out.stat()
        refused = run(*command("--no-clobber"))
        assert refused.returncode == 1
        assert "File exists" in refused.stderr
        assert out.stat().st_mtime_ns == before.st_mtime_ns
        with out.open("rb"):  # so that the number cannot be given to the next file
            assert run(*command()).returncode == 0
            assert out.stat().st_ino != before.st_ino
        before = out.stat()
        assert run(*command("--in-place")).returncode == 0
        assert out.stat().st_ino == before.st_ino
        link = tmp_path / "link"
        link.hardlink_to(out)
        refused = run(*command())
        assert refused.returncode == 1
        assert "hard links" in refused.stderr
        assert "--in-place" in refused.stderr
        link.unlink()
        assert run(*command("--in-place", "--no-clobber")).returncode == 1


def test_what_is_refused_leaves_the_file_that_is_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    diskmill.create(str(out), MiB, format="qcow2")
    old = out.read_bytes()
    context = Context(overwrite="in-place")
    for options, size in (
        ({"cluster_size": "77"}, MiB),
        ({"cluster_size": "512"}, 1 << 60),
        ({"data_file": "out"}, MiB),
    ):
        with pytest.raises(DiskmillError):
            diskmill.create(str(out), size, format="qcow2", options=options, context=context)
    assert out.read_bytes() == old
    with diskmill.open(str(out)), pytest.raises(DiskmillError, match="another process"):
        diskmill.create(str(out), MiB, format="qcow2", context=context)
    assert out.read_bytes() == old
