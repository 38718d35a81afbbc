"""Changes of qcow2 images in place: backing files, options, emptying; and snapshots that qemu-img made."""

from __future__ import annotations

import struct
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
    diskmill("amend", "--force", "-o", "size=2M", image)
    assert qemu_img_json("info", image)["virtual-size"] == 2 << 20
    assert_clean(image)


BUSY = ("write -P 1 0 1M", "write -z 512k 700k", "write -z -u 1M 300k", "write -P 3 2900k 64k")


def busy(folder: Path, layout: str, *, backed: bool) -> tuple[Path, dict[str, Path]]:
    """An image with zero clusters of all kinds and two snapshots that share some; what each of the three reads as."""
    image = folder / "image"
    qemu_img("create", "-q", "-f", "qcow2", folder / "base", "3M")
    qemu_io(folder / "base", "write -P 5 0 3M", format="qcow2")
    under = ["-b", "base", "-F", "qcow2"] if backed else []
    qemu_img("create", "-q", "-f", "qcow2", "-o", layout, *under, image, "3M")
    for name, commands in (
        ("one", BUSY),
        ("two", ("write -P 2 100k 100k", "write -z 2500k 100k")),
        ("", ("write -P 9 2500k 50k", "write -z 0 100k")),
    ):
        qemu_io(image, *commands, format="qcow2")
        if name:
            qemu_img("snapshot", "-c", name, image)
    truths = {}
    for name in ("", "one", "two"):
        truths[name] = folder / f"truth-{name}"
        qemu_img("convert", *(["-l", name] if name else []), "-O", "raw", image, truths[name])
    return image, truths


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("layout", ["cluster_size=64k", "cluster_size=1k,lazy_refcounts=on,refcount_bits=8"])
def test_amend_of_version_and_refcount_width(tmp_path: Path, layout: str, backed: bool) -> None:
    image, truths = busy(tmp_path, layout, backed=backed)
    for options in (
        "refcount_bits=64",
        "refcount_bits=2,lazy_refcounts=off",
        "refcount_bits=16,compat=0.10",
        "compat=1.1,refcount_bits=4,lazy_refcounts=on",
        "compat=0.10,refcount_bits=16",
        "compat=1.1",
    ):
        diskmill("amend", "-o", options, image)
        assert_clean(image)
        assert_identical(truths[""], image, formats=("raw", "qcow2"))
        data = qemu_img_json("info", image)["format-specific"]["data"]
        wanted = dict(one.split("=") for one in options.split(","))
        found = {
            "compat": data["compat"],
            "refcount_bits": str(data["refcount-bits"]),
            "lazy_refcounts": "on" if data.get("lazy-refcounts") else "off",
        }
        assert {key: found[key] for key in wanted} == wanted
    for name in ("one", "two"):
        diskmill("snapshot", "-a", name, image)
        assert_clean(image)
        assert_identical(truths[name], image, formats=("raw", "qcow2"))


@pytest.mark.timeout(60)
def test_amend_of_the_refcount_width_takes_as_long_as_there_are_refcounts(tmp_path: Path) -> None:
    """A refcount table of 2 MiB has places for the refcounts of 512 PiB; next to none of them is used."""
    image = tmp_path / "image"
    diskmill("create", "-q", "-f", "qcow2", "-o", "cluster_size=2M,preallocation=metadata", image, "30M")
    qemu_io(image, "write -P 5 3M 1M", format="qcow2")
    for bits in (32, 1):
        diskmill("amend", "-o", f"refcount_bits={bits}", image)
        assert_clean(image)
        qemu_io(image, "read -P 5 3M 1M", "read -P 0 0 3M", format="qcow2")


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("compat=1.1", "refcount_bits=1"),  # two snapshots share clusters
        ("compat=1.1", "refcount_bits=3"),
        ("compat=1.1", "refcount_bits=8,compat=0.10"),
        ("refcount_bits=8", "compat=0.10"),
        ("compat=0.10", "lazy_refcounts=on"),
        ("compat=0.10", "refcount_bits=8"),
        ("extended_l2=on", "compat=0.10"),
        ("compat=1.1", "data_file=x"),
        ("compat=1.1", "data_file_raw=on"),
        ("compat=1.1", "size=1M"),
        ("compat=1.1", "size=1M,compat=0.10"),
        ("compat=1.1", "size=8M,compat=0.10"),  # snapshots of another size
        ("compat=1.1", "lazy_refcounts=on,cluster_size=4k"),
    ],
)
def test_amend_all_or_nothing(tmp_path: Path, layout: str, options: str) -> None:
    image, _ = busy(tmp_path, layout, backed=False)
    before = image.read_bytes()
    done = diskmill("amend", "-o", options, image, check=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert image.read_bytes()[: len(before)] == before, "all of the options or none"
    assert_clean(image)


def test_zstd_clusters_of_a_snapshot_forbid_version_2(tmp_path: Path) -> None:
    """qemu-img 7.2 looks at the disk alone, and so loses what a snapshot holds."""
    raw, image = tmp_path / "raw", tmp_path / "image"
    raw.write_bytes(b"text " * 40000)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", raw, image)
    qemu_img("snapshot", "-c", "one", image)
    qemu_io(image, "write -P 1 0 199680", format="qcow2")
    done = diskmill("amend", "-o", "compat=0.10", image, check=False)
    assert done.returncode == 1 and "zstd" in done.stderr
    empty = tmp_path / "empty"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "compression_type=zstd", empty, "1M")
    diskmill("amend", "-o", "compat=0.10", empty)
    assert qemu_img_json("info", empty)["format-specific"]["data"]["compression-type"] == "zlib"
    assert_clean(empty)


