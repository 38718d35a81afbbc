"""``-o compression_level``: QEMU reads what each level makes, more work makes less."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tools import assert_clean, assert_identical, diskmill, qemu_img

MiB = 1024 * 1024
STREAM = "subformat=streamOptimized"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words, which compress the better the longer one looks; something that does not compress; and nothing."""
    chance = random.Random(20)
    letters = b"abcdefghijklmnopqrstuvwxyz "
    words = [bytes(chance.choices(letters, k=chance.randint(3, 9))) for _ in range(2000)]
    path = tmp_path_factory.mktemp("levels") / "disk.raw"
    path.write_bytes(b"".join(chance.choices(words, k=3 * MiB // 6)) + chance.randbytes(MiB // 2) + bytes(MiB))
    with path.open("ab") as file:
        file.truncate(5 * MiB)
    return path


def made(raw: Path, to: str, *options: str) -> int:
    """The bytes of *raw* as *to* with *options*, once QEMU has found the same disk in it."""
    image = raw.with_name(f"{'-'.join(options) or 'default'}.{to}")
    words = [word for option in options for word in ("-o", option)]
    diskmill("convert", "-c", "-f", "raw", "-O", to, *words, raw, image)
    assert_identical(raw, image, formats=("raw", to))
    if to == "qcow2":
        assert_clean(image)
    return image.stat().st_size


@pytest.mark.parametrize(
    ("to", "option", "low", "high"),
    [
        ("qcow2", "compression_type=zlib", 1, 9),
        ("qcow2", "compression_type=zstd", 1, 19),
        ("vmdk", STREAM, 1, 9),
    ],
)
def test_a_higher_level_takes_less_space(raw: Path, to: str, option: str, low: int, high: int) -> None:
    assert made(raw, to, option, f"compression_level={high}") < made(raw, to, option, f"compression_level={low}")


def test_an_appliance_hands_the_level_to_its_disk(raw: Path) -> None:
    small, large = raw.with_name("9.ova"), raw.with_name("1.ova")
    diskmill("convert", "-f", "raw", "-O", "ova", "-o", "compression_level=9", raw, small)
    diskmill("convert", "-f", "raw", "-O", "ova", "-o", "compression_level=1", raw, large)
    assert small.stat().st_size < large.stat().st_size


def test_qemus_level_is_no_larger_than_qemus(raw: Path) -> None:
    theirs = raw.with_name("theirs.qcow2")
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, theirs)
    assert made(raw, "qcow2", "compression_level=6") <= theirs.stat().st_size
    # Without a level: on words no larger either. On a disk of many kinds of data it is a few percent larger.
    assert made(raw, "qcow2") <= theirs.stat().st_size


@pytest.mark.parametrize(
    ("to", "options", "why"),
    [
        ("qcow2", "compression_level=0", "compression_level of zlib must be 1 to 9, not 0"),
        ("qcow2", "compression_level=10", "compression_level of zlib must be 1 to 9, not 10"),
        ("qcow2", "compression_type=zstd,compression_level=20", "compression_level of zstd must be 1 to 19, not 20"),
        ("vmdk", f"{STREAM},compression_level=10", "compression_level must be 1 to 9, not 10"),
        ("vmdk", "compression_level=5", "compression_level is for the subformat streamOptimized"),
    ],
)
def test_levels_that_do_not_exist_are_refused(raw: Path, to: str, options: str, why: str) -> None:
    image = raw.with_name(f"refused.{to}")
    answer = diskmill("convert", "-f", "raw", "-O", to, "-o", options, raw, image, check=False)
    assert answer.returncode == 1
    assert why in answer.stderr
    assert not image.exists()
