"""VHD: sizes by creator, footers, differencing images, and what other readers make of it."""

from __future__ import annotations

import random
import struct
import subprocess
from pathlib import Path

import diskmill
import pytest
from diskmill.errors import ImageError, RefusedError, UnsupportedError
from diskmill.opening.context import Context
from samples import KiB, MiB, scattered_file, sparse_file
from tools import qemu_img, qemu_img_json, run, tool


def seal(data: bytearray, offset: int, length: int, field: int) -> None:
    """Set the checksum, at byte *field*, of the structure at *offset*."""
    data[offset + field : offset + field + 4] = bytes(4)
    data[offset + field : offset + field + 4] = struct.pack(">I", ~sum(data[offset : offset + length]) & 0xFFFFFFFF)


def edit_footers(image: Path, field: int, value: bytes) -> None:
    """Put *value* at byte *field* of every copy of the footer."""
    data = bytearray(image.read_bytes())
    for offset in (0, len(data) - 512):
        if data[offset : offset + 8] == b"conectix":
            data[offset + field : offset + field + len(value)] = value
            seal(data, offset, 512, 64)
    image.write_bytes(data)


def test_every_size_is_rounded_as_qemu_rounds_it(tmp_path: Path) -> None:
    chance = random.Random(1)
    sizes = [chance.randrange(1, 1 << bits) for bits in range(10, 41, 2) for _ in range(3)]
    sizes += [512 * (cylinders * 16 * 63 + extra) for cylinders in (1023, 1024, 65534, 65535) for extra in (-1, 0, 1)]
    sizes += [512 * (65535 * 16 * 255 + extra) for extra in (-1, 0, 1)]
    for number, size in enumerate(sizes):
        theirs = tmp_path / "theirs"
        qemu_img("create", "-q", "-f", "vpc", theirs, str(size))
        expected = qemu_img_json("info", theirs)["virtual-size"]
        ours = tmp_path / f"{number}"
        diskmill.create(str(ours), size, format="vpc")
        assert diskmill.info(str(ours)).virtual_size == expected, size
        assert ours.read_bytes()[40:64] == theirs.read_bytes()[40:64], "sizes, geometry and type"


@pytest.mark.parametrize("creator", [b"vpc ", b"vs  ", b"qemu", b"qem2", b"win ", b"d2v ", b"tap\0", b"CTXS", b"abcd"])
@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_the_creator_decides_where_the_size_is(tmp_path: Path, creator: bytes, subformat: str) -> None:
    image = tmp_path / "image"
    diskmill.create(str(image), 30 * MiB, format="vpc", options={"subformat": subformat})
    edit_footers(image, 28, creator)
    edit_footers(image, 48, struct.pack(">Q", 30 * MiB - 512))
    for option in ("", ",force_size_calc=chs", ",force_size_calc=current_size"):
        name = f"driver=vpc,file.filename={image}{option}"
        theirs = qemu_img_json("info", "--image-opts", name)["virtual-size"]
        if creator in (b"vs  ", b"abcd") and not option:  # qemu-img 7.2 takes the geometry, newer ones the size field
            theirs = 30 * MiB - 512
        assert diskmill.info(name, image_opts=True).virtual_size == theirs


def test_azure_means_the_size_field(tmp_path: Path) -> None:
    image = tmp_path / "image"
    diskmill.create(str(image), 30 * MiB, format="vpc")
    edit_footers(image, 28, b"wa\0\0")
    edit_footers(image, 48, struct.pack(">Q", 30 * MiB))
    assert diskmill.info(str(image)).virtual_size == 30 * MiB


@pytest.mark.parametrize("creator", [b"SIMH", b"vbox", b"dutl", b"vs  "])
@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
def test_a_geometry_that_is_rounded_down_does_not_cost_the_disk_its_tail(
    tmp_path: Path, creator: bytes, subformat: str
) -> None:
    disk = sparse_file(tmp_path / "disk", 10 * MiB, {10 * MiB - 512: b"TAIL" * 128})
    image = tmp_path / "image"
    options = {"subformat": subformat, "force_size": True}
    diskmill.convert([str(disk)], str(image), format="raw", output_format="vpc", options=options)
    edit_footers(image, 28, creator)
    edit_footers(image, 56, struct.pack(">HBB", 300, 4, 17))
    diskmill.convert([str(image)], str(tmp_path / "back"), format="vpc")
    assert (tmp_path / "back").read_bytes() == disk.read_bytes()