def test_amend_of_the_data_file(tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "-o", "data_file=one,data_file_raw=on", "image", "1M", cwd=tmp_path)
    qemu_io("image", "write -P 1 0 512k", format="qcow2", cwd=tmp_path)
    image = tmp_path / "image"
    (tmp_path / "two").write_bytes((tmp_path / "one").read_bytes())
    diskmill("amend", "-o", "data_file=two,data_file_raw=off", image, cwd=tmp_path)
    assert qemu_img_json("info", image)["format-specific"]["data"]["data-file"] == "two"
    (tmp_path / "one").unlink()
    qemu_io("image", "read -P 1 0 512k", "read -P 0 512k 512k", format="qcow2", cwd=tmp_path)
    diskmill("resize", image, "2M", cwd=tmp_path)
    assert (tmp_path / "two").stat().st_size == 2 << 20
    qemu_io("image", "write -P 2 1M 1M", format="qcow2", cwd=tmp_path)
    diskmill("resize", "--shrink", image, "1536k", cwd=tmp_path)
    qemu_io("image", "read -P 1 0 512k", "read -P 2 1M 512k", format="qcow2", cwd=tmp_path)
    qemu_img("check", "image", cwd=tmp_path)


@pytest.mark.parametrize("layout", [*LAYOUTS, "cluster_size=2M", "cluster_size=1k,refcount_bits=64"])
def test_resize_shows_nothing_old(tmp_path: Path, layout: str) -> None:
    """Smaller, then larger: what is new reads as zeros, the bytes after the old end in its cluster too."""
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", layout, image, "3M")
    qemu_io(image, "write -P 1 0 3M", format="qcow2")
    diskmill("resize", "--shrink", image, "1000k")
    diskmill("resize", image, "+2M")
    assert_clean(image)
    qemu_io(image, "read -P 1 0 1000k", "read -P 0 1000k 2M", format="qcow2")
    assert qemu_img_json("info", image)["virtual-size"] == (1000 << 10) + (2 << 20)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resize_does_not_show_a_longer_backing_image(tmp_path: Path, layout: str) -> None:
    """qemu-img 7.2 cannot do this for version 2."""
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "base", "2M")
    qemu_io(tmp_path / "base", "write -P 5 0 2M", format="qcow2")
    top = tmp_path / "top"
    qemu_img("create", "-q", "-f", "qcow2", "-o", layout, "-b", "base", "-F", "qcow2", top, "500k")
    diskmill("resize", top, "3M")
    assert_clean(top)
    qemu_io(top, "read -P 5 0 500k", "read -P 0 500k 2572k", format="qcow2")


