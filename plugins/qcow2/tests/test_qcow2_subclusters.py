"""Images with subclusters are written a subcluster at a time, as QEMU does: the same bytes, the same allocation.

The same operations are done by diskmill and by qemu-io, on overlays of one backing image.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from diskmill.contract.extents import Kind
from diskmill.opening.context import Context
from diskmill.opening.graph import open_image
from diskmill.sizes import KiB
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tools import assert_clean, assert_identical, qemu_img, qemu_img_json, qemu_io

SIZE = 120 * KiB + 512
SECTORS = SIZE // 512


class Step(NamedTuple):
    """One operation on the overlay; in bytes."""

    name: str
    offset: int
    length: int
    fill: int

    @property
    def command(self) -> str:
        """What qemu-io calls it."""
        what = {"write": f"write -P {self.fill}", "zero": "write -z -u", "keep": "write -z", "discard": "discard"}
        return f"{what[self.name]} {self.offset} {self.length}"


def a_step(name: str, start: int, sectors: int, fill: int, shift: int) -> Step:
    """Writes need not be whole sectors. Of zeros QEMU writes the ends less often: it looks whether they are zeros."""
    shift = shift if name == "write" else 0
    offset, length = start * 512 + shift, sectors * 512 - 2 * shift
    return Step(name, offset, min(length, SIZE - offset), fill)


STEPS = st.lists(
    st.builds(
        a_step,
        st.sampled_from(("write", "write", "write", "zero", "keep", "discard")),
        st.integers(0, SECTORS - 1),
        st.sampled_from((1, 2, 7, 31, 32, 64, 97)),
        st.integers(1, 255),
        st.sampled_from((0, 0, 0, 100)),
    ),
    min_size=1,
    max_size=10,
)


def change(path: Path, steps: list[Step]) -> None:
    """Do *steps* by diskmill."""
    with open_image(str(path), "qcow2", writable=True, context=Context()) as image:
        for step in steps:
            if step.name == "write":
                image.write(step.offset, bytes([step.fill]) * step.length)
            elif step.name == "discard":
                image.discard(step.offset, step.length)
            else:
                image.zero(step.offset, step.length, unmap=step.name == "zero")


def own(path: Path) -> list[tuple[int, int, bool, bool]]:
    """What the overlay itself has, by `map`: (start, end, zero, data); neighbours are one, wherever they are."""
    found: list[tuple[int, int, bool, bool]] = []
    for entry in qemu_img_json("map", path):
        if entry["depth"]:
            continue
        one = entry["start"], entry["start"] + entry["length"], entry["zero"], entry["data"]
        if found and found[-1][1] == one[0] and found[-1][2:] == one[2:]:
            one = found.pop()[0], *one[1:]
        found.append(one)
    return found


def host_clusters(path: Path) -> int:
    """How many clusters of the file hold guest data."""
    found = qemu_img_json("check", path)
    return found.get("allocated-clusters", 0)


@contextmanager
def pair(seed: int, *before: str) -> Iterator[tuple[Path, Path]]:
    """Two equal overlays of one backing image, in which qemu-io did *before*."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs, base = (Path(folder) / name for name in ("ours", "theirs", "base"))
        chance = random.Random(seed)
        base.write_bytes(b"".join(chance.choice((bytes(3072), chance.randbytes(3072))) for _ in range(30)))
        options = "extended_l2=on,cluster_size=16k"
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, "-b", base, "-F", "raw", ours, str(SIZE))
        if before:
            qemu_io(ours, *before, format="qcow2")
        shutil.copy(ours, theirs)
        yield ours, theirs


@settings(max_examples=40)
@given(steps=STEPS, seed=st.integers(0, 99))
@example(steps=[Step("write", 700, 100, 1)], seed=0)
@example(steps=[Step("write", 0, 16384, 1), Step("keep", 512, 1024, 0), Step("write", 1000, 10, 2)], seed=0)
def test_the_same_as_qemu(steps: list[Step], seed: int) -> None:
    with pair(seed) as (ours, theirs):
        change(ours, steps)
        qemu_io(theirs, *(step.command for step in steps), format="qcow2")
        assert_clean(ours)
        assert_identical(theirs, ours, formats=("qcow2", "qcow2"))
        assert own(ours) == own(theirs)
        # Clusters of which each subcluster was zeroed by itself are given back; QEMU keeps them.
        assert host_clusters(ours) <= host_clusters(theirs)


@settings(max_examples=12)
@given(before=STEPS, steps=STEPS, seed=st.integers(0, 99))
def test_snapshots_keep_what_they_have(before: list[Step], steps: list[Step], seed: int) -> None:
    """A cluster that a snapshot holds, or that is compressed, moves with all that it has."""
    with pair(seed, "write -c -P 9 16k 16k", *(step.command for step in before)) as (ours, theirs):
        qemu_img("snapshot", "-c", "then", ours)
        shutil.copy(ours, theirs)
        change(ours, steps)
        qemu_io(theirs, *(step.command for step in steps), format="qcow2")
        assert_clean(ours)
        assert_identical(theirs, ours, formats=("qcow2", "qcow2"))
        for path in (ours, theirs):
            qemu_img("convert", "-l", "snapshot.name=then", "-O", "raw", path, path.with_suffix(".then"))
        assert ours.with_suffix(".then").read_bytes() == theirs.with_suffix(".then").read_bytes()


def test_extents_inside_a_cluster_lie_in_the_range() -> None:
    with pair(0, "write -P 1 0 2k", "write -P 2 12k 2k") as (ours, _):
        with open_image(str(ours), "qcow2", context=Context()) as image:
            found = list(image.extents(8704, 4096))
        assert [(extent.start, extent.length, extent.kind) for extent in found] == [
            (8704, 3584, Kind.HOLE),
            (12288, 512, Kind.DATA),
        ]
