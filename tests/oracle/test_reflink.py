"""`convert --reflink`: outputs share blocks with their sources where the file system can, and read the same."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import diskmill
import pytest
from diskmill.errors import DiskmillError
from diskmill.storages.file import space
from samples import KiB, MiB, scattered_file, sparse_file
from tools import assert_identical, qemu_img, run, tool
from tools import diskmill as command

SIZE = 32 * MiB
FLAT = ("vmdk", "-o", "subformat=monolithicFlat")


@pytest.fixture(scope="module", params=["xfs", "btrfs"])
def mounted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system that shares blocks, in a file; only root can mount one, and some machines let nobody."""
    make = tool(f"mkfs.{request.param}")
    folder = tmp_path_factory.mktemp(request.param)
    place = folder / "mounted"
    place.mkdir()
    run(make, "-q", sparse_file(folder / "disk", 512 * MiB, {}))
    done = run(tool("mount"), "-o", "loop", folder / "disk", place, check=False)
    if done.returncode:
        pytest.skip(f"{request.param} cannot be mounted here: {done.stderr.strip()}")
    yield place
    run(tool("umount"), place)


def shared(path: Path) -> int:
    """Bytes of a file that are also another one's, as the kernel tells it."""
    os.sync()
    found = 0
    for line in run(tool("filefrag"), "-v", "-b512", path).stdout.splitlines():
        fields = re.split(r"[:\s]+", line.strip())
        if "shared" in line:
            found += 512 * int(fields[5])
    return found


def test_every_format_that_keeps_whole_blocks(mounted: Path) -> None:
    """Each is written from the one before, so each is read, too."""
    source = previous = sparse_file(mounted / "raw", SIZE, {3 * MiB: os.urandom(5 * MiB), 20 * MiB: bytes(MiB)})
    form = "raw"
    for words in (["qcow2"], ["vdi"], ["vhdx"], FLAT, ["parallels"], ["qcow2", "-o", "data_file={}"], ["raw"]):
        made = mounted / f"by-{words[0]}-{len(words)}"
        words = [word.format(f"{made}.data") for word in words]
        command("convert", "--reflink", "-f", form, "-O", *words, previous, made)
        assert_identical(source, made, formats=("raw", words[0]))
        assert sum(shared(one) for one in mounted.glob(f"{made.name}*")) >= 5 * MiB, words
        form, previous = words[0], made
    assert (mounted / "raw").read_bytes() == previous.read_bytes()


def test_zeros_are_looked_for_unless_sharing_is_asked_for(mounted: Path) -> None:
    source = sparse_file(mounted / "zeros", SIZE, {0: bytes(MiB), MiB: b"x" * MiB})
    for option, stored, common in ((), MiB, 0), (("-C",), 2 * MiB, 2 * MiB), (("-C", "--reflink=never"), MiB, 0):
        command("convert", *option, "-f", "raw", "-O", "raw", source, mounted / "made")
        assert (shared(mounted / "made"), (mounted / "made").stat().st_blocks * 512) == (common, stored), option


def test_where_nothing_can_be_shared(mounted: Path, tmp_path: Path) -> None:
    source = scattered_file(tmp_path / "elsewhere", SIZE, seed=3)
    command("convert", "--reflink=auto", "-f", "raw", "-O", "qcow2", source, mounted / "copied")
    assert_identical(source, mounted / "copied", formats=("raw", "qcow2"))
    qemu_img("convert", "-c", "-O", "qcow2", source, mounted / "packed")
    for name, why in ((source, "one file system"), (mounted / "packed", "compressed")):
        done = command("convert", "--reflink=always", "-O", "raw", name, mounted / "none", check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1) and why in done.stderr
        assert not (mounted / "none").exists()


@pytest.fixture
def cloning(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Files that share blocks of 4 KiB as far as anybody can tell: those of any file system. It lists the lengths that
    were shared; the first number, below zero, is how many times it may be done before the disk is full."""
    calls: list[int] = []
    one_by_one = threading.Lock()

    def clone(source: int, start: int, target: int, offset: int, length: int) -> None:
        if (start | offset | length) % 4096 or start + length > os.fstat(source).st_size:
            raise OSError(errno.EINVAL, "not whole blocks")
        with one_by_one:
            if calls and calls[0] < 0 and len(calls) > -calls[0]:
                raise OSError(errno.ENOSPC, "no space")
            assert os.pwrite(target, os.pread(source, length, start), offset) == length
            calls.append(length)

    monkeypatch.setattr(space, "clone_range", clone)
    return calls


@pytest.mark.parametrize("form", ["raw", "qcow2", "vdi", "vhdx", "parallels", "vmdk", "vpc", "qed"])
def test_parts_of_units_are_copied(cloning: list[int], tmp_path: Path, form: str) -> None:
    """Runs that begin and end anywhere, a disk that ends inside a block, and a kernel that gives up half-way."""
    source = scattered_file(tmp_path / "source", 9 * MiB - 512, seed=8, pieces=24, longest=MiB)
    with source.open("r+b") as file:
        file.seek(2 * MiB)
        file.write(os.urandom(3 * MiB))
    for most in 0, 1:
        cloning[:] = [-most] if most else []
        target = tmp_path / f"target-{most}"
        diskmill.convert(str(source), str(target), format="raw", output_format=form, reflink="auto")
        assert sum(one for one in cloning if one > 0) >= (0 if most else MiB)
        assert_identical(source, target, formats=("raw", form))
        diskmill.convert(str(target), str(tmp_path / "back"), format=form, reflink="auto")
        assert (tmp_path / "back").read_bytes()[: source.stat().st_size] == source.read_bytes()


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_over_what_is_there(cloning: list[int], tmp_path: Path, form: str) -> None:
    """What the source has as holes ends what the target held there."""
    source = sparse_file(tmp_path / "source", 4 * MiB, {MiB + 512: b"a" * MiB, 3 * MiB: b"b" * 100})
    target = tmp_path / "target"
    qemu_img("convert", "-f", "raw", "-O", form, sparse_file(tmp_path / "old", 4 * MiB, {0: b"o" * 4 * MiB}), target)
    diskmill.convert(str(source), str(target), format="raw", output_format=form, reflink="auto", existing=True)
    assert cloning
    assert_identical(source, target, formats=("raw", form))


def test_always_is_no_maybe(cloning: list[int], tmp_path: Path) -> None:
    cloning[:] = [-1]
    source = sparse_file(tmp_path / "source", 4 * MiB, {64 * KiB: b"a" * MiB, 3 * MiB: b"b" * MiB})
    with pytest.raises(DiskmillError, match="no space"):
        diskmill.convert(str(source), str(tmp_path / "made"), format="raw", output_format="qcow2", reflink="always")
    assert not (tmp_path / "made").exists()
