"""qcow2 against qemu-img and qemu-io: what they write we read, what we write they read and check clean."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from diskmill.contract.requests import Backing
from diskmill.engine.copy import CopyPlan, copy
from diskmill.opening.context import Context
from diskmill.opening.creation import create_image
from diskmill.opening.graph import open_image
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import scattered_file
from tools import (
    assert_clean,
    assert_identical,
    diskmill,
    diskmill_json,
    qemu_img,
    qemu_img_json,
    qemu_io,
)

KiB, MiB = 1024, 1024 * 1024
CONTEXT = Context(cache="unsafe")

LAYOUTS = [
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=1k",
    "cluster_size=4k,refcount_bits=1",
    "cluster_size=8k,refcount_bits=2",
    "refcount_bits=4",
    "refcount_bits=8",
    "cluster_size=16k,extended_l2=on",
    "refcount_bits=32",
    "cluster_size=2M,refcount_bits=64",
    "cluster_size=128k,lazy_refcounts=on",
    "compression_type=zstd",
    "preallocation=metadata",
    "preallocation=falloc,cluster_size=32k",
    "preallocation=full,cluster_size=256k",
]


def guest_bytes(path: Path, format: str = "qcow2") -> bytes:
    """What diskmill reads."""
    with open_image(str(path), format, context=CONTEXT) as image:
        return image.read(0, image.size)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw disk whose size is no multiple of any cluster."""
    return scattered_file(tmp_path_factory.mktemp("disk") / "disk.raw", 20 * MiB + 5 * 512, seed=7, pieces=150)


WAYS = [
    (layout, compress) for layout in LAYOUTS for compress in ([], ["-c"]) if not (compress and "prealloc" in layout)
]


@pytest.mark.parametrize(("layout", "compress"), WAYS)
def test_theirs_reads_the_same(disk: Path, tmp_path: Path, layout: str, compress: list[str]) -> None:
    image = tmp_path / "theirs.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *compress, "-o", layout, disk, image)
    assert guest_bytes(image) == disk.read_bytes()


@pytest.mark.parametrize(("layout", "compress"), WAYS)
def test_ours_is_read_and_checked_clean(disk: Path, tmp_path: Path, layout: str, compress: list[str]) -> None:
    image = tmp_path / "ours.qcow2"
    diskmill("convert", "-f", "raw", "-O", "qcow2", *compress, "-o", layout, disk, image)
    assert_clean(image)
    assert_identical(disk, image, formats=("raw", "qcow2"))
    assert guest_bytes(image) == disk.read_bytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_info_and_check_agree(disk: Path, tmp_path: Path, layout: str) -> None:
    image = tmp_path / "theirs.qcow2"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", layout, disk, image)
    theirs, ours = qemu_img_json("info", image), diskmill_json("info", image)
    theirs.pop("children", None)
    assert {key: ours.get(key) for key in theirs} == theirs
    assert diskmill_json("check", image) == qemu_img_json("check", image)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_measure_is_exact(disk: Path, layout: str) -> None:
    for words in ([str(disk)], ["--size", "1T"], ["--size", "10G"], ["--size", "0"], ["--size", "12345"]):
        large = words == ["--size", "1T"]
        if large and ("cluster_size=512" in layout or "cluster_size=1k" in layout):
            continue  # larger than the L1 table allows
        options = ["-O", "qcow2", "-o", layout, *words]
        assert diskmill_json("measure", *options) == qemu_img_json("measure", *options), words


def test_measure_refuses_what_does_not_fit() -> None:
    words = ["measure", "-O", "qcow2", "-o", "cluster_size=512", "--size", "1T"]
    assert qemu_img(*words, check=False).returncode == 1
    done = diskmill(*words, check=False)
    assert done.returncode == 1 and "too large" in done.stderr


