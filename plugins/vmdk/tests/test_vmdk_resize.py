"""VMDKs that grow, in one file or in pieces, against the tools that read them."""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import diskmill
import pytest
from diskmill.commands.resize import set_size
from diskmill.errors import DiskmillError, LockedError, StorageError, UnsupportedError
from diskmill.opening.context import Context
from diskmill.opening.graph import open_image
from samples import KiB, MiB, scattered_file
from tools import assert_identical, qemu_img, qemu_img_json, qemu_io, run, tool
from tools import diskmill as command

SECTOR = 512
GRAIN = 64 * KiB
TABLE = 512 * GRAIN
GiB = 1024 * MiB
SPLIT = 2 * GiB
PIECES = {"twoGbMaxExtentSparse": "s", "twoGbMaxExtentFlat": "f"}


def source(folder: Path, size: int, seed: int = 1) -> Path:
    """A raw disk with data in random runs, and in its last sector."""
    path = scattered_file(folder / "source.raw", size, seed=seed, pieces=24)
    with path.open("r+b") as file:
        file.seek(size - SECTOR)
        file.write(random.Random(seed).randbytes(SECTOR))
    return path


def convert(raw: Path, image: Path, subformat: str, maker: str = "diskmill", **options: str) -> None:
    options = {"subformat": subformat, **options}
    if maker == "diskmill":
        diskmill.convert([str(raw)], str(image), output_format="vmdk", options=options)
    else:
        text = ",".join(f"{key}={value}" for key, value in options.items())
        qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", text, raw, image)


def grown(image: Path, raw: Path, size: int) -> None:
    """Let both be *size* bytes, see that they are the same to everyone, and go on being so when they are written."""
    diskmill.resize(str(image), size)
    os.truncate(raw, size)
    assert diskmill.info(str(image)).virtual_size == size
    assert qemu_img_json("info", image)["virtual-size"] == size
    assert_identical(raw, image, formats=("raw", "vmdk"))
    assert f"({size} bytes)" in run(tool("vmdkinfo"), image).stdout


def written(image: Path, raw: Path, *places: int) -> None:
    """qemu-io and diskmill write at *places* by turns."""
    size = raw.stat().st_size
    for turn, at in enumerate(places):
        length = min(3 * SECTOR, size - at)
        qemu_io(raw, f"write -P {turn + 1} {at} {length}", format="raw")
        if turn % 2:
            qemu_io(image, f"write -P {turn + 1} {at} {length}", format="vmdk")
        else:
            with open_image(str(image), "vmdk", context=Context(cache="unsafe"), writable=True) as disk:
                disk.write(at, bytes([turn + 1]) * length)
    assert_identical(raw, image, formats=("raw", "vmdk"))
    assert diskmill.check(str(image)).corruptions == 0


def lines(image: Path) -> list[str]:
    """The extent lines of a descriptor."""
    text = image.read_bytes().partition(b"\0")[0].decode()
    return [line for line in text.splitlines() if line.startswith("RW ")]


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """What the files of *folder* hold, up to a megabyte at either end."""
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            head = file.read(MiB)
            file.seek(max(path.stat().st_size - MiB, 0))
            found[path.name] = path.stat().st_size, head + file.read(MiB)
    return found


