"""Commands that change an image in place: sizes that are rounded, and bitmaps of what reads as before."""

from __future__ import annotations

from pathlib import Path

import diskmill
import pytest
from diskmill.opening.context import Context
from diskmill.opening.graph import open_image
from diskmill.opening.registry import default_registry
from tools import assert_clean, qemu_img, qemu_img_json, qemu_io

GROWING = ("raw", "qcow2", "qed", "vmdk", "vpc", "vdi", "vhdx", "parallels")
ODD = 1181116006


@pytest.mark.parametrize("format", [name for name in GROWING if default_registry().has("diskmill.format", name)])
def test_a_size_is_rounded_up_to_whole_sectors(format: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    qemu_img("create", "-q", "-f", format, disk, "1G")
    qemu_io(disk, "write -P 7 1M 64k", format=format)
    size = diskmill.resize(str(disk), ODD, format=format)
    shown = qemu_img_json("info", "-f", format, disk)["virtual-size"]
    assert shown >= ODD and shown % 512 == 0
    assert size == shown or format == "vpc"  # whose size qemu-img takes from the geometry
    qemu_io(disk, "read -P 7 1M 64k", "read -P 0 1100M 1M", format=format)


def test_a_size_that_is_rounded_up_to_what_is_there_shrinks_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    qemu_img("create", "-q", "-f", "qed", disk, "1M")
    assert diskmill.resize(str(disk), 2**20 - 511) == 2**20
    assert diskmill.resize(str(disk), 1, relative=True) == 2**20 + 512


def test_an_amended_size_is_rounded_up_too(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    qemu_img("create", "-q", "-f", "qcow2", disk, "1M")
    diskmill.amend(str(disk), {"size": "2000001"})
    assert qemu_img_json("info", disk)["virtual-size"] == 2000384


def recorded(disk: Path) -> list[tuple[int, int]]:
    """(offset, length) of what the only bitmap of *disk* has marked."""
    context = Context()
    with open_image(str(disk), "qcow2", context=context) as image:
        (one,) = context.registry.call(image.driver, "bitmap", image=image, action="list", name="", options={})
        assert one.enabled and not one.inconsistent
        return list(one.ranges())


@pytest.mark.parametrize("command", ["commit", "rebase"])
def test_what_reads_as_before_is_not_recorded(command: str, tmp_path: Path) -> None:
    """Else the next incremental backup is a full one."""
    over = tmp_path / "over"
    for name, pattern in (("base", 1), ("other", 2)):
        qemu_img("create", "-q", "-f", "qcow2", tmp_path / name, "1M")
        qemu_io(tmp_path / name, f"write -P {pattern} 0 512k", format="qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", over, "2M", cwd=tmp_path)
    qemu_io(over, "write -P 3 256k 64k", format="qcow2")
    qemu_img("bitmap", "--add", "-g", "64k", over, "b")
    qemu_io(over, "write -P 4 640k 64k", format="qcow2")
    before = qemu_img("map", over).stdout
    if command == "commit":
        diskmill.commit(str(over))
    else:
        diskmill.rebase(str(over), "other", backing_format="qcow2")
    assert qemu_img("map", over).stdout != before
    assert recorded(over) == [(640 * 1024, 64 * 1024)]
    qemu_io(over, "read -P 1 0 256k", "read -P 3 256k 64k", "read -P 4 640k 64k", "read -P 0 1M 1M", format="qcow2")
    assert_clean(over)


def test_only_what_lies_above_the_base_is_copied(tmp_path: Path) -> None:
    names = ("base", "mid", "top")
    for number, name in enumerate(names):
        below = ("-b", names[number - 1], "-F", "qcow2") if number else ()
        qemu_img("create", "-q", "-f", "qcow2", *below, name, "1M", cwd=tmp_path)
        qemu_io(name, f"write -P {number + 1} {number * 256}k 64k", format="qcow2", cwd=tmp_path)
    out = tmp_path / "out"
    diskmill.convert([str(tmp_path / "top")], str(out), output_format="qcow2", backing="base", backing_format="qcow2")
    qemu_img("compare", tmp_path / "top", out)
    own = [one["start"] for one in qemu_img_json("map", out) if one["data"] and one["depth"] == 0]
    assert own == [256 * 1024, 512 * 1024]