@pytest.mark.parametrize("layout", ["", "compat=0.10", "cluster_size=512", "extended_l2=on", "refcount_bits=1"])
def test_writing_in_place_keeps_the_image_clean(tmp_path: Path, layout: str) -> None:
    """Fragmented by their writes, then overwritten, zeroed and discarded by ours, in many small steps."""
    chance = random.Random(layout)
    image, size = tmp_path / "image.qcow2", 4 * MiB
    qemu_img("create", "-q", "-f", "qcow2", *(["-o", layout] if layout else []), image, str(size))
    model = bytearray(size)
    commands = []
    for _ in range(40):
        start, length = chance.randrange(size // 512 - 64) * 512, chance.randrange(1, 64) * 512
        commands.append(f"write -P {chance.randrange(1, 256)} {start} {length}")
        model[start : start + length] = bytes([int(commands[-1].split()[2])]) * length
    qemu_io(image, *commands, format="qcow2")
    for _ in range(4):
        with open_image(str(image), "qcow2", context=CONTEXT, writable=True) as ours:
            for _ in range(40):
                start, length = chance.randrange(size - 70000), chance.randrange(1, 70000)
                action = chance.choice(("write", "write", "zero", "unmap", "flush"))
                if action == "write":
                    data = chance.randbytes(length)
                    ours.write(start, data)
                    model[start : start + length] = data
                elif action == "flush":
                    ours.flush()
                else:
                    ours.zero(start, length, unmap=action == "unmap")
                    model[start : start + length] = bytes(length)
                assert ours.read(start, length) == model[start : start + length]
        assert_clean(image)
        assert guest_bytes(image) == model
    raw = tmp_path / "model.raw"
    raw.write_bytes(model)
    assert_identical(raw, image, formats=("raw", "qcow2"))


def test_space_is_used_again(tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, "16M")
    for turn in range(6):
        with open_image(str(image), "qcow2", context=CONTEXT, writable=True) as ours:
            ours.write(0, bytes([turn + 1]) * (8 * MiB))
            ours.flush()
            ours.zero(0, 8 * MiB)
            ours.flush()
            ours.write(8 * MiB, bytes([turn + 1]) * (4 * MiB))
            ours.zero(8 * MiB, 4 * MiB)
    assert image.stat().st_size < 10 * MiB
    assert_clean(image)


@pytest.mark.parametrize("cluster", [512, 4096])
def test_the_refcount_table_grows(tmp_path: Path, cluster: int) -> None:
    """An image whose refcount table has one cluster gets more data than that counts."""
    image = tmp_path / "image.qcow2"
    size = 24 * MiB if cluster == 512 else 192 * MiB
    options = f"cluster_size={cluster},refcount_bits=64"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, image, str(size))
    with open_image(str(image), "qcow2", context=CONTEXT, writable=True) as ours:
        for start in range(0, size, MiB):
            ours.write(start, b"data" * (MiB // 4))
    assert_clean(image)
    qemu_io(image, "read -P 100 0 1", format="qcow2")
    assert guest_bytes(image) == b"data" * (size // 4)


@pytest.mark.parametrize("layout", ["compat=0.10", "cluster_size=512", "extended_l2=on", "preallocation=metadata"])
@pytest.mark.parametrize("preallocation", ["off", "metadata", "falloc", "full"])
def test_resize_grows(tmp_path: Path, layout: str, preallocation: str) -> None:
    image = tmp_path / "image.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", layout, image, "1M")
    qemu_io(image, "write -P 5 0 1M", format="qcow2")
    diskmill("resize", "--preallocation", preallocation, image, "+39M")
    assert qemu_img_json("info", image)["virtual-size"] == 40 * MiB
    assert_clean(image)
    qemu_io(image, "read -P 5 0 1M", "read -P 0 1M 39M", "write -P 6 39M 1M", format="qcow2")
    if preallocation in ("falloc", "full"):
        assert image.stat().st_blocks * 512 >= 40 * MiB
    assert_clean(image)


@pytest.mark.parametrize("layout", ["data_file={}", "data_file={},data_file_raw=on"])
def test_external_data_file(disk: Path, tmp_path: Path, layout: str) -> None:
    theirs, ours = tmp_path / "theirs.qcow2", tmp_path / "ours.qcow2"
    qemu_img("convert", "-O", "qcow2", "-o", layout.format(tmp_path / "theirs.raw"), disk, theirs)
    assert guest_bytes(theirs) == disk.read_bytes()
    diskmill("convert", "-O", "qcow2", "-o", layout.format("ours.raw"), disk, ours)
    # qemu-img takes the name as relative to the working directory, diskmill to the image's folder.
    qemu_img("check", ours, cwd=tmp_path)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", disk, ours, cwd=tmp_path)
    if "raw=on" in layout:
        assert_identical(disk, tmp_path / "ours.raw", formats=("raw", "raw"))
    with open_image(str(theirs), "qcow2", context=CONTEXT, writable=True) as image:
        image.write(700, b"x" * 100_000)
        image.zero(MiB, MiB)
    assert_clean(theirs)
    qemu_io(theirs, "read -P 120 1024 90000", "read -P 0 1M 1M", format="qcow2")


# -- random images, chains and writes -----------------------------------------------------------------------------

SIZE = 2 * MiB

operations = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "write", "write -z", "write -z -u", "discard", "write -c"]),
        st.integers(0, SIZE // 512 - 1),
        st.integers(1, 400),
        st.integers(1, 255),
    ),
    min_size=1,
    max_size=12,
)
layouts = st.sampled_from(
    [
        "",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=4k,refcount_bits=8",
        "cluster_size=16k,extended_l2=on",
        "compression_type=zstd",
        "cluster_size=2M",
        "refcount_bits=1",
    ]
)


