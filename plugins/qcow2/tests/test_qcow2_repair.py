"""Repairs of damaged qcow2 images: qemu-img finds them clean, and guest data is no worse than after its own repair."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import diskmill
import pytest
from diskmill.commands.check import check
from diskmill.contract.results import CheckResult
from diskmill.errors import ImageError
from qcow2_damage import LAYOUTS, Anatomy, sample
from tools import (
    assert_clean,
    assert_identical,
    diskmill_json,
    qemu_img,
    qemu_img_json,
    qemu_io,
    tool,
)
from tools import diskmill as command

SECTOR = 512


def mend(image: Path, data: bytes) -> tuple[CheckResult, bool]:
    """Repair *image*, which has *data*: the result, and whether it first refused because that gives up data."""
    image.write_bytes(data)
    try:
        return check(str(image), format="qcow2", repair="all"), False
    except ImageError as error:
        if "-r lost" not in str(error):
            raise
        assert image.read_bytes() == data, "a repair that is refused changes nothing"
        return check(str(image), format="qcow2", repair="lost"), True


def clean(image: Path) -> str:
    """What qemu-img has against *image*."""
    done = subprocess.run(
        [tool("qemu-img"), "check", "-f", "qcow2", image], capture_output=True, text=True, errors="replace"
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def contents(image: Path) -> bytes | None:
    """What qemu-img reads; None where it cannot."""
    done = subprocess.run(
        [tool("qemu-img"), "convert", "-f", "qcow2", "-O", "raw", image, f"{image}.raw"], capture_output=True
    )
    return None if done.returncode else Path(f"{image}.raw").read_bytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_random_damage(tmp_path: Path, layout: str) -> None:
    base, image, theirs = tmp_path / "base", tmp_path / "image", tmp_path / "theirs"
    sample(base, layout)
    truth = contents(base)
    assert truth is not None
    anatomy = Anatomy(base.read_bytes())
    chance = random.Random(layout)
    cases = refused = compared = intact = 0
    while cases < 100:
        data, done = anatomy.damaged(chance)
        if data == anatomy.data:
            continue
        cases += 1
        result, first_refused = mend(image, data)
        refused += first_refused
        found = clean(image)
        assert not found, (done, found)
        assert not (result.corruptions or result.leaks or result.check_errors), (done, result.findings)
        if cases % 6:
            continue
        theirs.write_bytes(data)
        subprocess.run([tool("qemu-img"), "check", "-q", "-r", "all", "-f", "qcow2", theirs], capture_output=True)
        other = contents(theirs) if not clean(theirs) else None
        ours = contents(image)
        if ours == truth:
            intact += 1
        elif other is not None:
            assert ours is not None, done
            worse = [
                at
                for at in range(0, len(truth), SECTOR)
                if other[at : at + SECTOR] == truth[at : at + SECTOR] != ours[at : at + SECTOR]
            ]
            assert not worse, (done, worse)
            compared += 1
    assert intact > 5 and refused < 54, (intact, refused, compared)


def poke(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def made(image: Path) -> Anatomy:
    qemu_img("create", "-q", "-f", "qcow2", image, "1G")
    qemu_io(image, "write -P 5 1M 3M", "write -P 6 700M 2M", format="qcow2")
    return Anatomy(image.read_bytes())


def test_an_entry_with_a_flag_and_no_table(tmp_path: Path) -> None:
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    poke(image, int.from_bytes(image.read_bytes()[40:48], "big"), (1 << 63).to_bytes(8, "big"))
    assert qemu_img("check", image, check=False).returncode == command("check", image, check=False).returncode == 2
    assert command("check", "-r", "all", image).returncode == 0
    qemu_img("check", image)


@pytest.mark.parametrize("how", ["leaks", "all"])
def test_a_zeroed_l1_table_is_not_the_end(tmp_path: Path, how: str) -> None:
    """qemu-img exits with 0 here, and punches all data out."""
    image = tmp_path / "image"
    anatomy = made(image)
    poke(image, anatomy.parts["l1"][0][0], bytes(16))
    before = image.read_bytes()
    done = command("check", "-r", how, image, check=False)
    assert done.returncode == 1 and "2 L2 tables" in done.stderr and "5 MiB" in done.stderr, done.stderr
    assert image.read_bytes() == before
    done = command("check", "-r", "lost", image)
    assert "leaked clusters" in done.stdout
    assert_clean(image)


def test_one_flipped_bit_is_mended(tmp_path: Path) -> None:
    image, truth = tmp_path / "image", tmp_path / "truth"
    anatomy = made(image)
    truth.write_bytes(image.read_bytes())
    (l1, _), (l2, _) = anatomy.parts["l1"][0], anatomy.parts["l2"][0]
    for at in (l1, l2 + 16 * 8):  # guest offset 1M is the first that is allocated
        value = int.from_bytes(anatomy.data[at : at + 8], "big")
        assert value
        poke(image, at, (value ^ 1 << 45).to_bytes(8, "big"))
        poke(image, at + 7, b"\x02")
    command("check", "-r", "all", image)
    assert_clean(image)
    assert_identical(truth, image, formats=("qcow2", "qcow2"))


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    image, whole = tmp_path / "image", tmp_path / "whole"
    made(whole)
    data = whole.read_bytes()
    image.write_bytes(data[: len(data) - (1 << 20)])
    done = command("check", "-r", "all", image, check=False)
    assert done.returncode == 1 and "it was cut off" in done.stderr
    assert image.read_bytes() == data[: len(data) - (1 << 20)]
    command("check", "-r", "lost", image)
    assert_clean(image)


def test_a_rehearsal_writes_nothing(tmp_path: Path) -> None:
    image = tmp_path / "image"
    anatomy = made(image)
    block = anatomy.parts["refcount block"][0][0]
    poke(image, block + 2 * 20, bytes(4))
    before = image.read_bytes()
    image.chmod(0o444)
    done = command("check", "-r", "all", "--dry-run", image, check=False)
    assert done.returncode == 2
    assert "2 clusters from offset 1310720 on: refcount 0, references 1" in done.stdout
    assert "would be repaired" in done.stdout and "    2 corruptions" in done.stdout
    assert image.read_bytes() == before
    found = diskmill_json("check", "-r", "all", "--dry-run", image, check=False)
    assert (found["corruptions"], found["corruptions-fixed"]) == (4, 2)  # two flags contradict the refcounts, too
    done = command("check", "--dry-run", image, check=False)
    assert done.returncode == 1 and "leaks or all" in done.stderr


@pytest.mark.parametrize(
    ("entries", "value"), [(range(20, 24), 0), (range(300, 340), 1), (range(20, 22), 2), (range(3, 400), 0)]
)
@pytest.mark.parametrize("how", ["leaks", "all"])
def test_wrong_refcounts_as_qemu_img(tmp_path: Path, entries: range, value: int, how: str) -> None:
    """The same figures, the same words on stdout (where the image ends may differ), the same exit status."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    anatomy = made(ours)
    if entries.start == 300:  # of clusters that are in the file, but free
        with ours.open("r+b") as file:
            file.truncate(400 << 16)
    block = anatomy.parts["refcount block"][0][0]
    for entry in entries:
        poke(ours, block + 2 * entry, value.to_bytes(2, "big"))
    theirs.write_bytes(ours.read_bytes())
    for words in (("check",), ("check", "-r", how), ("check",)):
        if how == "leaks" and not value and "-r" in words:
            continue  # qemu-img: input/output error, for refcounts of 0 need a repair of all
        expected = qemu_img(*words, theirs, check=False)
        got = command(*words, ours, check=False)
        assert got.returncode == expected.returncode, got.stderr
        ends = [done.stdout.partition("Image end offset")[0] for done in (got, expected)]
        assert ends[0] == ends[1]
    a, b = diskmill_json("check", ours, check=False), qemu_img_json("check", theirs, check=False)
    for found in (a, b):
        found.pop("filename")
        found.pop("image-end-offset")
    assert a == b


