"""Changes of qcow2 images in place: backing files, options, emptying; and snapshots that qemu-img made."""

from __future__ import annotations

from pathlib import Path

import pytest
from tools import assert_clean, assert_identical, diskmill, diskmill_json, qemu_img, qemu_img_json, qemu_io

LAYOUTS = ["compat=0.10", "cluster_size=512", "extended_l2=on", "refcount_bits=1"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rebase_onto_another_and_onto_nothing(tmp_path: Path, layout: str) -> None:
    for name, byte in (("old", 1), ("new", 2)):
        qemu_img("create", "-q", "-f", "qcow2", tmp_path / name, "2M")
        qemu_io(tmp_path / name, f"write -P {byte} 0 1M", format="qcow2")
    top, truth = tmp_path / "top", tmp_path / "truth"
    qemu_img("create", "-q", "-f", "qcow2", "-o", layout, "-b", "old", "-F", "qcow2", top)
    qemu_io(top, "write -P 3 300k 500k", format="qcow2")
    qemu_img("convert", "-O", "raw", top, truth)
    diskmill("rebase", "-b", "new", "-F", "qcow2", top)
    assert qemu_img_json("info", top)["backing-filename"] == "new"
    assert_clean(top)
    assert_identical(truth, top, formats=("raw", "qcow2"))
    diskmill("rebase", "-b", "", top)
    assert "backing-filename" not in qemu_img_json("info", top)
    assert_clean(top)
    assert_identical(truth, top, formats=("raw", "qcow2"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_commit_empties_the_overlay(tmp_path: Path, layout: str) -> None:
    base, top, truth = tmp_path / "base", tmp_path / "top", tmp_path / "truth"
    qemu_img("create", "-q", "-f", "qcow2", base, "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-o", layout, "-b", "base", "-F", "qcow2", top, "3M")
    qemu_io(top, "write -P 3 100k 500k", "write -P 4 2M 512k", format="qcow2")
    qemu_img("convert", "-O", "raw", top, truth)
    diskmill("commit", top)
    assert {entry["depth"] for entry in qemu_img_json("map", top) if entry["data"]} == {1}
    for image in (base, top):
        assert_clean(image)
        assert_identical(truth, image, formats=("raw", "qcow2"))


def test_amend_of_header_options(tmp_path: Path) -> None:
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    diskmill("amend", "-o", "lazy_refcounts=on,size=5M", image)
    info = qemu_img_json("info", image)
    assert info["format-specific"]["data"]["lazy-refcounts"] and info["virtual-size"] == 5 << 20
    before = image.read_bytes()
    done = diskmill("amend", "-o", "lazy_refcounts=off,refcount_bits=1", image, check=False)
    assert done.returncode == 1 and "refcount_bits" in done.stderr
    assert image.read_bytes() == before, "all of the options or none"


@pytest.mark.parametrize("layout", ["compat=0.10", "cluster_size=512", "extended_l2=on", "refcount_bits=8"])
def test_snapshots_of_theirs(tmp_path: Path, layout: str) -> None:
    """Listed, read, kept apart from what is written afterwards."""
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", layout, image, "2M")
    for number in range(1, 4):
        qemu_io(image, f"write -P {number} {number * 100}k 700k", format="qcow2")
        qemu_img("convert", "-O", "raw", image, tmp_path / f"truth{number}")
        qemu_img("snapshot", "-c", f"name{number}", image)
    ours, theirs = diskmill_json("info", image), qemu_img_json("info", image)
    assert ours["snapshots"] == theirs["snapshots"]
    assert diskmill_json("check", image) == qemu_img_json("check", image)
    source = tmp_path / "source"
    source.write_bytes(b"new!" * (1 << 19))
    diskmill("convert", "-n", "-f", "raw", "-O", "qcow2", source, image)
    assert_clean(image)
    assert_identical(source, image, formats=("raw", "qcow2"))
    for number in range(1, 4):
        for key in (str(number), f"name{number}"):
            diskmill("convert", "-l", key, "-O", "raw", image, tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == (tmp_path / f"truth{number}").read_bytes()
        qemu_img("snapshot", "-a", str(number), image)
        assert_identical(tmp_path / f"truth{number}", image, formats=("raw", "qcow2"))
    done = diskmill("convert", "-l", "none", "-O", "raw", image, tmp_path / "copy", check=False)
    assert done.returncode == 1 and "no snapshot 'none'" in done.stderr