def test_virtual_pc_means_its_geometry_and_a_warning_tells_what_that_leaves_out(tmp_path: Path) -> None:
    image = tmp_path / "image"
    diskmill.create(str(image), 10 * MiB, format="vpc", options={"force_size": True})
    edit_footers(image, 28, b"vpc ")
    edit_footers(image, 56, struct.pack(">HBB", 300, 4, 17))
    warnings: list[str] = []
    context = Context(warn=warnings.append)
    assert diskmill.info(str(image), context=context).virtual_size == 300 * 4 * 17 * 512
    assert "force_size_calc=current_size" in warnings[0]


@pytest.mark.parametrize("what", ["footer", "dynamic disk header"])
def test_wrong_checksums_forbid_writing_alone(tmp_path: Path, what: str) -> None:
    disk = scattered_file(tmp_path / "disk", 5 * MiB, seed=9)
    image = tmp_path / "image"
    diskmill.convert([str(disk)], str(image), format="raw", output_format="vpc", options={"force_size": True})
    data = bytearray(image.read_bytes())
    for place in (65, len(data) - 512 + 65) if what == "footer" else (512 + 37,):
        data[place] ^= 1
    image.write_bytes(data)
    warnings: list[str] = []
    context = Context(warn=warnings.append)
    diskmill.convert([str(image)], str(tmp_path / "back"), context=context)
    assert (tmp_path / "back").read_bytes() == disk.read_bytes()
    assert f"the {what} has a wrong checksum" in warnings[0]
    with pytest.raises(ImageError, match="only be read"):
        diskmill.open(str(image), writable=True)
    assert diskmill.check(str(image)).corruptions == 1
    assert diskmill.check(str(image), repair="all").corruptions_fixed == 1
    assert diskmill.check(str(image)).findings == []
    qemu_img("compare", "-f", "raw", "-F", "vpc", disk, image)
    diskmill.open(str(image), writable=True).close()


def test_blocks_that_overlap_are_found(tmp_path: Path) -> None:
    disk, image = sparse_file(tmp_path / "disk", 8 * MiB, {0: b"P" * 8 * MiB}), tmp_path / "image"
    diskmill.convert([str(disk)], str(image), format="raw", output_format="vpc", options={"force_size": True})
    data = bytearray(image.read_bytes())
    first = struct.unpack_from(">I", data, 1536)[0]
    # A writer that forgot the bitmap: each block's last sector is the next one's bitmap. The order does not matter.
    for order, found in (((0, 1, 2, 3), 3), ((3, 1, 0, 2), 2)):
        struct.pack_into(">4I", data, 1536, *(first + 4096 * index for index in order))
        image.write_bytes(data)
        result = diskmill.check(str(image))
        assert (result.corruptions, result.corruptions_fixed) == (found, 0)
        assert "block 2 lies in part at a place that another block has" in [one.text for one in result.findings]


@pytest.mark.parametrize("options", [{}, {"subformat": "fixed"}, {"force_size": "on"}], ids=str)
def test_libvhdi_and_7z_read_the_same(tmp_path: Path, options: dict[str, str]) -> None:
    disk = scattered_file(tmp_path / "disk", 21 * MiB, seed=2)
    image = tmp_path / "disk.vhd"
    diskmill.convert([str(disk)], str(image), format="raw", output_format="vpc", options=options)
    with diskmill.open(str(image), "vpc") as opened:
        expected = opened.read(0, opened.size)
    said = run(tool("vhdiinfo"), image).stdout
    assert f"({len(expected)} bytes)" in said
    assert ("Fixed" if "subformat" in options else "Dynamic") in said
    done = subprocess.run([tool("7z"), "e", "-so", "-tvhd", image], capture_output=True, check=True)
    assert done.stdout == expected


def test_a_larger_disk_keeps_footer_and_header_for_others(tmp_path: Path) -> None:
    disk = scattered_file(tmp_path / "disk", 21 * MiB, seed=2)
    image = tmp_path / "disk.vhd"
    diskmill.convert([str(disk)], str(image), format="raw", output_format="vpc")
    diskmill.resize(str(image), 2000 * MiB, format="vpc")
    size = diskmill.info(str(image)).virtual_size
    run(tool("vhdiinfo"), image)  # it tells the original size
    done = subprocess.run([tool("7z"), "e", "-so", "-tvhd", image], capture_output=True, check=True)
    assert len(done.stdout) == size and done.stdout.startswith(disk.read_bytes())


