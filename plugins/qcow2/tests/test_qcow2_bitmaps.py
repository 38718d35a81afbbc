"""Persistent dirty bitmaps of qcow2: what ours record, qemu-nbd exports; what QEMU records, ours tell."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import diskmill
import pytest
from diskmill.commands.bitmap import bitmaps_of
from diskmill.errors import ImageError, UsageError
from diskmill.opening.context import Context
from diskmill.sizes import KiB, MiB
from tools import assert_clean, diskmill_json, qemu_img, qemu_img_json, qemu_io, tool
from tools import diskmill as command

SIZE = 8 * MiB


def told_by_qemu(image: Path, name: str) -> list[tuple[int, int]]:
    """(offset, length) of the guest bytes that are dirty in bitmap *name*, by way of a network block device."""
    socket = image.with_name("socket")
    words = ["-r", "-f", "qcow2", "-k", str(socket), "-B", name, str(image)]
    server = subprocess.Popen([tool("qemu-nbd"), *words])
    try:
        for _ in range(600):
            if socket.exists():
                break
            time.sleep(0.05)
        options = f"driver=nbd,server.type=unix,server.path={socket},x-dirty-bitmap=qemu:dirty-bitmap:{name}"
        entries = qemu_img_json("map", "--image-opts", options)
    finally:
        server.terminate()
        server.wait()
        socket.unlink(missing_ok=True)
    return [(entry["start"], entry["length"]) for entry in entries if not entry["data"]]


def told_by_us(image: Path, name: str) -> list[tuple[int, int]]:
    with diskmill.open(str(image), "qcow2") as opened:
        return next(list(one.ranges()) for one in bitmaps_of(opened, Context()) if one.name == name)


def flags(image: Path) -> dict[str, list[str]]:
    """Name → flags, of which both programs must tell the same."""
    data = qemu_img_json("info", image)["format-specific"]["data"]
    assert diskmill_json("info", image)["format-specific"]["data"] == data
    return {one["name"]: sorted(one["flags"]) for one in data.get("bitmaps", [])}


def dirty(writes: list[tuple[int, int]], granularity: int, size: int = SIZE) -> list[tuple[int, int]]:
    """What a bitmap must tell after *writes*."""
    bits = sorted({bit for at, length in writes for bit in range(at // granularity, -(-(at + length) // granularity))})
    found: list[tuple[int, int]] = []
    for bit in bits:
        start, end = bit * granularity, min((bit + 1) * granularity, size)
        if found and sum(found[-1]) == start:
            found[-1] = found[-1][0], end - found[-1][0]
        else:
            found.append((start, end - start))
    return found


@pytest.mark.parametrize(
    ("options", "granularity"),
    [
        ("cluster_size=64k", None),
        ("cluster_size=512", 512),
        ("cluster_size=4k", 128 * KiB),
        ("extended_l2=on", 4 * KiB),
        ("cluster_size=2M", None),
    ],
)
def test_writes_are_recorded(tmp_path: Path, options: str, granularity: int | None) -> None:
    """Written, zeroed and discarded ranges, by both programs one after the other."""
    image, chance = tmp_path / "image", random.Random(options)
    cluster = {"cluster_size=512": 512, "cluster_size=4k": 4096, "cluster_size=2M": 2 * MiB}.get(options, 64 * KiB)
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, image, str(SIZE))
    qemu_io(image, "write 1M 1M", format="qcow2")
    words = [] if granularity is None else ["-g", str(granularity)]
    command("bitmap", "--add", *words, image, "dirty")
    command("bitmap", "--add", "--disable", "-g", "512", image, "still")
    grain = granularity or min(max(cluster, 4 * KiB), 64 * KiB)
    assert {one["granularity"] for one in qemu_img_json("info", image)["format-specific"]["data"]["bitmaps"]} == {
        grain,
        512,
    }
    assert told_by_qemu(image, "dirty") == []
    writes: list[tuple[int, int]] = []
    for _ in range(2):
        with diskmill.open(str(image), "qcow2", writable=True) as opened:
            for _ in range(6):
                at, length = chance.randrange(SIZE - 200_000), chance.randrange(1, 200_000)
                opened.write(at, b"w" * length)
                writes.append((at, length))
            opened.zero(3 * MiB + 100, 300_000)
            writes.append((3 * MiB + 100, 300_000))
            opened.discard(4 * MiB, 2 * MiB)
            writes.append((4 * MiB, 2 * MiB))
        assert flags(image) == {"dirty": ["auto"], "still": []}
        assert told_by_qemu(image, "dirty") == dirty(writes, grain)
        at = chance.randrange(SIZE // 512 - 100) * 512
        qemu_io(image, f"write {at} 20k", "discard 7M 512k", format="qcow2")
        writes += [(at, 20 * KiB), (7 * MiB, 512 * KiB)]
        assert told_by_us(image, "dirty") == dirty(writes, grain)
        assert_clean(image)
    assert told_by_us(image, "still") == told_by_qemu(image, "still") == []
    if "extended" not in options:
        source = tmp_path / "source"
        source.write_bytes(b"c" * SIZE)
        command("convert", "-n", "-c", "-f", "raw", "-O", "qcow2", source, image)
        assert told_by_qemu(image, "dirty") == [(0, SIZE)]
        assert_clean(image)


def test_actions_in_order(tmp_path: Path) -> None:
    """The same command lines to both programs leave the same bitmaps."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    qemu_img("create", "-q", "-f", "qcow2", ours, "4M")
    for name, granularity, what in (("a", "64k", "write 0 100k"), ("b", "4k", "write 1M 5k")):
        qemu_img("bitmap", "--add", "-g", granularity, ours, name)
        qemu_io(ours, what, format="qcow2")
    theirs.write_bytes(ours.read_bytes())
    other = tmp_path / "other"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", other, "4M")
    qemu_img("bitmap", "--add", other, "x")
    qemu_io(other, "write 2M 20k", format="qcow2")
    lines: list[tuple[str, ...]] = [
        ("--merge", "b", "a"),
        ("--add", "--merge", "a", "--disable", "c"),
        ("--clear", "--merge", "b", "--enable", "c"),
        ("--disable", "a"),
        ("--merge", "x", "-b", str(other), "-F", "qcow2", "a"),
        ("--add", "-g", "512", "--merge", "x", "-b", str(other), "d"),
        ("--add", "a"),
        ("--remove", "b"),
        ("--clear", "b"),
        ("--merge", "b", "a"),
        ("--add", "-g", "1000", "e"),
        ("--merge", "a", "a"),
        ("--remove", "--add", "a"),
    ]
    for line in lines:
        done = [
            run("bitmap", *line[:-1], image, line[-1], check=False)
            for run, image in ((command, ours), (qemu_img, theirs))
        ]
        assert done[0].returncode == done[1].returncode, (line, done[0].stderr, done[1].stderr)
        assert flags(ours) == flags(theirs), line
        for name in flags(ours):
            assert told_by_us(ours, name) == told_by_us(theirs, name), (line, name)
        assert_clean(ours)
    for name in flags(ours):
        assert told_by_qemu(ours, name) == told_by_qemu(theirs, name) == told_by_us(ours, name)


