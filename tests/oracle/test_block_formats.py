"""VDI, VHD, VHDX, Parallels, QED and qcow against qemu-img: the same bytes both ways, the same answers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import diskmill
import pytest
from diskmill import qapi
from diskmill.errors import ImageError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import KiB, MiB, scattered_file, sparse_file
from tools import qemu_img, qemu_img_json, qemu_io, without_newer

GiB, TiB = 1024 * MiB, 1024 * 1024 * MiB

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("vdi", {}),
    ("vdi", {"static": "on"}),
    ("vpc", {}),
    ("vpc", {"force_size": "on"}),
    ("vpc", {"subformat": "fixed"}),
    ("vpc", {"subformat": "fixed", "force_size": "on"}),
    ("vhdx", {}),
    ("vhdx", {"block_size": "1M"}),
    ("vhdx", {"block_size": "256M", "block_state_zero": "off", "log_size": "2M"}),
    ("vhdx", {"subformat": "fixed"}),
    ("parallels", {}),
    ("parallels", {"cluster_size": "64k"}),
    ("parallels", {"cluster_size": "32256"}),  # the 63 sectors of early versions
    ("qed", {}),
    ("qed", {"cluster_size": "4k", "table_size": "4"}),
    ("qcow", {}),
]


def words(options: dict[str, Any]) -> list[str]:
    return ["-o", ",".join(f"{key}={value}" for key, value in options.items())] if options else []


def check(format: str, image: Path) -> None:
    """Both find nothing wrong."""
    if format not in ("vpc", "qcow"):
        qemu_img("check", "-f", format, image)
    if format != "qcow":
        assert diskmill.check(str(image), format=format).findings == []


def same(disk: Path, image: Path, format: str) -> None:
    """Both read *image* as *disk*, zeros behind its end aside."""
    qemu_img("compare", "-f", "raw", "-F", format, disk, image)
    assert diskmill.compare(str(disk), str(image), format_a="raw", format_b=format).identical


def both_ways(folder: Path, disk: Path, format: str, options: dict[str, Any]) -> None:
    ours, theirs = folder / "ours", folder / "theirs"
    diskmill.convert([str(disk)], str(ours), format="raw", output_format=format, options=options)
    qemu_img("convert", "-f", "raw", "-O", format, *words(options), disk, theirs)
    for image in (ours, theirs):
        same(disk, image, format)
        check(format, image)
        for key in ("virtual-size", "format", "cluster-size", "format-specific", "dirty-flag"):
            said = qemu_img_json("info", "-f", format, image)
            assert qapi.image_info(diskmill.info(str(image), format=format)).get(key, False) == said.get(key, False), (
                key
            )
    virtual = [diskmill.info(str(image), format=format).virtual_size for image in (ours, theirs)]
    assert virtual[0] == virtual[1]
    for image in (ours, theirs):
        back = folder / "back"
        diskmill.convert([str(image)], str(back), format=format)
        assert back.stat().st_size == virtual[0]
        qemu_img("compare", "-f", "raw", "-F", "raw", disk, back)
    # Each goes on writing what the other made.
    with diskmill.open(str(theirs), format, writable=True) as image:
        at = min(disk.stat().st_size // 2, image.size - 512) if image.size else 0
        image.write(at, b"\x07" * min(512, image.size))
    if virtual[0]:
        sector = at // 512 * 512
        qemu_io(ours, f"write -P 7 {sector} 512", format=format)
        qemu_io(theirs, f"read -P 7 {at} {512 - at % 512}", format=format)
    for image in (ours, theirs):
        check(format, image)


@pytest.mark.parametrize(("format", "options"), VARIANTS, ids=lambda value: str(value))
@pytest.mark.parametrize("seed", range(2))
def test_scattered_data_both_ways(tmp_path: Path, format: str, options: dict[str, Any], seed: int) -> None:
    disk = scattered_file(tmp_path / "disk", 23 * MiB + 512 * seed, seed=seed)
    both_ways(tmp_path, disk, format, options)


SIZES = [0, 1, 511, 512, 513, 64 * KiB, 1 * MiB - 512, 1 * MiB, 1 * MiB + 512, 2 * MiB - 1, 2 * MiB, 2 * MiB + 1]
SIZES += [127 * MiB + 511, 128 * MiB, 2 * GiB - 512, 2 * GiB, 4 * GiB - 512, 4 * GiB + 512]


# Of disks larger than that QEMU looks at each 4 KiB of a qcow image, and reads all of a VHDX image, for minutes:
# test_vhdx.py has the large ones that matter.
BOUNDARIES = [
    (format, options, size)
    for format, options in VARIANTS[:1] + VARIANTS[2:11] + VARIANTS[-2:]
    for size in SIZES
    if format not in ("qcow", "vhdx") or size <= 128 * MiB
]


@pytest.mark.parametrize(("format", "options", "size"), BOUNDARIES, ids=str)
def test_boundary_sizes(tmp_path: Path, format: str, options: dict[str, Any], size: int) -> None:
    pieces = {at: b"data" for at in (0, size // 2, size - 4) if 0 <= at <= size - 4}
    if not size and format == "qcow":
        with pytest.raises(diskmill.DiskmillError, match="size"):
            diskmill.create(str(tmp_path / "image"), 0, format=format)
        return
    # A footer alone, which QEMU makes but cannot open; or large blocks, of which it cannot make none.
    if not size and (format == "vpc" and options.get("subformat") == "fixed" or options.get("block_size") == "256M"):
        image = tmp_path / "image"
        diskmill.create(str(image), 0, format=format, options=options)
        assert diskmill.info(str(image), format=format).virtual_size == 0
        return
    both_ways(tmp_path, sparse_file(tmp_path / "disk", size, pieces), format, options)


@pytest.mark.parametrize("format", ["vdi", "vpc", "vhdx", "parallels", "qed", "qcow"])
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_sparse_disk(tmp_path: Path, format: str, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 12 * MiB))
    pieces = data.draw(
        st.dictionaries(st.integers(0, size - 1), st.integers(1, 3 * MiB), max_size=6).map(
            lambda drawn: {
                at: random.Random(at).randbytes(min(length, size - at)) for at, length in sorted(drawn.items())
            }
        )
    )
    disk = sparse_file(tmp_path / "disk", size, pieces)
    for name in ("ours", "theirs", "back"):
        (tmp_path / name).unlink(missing_ok=True)
    both_ways(tmp_path, disk, format, {})


@pytest.mark.parametrize(
    ("format", "options", "size"),
    [
        ("vdi", {}, 64 * TiB),
        ("vpc", {}, 2040 * GiB),
        ("vpc", {"force_size": "on"}, 2040 * GiB - 512),
        ("vpc", {"subformat": "fixed"}, 2040 * GiB),
        ("vhdx", {}, 64 * TiB),
        ("vhdx", {"block_size": "256M"}, 64 * TiB),
        ("vhdx", {"subformat": "fixed"}, 10 * TiB),  # ext4 has no larger files
        ("parallels", {}, 64 * TiB),
        ("parallels", {"cluster_size": "4k"}, 2 * TiB - 8 * MiB - 512),
        ("qed", {}, 64 * TiB),
        ("qed", {"cluster_size": "2M"}, 1 << 61),
        ("qed", {"cluster_size": "4M", "table_size": "2"}, 1 << 62),
        ("qed", {"cluster_size": "4k", "table_size": "2"}, 4 * GiB),
        ("qcow", {}, 16 * TiB),
    ],
    ids=str,
)
def test_the_largest_disks(tmp_path: Path, format: str, options: dict[str, Any], size: int) -> None:
    """QEMU opens the image no more often than it must, for it reads a table of up to 2 GiB whole. A read behind the
    disk's end tells that it ends where it should."""
    image = tmp_path / "image"
    diskmill.create(str(image), size, format=format, options=options)
    with diskmill.open(str(image), format, writable=True) as disk:
        disk.write(size - 1024, b"\x09" * 512)
        disk.write(size // 2, b"\x0a" * 512)
    commands = [
        f"read -P 9 {size - 1024} 512",
        f"read -P 10 {size // 2} 512",
        "read -P 0 0 64k",
        f"write -P 11 {size - 512} 512",
        f"read {size} 512",
    ]
    done = qemu_io(image, *commands, format=format, check=False)
    said = [line for line in done.stdout.splitlines() if " 512/512 bytes" in line or " 65536/65536" in line]
    assert len(said) == len(commands) - 1 and done.stdout.splitlines()[-1] == "read failed: Input/output error"
    assert "verification failed" not in done.stdout
    with diskmill.open(str(image), format) as disk:
        assert disk.read(size - 1024, 1024) == b"\x09" * 512 + b"\x0b" * 512
    check(format, image)


@pytest.mark.parametrize(
    ("format", "options", "size"),
    [
        ("vdi", {}, 512 * TiB),
        ("vpc", {}, 2040 * GiB + 512),
        ("vpc", {"subformat": "fixed", "force_size": "on"}, 2040 * GiB + 512),
        ("vhdx", {}, 64 * TiB + 512),
        ("parallels", {"cluster_size": "512"}, 8192 * TiB),
        ("qed", {}, 64 * TiB + 512),
        ("qed", {"cluster_size": "4k", "table_size": "2"}, 4 * GiB + 512),
    ],
    ids=str,
)
def test_a_disk_that_is_too_large_is_refused(tmp_path: Path, format: str, options: dict[str, Any], size: int) -> None:
    image = tmp_path / "image"
    with pytest.raises(diskmill.DiskmillError):
        diskmill.create(str(image), size, format=format, options=options)
    assert not image.exists()
    assert qemu_img("create", "-q", "-f", format, *words(options), image, str(size), check=False).returncode


@pytest.mark.parametrize(
    ("format", "options"), [one for one in VARIANTS if one[0] != "vhdx"], ids=lambda value: str(value)
)
def test_the_map_is_qemus(tmp_path: Path, format: str, options: dict[str, Any]) -> None:
    disk = scattered_file(tmp_path / "disk", 17 * MiB, seed=5)
    for image, make in ((tmp_path / "theirs", qemu_img), (tmp_path / "ours", None)):
        if make is None:
            diskmill.convert([str(disk)], str(image), output_format=format, options=options)
        else:
            make("convert", "-f", "raw", "-O", format, *words(options), disk, image)
        theirs = qemu_img_json("map", "-f", format, image)
        ours = [without_newer(qapi.map_entry(entry)) for entry in diskmill.map(str(image), format=format)]
        for entries in (theirs, ours):
            for entry in entries:
                entry.pop("filename", None)
        assert ours == theirs


@pytest.mark.parametrize(("format", "options"), VARIANTS, ids=lambda value: str(value))
def test_measure_tells_the_size_of_the_file(tmp_path: Path, format: str, options: dict[str, Any]) -> None:
    disk = scattered_file(tmp_path / "disk", 9 * MiB, seed=11, pieces=6)
    image = tmp_path / "image"
    diskmill.convert([str(disk)], str(image), format="raw", output_format=format, options=options)
    told = diskmill.measure(str(disk), format="raw", output_format=format, options=options)
    assert image.stat().st_size <= told.required <= told.fully_allocated
    with diskmill.open(str(image), format, writable=True) as target:
        for at in range(0, target.size, MiB):
            target.write(at, b"\x01" * min(MiB, target.size - at))
    assert image.stat().st_size == told.fully_allocated


@pytest.mark.parametrize("format", ["vdi", "vpc", "parallels"])
def test_a_larger_disk_is_one_for_qemu_too(tmp_path: Path, format: str) -> None:
    """qemu-img resizes none of them; what diskmill makes of them QEMU reads and writes."""
    disk = scattered_file(tmp_path / "disk", 5 * MiB, seed=3)
    image = tmp_path / "image"
    qemu_img("convert", "-f", "raw", "-O", format, disk, image)
    for size in (7 * MiB, 300 * MiB, 3 * GiB, 70 * GiB, 600 * GiB):
        diskmill.resize(str(image), size, format=format)
        assert qemu_img_json("info", "-f", format, image)["virtual-size"] >= size
        qemu_img("compare", "-f", "raw", "-F", format, disk, image)
        with diskmill.open(str(image), format, writable=True) as target:
            target.write(size - 4096, b"\x05" * 4096)
        qemu_io(image, f"read -P 5 {size - 4096} 4096", f"write -P 0 {size - 4096} 4096", format=format)
        check(format, image)


@pytest.mark.parametrize("format", ["vdi", "vpc", "vhdx", "parallels", "qed", "qcow"])
def test_guest_data_and_other_formats_are_not_mistaken_for_it(tmp_path: Path, format: str) -> None:
    driver = diskmill.Context().registry.format(format)
    for other in ("raw", "qcow2", "vmdk", "vdi", "vpc", "parallels", "qed", "qcow", "vhdx"):
        image = tmp_path / other
        qemu_img("create", "-q", "-f", other, image, "10M")
        data = image.read_bytes()[:4096]
        assert (driver.probe(data, str(image)) > 1) == (other == format), other
    for text in (
        b"conectiX",
        b"WithoutFreeSpace",
        b"WithouFreSpacExt\3\0\0\0",
        b"<?xml version='1.0'?><a/>",
        b"QED!",
        b"QFI",
        b"",
    ):
        assert driver.probe(text.ljust(4096, b"\0"), "x") == 0


@pytest.mark.parametrize("format", ["raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vpc", "vhdx", "parallels"])
def test_holes_that_begin_behind_the_end_of_a_shorter_backing_image(format: str, tmp_path: Path) -> None:
    """They read as zeros, and the backing image is not asked: it has no table entries there."""
    base, over, out = tmp_path / "base", tmp_path / "over", tmp_path / "out"
    qemu_img("create", "-q", "-f", format, base, "1M")
    qemu_io(base, "write -P 1 8k 4k", format=format)
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", format, over, "2500k")
    qemu_io(over, "write -P 2 1618k 4k", format="qcow2")  # what its cluster does not hold is a hole on both sides
    diskmill.convert([str(over)], str(out))
    assert qemu_img("compare", "-f", "qcow2", "-F", "raw", over, out).returncode == 0


@pytest.mark.parametrize("format", ["vdi", "vpc", "parallels", "qed", "qcow"])
def test_a_block_that_a_file_has_in_part_is_no_zeros(format: str, tmp_path: Path) -> None:
    """A file that was cut off; qemu-img reads zeros of some formats, and so copies an image that looks whole."""
    path, out = tmp_path / "image", tmp_path / "out"
    qemu_img("create", "-q", "-f", format, path, "2M")
    qemu_io(path, "write -P 7 0 64k", "write -P 8 1900k 20k", format=format)
    size = path.stat().st_size - 8 * KiB
    with path.open("r+b") as file:
        file.truncate(size)
    with pytest.raises(ImageError, match=r"ends within it|beyond the end"):
        diskmill.convert([str(path)], str(out), format=format, output_format="raw")
    assert not out.exists()
    if format != "qcow":
        assert diskmill.check(str(path), format=format).corruptions
    assert path.stat().st_size == size