def test_what_looks_like_a_footer_at_the_start_of_a_fixed_disk_is_the_guests(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    diskmill.create(str(inner), 2 * MiB, format="vpc")
    diskmill.convert([str(inner)], str(outer), format="raw", output_format="vpc", options={"subformat": "fixed"})
    with diskmill.open(str(outer), "vpc") as image:
        assert image.read(0, inner.stat().st_size) == inner.read_bytes()


def test_one_footer_is_enough_and_check_mends_the_other(tmp_path: Path) -> None:
    image = tmp_path / "image"
    disk = scattered_file(tmp_path / "disk", 5 * MiB, seed=9)
    for damage in (0, -512):
        diskmill.convert([str(disk)], str(image), format="raw", output_format="vpc")
        data = bytearray(image.read_bytes())
        data[damage % len(data) + 50] ^= 1
        image.write_bytes(data)
        assert diskmill.compare(str(disk), str(image), format_a="raw", format_b="vpc").identical
        told: list[str] = []
        diskmill.open(str(image), "vpc", writable=True, context=diskmill.Context(warn=told.append)).close()
        assert len(told) == 1 and "one of the two copies of its footer is damaged" in told[0]
        assert diskmill.check(str(image), format="vpc").corruptions == 1
        assert diskmill.check(str(image), format="vpc", repair="all").corruptions_fixed == 1
        assert diskmill.check(str(image), format="vpc").findings == []
        qemu_img("compare", "-f", "raw", "-F", "vpc", disk, image)


def xenserver(image: Path) -> tuple[int, bytes]:
    """Make the dynamic *image* one of XenServer: a map of full blocks behind the table; where that is, and the map."""
    data = bytearray(image.read_bytes())
    blocks = struct.unpack_from(">I", data, 512 + 28)[0]
    at = 1536 + -(-blocks * 4 // 512) * 512
    footer = data[-512:]
    footer[28:36] = b"tap\0" + struct.pack(">I", 0x00010003)
    seal(footer, 0, 512, 64)
    batmap = struct.pack(">8sQIII", b"tdbatmap", at + 512, 1, 0x00010002, 0xFFFFFFFF).ljust(512, b"\0") + bytes(512)
    image.write_bytes(footer + data[512:at] + batmap + footer)
    return at, batmap


def test_the_batmap_of_xenserver_is_kept(tmp_path: Path) -> None:
    image = tmp_path / "image"
    diskmill.create(str(image), 10 * MiB, format="vpc", options={"force_size": "on"})
    at, batmap = xenserver(image)
    assert diskmill.check(str(image)).findings == []
    diskmill.check(str(image), repair="all")
    with diskmill.open(str(image), "vpc", writable=True) as disk:
        disk.write(5 * MiB, b"x" * 3 * MiB)
    data = image.read_bytes()
    assert data[at : at + len(batmap)] == batmap
    disk_file = sparse_file(tmp_path / "disk", 10 * MiB, {5 * MiB: b"x" * 3 * MiB})
    qemu_img("compare", "-f", "raw", "-F", "vpc", disk_file, image)
    assert diskmill.check(str(image)).findings == []
    with pytest.raises(UnsupportedError, match="batmap"):
        diskmill.resize(str(image), 2000 * MiB)


# Differencing images: no tool here makes them, so they are put together from the specification.


def differencing(
    child: Path, parent: Path, locator: bytes, platform: bytes, *, bare: str = "", wrong: bool = False
) -> None:
    """Make the dynamic image *child* a differencing one on *parent*; of block 0 every second sector is its own."""
    data = bytearray(child.read_bytes())
    head = bytearray(data[512:1536])
    head[40:56] = bytes(16) if wrong else parent.read_bytes()[68:84]
    name = bare.encode("utf-16-be")
    head[64 : 64 + len(name)] = name
    footer = data[-512:]
    del data[-512:]
    place = len(data)
    data += locator.ljust(512, b"\0")
    if locator:
        head[576:600] = struct.pack(">4sIIIQ", platform, 512, len(locator), 0, place)
    data[512:1536] = head
    seal(data, 512, 1024, 36)
    bitmap = struct.unpack_from(">I", data, 1536)[0] * 512
    data[bitmap : bitmap + 512] = b"\xaa" * 512
    footer[60:64] = struct.pack(">I", 4)
    seal(footer, 0, 512, 64)
    data[0:512] = footer
    child.write_bytes(data + footer)


def pair(folder: Path) -> tuple[Path, Path, bytes]:
    parent, child = folder / "parent disk.vhd", folder / "child.vhd"
    below = sparse_file(folder / "below", 6 * MiB, {0: b"p" * 6 * MiB})
    above = sparse_file(folder / "above", 6 * MiB, {0: b"c" * 2 * MiB})
    for disk, image in ((below, parent), (above, child)):
        diskmill.convert([str(disk)], str(image), format="raw", output_format="vpc", options={"force_size": "on"})
    return parent, child, (b"c" * 512 + b"p" * 512) * (2 * KiB) + b"p" * 4 * MiB


@pytest.mark.parametrize(
    ("platform", "locator"),
    [
        (b"W2ru", ".\\parent disk.vhd".encode("utf-16-le")),
        (b"MacX", b"file://./parent%20disk.vhd\0"),
        (b"W2ku", "C:\\disks\\parent disk.vhd".encode("utf-16-le")),
        (b"\0\0\0\0", b""),
    ],
    ids=["W2ru", "MacX", "W2ku", "bare name"],
)
def test_a_differencing_image_finds_its_parent(tmp_path: Path, platform: bytes, locator: bytes) -> None:
    parent, child, expected = pair(tmp_path)
    differencing(child, parent, locator, platform, bare="" if locator else "parent disk.vhd")
    info = diskmill.info(str(child))
    assert info.backing_filename == "./parent disk.vhd" and info.backing_filename_format == "vpc"
    back = tmp_path / "back"
    diskmill.convert([str(child)], str(back))
    assert back.read_bytes() == expected
    done = run(tool("vhdiinfo"), child)
    assert "Differential" in done.stdout
    with diskmill.open(str(child), "vpc") as image:  # pieces that begin and end anywhere
        for at in range(0, 3 * MiB, 100_001):
            assert image.read(at, 3000) == expected[at : at + 3000]


def test_7z_agrees_on_a_differencing_image(tmp_path: Path) -> None:
    parent, child, expected = pair(tmp_path)
    differencing(child, parent, ".\\parent disk.vhd".encode("utf-16-le"), b"W2ru", bare="parent disk.vhd")
    done = subprocess.run([tool("7z"), "e", "-so", "-tvhd", child], capture_output=True, check=True, cwd=tmp_path)
    assert done.stdout == expected


def test_a_parent_without_an_id_is_a_raw_file(tmp_path: Path) -> None:
    parent, child, expected = pair(tmp_path)
    raw = tmp_path / "parent.raw"
    raw.write_bytes(b"p" * 6 * MiB)
    differencing(child, parent, b"file://./parent.raw\0", b"MacX", wrong=True)
    diskmill.convert([str(child)], str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == expected


def test_another_disk_is_not_taken_for_the_parent(tmp_path: Path) -> None:
    parent, child, _ = pair(tmp_path)
    differencing(child, parent, ".\\parent disk.vhd".encode("utf-16-le"), b"W2ru", wrong=True)
    with pytest.raises(ImageError, match="not its parent"):
        diskmill.convert([str(child)], str(tmp_path / "back"))


def test_a_parent_outside_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    parent, child, _ = pair(tmp_path)
    inside = child.rename(tmp_path / "in" / "child.vhd")
    differencing(inside, parent, "..\\parent disk.vhd".encode("utf-16-le"), b"W2ru")
    with pytest.raises(RefusedError, match=r"allow it with trust"):
        diskmill.convert([str(inside)], str(tmp_path / "back"))


def test_a_differencing_image_is_not_written(tmp_path: Path) -> None:
    parent, child, _ = pair(tmp_path)
    differencing(child, parent, ".\\parent disk.vhd".encode("utf-16-le"), b"W2ru")
    before = child.read_bytes()
    with diskmill.open(str(child), "vpc", writable=True) as image, pytest.raises(diskmill.DiskmillError):
        image.write(0, b"x" * 512)
    assert child.read_bytes() == before