def test_inconsistent_ones_can_only_be_removed(tmp_path: Path) -> None:
    image, copy = tmp_path / "image", tmp_path / "copy"
    qemu_img("create", "-q", "-f", "qcow2", image, "4M")
    for name in ("a", "b"):
        qemu_img("bitmap", "--add", image, name)
    words = [tool("qemu-io"), "-f", "qcow2", "-c", "write 0 4k", "-c", "flush", "-c", "sigraise 9", image]
    assert subprocess.run(words, capture_output=True).returncode < 0
    qemu_img("check", "-q", "-r", "all", image)
    assert flags(image) == {"a": ["auto", "in-use"], "b": ["auto", "in-use"]}
    for action in (("--clear",), ("--enable",), ("--disable",), ("--merge", "b")):
        done = command("bitmap", *action, image, "a", check=False)
        assert done.returncode == 1 and "is inconsistent and cannot be used" in done.stderr
    done = command("resize", image, "5M", check=False)
    assert done.returncode == 1 and "inconsistent" in done.stderr
    done = command("convert", "--bitmaps", "-O", "qcow2", image, copy, check=False)
    assert done.returncode == 1 and "inconsistent bitmap 'a'" in done.stderr and not copy.exists()
    command("bitmap", "--add", image, "c")
    with diskmill.open(str(image), "qcow2", writable=True) as opened:
        opened.write(1 << 20, b"more")
    done = command("convert", "--bitmaps", "--skip-broken-bitmaps", "-O", "qcow2", image, copy)
    assert "Skipping inconsistent bitmap 'a'" in done.stderr
    assert flags(copy) == {"c": ["auto"]}
    assert told_by_qemu(copy, "c") == [(1 << 20, 64 * KiB)]
    for name in ("a", "b"):
        command("bitmap", "--remove", image, name)
    assert flags(image) == {"c": ["auto"]}
    command("resize", image, "5M")
    assert_clean(image)


