"""The main job at full size: a 1 GiB disk with a real file system, through every way of storing it and back."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from samples import MiB, ext4_image
from tools import assert_clean, assert_identical, diskmill, diskmill_json, qemu_img, qemu_img_json

SIZE = 1024 * MiB


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ext4 file system that holds the standard library: text, bytecode, machine code, sparse stretches."""
    import json as library

    folder = tmp_path_factory.mktemp("disk")
    ignored = shutil.ignore_patterns("site-packages", "dist-packages", "test", "tests", "config-*", "*.a")
    shutil.copytree(Path(library.__file__).parents[1], folder / "tree", ignore=ignored, symlinks=True)
    return ext4_image(folder / "disk.raw", SIZE, folder / "tree")


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a part of it, for the ways that differ by less than what they are."""
    import idlelib

    return ext4_image(tmp_path_factory.mktemp("smaller") / "disk.raw", SIZE // 4, Path(idlelib.__path__[0]))


@pytest.mark.parametrize("options", [[], ["-c"]], ids=" ".join)
def test_to_qcow2_and_back(disk: Path, tmp_path: Path, options: list[str]) -> None:
    to_qcow2_and_back(disk, tmp_path, options)


@pytest.mark.parametrize(
    "options",
    [
        ["-c", "-o", "compression_type=zstd"],
        ["-o", "cluster_size=4k"],
        ["-o", "cluster_size=2M"],
        ["-o", "compat=0.10"],
        ["-o", "preallocation=metadata"],
        ["-W", "-m", "4"],
        ["-S", "64k"],
    ],
    ids=" ".join,
)
def test_in_other_ways(smaller: Path, tmp_path: Path, options: list[str]) -> None:
    to_qcow2_and_back(smaller, tmp_path, options)


def to_qcow2_and_back(disk: Path, tmp_path: Path, options: list[str]) -> None:
    image, back = tmp_path / "image.qcow2", tmp_path / "back.raw"
    diskmill("convert", "-O", "qcow2", *options, disk, image)
    assert_clean(image)
    assert_identical(disk, image)
    theirs = qemu_img_json("info", image)
    ours = diskmill_json("info", image)
    assert {key: ours.get(key) for key in theirs if key != "children"} == {
        key: value for key, value in theirs.items() if key != "children"
    }
    assert diskmill_json("map", image) == qemu_img_json("map", image)
    diskmill("convert", "-O", "raw", image, back)
    assert_identical(disk, back, formats=("raw", "raw"))
    assert back.stat().st_blocks * 512 <= disk.stat().st_blocks * 512 + MiB, "zeros stay holes"
    assert diskmill("compare", disk, image).stdout == "Images are identical.\n"


def test_the_same_input_gives_the_same_file(disk: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one.qcow2", tmp_path / "other.qcow2"
    diskmill("convert", "-O", "qcow2", disk, one)
    diskmill("convert", "-O", "qcow2", disk, other)
    assert_identical(one, other, formats=("raw", "raw"))


def test_several_sources_one_after_the_other(tmp_path: Path) -> None:
    for name, byte in (("a", b"a"), ("b", b"b")):
        (tmp_path / name).write_bytes(byte * 100 * 512)
    diskmill("convert", "-f", "raw", "-O", "qcow2", tmp_path / "a", tmp_path / "b", tmp_path / "both.qcow2")
    qemu_img("convert", "-O", "raw", tmp_path / "both.qcow2", tmp_path / "both.raw")
    assert (tmp_path / "both.raw").read_bytes() == b"a" * 51200 + b"b" * 51200


def test_into_an_image_that_exists(disk: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, str(SIZE))
    for _ in range(2):  # the second time over what the first has written
        diskmill("convert", "-n", "-O", "qcow2", disk, image)
        assert_clean(image)
        assert_identical(disk, image)


@pytest.mark.parametrize(
    "options",
    [
        ["-O", "raw"],
        ["-O", "raw", "-S", "64k"],
        ["-O", "qcow2"],
        ["-O", "qcow2", "-o", "cluster_size=4k"],
        ["-O", "qcow2", "-o", "preallocation=metadata"],
        ["-O", "vdi"],
        ["-O", "vhdx"],
    ],
    ids=" ".join,
)
def test_scattered_data_takes_no_more_space_than_with_qemu(tmp_path: Path, options: list[str]) -> None:
    chance = random.Random(7)
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(64 * MiB)
        for _ in range(200):
            file.seek(chance.randrange(64 * MiB // 4096) * 4096)
            file.write(chance.randbytes(4096))
    taken = []
    for convert, name in ((qemu_img, "theirs"), (diskmill, "ours")):
        convert("convert", "-f", "raw", *options, source, tmp_path / name)
        assert_identical(source, tmp_path / name, formats=("raw", options[1]))
        taken.append((tmp_path / name).stat().st_blocks * 512)
    assert taken[1] <= taken[0] + 64 * 1024
