"""`convert` into qcow2 takes no more disk space than with qemu-img, where parts of clusters can be left out: of images
with subclusters, with raw data files, with space that is there already.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from diskmill.sizes import KiB, MiB
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tools import assert_clean, assert_identical, diskmill, qemu_img, qemu_img_json, qemu_io

SIZE = 16 * MiB
SLACK = 128 * KiB
"""For tables: of 64 KiB clusters both allocate a few whole ones."""


def scattered(path: Path, *, holes: bool, size: int = SIZE) -> Path:
    """A disk with 4 KiB of data in half of all 64 KiB; between them are holes, or zeros that take space."""
    chance = random.Random(7)
    with path.open("wb") as file:
        file.write(b"" if holes else bytes(size))
        file.truncate(size)
        for start in range(0, size - 64 * KiB + 1, 64 * KiB):
            if chance.random() < 0.5:
                file.seek(start + chance.randrange(16) * 4 * KiB)
                file.write(chance.randbytes(4 * KiB))
    return path


def space(*paths: Path) -> int:
    """Bytes on disk."""
    return sum(path.stat().st_blocks * 512 for path in paths if path.exists())


@pytest.mark.parametrize("holes", [True, False], ids=["holes", "zeros"])
@pytest.mark.parametrize(
    "options",
    [
        ["-o", "extended_l2=on"],
        ["-o", "extended_l2=on,cluster_size=16k"],
        ["-o", "extended_l2=on,cluster_size=2M"],
        ["-o", "extended_l2=on", "-S", "64k"],
        ["-o", "extended_l2=on,preallocation=metadata"],
        ["-o", "preallocation=metadata", "-S", "64k"],
        ["-o", "data_file_raw=on"],
        ["-o", "data_file_raw=on", "-S", "64k"],
        ["-o", "data_file_raw=on,extended_l2=on"],
    ],
    ids=" ".join,
)
def test_scattered_data(tmp_path: Path, options: list[str], holes: bool) -> None:
    source = scattered(tmp_path / "source", holes=holes)
    taken = []
    for convert, name in ((qemu_img, "theirs"), (diskmill, "ours")):
        image, data = tmp_path / name, tmp_path / f"{name}.data"
        # A relative name is relative to the image's folder here, to the working directory there.
        changed = [one.replace("data_file_raw", f"data_file={data},data_file_raw") for one in options]
        convert("convert", "-f", "raw", "-O", "qcow2", *changed, source, image)
        assert_clean(image)
        assert_identical(source, image, formats=("raw", "qcow2"))
        if data.exists():
            assert data.read_bytes() == source.read_bytes()
        taken.append(space(image, data))
    assert taken[1] <= taken[0] * 1.2 + SLACK


@pytest.mark.parametrize("options", [["-n"], ["-n", "--target-is-zero"], ["-B", "base", "-F", "raw"]], ids=" ".join)
def test_scattered_data_into_an_image_that_has_something(tmp_path: Path, options: list[str]) -> None:
    """Into an image that exists, with and without knowing that it reads as zeros; and over a backing image."""
    source = scattered(tmp_path / "source", holes=False)
    qemu_img("create", "-q", "-f", "raw", tmp_path / "base", str(SIZE))
    taken = []
    for convert, name in ((qemu_img, "theirs"), (diskmill, "ours")):
        image = tmp_path / name
        made = ["-o", "extended_l2=on"]
        if "-n" in options:
            qemu_img("create", "-q", "-f", "qcow2", *made, image, str(SIZE))
            made = []
        convert("convert", *options, "-f", "raw", "-O", "qcow2", *made, source, image)
        assert_clean(image)
        assert_identical(source, image, formats=("raw", "qcow2"))
        taken.append(space(image))
    assert taken[1] <= taken[0] * 1.2 + SLACK


def test_dense_data_is_written_whole(tmp_path: Path) -> None:
    """Many small pieces take longer to write than the few zeros between them."""
    source = tmp_path / "source"
    source.write_bytes((random.Random(1).randbytes(60 * KiB) + bytes(4 * KiB)) * 32)
    diskmill("convert", "-f", "raw", "-O", "qcow2", "-o", "extended_l2=on", source, tmp_path / "image")
    assert [entry["data"] for entry in qemu_img_json("map", tmp_path / "image")] == [True]
    assert_identical(source, tmp_path / "image", formats=("raw", "qcow2"))


DISK = 300 * KiB + 512
"""Ends inside a subcluster."""

WRITES = st.lists(
    st.tuples(st.sampled_from((0, 1, 1, 2)), st.integers(0, DISK // 512 - 1), st.sampled_from((1, 4, 8, 40, 128))),
    max_size=12,
)
"""What is written: zeros or a byte, the sector, how many."""


def commands(writes: Sequence[tuple[int, int, int]]) -> list[str]:
    """The same for qemu-io."""
    return [f"write -P {byte} {at * 512} {min(count * 512, DISK - at * 512)}" for byte, at, count in writes]


@settings(max_examples=25)
@given(
    writes=WRITES,
    source_format=st.sampled_from(("raw", "qcow2")),
    options=st.sampled_from(
        (
            "extended_l2=on",
            "extended_l2=on,cluster_size=16k",
            "data_file=IMAGE.data,data_file_raw=on",
            "data_file=IMAGE.data,data_file_raw=on,cluster_size=16k",
            "extended_l2=on,preallocation=metadata",
        )
    ),
    sparse=st.sampled_from(("0", "512", "4k", "12k", "64k", "96k")),
)
def test_whatever_the_source(writes: list[tuple[int, int, int]], source_format: str, options: str, sparse: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, ours = Path(folder) / "source", Path(folder) / "ours"
        qemu_img("create", "-q", "-f", source_format, source, str(DISK))
        if writes:
            qemu_io(source, *commands(writes), format=source_format)
        changed = options.replace("IMAGE", str(ours))
        diskmill("convert", "-f", source_format, "-O", "qcow2", "-S", sparse, "-o", changed, source, ours)
        assert_clean(ours)
        assert_identical(source, ours, formats=(source_format, "qcow2"))
        if "raw" in options:
            assert_identical(source, Path(f"{ours}.data"), formats=(source_format, "raw"))


@settings(max_examples=25)
@given(before=WRITES, writes=WRITES, snapshot=st.booleans(), sparse=st.sampled_from(("512", "4k", "64k")))
@example(before=[(1, 0, 128)], writes=[(1, 8, 8)], snapshot=True, sparse="4k")
def test_what_was_used_before_does_not_shine_through(
    before: list[tuple[int, int, int]], writes: list[tuple[int, int, int]], snapshot: bool, sparse: str
) -> None:
    """Into an image that reads as zeros: written ones, zero subclusters, clusters of a snapshot, places used again."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        qemu_img("create", "-q", "-f", "raw", source, str(DISK))
        if writes:
            qemu_io(source, *commands(writes), format="raw")
        qemu_img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=16k", target, str(DISK))
        if before:
            qemu_io(target, *commands(before), format="qcow2")
        # All reads as zeros then: some are marks of subclusters, some were written.
        zero = [f"write -z 0 {DISK // 3 // 512 * 512}", f"write -P 0 {DISK // 3 // 512 * 512} {DISK // 2 // 512 * 512}"]
        rest = (DISK // 3 // 512 + DISK // 2 // 512) * 512
        qemu_io(target, *zero, f"write -z -u {rest} {DISK - rest}", format="qcow2")
        if snapshot:
            qemu_img("snapshot", "-c", "then", target)
        with target.open("ab") as file:  # what is free holds bytes of no meaning
            file.write(b"\xee" * MiB)
        diskmill("convert", "-n", "--target-is-zero", "-S", sparse, "-f", "raw", "-O", "qcow2", source, target)
        assert_clean(target)
        assert_identical(source, target, formats=("raw", "qcow2"))
        if snapshot:
            qemu_img("convert", "-l", "then", "-O", "raw", target, Path(folder) / "then")
            assert not any((Path(folder) / "then").read_bytes())


@pytest.mark.parametrize("options", ["extended_l2=on", "data_file=DATA,data_file_raw=on"])
def test_a_failed_write_leaves_nothing(tmp_path: Path, options: str) -> None:
    source = scattered(tmp_path / "source", holes=True, size=64 * MiB)
    folder = tmp_path / "out"
    folder.mkdir()
    options = options.replace("DATA", str(folder / "image.data"))
    command = ("convert", "-f", "raw", "-O", "qcow2", "-o", options, source, folder / "image")
    assert diskmill(*command, check=False, file_size=MiB).returncode == 1
    assert list(folder.iterdir()) == []
    diskmill(*command)
    assert_identical(source, folder / "image", formats=("raw", "qcow2"))


def test_a_failed_write_leaves_a_sound_image(tmp_path: Path) -> None:
    """An image that existed is incomplete then, but clean, save for clusters that leak."""
    source = scattered(tmp_path / "source", holes=True, size=64 * MiB)
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on", image, str(64 * MiB))
    command = ("convert", "-n", "--target-is-zero", "-f", "raw", "-O", "qcow2", source, image)
    assert diskmill(*command, check=False, file_size=8 * MiB).returncode == 1
    found = qemu_img_json("check", image, check=False)
    assert not found.get("corruptions") and not found["check-errors"]
    diskmill(*command)
    assert_identical(source, image, formats=("raw", "qcow2"))
