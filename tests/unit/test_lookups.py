"""Small reads that go straight to their bytes read what all others do, and only where nobody can change the image."""

from __future__ import annotations

import random
from array import array
from pathlib import Path

import diskmill
import pytest
from diskmill.contract.node import Image
from diskmill.sizes import KiB, MiB
from tools import qemu_img, qemu_io

SIZE = 40 * MiB + 512
FORMATS = {
    "qcow2": ("qcow2", "-o", "cluster_size=4k"),
    "qcow2-compressed": ("qcow2", "-c"),
    "vdi": ("vdi",),
    "vhdx": ("vhdx", "-o", "block_size=1M"),
    "vmdk": ("vmdk",),
    "vpc": ("vpc", "-o", "force_size=on"),
    "raw": ("raw",),
}


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pieces of data of any length between zeros."""
    chance, path = random.Random(7), tmp_path_factory.mktemp("lookups") / "raw"
    with path.open("wb") as file:
        file.truncate(SIZE)
        at = 0
        while at < SIZE:
            length = min(chance.choice((512, 4096, 20_480, 300_000)), SIZE - at)
            file.seek(at)
            file.write(chance.randbytes(length))
            at += length + chance.choice((512, 8192, 700_000))
    return path


def learned(image: Image) -> int:
    """How many pieces *image* knows without a look-up."""
    lookups = vars(image).get("_lookups")
    return 0 if lookups is None else sum(piece[0] >= 0 for _, pieces in lookups.stretches.values() for piece in pieces)


@pytest.mark.parametrize("name", FORMATS)
def test_they_read_what_is_there(content: Path, tmp_path: Path, name: str) -> None:
    path, chance, whole = tmp_path / "disk", random.Random(name), content.read_bytes()
    qemu_img("convert", "-f", "raw", "-O", *FORMATS[name], content, path)
    with diskmill.open(path, FORMATS[name][0]) as image:
        whole = whole.ljust(image.size, b"\0")
        for number in range(800):
            length = chance.choice((1, 512, 4096, 65_536, MiB))
            at = chance.randrange(image.size + 100)
            buffers = (
                bytearray(b"\xaa") * length,
                memoryview(bytearray(b"\xaa") * length),
                array("B", b"\xaa" * length),
            )
            buffer = buffers[number % 3]
            image.read_into(at, buffer)  # type: ignore[arg-type]
            assert bytes(buffer) == whole[at : at + length].ljust(length, b"\0")
        assert learned(image)
        with pytest.raises(diskmill.UsageError, match="before the beginning"):
            image.read_into(-1, bytearray(1))
    with pytest.raises(diskmill.errors.ClosedError):
        image.read_into(0, bytearray(512))


def repeatedly(image: Image, at: int) -> bytes:
    """A sector of *image*, read until a look-up of it would be remembered."""
    return [image.read(at, 512) for _ in range(4)][-1]


def test_what_may_be_written_is_looked_up_each_time(tmp_path: Path) -> None:
    """Also below an image that is open for reading: whoever lends it may write it."""
    base, top = tmp_path / "base", tmp_path / "top"
    qemu_img("create", "-f", "qcow2", base, "8M")
    qemu_img("create", "-f", "qcow2", "-b", "base", "-F", "qcow2", top)
    with diskmill.open(base, writable=True) as below:
        options = {"driver": "qcow2", "file": {"driver": "file", "filename": str(top)}, "backing": None}
        with diskmill.open(options) as above:
            above.backing = below.lend()  # type: ignore[attr-defined]
            above.remap()
            for number in range(1, 9):
                at = number % 2 * 64 * KiB
                below.write(at, bytes([number]) * 512)
                assert repeatedly(above, at) == repeatedly(below, at) == bytes([number]) * 512
            below.zero(0, 128 * KiB)
            assert repeatedly(above, 0) == repeatedly(below, 0) == bytes(512)
            assert not learned(above) and not learned(below)


def test_another_snapshot_is_looked_up_anew(tmp_path: Path) -> None:
    from diskmill.commands.snapshot import load_snapshot
    from diskmill.opening.context import Context

    path = tmp_path / "disk"
    qemu_img("create", "-f", "qcow2", path, "8M")
    qemu_io(path, "write -P 1 0 64k")
    qemu_img("snapshot", "-c", "first", path)
    qemu_io(path, "write -P 2 0 64k")
    with diskmill.open(path) as image:
        assert repeatedly(image, 0) == b"\2" * 512 and learned(image)
        load_snapshot(image, "first", Context())
        assert repeatedly(image, 0) == b"\1" * 512


def test_damage_is_told_where_it_is_read(tmp_path: Path) -> None:
    """A stretch whose table names what cannot be there is read up to that."""
    path = tmp_path / "disk"
    qemu_img("create", "-f", "vdi", path, "12M")
    qemu_io(path, "write -P 3 0 12M", format="vdi")
    data = bytearray(path.read_bytes())
    data[512 + 7 * 4 : 512 + 8 * 4] = (0x00FFFFFF).to_bytes(4, "little")
    path.write_bytes(data)
    with diskmill.open(path, "vdi") as image:
        for _ in range(3):
            assert repeatedly(image, 2 * MiB) == b"\3" * 512
            with pytest.raises(diskmill.ImageError, match="block 7"):
                repeatedly(image, 7 * MiB)
        assert repeatedly(image, 9 * MiB) == b"\3" * 512