@pytest.mark.parametrize("mode", ["metadata", "falloc", "full"])
def test_preallocation_reuses_space_without_its_old_bytes(tmp_path: Path, mode: str) -> None:
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", image, "1M")
    qemu_io(image, "write -P 1 0 1M", format="qcow2")
    qemu_io(image, "discard 512k 256k", format="qcow2")
    diskmill("resize", f"--preallocation={mode}", image, "3M")
    assert_clean(image)
    qemu_io(image, "read -P 1 0 512k", "read -P 0 512k 256k", "read -P 0 1M 2M", format="qcow2")
    entries = qemu_img_json("map", image)
    assert all("offset" in entry for entry in entries if entry["start"] >= 1 << 20)


def test_preallocated_subclusters_show_the_backing_image(tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "base", "1M")
    qemu_io(tmp_path / "base", "write -P 5 0 1M", format="qcow2")
    for mode in ("metadata", "falloc", "full"):
        top = tmp_path / mode
        diskmill(
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            f"extended_l2=on,preallocation={mode}",
            "-b",
            "base",
            "-F",
            "qcow2",
            top,
        )
        assert_clean(top)
        qemu_io(top, "read -P 5 0 1M", format="qcow2")


def test_a_disk_that_stood_on_nothing_does_not_show_what_it_is_rebased_onto(tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "base", "2M")
    qemu_io(tmp_path / "base", "write -P 5 0 2M", format="qcow2")
    for layout in ("compat=0.10", "extended_l2=on", "cluster_size=512"):
        top = tmp_path / layout
        qemu_img("create", "-q", "-f", "qcow2", "-o", layout, top, "1537k")
        qemu_io(top, "write -P 1 100k 100k", format="qcow2")
        diskmill("rebase", "-b", "base", "-F", "qcow2", top)
        assert_clean(top)
        qemu_io(top, "read -P 0 0 100k", "read -P 1 100k 100k", "read -P 0 200k 1337k", format="qcow2")


def test_headers_keep_what_is_not_known(tmp_path: Path) -> None:
    """Unknown extensions and compatible features stay, unknown autoclear features go, incompatible ones are named."""
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    made = bytearray(image.read_bytes())
    length = struct.unpack_from(">I", made, 116)[0]
    names = bytes(made[120 : 120 + length]) + struct.pack(">BB46s", 0, 10, b"quantum clusters")
    extensions = struct.pack(">II", 0x6803F857, len(names)) + names
    extensions += struct.pack(">II", 0x12345678, 5) + b"hello\0\0\0" + bytes(8)
    made[112 : 112 + len(extensions)] = extensions

    def features(incompatible: int, compatible: int, autoclear: int) -> None:
        struct.pack_into(">QQQ", made, 72, incompatible, compatible, autoclear)
        image.write_bytes(made)

    features(1 << 10, 0, 0)
    done = diskmill("info", image, check=False)
    assert done.returncode == 1 and "quantum clusters" in done.stderr
    for change in (
        ("snapshot", "-c", "one"),
        ("amend", "-o", "lazy_refcounts=on"),
        ("amend", "-o", "refcount_bits=8"),
        ("resize", "-q", "2M"),
        ("rebase", "-u", "-F", "raw", "-b", "x" * 1023),
    ):
        features(0, 1 << 9, 1 << 7)
        diskmill(change[0], *change[1:-1], *((image, change[-1]) if change[0] == "resize" else (change[-1], image)))
        after = image.read_bytes()
        assert struct.unpack_from(">QQ", after, 80)[0] & ~1 == 1 << 9 and not struct.unpack_from(">Q", after, 88)[0]
        assert struct.pack(">II", 0x12345678, 5) + b"hello" in after[:4096] and b"quantum clusters" in after[:4096]
    assert qemu_img_json("info", image)["backing-filename"] == "x" * 1023
    done = diskmill("rebase", "-u", "-F", "raw", "-b", "x" * 1024, image, check=False)
    assert done.returncode == 1 and "1023" in done.stderr


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


def test_a_raw_data_file_is_all_allocated(tmp_path: Path) -> None:
    """What is written into it, past the tables, is read by way of them: in a new image, and after a resize."""
    image, data = tmp_path / "image", tmp_path / "data"
    diskmill("create", "-q", "-f", "qcow2", "-o", f"data_file={data},data_file_raw=on", image, "1M")
    diskmill("resize", image, "3M")
    qemu_io(data, "write -P 1 0 64k", "write -P 2 2M 64k", format="raw")
    qemu_io(image, "read -P 1 0 64k", "read -P 2 2M 64k", format="qcow2")
    assert_identical(data, image, formats=("raw", "qcow2"))