# -- one file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maker", ["diskmill", "qemu-img"])
@pytest.mark.parametrize("subformat", ["monolithicSparse", "monolithicFlat"])
@pytest.mark.parametrize("size", [GRAIN + SECTOR, TABLE + SECTOR, SPLIT + 5 * TABLE], ids=["grain", "table", "many"])
def test_a_grown_disk_reads_as_before_and_zeros_behind(subformat: str, maker: str, size: int, tmp_path: Path) -> None:
    raw, image = source(tmp_path, GRAIN - SECTOR), tmp_path / "disk.vmdk"
    convert(raw, image, subformat, maker)
    grown(image, raw, size)
    written(image, raw, size - SECTOR, GRAIN - SECTOR, size // 2 // SECTOR * SECTOR)


def test_a_stream_is_not_resized(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    diskmill.create(str(image), MiB, format="vmdk", options={"subformat": "streamOptimized"})
    before = state(tmp_path)
    with pytest.raises(UnsupportedError):
        diskmill.resize(str(image), 2 * MiB)
    assert state(tmp_path) == before


def test_a_disk_does_not_grow_beyond_what_can_be_read(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    diskmill.create(str(image), MiB, format="vmdk")
    before = state(tmp_path)
    for size in (128 * 1024 * GiB + SECTOR, 1 << 54, 1 << 62):
        with pytest.raises(UnsupportedError, match="no room"):
            diskmill.resize(str(image), size)
    assert state(tmp_path) == before
    diskmill.resize(str(image), 100 * 1024 * GiB)
    with open_image(str(image), "vmdk", context=Context(), writable=True) as disk:
        disk.write(disk.size - 5, b"there")
        assert disk.read(disk.size - 7, 7) == b"\0\0there"


def test_no_disk_is_made_smaller(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    diskmill.create(str(image), SPLIT + MiB, format="vmdk", options={"subformat": "twoGbMaxExtentSparse"})
    before = state(tmp_path)
    with pytest.raises(UnsupportedError, match="cannot shrink"):
        diskmill.resize(str(image), SPLIT, shrink=True)
    assert state(tmp_path) == before


# -- disks in pieces --------------------------------------------------------------------------------------------------

STEPS = {
    "inside": (MiB + SECTOR, 3 * MiB, 3 * MiB + SECTOR),
    "full": (SPLIT - SECTOR, SPLIT, SPLIT + SECTOR),
    "past": (SPLIT - 3 * SECTOR, SPLIT + TABLE + SECTOR),
    "several": (GRAIN + SECTOR, 3 * SPLIT - SECTOR, 4 * SPLIT + GRAIN - SECTOR),
    "exact": (SPLIT, 3 * SPLIT, 3 * SPLIT + 2 * SECTOR),
}


@pytest.mark.parametrize("maker", ["diskmill", "qemu-img"])
@pytest.mark.parametrize("subformat", PIECES)
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_a_disk_in_pieces_grows(subformat: str, maker: str, steps: tuple[int, ...], tmp_path: Path) -> None:
    raw, image = source(tmp_path, steps[0]), tmp_path / "my disk.v1.vmdk"
    convert(raw, image, subformat, maker)
    for size in steps[1:]:
        grown(image, raw, size)
        sectors = [SPLIT // SECTOR] * (size // SPLIT) + ([size % SPLIT // SECTOR] if size % SPLIT else [])
        assert [int(line.split()[1]) for line in lines(image)] == sectors
        names = re.findall(r"Filename:\s+(.+)", run(tool("vmdkinfo"), image).stdout)
        assert names == [f"my disk.v1-{PIECES[subformat]}{number:03}.vmdk" for number in range(1, len(sectors) + 1)]
        assert sorted(os.listdir(tmp_path)) == sorted([*names, image.name, raw.name])
    before = min(steps[0], raw.stat().st_size - 4 * SECTOR)
    written(image, raw, before - SECTOR, size - SECTOR, size // 2 // SECTOR * SECTOR, before)


def test_an_empty_disk_in_pieces_grows(tmp_path: Path) -> None:
    for subformat in PIECES:
        image, raw = tmp_path / f"{subformat}.vmdk", tmp_path / "empty.raw"
        raw.write_bytes(b"")
        diskmill.create(str(image), 0, format="vmdk", options={"subformat": subformat})
        grown(image, raw, SPLIT + MiB)
        written(image, raw, SPLIT - SECTOR, 0)


def test_a_grown_disk_is_the_one_that_is_made_so_large(tmp_path: Path) -> None:
    """Down to its files, but for the directories that a longer table list takes."""
    for number, subformat in enumerate(PIECES):
        folders = [tmp_path / f"{number}{name}" for name in ("made", "grown")]
        for folder, size in zip(folders, (3 * SPLIT + 5 * SECTOR, SPLIT), strict=True):
            folder.mkdir()
            diskmill.create(str(folder / "disk.vmdk"), size, format="vmdk", options={"subformat": subformat})
        diskmill.resize(str(folders[1] / "disk.vmdk"), 3 * SPLIT + 5 * SECTOR)
        made, after = (state(folder) for folder in folders)
        texts = [re.sub(rb"CID=[0-9a-f]{8}", b"", one.pop("disk.vmdk")[1]) for one in (made, after)]
        assert texts[0] == texts[1]
        assert made == after


@pytest.mark.parametrize("zeroed", [False, True])
def test_an_overlay_in_pieces_grows(zeroed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    piece = 48 * MiB
    for module in ("creating", "resizing"):
        monkeypatch.setattr(f"diskmill_vmdk.{module}.SPLIT", piece)
    raw, base, image = source(tmp_path, piece + 3 * MiB), tmp_path / "base.vmdk", tmp_path / "disk.vmdk"
    convert(raw, base, "monolithicSparse")
    options = {"subformat": "twoGbMaxExtentSparse", "zeroed_grain": "on" if zeroed else "off"}
    size = 30 * MiB + SECTOR
    diskmill.create(str(image), size, format="vmdk", backing="base.vmdk", backing_format="vmdk", options=options)
    os.truncate(raw, size)  # what a longer base holds there is none of the overlay's
    grown(image, raw, piece + 5 * MiB)
    used = sum(path.stat().st_blocks * SECTOR for path in tmp_path.glob("disk-*"))
    assert used < 2 * MiB, "what hides the base takes space"
    written(image, raw, piece - SECTOR, size)
    grain_header = (tmp_path / "disk-s002.vmdk").read_bytes()[4:12]
    assert grain_header == (tmp_path / "disk-s001.vmdk").read_bytes()[4:12]


def test_pieces_of_another_size_stay_so(tmp_path: Path) -> None:
    """VMware's older products cut at 2047 MiB."""
    piece = 2047 * MiB
    image, raw = tmp_path / "disk.vmdk", tmp_path / "disk.raw"
    diskmill.create(str(image), 3 * SPLIT, format="vmdk", options={"subformat": "twoGbMaxExtentFlat"})
    for number, length in ((1, piece), (2, piece), (3, MiB)):
        os.truncate(tmp_path / f"disk-f00{number}.vmdk", length)
    text = image.read_text().replace(f"RW {SPLIT // SECTOR}", f"RW {piece // SECTOR}", 2)
    image.write_text(text.replace(f"RW {SPLIT // SECTOR}", f"RW {MiB // SECTOR}"))
    raw.write_bytes(b"")
    os.truncate(raw, 2 * piece + MiB)
    grown(image, raw, 4 * piece)
    assert [int(line.split()[1]) for line in lines(image)] == [piece // SECTOR] * 4


def test_several_flat_extents_of_other_types_grow_at_the_end(tmp_path: Path) -> None:
    for type, kind in (("monolithicFlat", "FLAT"), ("vmfs", "VMFS")):
        image, raw = tmp_path / f"{type}.vmdk", tmp_path / "disk.raw"
        parts = [random.Random(number).randbytes(MiB) for number in range(2)]
        for number, data in enumerate(parts):
            (tmp_path / f"{type}{number}.bin").write_bytes(data)
        extents = "\n".join(f'RW 2048 {kind} "{type}{number}.bin"{" 0" * (kind == "FLAT")}' for number in range(2))
        image.write_text(
            f'# Disk DescriptorFile\nversion=1\nCID=0badcafe\nparentCID=ffffffff\ncreateType="{type}"\n\n'
            f"# Extent description\n{extents}\n\n# The Disk Data Base\n#DDB\n\n"
            'ddb.virtualHWVersion = "4"\nddb.adapterType = "ide"\n'
        )
        raw.write_bytes(b"".join(parts))
        grown(image, raw, SPLIT + 3 * MiB + SECTOR)
        assert len(lines(image)) == 2
        written(image, raw, 2 * MiB, SPLIT)


def test_what_cannot_grow_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"a" * MiB + bytes(MiB) + b"c" * MiB)
    image = tmp_path / "disk.vmdk"
    for extents in (
        'RW 2048 FLAT "a.bin" 0',  # something else lies behind it
        'RW 2048 FLAT "a.bin" 4096\nRW 2048 FLAT "a.bin" 2048',
        'RW 2048 FLAT "a.bin" 0\nRW 2048 FLAT "a.bin" 4096',
        'RDONLY 6144 FLAT "a.bin" 0',
        'RW 2048 FLAT "a.bin" 0\nRW 2048 ZERO',
    ):
        image.write_text(f'version=1\nCID=1\nparentCID=ffffffff\ncreateType="custom"\n{extents}\n')
        before = state(tmp_path)
        with pytest.raises(DiskmillError):
            diskmill.resize(str(image), 64 * MiB)
        assert state(tmp_path) == before


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subformat", PIECES)
@pytest.mark.parametrize("kind", ["file", "empty", "link", "dangling link", "folder", "second"])
def test_files_of_others_are_never_overwritten(subformat: str, kind: str, tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    diskmill.create(str(image), GRAIN, format="vmdk", options={"subformat": subformat})
    name = tmp_path / f"disk-{PIECES[subformat]}00{3 if kind == 'second' else 2}.vmdk"
    elsewhere = tmp_path / "elsewhere"
    if kind in ("file", "second"):
        name.write_bytes(b"somebody's")
    elif kind == "empty":
        name.write_bytes(b"")
    elif kind == "folder":
        name.mkdir()
    else:
        if kind == "link":
            elsewhere.write_bytes(b"somebody's")
        name.symlink_to(elsewhere)
    text, listed = image.read_bytes(), sorted(os.listdir(tmp_path))
    first = (tmp_path / f"disk-{PIECES[subformat]}001.vmdk").read_bytes()
    with pytest.raises(StorageError, match=re.escape(name.name)):
        diskmill.resize(str(image), 2 * SPLIT + MiB)
    assert (image.read_bytes(), sorted(os.listdir(tmp_path))) == (text, listed)
    assert (tmp_path / f"disk-{PIECES[subformat]}001.vmdk").read_bytes() == first
    if kind in ("file", "link", "second"):
        assert name.read_bytes() == b"somebody's"
    assert elsewhere.exists() is (kind == "link")
    assert diskmill.info(str(image)).virtual_size == GRAIN


def test_new_pieces_belong_to_the_same_people(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    diskmill.create(str(image), GRAIN, format="vmdk", options={"subformat": "twoGbMaxExtentSparse"})
    os.chmod(image, 0o640)
    os.chmod(tmp_path / "disk-s001.vmdk", 0o600)
    if os.geteuid() == 0:
        os.chown(tmp_path / "disk-s001.vmdk", 1234, 4321)
    diskmill.resize(str(image), 2 * SPLIT)
    old, new = ((tmp_path / f"disk-s00{number}.vmdk").stat() for number in (1, 2))
    assert stat.S_IMODE(image.stat().st_mode) == 0o640
    assert (stat.S_IMODE(new.st_mode), new.st_uid, new.st_gid) == (0o600, old.st_uid, old.st_gid)


def test_a_link_to_a_descriptor_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    image, link = tmp_path / "real" / "disk.vmdk", tmp_path / "real" / "link.vmdk"
    diskmill.create(str(image), GRAIN, format="vmdk", options={"subformat": "twoGbMaxExtentSparse"})
    link.symlink_to("disk.vmdk")
    diskmill.resize(str(link), 2 * SPLIT)
    assert link.is_symlink()
    assert qemu_img_json("info", image)["virtual-size"] == 2 * SPLIT


def test_files_of_another_name_keep_it(tmp_path: Path) -> None:
    """A descriptor that was renamed names its old files, and new ones after itself; numbers go on."""
    image = tmp_path / "old.vmdk"
    diskmill.create(str(image), SPLIT + MiB, format="vmdk", options={"subformat": "twoGbMaxExtentFlat"})
    image = image.rename(tmp_path / "new.vmdk")
    diskmill.resize(str(image), 3 * SPLIT)
    assert sorted(os.listdir(tmp_path)) == ["new-f003.vmdk", "new.vmdk", "old-f001.vmdk", "old-f002.vmdk"]
    image.write_text(image.read_text().replace("new-f003", "new-f004"))
    (tmp_path / "new-f003.vmdk").rename(tmp_path / "new-f004.vmdk")
    diskmill.resize(str(image), 4 * SPLIT)
    assert (tmp_path / "new-f005.vmdk").stat().st_size == SPLIT


# -- the descriptor ---------------------------------------------------------------------------------------------------

DESCRIPTORS = {
    "crlf": lambda text: text.replace("\n", "\r\n"),
    "cr": lambda text: text.replace("\n", "\r"),
    "no last line end": lambda text: text.rstrip("\n"),
    "spaces": lambda text: text.replace("RW ", "  rw \t"),
    "zeros behind": lambda text: text + "\0" * 9000,
    "long": lambda text: text + "".join(f'ddb.note{number} = "{"x" * 90}"\n' for number in range(20)),
    "extents last": lambda text: "".join(
        sorted(text.splitlines(keepends=True), key=lambda line: line.startswith("RW"))
    ).rstrip("\n"),
}


@pytest.mark.parametrize("spelling", DESCRIPTORS)
def test_descriptors_as_people_write_them_are_kept_as_they_are(spelling: str, tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    diskmill.create(str(image), MiB, format="vmdk", options={"subformat": "twoGbMaxExtentSparse"})
    text = DESCRIPTORS[spelling](image.read_text())
    image.write_text(text, newline="")
    diskmill.resize(str(image), SPLIT + MiB)
    found = image.read_bytes().decode()
    with open_image(str(image), context=Context(), writable=True) as disk:
        disk.write(SPLIT - 1, b"xy")
        assert disk.size == SPLIT + MiB
    assert all(line in found for line in text.rstrip("\0").splitlines() if not re.search("RW|rw|CID=|cylinders", line))
    assert found.count("\r") == found.count("\n") if spelling == "crlf" else True
    assert ("\n" in found) is (spelling != "cr")


@pytest.mark.parametrize(("adapter", "heads"), [("ide", 16), ("lsilogic", 255)])
def test_the_geometry_follows_the_size_where_it_did(adapter: str, heads: int, tmp_path: Path) -> None:
    for subformat, odd in itertools.product(["monolithicSparse", "twoGbMaxExtentFlat"], [False, True]):
        image = tmp_path / f"{subformat}{odd}.vmdk"
        options = {"subformat": subformat, "adapter_type": adapter}
        diskmill.create(str(image), GiB, format="vmdk", options=options)
        old, new = (size // (heads * 63 * SECTOR) for size in (GiB, 5 * GiB))
        if odd:
            text = f"{1:0{len(str(old))}}"
            image.write_bytes(image.read_bytes().replace(f'"{old}"'.encode(), f'"{text}"'.encode()))
        diskmill.resize(str(image), 5 * GiB)
        assert f'cylinders = "{text if odd else new}"'.encode() in image.read_bytes()


CALLS = ("pwrite", "pwritev", "link", "unlink", "rename", "ftruncate", "fdatasync", "fsync")


def killed_after(calls: int, image: Path, size: int) -> bool:
    """Resize *image* in a process that dies after so many system calls that change something; whether it did."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            left = calls

            def counted(call: Any) -> Any:
                def wrapper(*arguments: Any, **keywords: Any) -> Any:
                    nonlocal left
                    left -= 1
                    if left < 0:
                        os._exit(9)
                    return call(*arguments, **keywords)

                return wrapper

            for name in CALLS:
                setattr(os, name, counted(getattr(os, name)))
            diskmill.resize(str(image), size)
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


@pytest.mark.parametrize("subformat", PIECES)
def test_a_resize_may_be_killed_and_run_again(subformat: str, tmp_path: Path) -> None:
    old, new = 3 * MiB + SECTOR, 2 * SPLIT + MiB
    (tmp_path / "original").mkdir()
    raw = source(tmp_path, old)
    data = raw.read_bytes()
    convert(raw, tmp_path / "original" / "disk.vmdk", subformat)
    sizes = set()
    for count in itertools.count(0):
        folder = tmp_path / str(count)
        shutil.copytree(tmp_path / "original", folder)
        image = folder / "disk.vmdk"
        killed = killed_after(count, image, new)
        with open_image(str(image), "vmdk", context=Context()) as disk:
            assert disk.read(0, old + MiB) == data + bytes(MiB)
            sizes.add(disk.size)
        # To qemu-img, an extent whose header has turned already is as long as that says, with zeros behind.
        told = qemu_img_json("info", image)["virtual-size"]
        assert told == disk.size or (subformat == "twoGbMaxExtentSparse" and disk.size == old and told == SPLIT)
        os.truncate(raw, told)
        assert_identical(raw, image, formats=("raw", "vmdk"))
        run(tool("vmdkinfo"), image)
        if not killed:
            break
        diskmill.resize(str(image), new)
        with open_image(str(image), "vmdk", context=Context()) as disk:
            assert disk.size == new
            assert disk.read(0, old + MiB) == data + bytes(MiB)
        # Between its two names, a new descriptor has that of a temporary file.
        assert len([name for name in os.listdir(folder) if not name.startswith(".diskmill-")]) == 4
        assert "resize" not in image.read_text()
        shutil.rmtree(folder)
    assert sizes == {old, new}
    assert count > 10
    os.truncate(raw, new)
    assert_identical(raw, image, formats=("raw", "vmdk"))


def test_what_a_resize_left_is_only_taken_away_where_it_holds_nothing(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    diskmill.create(str(image), MiB, format="vmdk", options={"subformat": "twoGbMaxExtentSparse"})
    for calls in itertools.count(0):
        left = tmp_path / "disk-s002.vmdk"
        assert killed_after(calls, image, 2 * SPLIT)
        if left.exists():
            break
        diskmill.resize(str(image), MiB + SECTOR * calls)  # takes away what there is
    empty = left.read_bytes()
    text = image.read_bytes()
    for data in (b"somebody's", empty + bytes(GRAIN), b"x" + bytes(MiB), empty[:-SECTOR]):
        left.write_bytes(data)
        with pytest.raises(DiskmillError, match=r"disk-s002\.vmdk"):
            diskmill.resize(str(image), 2 * SPLIT)
        assert left.read_bytes() == data
        assert image.read_bytes() == text
    for data in (b"", bytes(MiB), empty):
        left.write_bytes(data)
        diskmill.resize(str(image), diskmill.info(str(image)).virtual_size + SECTOR)
        assert not left.exists()
        image.write_bytes(text)
    # A plan can name anything: only names that are this disk's own are looked at.
    for name in ("../other-s002.vmdk", "other", "disk-s002.vmdk.bak"):
        other = tmp_path / name
        other.write_bytes(b"")
        image.write_bytes(text.replace(b'"disk-s002.vmdk"', f'"{name}"'.encode()))
        diskmill.resize(str(image), diskmill.info(str(image)).virtual_size + SECTOR)
        assert other.exists()


# -- what may go wrong, and the rest ----------------------------------------------------------------------------------


@pytest.mark.parametrize("subformat", PIECES)
def test_files_that_may_not_grow_leave_the_disk_as_it_was(subformat: str, tmp_path: Path) -> None:
    raw, image = source(tmp_path, 3 * MiB + SECTOR), tmp_path / "disk.vmdk"
    convert(raw, image, subformat)
    before = state(tmp_path)
    longest = max(size for name, (size, _) in before.items() if name != raw.name)
    for limit in (GRAIN, longest, longest + SECTOR):
        done = command("resize", image, str(2 * SPLIT + MiB), check=False, file_size=limit)
        assert done.returncode == 1
        assert done.stderr.startswith("diskmill: '")
        assert "File too large" in done.stderr
        assert state(tmp_path) == before


@pytest.mark.parametrize("subformat", PIECES)
def test_too_few_files_may_be_open(subformat: str, tmp_path: Path) -> None:
    """At whichever of its files a resize comes to the limit: nothing is left of it."""
    raw, image = source(tmp_path, 3 * MiB + SECTOR), tmp_path / "disk.vmdk"
    convert(raw, image, subformat)
    before, size = state(tmp_path), 4 * SPLIT + MiB
    where = set()
    for limit in range(8, 40):
        done = command("resize", image, str(size), check=False, open_files=limit)
        if done.returncode == 0:
            break
        assert re.fullmatch(r"diskmill: '.*': .*Too many open files\n", done.stderr)
        where.add(done.stderr.split("'")[1])
        assert state(tmp_path) == before
    assert len(where) == 5, "the new files, and the descriptor"
    os.truncate(raw, size)
    assert_identical(raw, image, formats=("raw", "vmdk"))


def test_a_disk_whose_folder_cannot_be_flushed_is_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name tells what the disk is, whatever is said after it was given."""
    raw, image = source(tmp_path, 3 * MiB), tmp_path / "disk.vmdk"
    convert(raw, image, "twoGbMaxExtentSparse")
    real, calls = os.fsync, []

    def fsync(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 3:  # two new extents, and the descriptor
            raise OSError(5, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match="Input/output error"):
        diskmill.resize(str(image), 2 * SPLIT + MiB)
    assert len(calls) == 3
    os.truncate(raw, 2 * SPLIT + MiB)
    assert_identical(raw, image, formats=("raw", "vmdk"))
    assert sorted(os.listdir(tmp_path)) == ["disk-s001.vmdk", "disk-s002.vmdk", "disk-s003.vmdk", "disk.vmdk", raw.name]


def test_a_flat_disk_grows_where_no_file_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(*arguments: Any, **keywords: Any) -> None:
        raise StorageError("Permission denied", errno=13)

    monkeypatch.setattr("diskmill.opening.siblings.Siblings.make", make)
    raw, image = source(tmp_path, MiB), tmp_path / "disk.vmdk"
    convert(raw, image, "monolithicFlat")
    image.write_text(DESCRIPTORS["long"](image.read_text()))
    grown(image, raw, SPLIT + MiB)
    convert(raw, image, "twoGbMaxExtentFlat")
    before = state(tmp_path)
    with pytest.raises(StorageError, match="Permission denied"):
        diskmill.resize(str(image), 3 * SPLIT)
    assert state(tmp_path) == before


def test_there_is_an_end_to_growing(tmp_path: Path) -> None:
    for subformat in PIECES:
        image, long = tmp_path / "disk.vmdk", tmp_path / f"{'x' * 235}.vmdk"
        for name in (image, long):
            diskmill.create(str(name), MiB, format="vmdk", options={"subformat": subformat})
        before = state(tmp_path)
        with pytest.raises(DiskmillError, match="more than 4095 extents"):
            diskmill.resize(str(image), 4095 * SPLIT + SECTOR)
        with pytest.raises(DiskmillError, match="more than 4095 extents"):
            diskmill.resize(str(image), 1 << 62)
        with pytest.raises(UnsupportedError, match="bytes is too long"):
            diskmill.resize(str(long), 4000 * SPLIT)
        assert state(tmp_path) == before
        with pytest.raises(UnsupportedError, match="bytes is too long"):
            diskmill.create(f"{long}2.vmdk"[-245:], 4000 * SPLIT, format="vmdk", options={"subformat": subformat})


@pytest.mark.parametrize("mode", ["falloc", "full"])
def test_new_parts_of_flat_extents_are_preallocated(mode: str, tmp_path: Path) -> None:
    raw, image = source(tmp_path, SPLIT - MiB), tmp_path / "disk.vmdk"
    convert(raw, image, "twoGbMaxExtentFlat")
    first, second = tmp_path / "disk-f001.vmdk", tmp_path / "disk-f002.vmdk"
    used = first.stat().st_blocks * 512
    diskmill.resize(str(image), SPLIT + 2 * MiB, preallocation=mode)
    assert MiB <= first.stat().st_blocks * 512 - used < 2 * MiB
    assert second.stat().st_blocks * 512 >= 2 * MiB
    os.truncate(raw, SPLIT + 2 * MiB)
    assert_identical(raw, image, formats=("raw", "vmdk"))
    with pytest.raises(UnsupportedError, match="no metadata"):
        diskmill.resize(str(image), 2 * SPLIT, preallocation="metadata")
    sparse = tmp_path / "sparse.vmdk"
    diskmill.create(str(sparse), SPLIT, format="vmdk", options={"subformat": "twoGbMaxExtentSparse"})
    before = state(tmp_path)
    with pytest.raises(UnsupportedError, match="cannot be preallocated"):
        diskmill.resize(str(sparse), 2 * SPLIT, preallocation=mode)
    assert state(tmp_path) == before
    diskmill.resize(str(sparse), 2 * SPLIT, preallocation="metadata")


def test_all_files_are_locked_while_the_disk_is_open(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    diskmill.create(str(image), MiB, format="vmdk", options={"subformat": "twoGbMaxExtentSparse"})
    context = Context()
    with open_image(str(image), context=context, writable=True) as disk:
        set_size(disk, SPLIT + MiB, context)
        disk.write(SPLIT, b"new")
        disk.flush()
        for name in (image, tmp_path / "disk-s001.vmdk", tmp_path / "disk-s002.vmdk"):
            with pytest.raises(LockedError):
                open_image(str(name), context=context, writable=True)
            assert "lock" in qemu_io(name, "read 0 512", format="raw", check=False).stderr
    with open_image(str(image), context=context) as disk:
        assert disk.read(SPLIT, 3) == b"new"


@pytest.mark.parametrize("subformat", PIECES)
def test_a_rehearsal_changes_nothing(subformat: str, tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    diskmill.create(str(image), MiB + SECTOR, format="vmdk", options={"subformat": subformat})
    before = state(tmp_path)
    context = Context()
    with open_image(str(image), context=context, writable=True, rehearse=True) as disk:
        set_size(disk, SPLIT + MiB, context)
        disk.write(SPLIT - 1, b"new")
        assert disk.read(SPLIT - 2, 5) == b"\0new\0"
        assert disk.size == SPLIT + MiB
    assert state(tmp_path) == before


def test_a_base_in_pieces_grows_when_a_longer_overlay_is_committed(tmp_path: Path) -> None:
    raw, base, image = source(tmp_path, 3 * MiB), tmp_path / "base.vmdk", tmp_path / "disk.vmdk"
    convert(raw, base, "twoGbMaxExtentSparse")
    diskmill.create(str(image), SPLIT + 3 * MiB, format="vmdk", backing="base.vmdk", backing_format="vmdk")
    os.truncate(raw, SPLIT + 3 * MiB)
    written(image, raw, SPLIT - SECTOR, 2 * MiB)
    for _ in range(2):
        diskmill.commit(str(image))
        assert_identical(raw, base, formats=("raw", "vmdk"))
        assert_identical(raw, image, formats=("raw", "vmdk"))
        written(image, raw, SPLIT + MiB, MiB)
