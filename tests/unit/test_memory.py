"""Files in memory, as a user of the library meets them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import diskmill
import pytest

MiB = 1 << 20


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    diskmill.memory.clear()
    yield
    diskmill.memory.clear()


def test_a_disk_goes_through_memory_and_back(tmp_path: Path) -> None:
    data = b"diskmill" * 40_000
    diskmill.memory["a.raw"] = data + bytes(-len(data) % 512)
    diskmill.convert("memory:a.raw", "memory:a.qcow2", format="raw", output_format="qcow2")
    (tmp_path / "a.qcow2").write_bytes(diskmill.memory["a.qcow2"])
    assert diskmill.compare("memory:a.raw", tmp_path / "a.qcow2", format_a="raw").identical
    assert sorted(diskmill.memory) == ["a.qcow2", "a.raw"]
    del diskmill.memory["a.raw"]
    with pytest.raises(diskmill.StorageError, match=r"'memory:a\.raw': No such file"):
        diskmill.info("memory:a.raw")


def test_chains_stand_in_one_folder(tmp_path: Path) -> None:
    diskmill.create("memory:vms/base", format="qcow2", size=4 * MiB)
    diskmill.create("memory:vms/top", format="qcow2", backing="base", backing_format="qcow2")
    with diskmill.open("memory:vms/base", writable=True) as base:
        base.write(MiB, b"below")
    with diskmill.open("memory:vms/top") as top:
        assert top.read(MiB, 5) == b"below"
    diskmill.create("memory:other", format="qcow2", backing="vms/base", backing_format="qcow2", size=4 * MiB)
    with diskmill.open("memory:other") as other:
        assert other.read(MiB, 5) == b"below"
    diskmill.create("memory:vms/out", format="qcow2", size=4 * MiB, backing="memory:other", backing_format="qcow2")
    with pytest.raises(diskmill.RefusedError):
        diskmill.open("memory:vms/out")
    diskmill.create(tmp_path / "thief", format="qcow2", size=4 * MiB, backing="memory:vms/base", backing_format="qcow2")
    with pytest.raises(diskmill.RefusedError):
        diskmill.open(tmp_path / "thief")


def test_who_writes_is_alone() -> None:
    diskmill.create("memory:disk", format="qcow2", size=MiB)
    with diskmill.open("memory:disk"), diskmill.open("memory:disk"), pytest.raises(diskmill.LockedError):
        diskmill.open("memory:disk", writable=True)
    with diskmill.open("memory:disk", writable=True):
        with pytest.raises(diskmill.LockedError):
            diskmill.open("memory:disk")
        diskmill.open("memory:disk", share=True).close()


def test_an_output_that_fails_has_no_name() -> None:
    diskmill.memory["a"] = bytes(MiB)
    diskmill.memory["b"] = b"was here"
    with pytest.raises(diskmill.DiskmillError):
        diskmill.convert(["memory:a", "memory:none"], "memory:b", format="raw")
    assert diskmill.memory["b"] == b"was here"


def test_a_large_disk_takes_what_was_written() -> None:
    diskmill.create("memory:large", format="raw", size=1 << 40)
    with diskmill.open("memory:large", "raw", writable=True) as large:
        large.write(1 << 39, b"x")
        assert large.read((1 << 39) - 1, 3) == b"\0x\0"
        assert large.allocated() == 64 << 10
    diskmill.resize("memory:large", 1 << 38, format="raw", shrink=True)
    diskmill.resize("memory:large", 1 << 40, format="raw")
    with diskmill.open("memory:large", "raw") as large:
        assert large.read(1 << 39, 1) == b"\0"