def commands_for(steps: list[tuple[str, int, int, int]], cluster: int, version: str) -> list[str]:
    """qemu-io commands: what an image of that kind can do."""
    result = []
    for action, sector, count, byte in steps:
        start, length = sector * 512, min(count * 512, SIZE - sector * 512)
        if action == "write -c":
            start, length = start // cluster * cluster, cluster
            if start + length > SIZE:
                continue
        if action.startswith("write -z") and "0.10" in version:
            action = "write"
        pattern = "" if action in ("discard", "write -z", "write -z -u") else f" -P {byte}"
        result.append(f"{action}{pattern} {start} {length}")
    return result


def cluster_of(layout: str) -> int:
    words = dict(word.split("=") for word in layout.split(",") if word)
    size = words.get("cluster_size", "64k")
    return int(size.rstrip("kM")) * {"k": KiB, "M": MiB}.get(size[-1], 1)


@settings(max_examples=160)
@given(layers=st.lists(st.tuples(layouts, operations), min_size=1, max_size=4))
def test_random_chains_of_theirs(layers: list[tuple[str, list[tuple[str, int, int, int]]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        below = None
        for depth, (layout, steps) in enumerate(layers):
            image = Path(folder) / f"{depth}.qcow2"
            words = ["-o", layout] if layout else []
            if below is not None:
                words += ["-b", below.name, "-F", "qcow2"]
            qemu_img("create", "-q", "-f", "qcow2", *words, image, str(SIZE))
            # A compressed write over an allocated cluster is refused: one that fails changes nothing.
            qemu_io(image, *commands_for(steps, cluster_of(layout), layout), format="qcow2", check=False)
            below = image
        assert below is not None
        raw = Path(folder) / "truth.raw"
        qemu_img("convert", "-O", "raw", below, raw)
        assert guest_bytes(below) == raw.read_bytes()


@settings(max_examples=160)
@given(layers=st.lists(st.tuples(layouts, operations), min_size=1, max_size=3), compress=st.booleans())
def test_random_chains_of_ours(layers: list[tuple[str, list[tuple[str, int, int, int]]]], compress: bool) -> None:
    model = bytearray(SIZE)
    with tempfile.TemporaryDirectory() as folder:
        below = None
        for depth, (layout, steps) in enumerate(layers):
            path = Path(folder) / f"{depth}.qcow2"
            options = dict(word.split("=") for word in layout.split(",") if word)
            backing = None if below is None else Backing(below.name, "qcow2", SIZE)
            image = create_image(str(path), "qcow2", SIZE, options, context=CONTEXT, backing=backing)
            image.settle()
            image.close()
            with open_image(str(path), "qcow2", context=CONTEXT, writable=True) as image:
                for action, sector, count, byte in steps:
                    start, length = sector * 512, min(count * 512, SIZE - sector * 512)
                    if action == "discard":
                        continue  # what is read afterwards is anyone's guess
                    if action.startswith("write -z"):
                        image.zero(start, length, unmap=action.endswith("-u"))
                        byte = 0
                    else:
                        image.write(start, bytes([byte]) * length)
                    model[start : start + length] = bytes([byte]) * length
            assert_clean(path)
            below = path
        assert below is not None
        assert guest_bytes(below) == model
        truth = Path(folder) / "truth.raw"
        truth.write_bytes(model)
        assert_identical(truth, below, formats=("raw", "qcow2"))
        flat = Path(folder) / "flat.qcow2"
        with open_image(str(below), "qcow2", context=CONTEXT) as source:
            target = create_image(str(flat), "qcow2", SIZE, {"cluster_size": "4k"}, context=CONTEXT)
            copy(source, target, CopyPlan(zeroed=True, compress=compress))
            target.settle()
            target.close()
        assert_clean(flat)
        assert_identical(truth, flat, formats=("raw", "qcow2"))
