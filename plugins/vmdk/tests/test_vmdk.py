"""VMDK against the tools that read and write it: qemu-img, libvmdk and 7-Zip."""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import diskmill
import pytest
from diskmill.errors import DiskmillError, ImageError, UnsupportedError, UsageError
from diskmill.opening.context import Context
from diskmill.opening.graph import open_image
from samples import MiB, sparse_file
from tools import assert_identical, diskmill_json, qemu_img, qemu_img_json, qemu_io, run, tool
from vmdk_samples import (
    GRAIN,
    SECTOR,
    SIZES,
    SPARSE,
    SPLIT,
    SUBFORMATS,
    TABLE,
    chain,
    convert,
    directories,
    entry,
    files_of,
    read_all,
    source,
)

# -- both ways with qemu-img ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_qemu_img_reads_what_diskmill_writes(subformat: str, size: int, tmp_path: Path) -> None:
    raw, image = source(tmp_path, size), tmp_path / "disk.vmdk"
    convert(raw, image, subformat)
    assert_identical(raw, image, formats=("raw", "vmdk"))
    assert qemu_img_json("info", image)["virtual-size"] == size
    qemu_img("check", "-f", "vmdk", image)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_diskmill_reads_what_qemu_img_writes(subformat: str, size: int, tmp_path: Path) -> None:
    raw = source(tmp_path, size, seed=2)
    image, back = tmp_path / "disk.vmdk", tmp_path / "back.raw"
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", raw, image)
    diskmill.convert([str(image)], str(back), format="vmdk")
    assert back.stat().st_size == size
    assert_identical(raw, back, formats=("raw", "raw"))


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_an_empty_disk(subformat: str, tmp_path: Path) -> None:
    """qemu-img makes disks of no bytes, but cannot open them: its images are read here, not ours by it."""
    ours, its = tmp_path / "ours.vmdk", tmp_path / "its.vmdk"
    diskmill.create(str(ours), 0, format="vmdk", options={"subformat": subformat})
    qemu_img("create", "-f", "vmdk", "-o", f"subformat={subformat}", its, "0")
    for image in (ours, its):
        assert diskmill.info(str(image)).virtual_size == 0
        assert read_all(image) == b""


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_extents_are_named_as_vmware_names_them(subformat: str, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    diskmill.create(str(ours / "my disk.v1.vmdk"), SPLIT + MiB, format="vmdk", options={"subformat": subformat})
    qemu_img("create", "-f", "vmdk", "-o", f"subformat={subformat}", theirs / "my disk.v1.vmdk", str(SPLIT + MiB))
    assert sorted(os.listdir(ours)) == sorted(os.listdir(theirs))


OPTIONS: list[dict[str, str]] = [
    {},
    {"adapter_type": "lsilogic"},
    {"adapter_type": "buslogic"},
    {"adapter_type": "legacyESX"},
    {"compat6": "on"},
    {"hwversion": "10"},
    {"toolsversion": "8192"},
    {"subformat": "twoGbMaxExtentFlat"},
    {"zeroed_grain": "on"},
    {"subformat": "twoGbMaxExtentSparse", "zeroed_grain": "on", "hwversion": "19", "toolsversion": "0"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options.values()) or "none")
def test_descriptors_and_headers_say_what_those_of_qemu_img_say(options: dict[str, str], tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    diskmill.create(str(ours / "disk.vmdk"), 5 * 1024 * MiB, format="vmdk", options=options)
    text = ",".join(f"{key}={value}" for key, value in options.items())
    qemu_img("create", "-f", "vmdk", *(["-o", text] if text else []), theirs / "disk.vmdk", "5G")
    for one in files_of(ours / "disk.vmdk"):
        heads = []
        for folder in (ours, theirs):
            with (folder / one.name).open("rb") as file:
                data = file.read(4 * MiB)
            start, end = (SECTOR, 21 * SECTOR) if data.startswith(b"KDMV") else (0, len(data))
            # Content ids and blank lines may differ.
            lines = [
                line for line in data[start:end].rstrip(b"\0").split(b"\n") if line and not line.startswith(b"CID=")
            ]
            heads.append((data[:start], lines, data[end:]))
        assert heads[0] == heads[1], one.name


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_info_tells_what_qemu_img_tells(subformat: str, tmp_path: Path) -> None:
    raw, image = source(tmp_path, TABLE + 5 * GRAIN), tmp_path / "disk.vmdk"
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", raw, image)
    for one in files_of(image):  # the file system decides late how much space a file takes
        with one.open("rb") as file:
            os.fsync(file.fileno())
    assert diskmill_json("info", image) == qemu_img_json("info", image)


# -- libvmdk and 7-Zip ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_libvmdk_and_7zip_read_what_diskmill_writes(subformat: str, tmp_path: Path) -> None:
    raw, image = source(tmp_path, TABLE + 3 * GRAIN), tmp_path / "disk.vmdk"
    convert(raw, image, subformat)
    told = run(tool("vmdkinfo"), image).stdout
    assert f"({raw.stat().st_size} bytes)" in told
    assert re.search(r"Number of extents:\s+1\b", told)
    extracted = subprocess.run([tool("7z"), "e", "-tvmdk", "-so", image], stdout=subprocess.PIPE, check=True).stdout
    assert extracted == raw.read_bytes()


def test_libvmdk_sees_every_file_of_a_split_disk(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    for subformat, letter in (("twoGbMaxExtentSparse", "s"), ("twoGbMaxExtentFlat", "f")):
        diskmill.create(str(image), 2 * SPLIT + MiB, format="vmdk", options={"subformat": subformat})
        told = run(tool("vmdkinfo"), image).stdout
        assert re.findall(r"Filename:\s+(\S+)", told) == [f"disk-{letter}00{number}.vmdk" for number in (1, 2, 3)]


# -- what others may write --------------------------------------------------------------------------------------------


def reheaded(image: Path, **fields: int) -> None:
    """Change fields of the sparse extent header of *image*."""
    at = {"flags": (8, "<I"), "grainSize": (20, "<Q"), "rgdOffset": (48, "<Q"), "gdOffset": (56, "<Q")}
    data = bytearray(image.read_bytes())
    for name, value in fields.items():
        struct.pack_into(at[name][1], data, at[name][0], value)
    image.write_bytes(data)


def test_grains_of_any_size_are_read_but_large_ones_not_written(tmp_path: Path) -> None:
    """A grain of a gigabyte would have to be held in memory to be written."""
    image = tmp_path / "disk.vmdk"
    diskmill.create(str(image), MiB, format="vmdk")
    reheaded(image, grainSize=1 << 21)
    assert read_all(image) == bytes(MiB)
    with pytest.raises(UnsupportedError, match="can only be read"):
        open_image(str(image), "vmdk", context=Context(), writable=True)
    reheaded(image, grainSize=129)
    with pytest.raises(ImageError, match="a grain of 129 sectors"):
        read_all(image)
    reheaded(image, grainSize=4096)
    with open_image(str(image), "vmdk", context=Context(), writable=True) as disk:
        disk.write(MiB - 5, b"large")
    assert read_all(image) == b"large".rjust(MiB, b"\0")
    qemu_img("convert", "-f", "vmdk", "-O", "raw", image, tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes() == b"large".rjust(MiB, b"\0")


def test_a_sparse_extent_may_have_its_header_at_the_end(tmp_path: Path) -> None:
    raw, image = source(tmp_path, TABLE + 3 * GRAIN), tmp_path / "disk.vmdk"
    convert(raw, image)
    whole = image.read_bytes()
    marker, end = struct.pack("<QII", 1, 0, 3).ljust(SECTOR, b"\0"), bytes(SECTOR)
    image.write_bytes(whole + marker + whole[:SECTOR] + end)
    reheaded(image, gdOffset=2**64 - 1)
    assert_identical(raw, image, formats=("raw", "vmdk"))
    assert read_all(image) == raw.read_bytes()
    with pytest.raises(UnsupportedError, match="written once"):
        open_image(str(image), "vmdk", context=Context(), writable=True)


@pytest.mark.parametrize("flags", [1, 3], ids=["without", "the same"])
def test_a_disk_without_a_redundant_directory_is_written_too(flags: int, tmp_path: Path) -> None:
    raw, image = source(tmp_path, 2 * TABLE), tmp_path / "disk.vmdk"
    convert(raw, image)
    _, primary, _ = directories(image)
    reheaded(image, flags=flags, rgdOffset=primary // SECTOR)
    with open_image(str(image), "vmdk", context=Context(), writable=True) as disk:
        disk.write(TABLE, b"new" * GRAIN)
    with raw.open("r+b") as model:
        model.seek(TABLE)
        model.write(b"new" * GRAIN)
    assert_identical(raw, image, formats=("raw", "vmdk"))
    assert diskmill.check(str(image)).findings == []


@pytest.mark.parametrize("kept", [1, 8192])
def test_a_disk_without_grain_tables_gets_them(kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some writers make a table when the first of its grains is written. *kept*: how many may wait in memory."""
    monkeypatch.setattr("diskmill_vmdk.hosted._KEPT", kept)
    image, raw = tmp_path / "disk.vmdk", sparse_file(tmp_path / "raw", 4 * TABLE, {})
    diskmill.create(str(image), 4 * TABLE, format="vmdk")
    redundant, primary, _ = directories(image)
    with image.open("r+b") as file:
        for directory in (redundant, primary):
            file.seek(directory)
            file.write(bytes(16))
    with open_image(str(image), "vmdk", context=Context(), writable=True) as disk, raw.open("r+b") as model:
        for at in (TABLE, 2 * TABLE + 5, 0, TABLE - 100):
            data = random.Random(at).randbytes(2 * GRAIN)
            disk.write(at, data)
            model.seek(at)
            model.write(data)
    assert_identical(raw, image, formats=("raw", "vmdk"))
    assert diskmill.check(str(image)).findings == []


def test_a_redundant_directory_that_is_nowhere_keeps_nobody_from_reading(tmp_path: Path) -> None:
    raw, image = source(tmp_path, 2 * TABLE), tmp_path / "disk.vmdk"
    convert(raw, image)
    reheaded(image, rgdOffset=1 << 40)
    assert read_all(image) == raw.read_bytes()
    assert any("redundant grain directory" in finding.text for finding in diskmill.check(str(image)).findings)
    with (
        pytest.raises(ImageError, match="redundant grain directory"),
        open_image(str(image), "vmdk", context=Context(), writable=True) as disk,
    ):
        disk.write(0, b"x")


def test_more_extents_than_can_be_opened_are_not_made(tmp_path: Path) -> None:
    for subformat in ("twoGbMaxExtentSparse", "twoGbMaxExtentFlat"):
        with pytest.raises(DiskmillError, match="more than 4095 extents"):
            diskmill.create(str(tmp_path / "disk.vmdk"), 4096 * SPLIT, format="vmdk", options={"subformat": subformat})
    assert os.listdir(tmp_path) == []


# -- writing in place -----------------------------------------------------------------------------------------------

IN_PLACE = [(name, False) for name in SUBFORMATS if name != "streamOptimized"] + [(name, True) for name in SPARSE]


@pytest.mark.parametrize("maker", ["diskmill", "qemu-img"])
@pytest.mark.parametrize(("subformat", "zeroed"), IN_PLACE)
def test_random_writes_in_place_read_the_same_everywhere(
    subformat: str, zeroed: bool, maker: str, tmp_path: Path
) -> None:
    size = SPLIT + TABLE + 7 * SECTOR if subformat.startswith("two") else TABLE + 7 * SECTOR
    image, raw = tmp_path / "disk.vmdk", sparse_file(tmp_path / "model.raw", size, {})
    options = {"subformat": subformat, **({"zeroed_grain": "on"} if zeroed else {})}
    if maker == "diskmill":
        diskmill.create(str(image), size, format="vmdk", options=options)
    else:
        text = ",".join(f"{key}={value}" for key, value in options.items())
        qemu_img("create", "-f", "vmdk", "-o", text, image, str(size))
    chance = random.Random(subformat + maker)
    places = [0, GRAIN, TABLE, size - GRAIN] + ([SPLIT - 3 * SECTOR, SPLIT, SPLIT + GRAIN] if size > SPLIT else [])
    with raw.open("r+b") as model:
        for _ in range(4):  # opened anew each time
            with open_image(str(image), "vmdk", context=Context(cache="unsafe"), writable=True) as disk:
                for _ in range(20):
                    start = min(chance.choice(places) + chance.randrange(4 * GRAIN), size - 1)
                    length = min(chance.choice((1, SECTOR, GRAIN, 5 * GRAIN)) + chance.randrange(SECTOR), size - start)
                    zeros = chance.random() < 0.3
                    data = bytes(length) if zeros else chance.randbytes(length)
                    if zeros:
                        disk.zero(start, length, unmap=chance.random() < 0.5)
                    else:
                        disk.write(start, data)
                    os.pwrite(model.fileno(), data, start)
                    assert disk.read(start, length) == data
            assert_identical(raw, image, formats=("raw", "vmdk"))
            assert diskmill.check(str(image)).corruptions == 0
    qemu_img("check", "-f", "vmdk", image)


@pytest.mark.parametrize("subformat", SPARSE)
def test_qemu_and_diskmill_take_turns_writing(subformat: str, tmp_path: Path) -> None:
    size = 2 * TABLE
    image, raw = tmp_path / "disk.vmdk", sparse_file(tmp_path / "model.raw", size, {})
    diskmill.create(str(image), size, format="vmdk", options={"subformat": subformat})
    chance = random.Random(5)
    for turn in range(6):
        at, length = chance.randrange(0, size - MiB, SECTOR), chance.randrange(SECTOR, MiB, SECTOR)
        qemu_io(raw, f"write -P {turn + 1} {at} {length}", format="raw")
        if turn % 2:
            qemu_io(image, f"write -P {turn + 1} {at} {length}", format="vmdk")
        else:
            with open_image(str(image), "vmdk", context=Context(cache="unsafe"), writable=True) as disk:
                disk.write(at, bytes([turn + 1]) * length)
        assert_identical(raw, image, formats=("raw", "vmdk"))
        assert diskmill.check(str(image)).corruptions == 0


def test_zeroed_grains_are_marked_and_mapped_as_zeros(tmp_path: Path) -> None:
    base, image = tmp_path / "base.vmdk", tmp_path / "disk.vmdk"
    raw = sparse_file(tmp_path / "raw", TABLE, {0: random.Random(1).randbytes(4 * MiB)})
    convert(raw, base)
    diskmill.create(str(image), format="vmdk", backing=str(base), backing_format="vmdk", options={"zeroed_grain": "on"})
    before = image.stat().st_size
    with open_image(str(image), "vmdk", context=Context(), writable=True) as disk:
        disk.zero(MiB, MiB)
        extents = [(one.start, one.length, one.kind.value) for one in disk.extents(0, 3 * MiB)]
    assert extents == [(0, MiB, "hole"), (MiB, MiB, "zero"), (2 * MiB, MiB, "hole")]
    assert image.stat().st_size == before
    assert diskmill_json("map", image) == qemu_img_json("map", image)
    with raw.open("r+b") as file:
        file.seek(MiB)
        file.write(bytes(MiB))
    assert_identical(raw, image, formats=("raw", "vmdk"))


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_maps_are_those_of_qemu_img(subformat: str, tmp_path: Path) -> None:
    raw, image = source(tmp_path, SPLIT + TABLE if subformat.startswith("two") else TABLE), tmp_path / "disk.vmdk"
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", raw, image)
    assert diskmill_json("map", image) == qemu_img_json("map", image)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"compat6": "on", "hwversion": "10"}, UsageError),
        ({"subformat": "monolithicFlat", "zeroed_grain": "on"}, UnsupportedError),
        ({"subformat": "streamOptimised"}, UsageError),
        ({"hwversion": 'a"b'}, UsageError),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, str], error: type, tmp_path: Path) -> None:
    with pytest.raises(error):
        diskmill.create(str(tmp_path / "disk.vmdk"), MiB, format="vmdk", options=options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("subformat", [name for name in SUBFORMATS if name != "streamOptimized"])
def test_only_streams_are_compressed(subformat: str, tmp_path: Path) -> None:
    raw = source(tmp_path, 3 * MiB)
    convert(raw, tmp_path / "disk.vmdk", "streamOptimized", compress=True)
    assert_identical(raw, tmp_path / "disk.vmdk", formats=("raw", "vmdk"))
    with pytest.raises(UnsupportedError, match="cannot be compressed"):
        convert(raw, tmp_path / "other.vmdk", subformat, compress=True)
    assert not list(tmp_path.glob("other*"))


@pytest.mark.parametrize("subformat", SUBFORMATS)
def test_a_failed_convert_leaves_no_file_of_the_image_behind(subformat: str, tmp_path: Path) -> None:
    raw, broken = source(tmp_path, SPLIT + MiB), tmp_path / "broken.vmdk"
    convert(raw, broken, "streamOptimized")
    with broken.open("r+b") as file:
        file.seek(broken.stat().st_size // 2)
        file.write(b"\xff" * 100_000)
    output = tmp_path / "output"
    output.mkdir()
    with pytest.raises(DiskmillError, match=r"damaged|end of the file"):
        convert(broken, output / "disk.vmdk", subformat)
    assert os.listdir(output) == []


# -- chains ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subformat", SPARSE)
def test_overlays_read_through_to_their_parent(subformat: str, tmp_path: Path) -> None:
    raw, base, overlay = chain(tmp_path, subformat)
    assert_identical(raw, overlay, formats=("raw", "vmdk"))
    assert read_all(overlay) == raw.read_bytes()
    told, parent = qemu_img_json("info", overlay), qemu_img_json("info", base)
    assert told["backing-filename"] == "base.vmdk"
    assert told["format-specific"]["data"]["parent-cid"] == parent["format-specific"]["data"]["cid"]


def test_overlays_of_qemu_img_read_the_same(tmp_path: Path) -> None:
    raw, base, overlay = source(tmp_path, TABLE + GRAIN), tmp_path / "base.vmdk", tmp_path / "overlay.vmdk"
    qemu_img("convert", "-f", "raw", "-O", "vmdk", raw, base)
    qemu_img("create", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", overlay)
    for image, format in ((raw, "raw"), (overlay, "vmdk")):
        qemu_io(image, "write -P 9 70000 100000", "write -z 1M 1M", format=format)
    assert read_all(overlay) == raw.read_bytes()


@pytest.mark.parametrize("writer", ["diskmill", "qemu-io"])
def test_an_overlay_whose_parent_was_written_is_refused(writer: str, tmp_path: Path) -> None:
    _, base, overlay = chain(tmp_path)
    if writer == "diskmill":
        with open_image(str(base), "vmdk", context=Context(), writable=True) as disk:
            disk.write(0, b"changed")
    else:
        qemu_io(base, "write 0 512", format="vmdk")
    with pytest.raises(DiskmillError, match="has changed since"):
        read_all(overlay)
    assert qemu_img("convert", "-O", "raw", overlay, tmp_path / "out", check=False).returncode == 1
    with open_image(str(overlay), "vmdk", context=Context()) as disk:  # what it holds itself is still there
        assert disk.read(GRAIN + 100, 3 * GRAIN) == random.Random(6).randbytes(3 * GRAIN)


def test_opening_and_reading_leave_the_content_ids_alone(tmp_path: Path) -> None:
    _, base, overlay = chain(tmp_path)
    before = base.read_bytes(), overlay.read_bytes()
    for name in (base, overlay):
        with open_image(str(name), "vmdk", context=Context(), writable=True) as disk:
            disk.read(0, disk.size)
    assert (base.read_bytes(), overlay.read_bytes()) == before


@pytest.mark.parametrize("drop", [True, False])
def test_commit_leaves_both_images_reading_as_the_overlay_did(drop: bool, tmp_path: Path) -> None:
    raw, base, overlay = chain(tmp_path)
    before = overlay.stat().st_size
    diskmill.commit(str(overlay), drop=drop)
    assert_identical(raw, base, formats=("raw", "vmdk"))
    assert_identical(raw, overlay, formats=("raw", "vmdk"))
    assert read_all(overlay) == raw.read_bytes()
    assert (overlay.stat().st_size < before) is drop


def test_an_overlay_needs_a_vmdk_below_it(tmp_path: Path) -> None:
    raw = source(tmp_path, MiB)
    with pytest.raises(UsageError, match="must be a vmdk image"):
        diskmill.create(str(tmp_path / "disk.vmdk"), format="vmdk", backing=str(raw), backing_format="raw")


@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentFlat"])
def test_flat_disks_stand_on_nothing(subformat: str, tmp_path: Path) -> None:
    diskmill.create(str(tmp_path / "base.vmdk"), MiB, format="vmdk")
    options = {"subformat": subformat}
    with pytest.raises(UnsupportedError, match="cannot have a backing file"):
        diskmill.create(
            str(tmp_path / "disk.vmdk"), format="vmdk", backing="base.vmdk", backing_format="vmdk", options=options
        )


# -- check ----------------------------------------------------------------------------------------------------------


def test_both_sets_of_tables_always_say_the_same(tmp_path: Path) -> None:
    raw, image = source(tmp_path, 3 * TABLE), tmp_path / "disk.vmdk"
    convert(raw, image)
    with open_image(str(image), "vmdk", context=Context(), writable=True) as disk:
        disk.write(2 * TABLE - GRAIN, bytes(range(256)) * 1024)
    redundant, primary, capacity = directories(image)
    data = image.read_bytes()
    for grain in range(capacity // 128):
        one, two = entry(data, redundant, grain), entry(data, primary, grain)
        assert one != two
        assert data[one : one + 4] == data[two : two + 4]


@pytest.mark.parametrize("which", ["primary", "redundant"])
def test_check_finds_and_repairs_a_table_from_its_copy(which: str, tmp_path: Path) -> None:
    raw, image = source(tmp_path, 3 * TABLE), tmp_path / "disk.vmdk"
    convert(raw, image)
    redundant, primary, _ = directories(image)
    with image.open("r+b") as file:
        at = entry(file.read(), primary if which == "primary" else redundant, 513)
        file.seek(at)
        file.write(b"\xf0\xff\xff\x7f")
    assert diskmill.check(str(image)).corruptions > 0
    result = diskmill.check(str(image), repair="all")
    assert (result.corruptions_fixed, result.corruptions) == (1, 0)
    assert diskmill.check(str(image)).corruptions == 0
    assert_identical(raw, image, formats=("raw", "vmdk"))


@pytest.mark.parametrize("damage", ["nothing", "header", "guest data", "beyond the end", "other table"])
@pytest.mark.parametrize("which", ["primary", "redundant"])
def test_damaged_directories_are_not_written_through_but_repaired(which: str, damage: str, tmp_path: Path) -> None:
    """An entry of a grain directory that leads elsewhere must not make a table overwrite what is there."""
    raw, image = source(tmp_path, 3 * TABLE), tmp_path / "disk.vmdk"
    convert(raw, image)
    redundant, primary, _ = directories(image)
    data = bytearray(image.read_bytes())
    first = int.from_bytes(data[entry(data, primary, 0) :][:4], "little")  # where the first grain is
    one, other = (primary, redundant) if which == "primary" else (redundant, primary)
    to = {"nothing": 0, "header": 1, "guest data": first, "beyond the end": 1 << 30}
    to["other table"] = int.from_bytes(data[other + 8 : other + 12], "little")
    data[one + 4 : one + 8] = to[damage].to_bytes(4, "little")
    image.write_bytes(data)
    with (
        pytest.raises(DiskmillError, match=r"grain (table|directory)"),
        open_image(str(image), "vmdk", context=Context(), writable=True) as disk,
    ):
        disk.write(TABLE + 5 * GRAIN, b"new" * GRAIN)
    assert image.read_bytes()[21 * SECTOR :] == data[21 * SECTOR :]  # header and descriptor say that it was begun
    assert diskmill.check(str(image)).corruptions > 0
    result = diskmill.check(str(image), repair="all")
    if damage == "other table":  # it is not told whose that table is
        assert result.corruptions > 0
        return
    assert result.corruptions_fixed > 0
    assert diskmill.check(str(image)).findings == []
    assert_identical(raw, image, formats=("raw", "vmdk"))


def test_a_repair_gives_up_no_grain_of_either_table(tmp_path: Path) -> None:
    raw, image = source(tmp_path, TABLE), tmp_path / "disk.vmdk"
    convert(raw, image)
    redundant, primary, _ = directories(image)
    data = bytearray(image.read_bytes())
    for directory, grain in ((primary, 0), (redundant, 511)):
        at = entry(data, directory, grain)
        assert any(data[at : at + 4])
        data[at : at + 4] = bytes(4)
    image.write_bytes(data)
    assert diskmill.check(str(image), repair="all").corruptions_fixed == 2
    assert_identical(raw, image, formats=("raw", "vmdk"))


def test_grains_that_lie_in_the_metadata_are_found_and_not_written(tmp_path: Path) -> None:
    raw, image = source(tmp_path, TABLE), tmp_path / "disk.vmdk"
    convert(raw, image)
    redundant, primary, _ = directories(image)
    data = bytearray(image.read_bytes())
    for directory in (primary, redundant):
        at = entry(data, directory, 0)
        data[at : at + 4] = (primary // SECTOR).to_bytes(4, "little")
    image.write_bytes(data)
    assert any("where the metadata is" in finding.text for finding in diskmill.check(str(image)).findings)
    with (
        pytest.raises(DiskmillError, match="where the metadata is"),
        open_image(str(image), "vmdk", context=Context(), writable=True) as disk,
    ):
        disk.write(0, b"x" * SECTOR)
    assert image.read_bytes()[primary:] == data[primary:]


def test_a_sparse_file_that_was_cut_short_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    raw, image = sparse_file(tmp_path / "raw", 3 * GRAIN + SECTOR, {0: b"x" * (3 * GRAIN + SECTOR)}), tmp_path / "disk"
    convert(raw, image)
    whole = image.read_bytes()
    image.write_bytes(whole[: -GRAIN + SECTOR])  # up to the end of the disk: nothing is missing
    assert read_all(image) == raw.read_bytes()
    assert diskmill.check(str(image)).corruptions == 0
    with open_image(str(image), "vmdk", context=Context(), writable=True) as disk:
        disk.write(3 * GRAIN, b"y")
    assert read_all(image) == raw.read_bytes()[: 3 * GRAIN] + b"y" + b"x" * (SECTOR - 1)
    for missing in (GRAIN - SECTOR + 1, GRAIN + 1, 3 * GRAIN):
        image.write_bytes(whole[:-missing])
        assert diskmill.check(str(image)).corruptions > 0
        with pytest.raises(DiskmillError, match="not all inside the file"):
            read_all(image)


def test_a_writer_that_was_killed_is_told_until_a_check_has_looked(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    diskmill.create(str(image), MiB, format="vmdk")
    script = (
        "import os, sys, diskmill; from diskmill.opening.graph import open_image\n"
        "from diskmill.opening.context import Context\n"
        f"disk = open_image({str(image)!r}, context=Context(), writable=True); disk.write(0, b'x'); disk.flush()\n"
        "os._exit(0)"
    )
    run(sys.executable, "-c", script)
    assert diskmill_json("info", image)["dirty-flag"] is True
    assert diskmill.check(str(image), repair="all").corruptions == 0
    assert diskmill_json("info", image)["dirty-flag"] is False
    assert read_all(image) == b"x".ljust(MiB, b"\0")


def test_check_finds_a_grain_that_is_used_twice(tmp_path: Path) -> None:
    raw, image = source(tmp_path, TABLE), tmp_path / "disk.vmdk"
    convert(raw, image)
    _, primary, _ = directories(image)
    data = bytearray(image.read_bytes())
    first, other = entry(data, primary, 0), entry(data, primary, 300)
    data[other : other + 4] = data[first : first + 4]
    image.write_bytes(data)
    result = diskmill.check(str(image))
    assert result.corruptions == 2  # used twice, and unlike the redundant table
    assert any("also used elsewhere" in finding.text for finding in result.findings)


def test_tables_that_the_file_has_no_bytes_of_need_no_look(tmp_path: Path) -> None:
    """QEMU lays 294,912 tables out for a disk of 9 TiB: holes, but for those of what is written."""
    image = tmp_path / "image"
    qemu_img("create", "-f", "vmdk", image, "9T")
    qemu_io(image, "write 5T 64k", format="vmdk")
    assert not diskmill.check(image).corruptions
    places = [one.offset for one in diskmill.map(image) if one.data]
    with diskmill.open(image) as opened:
        table = opened.parts[0].directory[5 * 2**40 // (32 << 20)] * 512  # type: ignore[attr-defined]
    with open(image, "r+b") as file:
        file.seek(table)
        assert file.read(4) == (places[0] // 512).to_bytes(4, "little")
        file.seek(table)
        file.write(b"\xff\xff\xff\x7f")
    found = diskmill.check(image)
    assert found.corruptions == 2  # it lies outside, and the redundant copy is another
