"""Bad input: one line, the right exit status, nothing hanging, the input untouched, no output that looks whole."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from samples import KiB, MiB, scattered_file
from tools import diskmill, qemu_img

Damage = Callable[[Path], None]


def poke(offset: int, code: str, value: int) -> Damage:
    def damage(image: Path) -> None:
        with image.open("r+b") as file:
            file.seek(offset)
            file.write(struct.pack(code, value))

    return damage


def cut(size: int) -> Damage:
    return lambda image: os.truncate(image, size)


def backing(name: str) -> Damage:
    def damage(image: Path) -> None:
        qemu_img("rebase", "-u", "-b", name, "-F", "qcow2", image)

    return damage


# Offsets of fields in the header of docs/interop/qcow2 in the QEMU sources.
DAMAGES: dict[str, Damage] = {
    "header cut at 3": cut(3),
    "header cut at 50": cut(50),
    "header cut at 103": cut(103),
    "version 0": poke(4, ">I", 0),
    "version 99": poke(4, ">I", 99),
    "cluster bits 0": poke(20, ">I", 0),
    "cluster bits 63": poke(20, ">I", 63),
    "size 2**63": poke(24, ">Q", 2**63),
    "L1 size 2**31": poke(36, ">I", 2**31),
    "L1 size 0": poke(36, ">I", 0),
    "L1 table past the end": poke(40, ">Q", 1 << 50),
    "L1 table not aligned": poke(40, ">Q", 513),
    "L1 table at 2**64 - 65536": poke(40, ">Q", 2**64 - 65536),
    "refcount table of 2**31 clusters": poke(56, ">I", 2**31),
    "backing name at 2**60": poke(8, ">Q", 1 << 60),
    "unknown feature": poke(72, ">Q", 1 << 60),
    "refcount order 50": poke(96, ">I", 50),
    "header length 2**31": poke(100, ">I", 2**31),
    "backing loop": backing("image.qcow2"),
    "missing backing file": backing("not-there.qcow2"),
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    source = scattered_file(tmp_path / "source.raw", 4 * MiB, seed=1)
    image = tmp_path / "image.qcow2"
    qemu_img("convert", "-O", "qcow2", source, image)
    source.unlink()
    return image


def assert_one_line(stderr: str, *names: Path) -> None:
    assert stderr.startswith("diskmill: "), stderr
    assert stderr.count("\n") == 1, stderr
    for name in names:
        assert name.name in stderr


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_source(image: Path, tmp_path: Path, damage: Damage) -> None:
    damage(image)
    before = image.read_bytes()
    output = tmp_path / "out.raw"
    done = diskmill(
        "convert", "-f", "qcow2", "-O", "raw", image, output, check=False, timeout=20, address_space=1024 * MiB
    )
    assert done.returncode == 1
    assert_one_line(done.stderr, image)
    assert image.read_bytes() == before
    assert not output.exists()
    assert os.listdir(tmp_path) == ["image.qcow2"]


def test_a_lost_refcount_table_does_not_stop_reading(image: Path, tmp_path: Path) -> None:
    """Guest data is found without refcounts; writing is what needs them, and check says what is wrong."""
    whole = tmp_path / "whole.raw"
    diskmill("convert", "-O", "raw", image, whole)
    poke(48, ">Q", 1 << 50)(image)
    diskmill("convert", "-O", "raw", image, tmp_path / "out.raw")
    assert (tmp_path / "out.raw").read_bytes() == whole.read_bytes()
    assert diskmill("check", image, check=False).returncode in (1, 2)
    before = image.read_bytes()
    done = diskmill("convert", "-n", "-O", "qcow2", whole, image, check=False)
    assert done.returncode == 1
    assert_one_line(done.stderr, image)
    assert image.read_bytes() == before


def test_a_version_of_the_future_is_not_taken_for_raw(image: Path) -> None:
    with image.open("r+b") as file:
        file.seek(4)
        file.write(struct.pack(">I", 4))
    before = image.read_bytes()
    for command in (("info",), ("resize", "--shrink")):
        done = diskmill(*command, image, *(["1M"] if len(command) > 1 else []), check=False)
        assert done.returncode == 1
        assert_one_line(done.stderr, image)
    assert image.read_bytes() == before


def test_an_output_that_is_also_the_input(image: Path) -> None:
    before = image.read_bytes()
    os.link(image, image.with_name("same"))
    for output in (image, image.with_name("same")):
        done = diskmill("convert", "-O", "qcow2", image, output, check=False)
        assert done.returncode == 1
        assert_one_line(done.stderr, output)
        assert image.read_bytes() == before


def test_an_output_that_is_the_sources_backing_file(image: Path, tmp_path: Path) -> None:
    top = tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", image, "-F", "qcow2", top)
    before = image.read_bytes()
    done = diskmill("convert", "-O", "qcow2", top, image, check=False)
    assert done.returncode == 1
    assert_one_line(done.stderr, image)
    assert image.read_bytes() == before


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_full_disk(image: Path, tmp_path: Path, format: str) -> None:
    """RLIMIT_FSIZE stands for the full disk: the write fails in the same place, with EFBIG for ENOSPC."""
    output = tmp_path / "out"
    done = diskmill("convert", "-O", format, image, output, check=False, file_size=512 * KiB)
    assert done.returncode == 1
    assert_one_line(done.stderr, output)
    assert os.listdir(tmp_path) == ["image.qcow2"]


def test_a_full_disk_does_not_touch_the_old_output(image: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.write_bytes(b"old")
    diskmill("convert", "-O", "raw", image, output, check=False, file_size=512 * KiB)
    assert output.read_bytes() == b"old"


def test_targets_that_cannot_be_written(image: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for output in (folder, tmp_path / "no" / "such" / "folder", Path("/proc/version")):
        done = diskmill("convert", "-O", "raw", image, output, check=False)
        assert done.returncode == 1
        assert_one_line(done.stderr, output)
    assert sorted(os.listdir(tmp_path)) == ["folder", "image.qcow2"]


def test_a_target_that_exists_and_is_too_small(image: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.raw"
    small.write_bytes(b"x" * 512)
    done = diskmill("convert", "-n", "-O", "raw", image, small, check=False)
    assert done.returncode == 1
    assert_one_line(done.stderr, small)
    assert small.read_bytes() == b"x" * 512


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    done = diskmill("convert", "-O", "raw", tmp_path / "none", tmp_path / "out", check=False)
    assert done.returncode == 1
    assert_one_line(done.stderr, tmp_path / "none")
    assert os.listdir(tmp_path) == []


def test_a_name_with_control_characters_stays_one_line(tmp_path: Path) -> None:
    done = diskmill("info", tmp_path / "a\nb\x1b[31m", check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr
