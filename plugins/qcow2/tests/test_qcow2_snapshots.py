"""Internal snapshots of qcow2 against qemu-img: ours are theirs and theirs are ours, refcounts and flags exact."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from diskmill.opening.context import Context
from diskmill.opening.graph import open_image
from samples import scattered_file
from tools import assert_clean, assert_identical, diskmill, qemu_img, qemu_img_json, qemu_io, run, tool

MiB = 1 << 20
CONTEXT = Context(cache="unsafe")
LAYOUTS = [
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=2M,refcount_bits=64",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=4k,refcount_bits=4",
    "cluster_size=1k,refcount_bits=8,compression_type=zstd",
    "preallocation=metadata,lazy_refcounts=on",
]


def filled(folder: Path, layout: str) -> Path:
    """An image with compressed clusters that share host clusters, ordinary ones, zeros, and holes."""
    image, raw = folder / "image", folder / "raw"
    scattered_file(raw, 3 * MiB + 512, seed=5, pieces=40)
    compress = [] if "prealloc" in layout or "refcount_bits=4" in layout else ["-c"]
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *compress, "-o", layout, raw, image)
    qemu_io(image, "write -P 1 100k 300k", "write -z 700k 130k", "discard 1M 256k", format="qcow2")
    return image


def keep(image: Path, name: str) -> Path:
    """A raw copy of what the disk holds now."""
    copy = image.with_name(f"truth-{name}")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", image, copy)
    return copy


@pytest.mark.parametrize("layout", LAYOUTS)
def test_taken_by_both_in_turn(tmp_path: Path, layout: str) -> None:
    """Each takes, applies and deletes what the other has taken; between, both write."""
    image = filled(tmp_path, layout)
    truths = {}
    for number, take in enumerate((diskmill, qemu_img, diskmill, qemu_img), 1):
        take("snapshot", "-c", f"s{number}", image)
        truths[number] = keep(image, f"s{number}")
        assert_clean(image)
        qemu_io(image, f"write -P {number} {number * 500}k 200k", f"write -z {number * 400}k 64k", format="qcow2")
        with open_image(str(image), "qcow2", context=CONTEXT, writable=True) as ours:
            ours.write(number * 700_001, bytes([number + 100]) * 70_000)
            ours.zero(number * 150_000, 100_000)
    assert qemu_img("snapshot", "-l", image).stdout == diskmill("snapshot", "-l", image).stdout
    now = keep(image, "now")
    diskmill("snapshot", "-d", "s2", image)
    assert_clean(image)
    assert_identical(now, image, formats=("raw", "qcow2"))
    for number, apply in ((1, diskmill), (4, diskmill), (3, qemu_img), (1, qemu_img), (3, diskmill)):
        apply("snapshot", "-a", str(number), image)
        assert_clean(image)
        assert_identical(truths[number], image, formats=("raw", "qcow2"))
        qemu_io(image, f"write -P 77 {number * 300}k 300k", format="qcow2")
    for number, delete in ((3, diskmill), (4, qemu_img), (1, diskmill)):
        delete("snapshot", "-d", f"s{number}", image)
        assert_clean(image)
    assert "snapshots" not in qemu_img_json("info", image)


def test_names_and_ids(tmp_path: Path) -> None:
    """Several of one name, one named as another's id, and names that are no text: kept as they are."""
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    for number, name in enumerate((b"same", b"same", b"1", b"\xff\xfe", b"", b"x" * 255), 1):
        qemu_io(image, f"write -P {number} 0 64k", format="qcow2")
        diskmill("snapshot", "-c", name.decode("utf-8", "surrogateescape"), image)
    listed = qemu_img_json("info", image)["snapshots"]
    assert [one["id"] for one in listed] == ["1", "2", "3", "4", "5", "6"]
    assert [one["name"] for one in listed][:3] == ["same", "same", "1"]
    assert b"\xff\xfe" in image.read_bytes()
    diskmill("snapshot", "-d", "1", image)  # by name alone, as qemu-img: not the one with that id
    diskmill("snapshot", "-d", "same", image)
    assert [one["id"] for one in qemu_img_json("info", image)["snapshots"]] == ["2", "4", "5", "6"]
    diskmill("snapshot", "-a", "2", image)
    assert qemu_io(image, "read -P 2 0 64k", format="qcow2").returncode == 0
    diskmill("snapshot", "-c", "next", image)
    assert qemu_img_json("info", image)["snapshots"][-1]["id"] == "7"
    assert_clean(image)