@pytest.mark.parametrize("size", ["9M", "5G"])
def test_resize(tmp_path: Path, size: str) -> None:
    """Bitmaps become as large as the disk; what is new of it has not changed."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", ours, "8M")
    for name, granularity in (("a", "64k"), ("b", "512")):
        qemu_img("bitmap", "--add", "-g", granularity, ours, name)
    qemu_io(ours, "write 0 12M" if size == "9M" else "write 8187k 5k", "write 8187k 5k", format="qcow2", check=False)
    theirs.write_bytes(ours.read_bytes())
    command("resize", ours, size)
    qemu_img("resize", theirs, size)
    for name in ("a", "b"):
        assert told_by_us(ours, name) == told_by_us(theirs, name) == told_by_qemu(ours, name)
    assert_clean(ours)


def test_a_disk_does_not_outgrow_its_bitmaps(tmp_path: Path) -> None:
    """An image whose bitmap is larger than may be is opened by nobody: 512 MiB of bits."""
    image = tmp_path / "image"
    command("create", "-f", "qcow2", image, "8M")
    command("bitmap", "--add", "-g", "512", image, "fine")
    done = command("resize", image, "8T", check=False)
    assert done.returncode == 1 and "'fine'" in done.stderr
    assert qemu_img_json("info", image)["virtual-size"] == SIZE and flags(image) == {"fine": ["auto"]}
    assert_clean(image)
    command("resize", image, "2T")
    assert qemu_img_json("info", image)["virtual-size"] == 2 << 40 and flags(image) == {"fine": ["auto"]}
    assert_clean(image)
    command("bitmap", "--remove", image, "fine")
    command("resize", image, "8T")


def test_commit_into_a_smaller_image_that_changed_throughout(tmp_path: Path) -> None:
    """What its bitmap says in one word for the whole disk does not stand for what the disk grows by."""
    base, overlay = tmp_path / "base", tmp_path / "overlay"
    command("create", "-f", "qcow2", base, "1M")
    command("bitmap", "--add", base, "dirty")
    with diskmill.open(str(base), "qcow2", writable=True) as opened:
        opened.write(0, b"b" * MiB)
    assert told_by_us(base, "dirty") == [(0, MiB)]
    command("create", "-f", "qcow2", "-b", "base", "-F", "qcow2", overlay, "4M")
    qemu_io(overlay, "write 3M 64k", format="qcow2")
    command("commit", overlay)
    assert told_by_us(base, "dirty") == told_by_qemu(base, "dirty") == dirty([(0, MiB), (3 * MiB, 64 * KiB)], 64 * KiB)
    assert_clean(base)


def test_copies(tmp_path: Path) -> None:
    """convert --bitmaps, both ways round; and what cannot be."""
    image, copy, again = tmp_path / "image", tmp_path / "copy", tmp_path / "again"
    qemu_img("create", "-q", "-f", "qcow2", image, "64M")
    for name, granularity, what in (("a", "64k", "write 10M 1M"), ("b", "512", "write 60M 700")):
        qemu_img("bitmap", "--add", "-g", granularity, image, name)
        qemu_io(image, what, format="qcow2")
    qemu_img("bitmap", "--disable", image, "a")
    command("convert", "--bitmaps", "-O", "qcow2", "-o", "cluster_size=1k", image, copy)
    qemu_img("convert", "--bitmaps", "-O", "qcow2", copy, again)
    assert_clean(copy)
    assert flags(image) == flags(copy) == flags(again) == {"a": [], "b": ["auto"]}
    for name in ("a", "b"):
        assert told_by_us(image, name) == told_by_qemu(copy, name) == told_by_us(again, name)
    for words, text in (
        (("-O", "raw", image), "does not support"),
        (("-O", "qcow2", "-o", "compat=0.10", image), "version 2"),
        (("-O", "qcow2", image, copy), "single source"),
    ):
        done = command("convert", "--bitmaps", *words, tmp_path / "none", check=False)
        assert done.returncode == 1 and text in done.stderr and not (tmp_path / "none").exists()


def test_copies_into_a_larger_image_are_refused_before_it_is_written(tmp_path: Path) -> None:
    """Neither program can merge bitmaps of another size; none is left that tells of no changes."""
    image, larger = tmp_path / "image", tmp_path / "larger"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    qemu_img("bitmap", "--add", image, "dirty")
    qemu_io(image, "write 0 64k", format="qcow2")
    qemu_img("create", "-q", "-f", "qcow2", larger, "2M")
    before = larger.read_bytes()
    done = command("convert", "-n", "--bitmaps", "-O", "qcow2", image, larger, check=False)
    assert done.returncode == 1 and "'dirty' is of a disk of 1048576 bytes" in done.stderr
    assert larger.read_bytes() == before
    qemu_img("convert", "-n", "--bitmaps", "-O", "qcow2", image, larger, check=False)
    assert flags(larger) == {}


def test_a_broken_directory_is_not_dropped_silently(tmp_path: Path) -> None:
    """Nothing is written to an image whose bitmaps cannot be kept up, until it is repaired."""
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "4M")
    qemu_img("bitmap", "--add", image, "a")
    data = bytearray(image.read_bytes())
    at = data.find(b"\x23\x85\x28\x75") + 8
    directory = int.from_bytes(data[at + 16 : at + 24], "big")
    data[directory + 17] = 99  # granularity_bits
    image.write_bytes(data)
    with pytest.raises(ImageError, match="granularity"):
        diskmill.open(str(image), "qcow2", writable=True)
    assert image.read_bytes() == data
    command("check", "-r", "all", image)
    assert flags(image) == {}
    assert_clean(image)


def test_only_what_is_known_is_added(tmp_path: Path) -> None:
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", image, "64M")
    before = image.read_bytes()
    for words, text in (
        (("--add", image, ""), "empty"),
        (("--add", image, "n" * 1024), "1023"),
        (("--add", "-g", "4G", image, "a"), "power of 2"),
        (("--remove", image, "a"), "not found"),
    ):
        done = command("bitmap", *words, check=False)
        assert done.returncode == 1 and text in done.stderr, done.stderr
    assert image.read_bytes() == before
    with diskmill.open(str(image), "qcow2") as opened, pytest.raises(UsageError, match="not found"):
        Context().registry.call(opened.driver, "bitmap", image=opened, action="clear", name="x", options={})


def test_all_bitmaps_are_removed_at_once(tmp_path: Path) -> None:
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    for name in ("one", "two", "three"):
        qemu_img("bitmap", "--add", image, name)
    command("bitmap", "--remove-all", "--add", image, "next")
    assert list(flags(image)) == ["next"]
    command("bitmap", "--remove-all", image)
    assert flags(image) == {}
    assert_clean(image)
    assert command("bitmap", "--clear", image, check=False).returncode == 1