def test_marks(tmp_path: Path) -> None:
    """Corrupt: not written before a repair. Dirty: repaired when it is opened for writing. Both: read all the same."""
    image = tmp_path / "image"
    anatomy = made(image)
    block = anatomy.parts["refcount block"][0][0]
    poke(image, 79, b"\x02")
    with pytest.raises(ImageError, match="corrupt"):
        diskmill.open(str(image), "qcow2", writable=True)
    assert diskmill_json("info", image)["format-specific"]["data"]["corrupt"]
    with diskmill.open(str(image), "qcow2") as opened:
        assert opened.read(1 << 20, 4) == b"\5\5\5\5"
    command("check", "-r", "all", image)
    assert image.read_bytes()[79] == 0
    poke(image, 79, b"\x01")
    poke(image, block + 2 * 20, bytes(2 * 8))
    assert diskmill_json("info", image)["dirty-flag"]
    with diskmill.open(str(image), "qcow2") as opened:
        assert opened.read(1 << 20, 4) == b"\5\5\5\5"
    assert image.read_bytes()[79] == 1
    with diskmill.open(str(image), "qcow2", writable=True) as opened:
        opened.write(0, b"new")
    assert image.read_bytes()[79] == 0
    assert_clean(image)


def test_lazy_refcounts(tmp_path: Path) -> None:
    """qemu-io, killed, leaves refcounts behind; who opens it for writing repairs them. Ours are never behind."""
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", image, "64M")
    words = [tool("qemu-io"), "-f", "qcow2", "-c", "write -P 7 1M 2M", "-c", "flush", "-c", "sigraise 9", image]
    assert subprocess.run(words, capture_output=True).returncode < 0
    assert qemu_img_json("info", image)["dirty-flag"] and qemu_img("check", image, check=False).returncode == 2
    before = image.read_bytes()
    with diskmill.open(str(image), "qcow2") as opened:
        assert opened.read(1 << 20, 2) == b"\7\7"
    assert image.read_bytes() == before
    with diskmill.open(str(image), "qcow2", writable=True) as opened:
        opened.write(2 << 20, b"ours")
    assert_clean(image)
    qemu_io(image, "read -P 7 1M 1M", "read -P 7 2050k 1022k", format="qcow2")
    assert not qemu_img_json("info", image)["dirty-flag"]
    made = tmp_path / "made"
    command("create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on", made, "1M")
    with diskmill.open(str(made), "qcow2", writable=True) as opened:
        opened.write(0, b"x")
        opened.flush()
        (tmp_path / "now").write_bytes(made.read_bytes())
    assert_clean(tmp_path / "now")
    assert qemu_img_json("info", made)["format-specific"]["data"]["lazy-refcounts"]


def test_a_write_that_would_hit_metadata(tmp_path: Path) -> None:
    """It is refused, and the image marked as corrupt; repaired, it can be written again."""
    image = tmp_path / "image"
    anatomy = made(image)
    entry = anatomy.parts["l2"][0][0] + 16 * 8
    poke(image, entry, (anatomy.parts["refcount block"][0][0] | 1 << 63).to_bytes(8, "big"))
    with diskmill.open(str(image), "qcow2", writable=True) as opened, pytest.raises(ImageError, match="holds metadata"):
        opened.write(1 << 20, b"new")
    assert qemu_img_json("info", image)["format-specific"]["data"]["corrupt"]
    command("check", "-r", "all", image)
    assert_clean(image)
    with diskmill.open(str(image), "qcow2", writable=True) as opened:
        opened.write(1 << 20, b"new")
    assert_clean(image)
