"""The check of small images without numpy says of an image what the whole check says, or nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from diskmill.errors import DiskmillError
from diskmill.opening.context import Context
from diskmill.opening.graph import open_image
from diskmill_qcow2 import check, quick_check
from tools import qemu_img, qemu_io

CLUSTER = 4096
LAYOUTS = ("compat=1.1", "compat=0.10", "refcount_bits=8", "refcount_bits=64")


def results(path: Path) -> tuple[object, object] | None:
    """What the quick check and the whole one say, each None where it leaves the matter to others."""
    with open_image(str(path), "qcow2", context=Context(), backing=False) as image:
        try:
            quick = quick_check._Reader(image).result()
        except (quick_check._Odd, DiskmillError):
            return None
        return quick, check.check(image)


def make(path: Path, layout: str) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={CLUSTER},{layout}", path, "4M")
    qemu_io(path, "write -P 1 0 64k", "write -P 2 2M 20k", "write -P 3 1M 4k")
    qemu_img("snapshot", "-c", "one", path)
    qemu_io(path, "write -P 4 8k 12k", "write -P 5 3M 9k")
    qemu_img("snapshot", "-c", "two", path)
    qemu_io(path, "write -P 6 2M 4k")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_checks_say_the_same(tmp_path: Path, layout: str) -> None:
    """Of a sound image, and wherever tables, counts or the file's length are damaged and the quick check sees nothing
    amiss."""
    path, damaged = tmp_path / "sound", tmp_path / "damaged"
    make(path, layout)
    both = results(path)
    assert both is not None and both[0] == both[1]
    whole = path.read_bytes()
    dice = random.Random(layout)
    used = [at for at in range(104, len(whole)) if whole[at]]
    tables = [at for at in used if whole[at - at % 8 : at - at % 8 + 2] in (b"\0\0", b"\x80\0", b"\0\1")]
    told = 0
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(dice.choice((1, 1, 2))):
            data[dice.choice((dice.choice(tables), dice.randrange(104, len(data))))] ^= 1 << dice.randrange(8)
        damaged.write_bytes(data[: len(data) - dice.choice((0, 0, 0, 512, CLUSTER))])
        try:
            both = results(damaged)
        except DiskmillError:  # it does not even open
            continue
        if both is None:
            told += 1
        else:
            assert both[0] == both[1]
    assert told > 5  # the damage reaches what is checked
