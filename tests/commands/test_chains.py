"""Long chains of overlays: what every command makes of 300 of them, and what qemu-img says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import diskmill as library
import pytest
from tools import assert_identical, diskmill, qemu_img, qemu_io

COUNT = 300


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of 300 qcow2 of 64 MiB, of which every tenth has a cluster of its own."""
    folder = tmp_path_factory.mktemp("chain")
    for number in range(COUNT):
        path = str(folder / f"{number}.qcow2")
        below = f"{number - 1}.qcow2" if number else None
        library.create(path, 64 << 20, format="qcow2", backing=below, backing_format=below and "qcow2", unsafe=True)
        if number % 10 == 0:
            with library.open(path, "qcow2", writable=True, backing=False) as image:
                image.write(number << 16, bytes([number % 255 + 1]) * 65536)
    return folder


@pytest.fixture
def chain(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "chain")
    return tmp_path / "chain" / f"{COUNT - 1}.qcow2"


def test_reading_commands(chain: Path, tmp_path: Path) -> None:
    infos = json.loads(diskmill("info", "--backing-chain", "--output=json", chain).stdout)
    assert len(infos) == COUNT
    ours, theirs = (
        json.loads(program("map", "--output=json", "-f", "qcow2", chain).stdout) for program in (diskmill, qemu_img)
    )
    keys = ("start", "length", "depth", "zero", "data")
    assert [[one[key] for key in keys] for one in ours] == [[one[key] for key in keys] for one in theirs]
    diskmill("convert", "-O", "qcow2", chain, tmp_path / "flat.qcow2")
    assert_identical(chain, tmp_path / "flat.qcow2", formats=("qcow2", "qcow2"))
    diskmill("compare", chain, tmp_path / "flat.qcow2")


def test_commit_to_the_bottom_of_the_chain(chain: Path, tmp_path: Path) -> None:
    qemu_img("convert", "-O", "raw", chain, tmp_path / "before.raw")
    bottom = chain.with_name("0.qcow2")
    diskmill("commit", "-b", "0.qcow2", chain.name, cwd=chain.parent)
    assert_identical(tmp_path / "before.raw", bottom, formats=("raw", "qcow2"))


def test_rebase_onto_the_bottom_of_the_chain(chain: Path, tmp_path: Path) -> None:
    qemu_img("convert", "-O", "raw", chain, tmp_path / "before.raw")
    diskmill("rebase", "-b", "0.qcow2", "-F", "qcow2", chain.name, cwd=chain.parent)
    assert len(json.loads(diskmill("info", "--backing-chain", "--output=json", chain).stdout)) == 2
    assert_identical(tmp_path / "before.raw", chain, formats=("raw", "qcow2"))


def test_a_longer_chain_than_the_limit_names_the_limit(chain: Path) -> None:
    done = diskmill("map", "--limits", "chain=100", chain, check=False)
    assert done.returncode == 1 and "--limits chain=" in done.stderr and len(done.stderr.splitlines()) == 1


def test_what_lies_beyond_a_shorter_backing_image_is_zeros(tmp_path: Path) -> None:
    """In pieces that begin beyond its end, too: small clusters make holes between small pieces of data."""
    base, top, out = (tmp_path / name for name in ("base", "top", "out"))
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", base, str(1 << 20))
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "-b", base, "-F", "qcow2", top, str(2 << 20))
    qemu_io(top, *(f"write -P {number} {(1 << 20) + number * 40960} 4096" for number in range(1, 9)), format="qcow2")
    diskmill("dd", "-f", "qcow2", "-O", "raw", "bs=4096", f"if={top}", f"of={out}")
    assert_identical(top, out, formats=("qcow2", "raw"))
