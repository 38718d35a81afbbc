"""VMDKs that are written in one go (streamOptimized), against the tools that read and write them."""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import diskmill
import pytest
from diskmill.errors import DiskmillError, ImageError, UnsupportedError
from diskmill.opening.context import Context
from diskmill.opening.graph import open_image
from samples import KiB, MiB, sparse_file
from tools import assert_identical, diskmill_json, qemu_img, qemu_img_json, qemu_io
from vmdk_samples import (
    GRAIN,
    SECTOR,
    SPLIT,
    TABLE,
    convert,
    read_all,
    source,
)

COMMAND = Path(sys.executable).with_name("diskmill")


# -- streamOptimized ------------------------------------------------------------------------------------------------


def make_stream(folder: Path, size: int, seed: int = 3) -> tuple[Path, Path]:
    raw, image = source(folder, size, seed), folder / "stream.vmdk"
    convert(raw, image, "streamOptimized")
    return raw, image


def test_a_stream_is_laid_out_as_the_specification_says(tmp_path: Path) -> None:
    """Read by the specification alone: header, grains in ascending order, tables, directory, footer, end."""
    size = 3 * TABLE + GRAIN + SECTOR
    raw, image = make_stream(tmp_path, size)
    data = image.read_bytes()
    layout = struct.Struct("<4sIIQQQQIQQQB4sH")
    header = layout.unpack_from(data)
    magic, version, flags, capacity, grain, at, room, entries, _, directory, overhead, unclean, lines, method = header
    assert (magic, version, flags, capacity, grain) == (b"KDMV", 3, 0x30001, size // SECTOR, 128)
    assert (entries, directory, unclean, lines, method) == (512, 2**64 - 1, 0, b"\n \r\n", 1)
    assert data[at * SECTOR :].startswith(b"# Disk DescriptorFile\n")
    assert at + room <= overhead
    sector, lbas, kinds = overhead, [], []
    tables: dict[int, tuple[int, ...]] = {}
    grains: dict[int, int] = {}
    places: tuple[int, ...] = ()
    directory_at, footer = 0, header
    while True:
        value, length, kind = struct.unpack_from("<QII", data, sector * SECTOR)
        if length:
            lbas.append(value)
            grains[value // grain] = sector
            sector += -(-(12 + length) // SECTOR)
            continue
        kinds.append(kind)
        if kind == 1:
            tables[sector + 1] = struct.unpack_from("<512I", data, (sector + 1) * SECTOR)
        if kind == 2:
            directory_at = sector + 1
            places = struct.unpack_from("<4I", data, directory_at * SECTOR)
        if kind == 3:
            footer = layout.unpack_from(data, (sector + 1) * SECTOR)
        if kind == 0:
            break
        sector += 1 + value
    assert kinds == [1] * len(tables) + [2, 3, 0]
    assert lbas == sorted(set(lbas))
    assert (sector + 1) * SECTOR == len(data)
    assert footer == (*header[:9], directory_at, *header[10:])
    assert [place for place in places if place] == list(tables)
    found = {
        index * 512 + number: value
        for index, place in enumerate(places)
        for number, value in enumerate(tables.get(place, ()))
        if value
    }
    assert found == grains
    assert_identical(raw, image, formats=("raw", "vmdk"))


def test_a_stream_is_about_as_small_as_that_of_qemu_img(tmp_path: Path) -> None:
    chance = random.Random(4)
    words = [chance.randbytes(chance.randrange(2, 9)) for _ in range(5000)]
    text = b"".join(chance.choices(words, weights=[1 / (rank + 1) for rank in range(5000)], k=2_000_000))
    raw = sparse_file(tmp_path / "source.raw", 32 * MiB, {0: text[: 8 * MiB], 16 * MiB: chance.randbytes(MiB)})
    ours, its = tmp_path / "ours.vmdk", tmp_path / "its.vmdk"
    convert(raw, ours, "streamOptimized")
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, its)
    assert ours.stat().st_size < 1.15 * its.stat().st_size


def test_the_same_disk_gives_the_same_stream_but_for_its_content_id(tmp_path: Path) -> None:
    streams = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        _, image = make_stream(tmp_path / name, 2 * TABLE)
        streams.append(re.sub(rb"\nCID=[0-9a-f]{8}\n", b"\n", image.read_bytes()))
    assert streams[0] == streams[1]


@pytest.mark.parametrize("maker", ["diskmill", "qemu-img"])
@pytest.mark.parametrize("format", [[], ["-f", "vmdk"]], ids=["probed", "named"])
def test_a_stream_is_read_from_a_pipe_as_from_a_file(maker: str, format: list[str], tmp_path: Path) -> None:
    raw, image = make_stream(tmp_path, 2 * TABLE + 3 * SECTOR)
    if maker == "qemu-img":
        qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, image)
    back = tmp_path / "back.raw"
    with subprocess.Popen(["cat", image], stdout=subprocess.PIPE) as cat:
        subprocess.run([COMMAND, "convert", *format, "-O", "raw", "pipe:-", back], stdin=cat.stdout, check=True)
    assert back.read_bytes() == raw.read_bytes()


def test_a_pipe_that_breaks_off_leaves_nothing_behind(tmp_path: Path) -> None:
    _, image = make_stream(tmp_path, TABLE)
    whole, back = image.read_bytes(), tmp_path / "back.raw"
    for kept in (100, 20_000, len(whole) // 2, len(whole) - 1024):
        command = [COMMAND, "convert", "-f", "vmdk", "-O", "raw", "pipe:-", back]
        done = subprocess.run(command, input=whole[:kept], stderr=subprocess.PIPE)
        assert done.returncode == 1
        *warnings, error = done.stderr.splitlines()
        assert error.startswith(b"diskmill: 'pipe:-'") and all(b"warning" in one for one in warnings), done.stderr
        assert not back.exists()


def test_only_streams_come_through_pipes(tmp_path: Path) -> None:
    image = tmp_path / "disk.vmdk"
    diskmill.create(str(image), MiB, format="vmdk")
    done = subprocess.run([COMMAND, "info", "pipe:-"], input=image.read_bytes(), capture_output=True)
    assert done.returncode == 1
    assert b"only streamOptimized images can be read from a pipe" in done.stderr


def test_a_stream_with_damaged_tables_is_saved_by_its_markers(tmp_path: Path) -> None:
    raw, image = make_stream(tmp_path, 2 * TABLE)
    data = bytearray(image.read_bytes())
    directory = struct.unpack_from("<Q", data, len(data) - 2 * SECTOR + 56)[0]
    data[directory * SECTOR : directory * SECTOR + 8] = b"\xff\xff\xff\x7f" * 2
    image.write_bytes(data)
    with pytest.raises(DiskmillError):
        read_all(image)
    expected = raw.read_bytes()
    with open_image({"driver": "vmdk", "scan": "on", "filename": str(image)}, context=Context()) as disk:
        assert disk.read(0, disk.size) == expected
        assert disk.read(TABLE - 100, GRAIN) == expected[TABLE - 100 : TABLE - 100 + GRAIN]  # and back again


def test_streams_cannot_be_changed(tmp_path: Path) -> None:
    _, image = make_stream(tmp_path, TABLE)
    before = image.read_bytes()
    with pytest.raises(UnsupportedError, match="written once, in order"):
        open_image(str(image), "vmdk", context=Context(), writable=True)
    assert image.read_bytes() == before


# -- streams that stand on an image -----------------------------------------------------------------------------------


def stream_overlay(folder: Path, size: int = TABLE + GRAIN + SECTOR) -> tuple[Path, Path, Path]:
    """A base with data; a raw disk that is unlike it in parts of grains, grains of zeros and at its end; and a stream
    that reads so on that base, made of a qcow2 overlay whose clusters are smaller than grains."""
    raw, base, top = source(folder, size), folder / "base.vmdk", folder / "top.qcow2"
    convert(raw, base)
    diskmill.create(
        str(top), size, format="qcow2", backing=str(raw), backing_format="raw", options={"cluster_size": "4k"}
    )
    chance = random.Random(8)
    with open_image(str(base), "vmdk", context=Context()) as disk:
        data = next(one.start for one in disk.extents(4 * GRAIN, size - 4 * GRAIN) if one.kind.value == "data")
    with open_image(str(top), "qcow2", context=Context(), writable=True) as disk:
        for at, length in ((5000, 300), (GRAIN - 100, 200), (10 * GRAIN + 8192, 4096), (size - 700, 700)):
            disk.write(at, chance.randbytes(length))
        for at in range(20, 24):
            disk.write(at * GRAIN + 4096 * at, chance.randbytes(4096))
        disk.zero(data, GRAIN)
        disk.zero(2 * GRAIN, 8192)
        disk.zero(TABLE // 2, 4 * MiB)
        expected = disk.read(0, size)
    stream, model = folder / "stream.vmdk", folder / "model.raw"
    convert(top, stream, "streamOptimized", backing="base.vmdk", backing_format="vmdk")
    model.write_bytes(expected)
    assert expected[data : data + GRAIN] == bytes(GRAIN) != raw.read_bytes()[data : data + GRAIN]
    return model, base, stream


def test_a_stream_on_a_base_holds_what_is_unlike_it(tmp_path: Path) -> None:
    model, base, stream = stream_overlay(tmp_path)
    assert_identical(model, stream, formats=("raw", "vmdk"))
    assert read_all(stream) == model.read_bytes()
    assert diskmill.check(str(stream)).findings == []
    told, parent = qemu_img_json("info", stream), qemu_img_json("info", base)
    assert diskmill_json("info", stream) == told
    assert told["backing-filename"] == "base.vmdk"
    assert told["format-specific"]["data"]["parent-cid"] == parent["format-specific"]["data"]["cid"]
    maps = diskmill_json("map", stream)
    assert maps == qemu_img_json("map", stream)
    # Grains of its own begin and end with the grains that were written, and zeros over zeros are no grains.
    own = [(one["start"], one["start"] + one["length"]) for one in maps if one["depth"] == 0]
    size = model.stat().st_size
    assert all(start % GRAIN == 0 and (end % GRAIN == 0 or end == size) for start, end in own)
    assert sum(end - start for start, end in own) < 40 * GRAIN


def test_streams_of_qemu_img_on_a_base_read_the_same(tmp_path: Path) -> None:
    model, _, ours = stream_overlay(tmp_path)
    for options in ("", ",zeroed_grain=on"):
        its = tmp_path / "its.vmdk"
        qemu_img(
            *("convert", "-f", "vmdk", "-O", "vmdk", "-o", f"subformat=streamOptimized{options}"),
            *("-B", "base.vmdk", "-F", "vmdk", ours, its),
        )
        assert read_all(its) == model.read_bytes()
        assert diskmill_json("map", its) == qemu_img_json("map", its)


def test_an_empty_stream_reads_as_its_base(tmp_path: Path) -> None:
    raw, base, image = source(tmp_path, TABLE), tmp_path / "base.vmdk", tmp_path / "disk.vmdk"
    convert(raw, base)
    options = {"subformat": "streamOptimized"}
    diskmill.create(str(image), TABLE + MiB, format="vmdk", backing=base.name, backing_format="vmdk", options=options)
    os.truncate(raw, TABLE + MiB)
    assert_identical(raw, image, formats=("raw", "vmdk"))
    assert read_all(image) == raw.read_bytes()
    with open_image(str(base), "vmdk", context=Context(), writable=True) as disk:
        disk.write(0, b"changed")
    with pytest.raises(ImageError, match="has changed since"):
        read_all(image)


def test_zeros_over_zeros_take_no_room_in_a_stream(tmp_path: Path) -> None:
    size = 4 * SPLIT
    base, raw, image = tmp_path / "base.vmdk", sparse_file(tmp_path / "raw", size, {}), tmp_path / "disk.vmdk"
    diskmill.create(str(base), size, format="vmdk")
    with open_image(str(base), "vmdk", context=Context(), writable=True) as disk:
        disk.write(size // 2 + 5, bytes(range(256)) * 1024)
    convert(raw, image, "streamOptimized", backing=base.name, backing_format="vmdk")
    with open_image(str(image), "vmdk", context=Context()) as disk:
        held = [(one.start, one.length) for one in disk.extents(0, size) if one.kind.value == "encoded"]
        assert held == [(size // 2 + at * GRAIN, GRAIN) for at in range(5)]
        assert disk.read(size // 2, 5 * GRAIN) == bytes(5 * GRAIN)
    assert image.stat().st_size < MiB
    assert_identical(raw, image, formats=("raw", "vmdk"))


def from_pipe(image: Path, back: Path, base: Path | None) -> subprocess.CompletedProcess[bytes]:
    command: list[Any] = [COMMAND, "convert", "-f", "vmdk", "-O", "raw", "pipe:-", back]
    if base is not None:
        names = "driver=vmdk,file.driver=pipe,file.filename=-,backing.driver=vmdk,backing.file.filename=" + str(base)
        command = [COMMAND, "convert", "--image-opts", "-O", "raw", names, back]
    return subprocess.run(command, input=image.read_bytes(), stderr=subprocess.PIPE)


def test_a_stream_on_a_base_comes_through_a_pipe_when_the_base_is_given(tmp_path: Path) -> None:
    model, base, stream = stream_overlay(tmp_path)
    back = tmp_path / "back.raw"
    done = from_pipe(stream, back, None)
    assert done.returncode == 1
    assert b"needs the backing file 'base.vmdk', and nothing lies beside a pipe" in done.stderr
    assert not back.exists()
    assert from_pipe(stream, back, base).returncode == 0
    assert back.read_bytes() == model.read_bytes()


def test_zeros_that_only_the_tables_tell_of_are_not_taken_for_the_base(tmp_path: Path) -> None:
    model, base, stream = stream_overlay(tmp_path)
    its, back = tmp_path / "its.vmdk", tmp_path / "back.raw"
    text = "subformat=streamOptimized,zeroed_grain=on"
    qemu_img("convert", "-O", "vmdk", "-o", text, "-B", "base.vmdk", "-F", "vmdk", stream, its)
    assert_identical(model, its, formats=("raw", "vmdk"))
    done = from_pipe(its, back, base)
    assert done.returncode == 1
    assert b"only its tables tell zeros" in done.stderr
    assert not back.exists()


def test_a_stream_on_a_base_is_neither_committed_nor_rebased(tmp_path: Path) -> None:
    model, base, stream = stream_overlay(tmp_path)
    before = base.read_bytes(), stream.read_bytes()
    for change in (lambda: diskmill.commit(str(stream)), lambda: diskmill.rebase(str(stream), "")):
        with pytest.raises(UnsupportedError, match="written once, in order"):
            change()
    assert (base.read_bytes(), stream.read_bytes()) == before
    whole = tmp_path / "whole.vmdk"
    convert(stream, whole)  # what takes the place of both
    assert_identical(model, whole, formats=("raw", "vmdk"))


# -- check, and other writers -----------------------------------------------------------------------------------------


def test_check_finds_a_grain_of_a_stream_in_the_wrong_place(tmp_path: Path) -> None:
    _, image = make_stream(tmp_path, TABLE)
    assert diskmill.check(str(image)).corruptions == 0
    data = bytearray(image.read_bytes())
    data[128 * SECTOR] ^= 0x80  # the first grain's place on the disk
    image.write_bytes(data)
    assert diskmill.check(str(image)).corruptions == 1
    with pytest.raises(DiskmillError, match="marker"):
        read_all(image)


@pytest.mark.parametrize("size", [512, 5 * MiB + 512, 3 * TABLE + 512])
@pytest.mark.parametrize("based", [False, True])
def test_qemu_writes_into_an_empty_stream(tmp_path: Path, size: int, based: bool) -> None:
    """It makes a grain wherever there is none yet, but no grain table."""
    image, options = tmp_path / "disk.vmdk", {"subformat": "streamOptimized"}
    expected = bytearray(size)
    backing = {}
    if based:
        diskmill.create(str(tmp_path / "base.vmdk"), size, format="vmdk")
        with diskmill.open(str(tmp_path / "base.vmdk"), writable=True) as base:
            base.write(0, b"below" * 100)
        expected[:500] = b"below" * 100
        backing = {"backing": "base.vmdk", "backing_format": "vmdk"}
    diskmill.create(str(image), size, format="vmdk", options=options, **backing)
    with diskmill.open(str(image)) as disk:
        assert disk.read(0, size) == expected
    for number, at in enumerate({0, size // 2 // 512 * 512, size - 512}, 1):
        grain = at // (64 * KiB) * 64 * KiB
        length = min(64 * KiB, size - grain)
        qemu_io(image, f"write -P {number} {grain} {length}", format="vmdk")
        expected[grain : grain + length] = bytes([number]) * length
    assert qemu_img("check", "-f", "vmdk", image).returncode == 0
    with diskmill.open(str(image)) as disk:
        assert disk.read(0, size) == expected
        assert disk.details()["create-type"] == "streamOptimized"
    (tmp_path / "raw").write_bytes(expected)
    qemu_img("compare", "-f", "vmdk", "-F", "raw", image, tmp_path / "raw")
