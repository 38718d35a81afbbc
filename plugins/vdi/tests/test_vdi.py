"""VDI: what QEMU does not do with it, and what other readers make of it."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import diskmill
import pytest
from diskmill.errors import ImageError, UnsupportedError
from samples import KiB, MiB, scattered_file
from tools import qemu_img, tool


@pytest.mark.parametrize("options", [{}, {"static": "on"}], ids=str)
def test_7z_reads_the_same(tmp_path: Path, options: dict[str, str]) -> None:
    disk = scattered_file(tmp_path / "disk", 21 * MiB, seed=2)
    image = tmp_path / "disk.vdi"
    diskmill.convert([str(disk)], str(image), format="raw", output_format="vdi", options=options)
    done = subprocess.run([tool("7z"), "e", "-so", "-tvdi", image], capture_output=True, check=True)
    assert done.stdout == disk.read_bytes()


def test_blocks_of_any_size(tmp_path: Path) -> None:
    disk = scattered_file(tmp_path / "disk", 5 * MiB + 512, seed=4)
    for size in (512, 4 * KiB, 256 * KiB, 4 * MiB, 64 * MiB):
        image = tmp_path / f"{size}.vdi"
        diskmill.convert([str(disk)], str(image), format="raw", output_format="vdi", options={"cluster_size": size})
        assert diskmill.compare(str(disk), str(image), strict=False, format_a="raw").identical
        assert diskmill.check(str(image)).findings == []
        assert diskmill.info(str(image)).cluster_size == size


@pytest.mark.parametrize("size", [511, 96 * KiB, 1 << 32])
def test_other_block_sizes_are_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(diskmill.DiskmillError, match="power of two"):
        diskmill.create(str(tmp_path / "x"), MiB, format="vdi", options={"cluster_size": size})


def differencing(tmp_path: Path) -> tuple[Path, Path, bytes]:
    """A differencing image of four blocks, its parent, and what they read as together."""
    parent, child = tmp_path / "parent.vdi", tmp_path / "child.vdi"
    diskmill.create(str(parent), 4 * MiB, format="vdi")
    with diskmill.open(str(parent), "vdi", writable=True) as image:
        image.write(0, b"p" * 4 * MiB)
    diskmill.create(str(child), 4 * MiB, format="vdi")
    with diskmill.open(str(child), "vdi", writable=True) as image:
        image.write(MiB, b"c" * MiB)
    with child.open("r+b") as file:
        file.seek(76)
        file.write(struct.pack("<I", 4))
        file.seek(424)
        file.write(parent.read_bytes()[392:408])
        file.write(parent.read_bytes()[408:424])
        file.seek(512 + 8)
        file.write(struct.pack("<I", 0xFFFFFFFE))
    return parent, child, b"p" * MiB + b"c" * MiB + bytes(MiB) + b"p" * MiB


def test_a_differencing_image_is_read_with_its_parent_as_backing(tmp_path: Path) -> None:
    parent, child, expected = differencing(tmp_path)
    name = f"driver=vdi,file.filename={child},backing.driver=vdi,backing.file.filename={parent}"
    back = tmp_path / "back"
    diskmill.convert([name], str(back), image_opts=True)
    assert back.read_bytes() == expected


def test_another_disk_or_a_changed_one_is_not_taken_for_the_parent(tmp_path: Path) -> None:
    parent, child, expected = differencing(tmp_path)
    name = f"driver=vdi,file.filename={child},backing.driver=vdi,backing.file.filename="
    other = tmp_path / "other.vdi"
    diskmill.create(str(other), 4 * MiB, format="vdi")
    with pytest.raises(ImageError, match="not its parent"):
        diskmill.convert([f"{name}{other}"], str(tmp_path / "back"), image_opts=True)
    with diskmill.open(str(parent), "vdi", writable=True) as image:
        image.read(0, image.size)
    diskmill.convert([f"{name}{parent}"], str(tmp_path / "back"), image_opts=True)
    assert (tmp_path / "back").read_bytes() == expected
    with diskmill.open(str(parent), "vdi", writable=True) as image:
        image.write(5, b"changed")
    with pytest.raises(ImageError, match="has changed since"):
        diskmill.convert([f"{name}{parent}"], str(tmp_path / "back"), image_opts=True)


def test_a_differencing_image_alone_is_no_disk(tmp_path: Path) -> None:
    _, child, _ = differencing(tmp_path)
    assert diskmill.info(str(child)).virtual_size == 4 * MiB
    with pytest.raises(UnsupportedError, match=r"backing\.file\.filename"):
        diskmill.convert([str(child)], str(tmp_path / "back"))
    assert not (tmp_path / "back").exists()
    with diskmill.open(str(child), "vdi", writable=True) as image, pytest.raises(UnsupportedError):
        image.write(0, b"x" * 512)


def damaged(tmp_path: Path) -> Path:
    """Blocks 0 and 1 share a place, block 2 lies nowhere, and the header counts what is not so."""
    image = tmp_path / "bad.vdi"
    diskmill.create(str(image), 4 * MiB, format="vdi")
    with diskmill.open(str(image), "vdi", writable=True) as disk:
        disk.write(0, b"a" * 2 * MiB)
    with image.open("r+b") as file:
        file.seek(512)
        file.write(struct.pack("<III", 0, 0, 77))
    return image


def test_check_finds_what_qemu_finds_and_repairs_it(tmp_path: Path) -> None:
    image = damaged(tmp_path)
    assert qemu_img("check", image, check=False).returncode == 2
    found = diskmill.check(str(image))
    assert found.corruptions == 2 and "block 2" in found.findings[0].text and "block 1" in found.findings[1].text
    with diskmill.open(str(image), "vdi") as disk, pytest.raises(ImageError, match="block 2"):
        disk.read(2 * MiB, 512)
    after = diskmill.check(str(image), repair="all")
    assert after.corruptions == 0 and after.corruptions_fixed == 2
    qemu_img("check", image)
    with diskmill.open(str(image), "vdi", writable=True) as disk:
        assert disk.read(0, 4 * MiB) == b"a" * 2 * MiB + bytes(2 * MiB)
        disk.write(0, b"b" * 512)
        assert disk.read(MiB, 512) == b"a" * 512