@pytest.mark.parametrize("options", ["refcount_bits=1", "data_file=data"])
def test_what_cannot_have_one_is_left_alone(tmp_path: Path, options: str) -> None:
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, image.name, "1M", cwd=tmp_path)
    qemu_io(image.name, "write -P 1 0 512k", format="qcow2", cwd=tmp_path)
    before = image.read_bytes()
    for words in (["-c", "new"], ["-a", "new"], ["-d", "new"]):
        done = diskmill("snapshot", *words, image, check=False)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
        assert image.read_bytes() == before
    done = diskmill("snapshot", "-c", "x" * 256, image, check=False)
    assert done.returncode == 1 and image.read_bytes() == before


def with_vm_state(image: Path) -> None:
    """A snapshot with 1 MiB of VM state behind the disk's 1 MiB, as QEMU's savevm leaves it."""
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", image, "4M")
    qemu_io(image, "write -P 1 0 2M", "write -P 0x5a 2M 1M", format="qcow2")
    qemu_img("snapshot", "-c", "running", image)
    data = bytearray(image.read_bytes())
    struct.pack_into(">Q", data, 24, 2 * MiB)  # the disk's size
    table = struct.unpack_from(">Q", data, 64)[0]
    struct.pack_into(">I", data, table + 32, 1 * MiB)
    struct.pack_into(">QQ", data, table + 40, 1 * MiB, 2 * MiB)  # VM state size, disk size
    image.write_bytes(data)


def test_vm_state_is_carried_and_never_shows(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with_vm_state(image)
    assert_clean(image)
    diskmill("snapshot", "-c", "plain", image)
    diskmill("snapshot", "-a", "running", image)
    first, second = qemu_img_json("info", image)["snapshots"]
    assert (first["vm-state-size"], second["vm-state-size"]) == (MiB, 0)
    assert "1 MiB" in diskmill("snapshot", "-l", image).stdout
    assert_clean(image)
    # The VM state lies where the disk grows to.
    diskmill("resize", image, "4M")
    assert_clean(image)
    qemu_io(image, "read -P 1 0 2M", "read -P 0 2M 2M", format="qcow2")
    diskmill("snapshot", "-a", "running", image)
    assert qemu_img_json("info", image)["virtual-size"] == 2 * MiB
    diskmill("snapshot", "-d", "plain", image)
    diskmill("snapshot", "-d", "running", image)
    assert_clean(image)
    qemu_io(image, "read -P 1 0 2M", format="qcow2")


def test_encrypted(tmp_path: Path) -> None:
    image = tmp_path / "image"
    secret = ("--object", "secret,id=s,data=letmein")
    opened = f"driver=qcow2,encrypt.key-secret=s,file.filename={image}"
    keys = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    qemu_img("create", "-q", *secret, "-f", "qcow2", "-o", keys, image, "2M")

    def io(command: str) -> None:
        run(tool("qemu-io"), *secret, "--image-opts", "-c", command, opened)

    io("write -P 1 0 1M")
    diskmill("snapshot", *secret, "--image-opts", "-c", "one", opened)
    io("write -P 2 0 1M")
    io("read -P 2 0 1M")
    diskmill("snapshot", *secret, "--image-opts", "-a", "one", opened)
    io("read -P 1 0 1M")
    qemu_img("check", *secret, "--image-opts", opened)


def test_an_image_that_names_clusters_outside_is_refused(tmp_path: Path) -> None:
    """Damage is found before anything is changed."""
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    qemu_io(image, "write -P 1 0 128k", format="qcow2")
    qemu_img("snapshot", "-c", "one", image)
    data = bytearray(image.read_bytes())
    l2 = struct.unpack_from(">Q", data, struct.unpack_from(">Q", data, 40)[0])[0] & (1 << 56) - 1
    struct.pack_into(">Q", data, l2, 1 << 40)
    image.write_bytes(data)
    for words in (["-c", "new"], ["-a", "one"], ["-d", "one"]):
        done = diskmill("snapshot", *words, image, check=False)
        assert done.returncode == 1 and "damaged" in done.stderr
        assert image.read_bytes() == data
