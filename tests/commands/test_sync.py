"""Bringing a copy up to date: by what differs, and by what is known to have changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import diskmill as api
import pytest
from diskmill.errors import UsageError
from samples import MiB, scattered_file
from tools import diskmill, diskmill_json, qemu_img, qemu_io

SIZE = 16 * MiB
CHANGES = ["write -P 7 1M 64k", "write -P 8 5000000 1000", "write -z 8M 2M", "write -P 9 15M 1M"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A qcow2 disk with data nearly everywhere."""
    raw = scattered_file(tmp_path / "raw", SIZE, seed=3, pieces=100, longest=MiB)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, tmp_path / "source.qcow2")
    raw.unlink()
    return tmp_path / "source.qcow2"


def change(source: Path) -> None:
    qemu_io(source, *CHANGES, format="qcow2")


@pytest.mark.parametrize("format", ["raw", "qcow2", "vmdk", "vhdx"])
def test_only_what_differs_is_written(source: Path, tmp_path: Path, format: str) -> None:
    copy = tmp_path / "copy"
    api.convert([source], copy, output_format=format)
    change(source)
    would = api.sync(source, copy, target_format=format, dry_run=True)
    assert 2 * MiB < would.copied < 4 * MiB  # some of it was so before
    assert api.sync(source, copy, target_format=format) == would
    assert would.copied + would.saved == would.size == SIZE
    qemu_img("compare", "-f", "qcow2", "-F", format, source, copy)
    assert api.sync(source, copy, target_format=format).copied == 0


def by_bitmap(source: Path) -> str:
    api.bitmap(source, "monday", [("add", "")])
    return "monday"


def by_snapshot(source: Path) -> str:
    api.snapshot(source, "create", "before")
    return "snapshot:before"


def by_digests(source: Path) -> str:
    with (source.parent / "blocks").open("wb") as file:
        api.digest(source, block_digests=file)
    return str(source.parent / "blocks")


@pytest.mark.parametrize("mark", [by_bitmap, by_snapshot, by_digests])
def test_since_then(source: Path, tmp_path: Path, mark: Callable[[Path], str]) -> None:
    since, copy = mark(source), tmp_path / "copy.raw"
    api.convert([source], copy)
    change(source)
    with copy.open("r+b") as file:  # where nothing changed, nothing is written
        file.seek(4 * MiB)
        file.write(b"here")
    diskmill("convert", "-n", "--since", since, "-O", "raw", source, copy)
    with copy.open("r+b") as file:
        file.seek(4 * MiB)
        assert file.read(4) == b"here"
        file.seek(4 * MiB)
        with api.open(source) as disk:
            file.write(disk.read(4 * MiB, 4))
    qemu_img("compare", "-f", "qcow2", "-F", "raw", source, copy)


def test_what_cannot_be_meant_is_refused(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.raw"
    api.convert([source], copy)
    with pytest.raises(UsageError, match="no bitmap, snapshot or file of digests 'nothing'"):
        api.convert([source], copy, existing=True, since="nothing")
    with pytest.raises(UsageError, match="requires existing"):
        api.convert([source], copy, since="nothing")
    (tmp_path / "short").write_bytes(bytes(31))
    with pytest.raises(UsageError, match="does not hold the sha256 of each of 256 blocks"):
        api.convert([source], copy, existing=True, since=str(tmp_path / "short"))
    os.truncate(copy, SIZE + 512)
    with pytest.raises(UsageError, match="resize it first"):
        api.sync(source, copy, target_format="raw")
    with pytest.raises(UsageError, match="the output is also an input"):
        api.sync(source, source)


def test_the_command_tells_what_was_saved(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.qcow2"
    shutil.copy(source, copy)
    change(source)
    told = diskmill_json("sync", "--output=json", "-n", source, copy)
    assert told["copied"] + told["saved"] == SIZE
    assert "MiB written" in diskmill("sync", source, copy).stdout
    qemu_img("compare", source, copy)
