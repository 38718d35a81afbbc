"""qcow version 1: compression, encryption, backing images, clusters of all sizes, against qemu-img and qemu-io."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import diskmill
import pytest
from diskmill.errors import ImageError, SecretError, UnsupportedError, UsageError
from luks_samples import context, secret
from samples import KiB, MiB, scattered_file
from tools import qemu_img, qemu_img_json, qemu_io

HEADER = struct.Struct(">4sIQIIQBB2xIQ")


def convert(disk: Path, image: Path, **more: Any) -> None:
    diskmill.convert([str(disk)], str(image), format="raw", output_format="qcow", **more)


def same(disk: Path, image: Path) -> None:
    """Both read *image* as *disk*."""
    qemu_img("compare", "-f", "raw", "-F", "qcow", disk, image)
    assert diskmill.compare(str(disk), str(image), format_a="raw", format_b="qcow").identical


def header(image: Path) -> list[Any]:
    with image.open("rb") as file:
        return list(HEADER.unpack(file.read(HEADER.size)))


# -- compression ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5 * MiB, 5 * MiB + 512, 5 * MiB - 4096 + 512, 700])
def test_compressed_both_ways(tmp_path: Path, size: int) -> None:
    """Clusters that are packed byte by byte, those that do not shrink, and the last that is cut short."""
    disk, ours, theirs = scattered_file(tmp_path / "disk", size, seed=4), tmp_path / "ours", tmp_path / "theirs"
    if size == 700:
        disk.write_bytes(b"text " * 140)
    convert(disk, ours, compress=True)
    # It makes the image, and then says that it failed where the size is whole clusters.
    assert qemu_img("convert", "-c", "-f", "raw", "-O", "qcow", disk, theirs, check=False).returncode in (0, 1)
    for image in (ours, theirs):
        if size == 700:
            qemu_img("resize", "-q", "-f", "raw", disk, "1024")
        same(disk, image)
        assert image.stat().st_size < max(size, 8300)
        back = tmp_path / "back"
        diskmill.convert([str(image)], str(back), format="qcow")
        assert back.read_bytes() == disk.read_bytes()
    assert ours.stat().st_size <= theirs.stat().st_size * 1.02


def test_compressed_clusters_are_overwritten(tmp_path: Path) -> None:
    """By both, in part and whole; each gets a new place, and the others stay."""
    disk = tmp_path / "disk"
    disk.write_bytes(b"".join(b"%07d " % number for number in range(MiB // 8)))
    model = bytearray(disk.read_bytes())
    image = tmp_path / "image"
    convert(disk, image, compress=True)
    chance = random.Random(3)
    for step in range(30):
        at, count = chance.randrange(MiB // 512 - 40) * 512, chance.choice((512, 4096, 5120, 10 * KiB))
        if step % 2:
            qemu_io(image, f"write -P {step} {at} {count}", format="qcow")
        else:
            with diskmill.open(str(image), writable=True) as target:
                target.write(at, bytes([step]) * count)
        model[at : at + count] = bytes([step]) * count
    with diskmill.open(str(image), writable=True) as target:
        target.zero(100 * 4096 + 512, 9 * 4096)
    model[100 * 4096 + 512 : 109 * 4096 + 512] = bytes(9 * 4096)
    disk.write_bytes(model)
    same(disk, image)


def test_damaged_compressed_data_is_an_error(tmp_path: Path) -> None:
    disk, image = tmp_path / "disk", tmp_path / "image"
    disk.write_bytes(b"text " * 100_000)
    convert(disk, image, compress=True)
    with diskmill.open(str(image)) as target:
        extent = next(iter(target.extents(0, 4096)))
    with image.open("r+b") as file:
        file.seek(extent.offset)
        file.write(b"\xff" * 8)
    with diskmill.open(str(image)) as target, pytest.raises(ImageError, match="guest offset 0 is damaged"):
        target.read(512, 10)


# -- encryption -----------------------------------------------------------------------------------------


OPTIONS = "driver=qcow,encrypt.key-secret=key,file.filename="


def encrypted(path: Path, *, key: str = "key", writable: bool = False) -> Any:
    return diskmill.open(
        {"driver": "qcow", "encrypt.key-secret": key, "file": {"driver": "file", "filename": str(path)}},
        writable=writable,
        context=context(),
    )


@pytest.mark.parametrize("spelling", [{"encryption": "on"}, {"encrypt.format": "aes"}], ids=str)
def test_encrypted_both_ways(tmp_path: Path, spelling: dict[str, str]) -> None:
    size = 3 * MiB + 512
    disk, ours, theirs = scattered_file(tmp_path / "disk", size, seed=6), tmp_path / "ours", tmp_path / "theirs"
    convert(disk, ours, options={**spelling, "encrypt.key-secret": "key"}, context=context())
    words = ",".join(f"{name}={value}" for name, value in spelling.items())
    qemu_img("convert", *secret(), "-O", "qcow", "-o", f"{words},encrypt.key-secret=key", disk, theirs)
    for image in (ours, theirs):
        qemu_img("compare", *secret(), "--image-opts", f"driver=raw,file.filename={disk}", OPTIONS + str(image))
        with encrypted(image) as opened:
            assert opened.read(0, size) == disk.read_bytes()
        with encrypted(image, writable=True) as opened:
            opened.write(MiB + 100, b"changed" * 300)
            opened.write(2 * MiB + 4096, b"whole" * 4096)
            opened.zero(700 * KiB + 3, 20 * KiB)
        with encrypted(image) as opened:
            model = opened.read(0, size)
        assert model[MiB + 100 : MiB + 107] == b"changed" and not any(model[700 * KiB + 3 : 720 * KiB + 3])
        (tmp_path / "model").write_bytes(model)
        model_opts = f"driver=raw,file.filename={tmp_path / 'model'}"
        qemu_img("compare", *secret(), "--image-opts", model_opts, OPTIONS + str(image))
        assert diskmill.info(str(image)).encrypted and qemu_img_json("info", image)["encrypted"]
        assert qemu_img_json("info", image).get("format-specific") == diskmill.info(str(image)).specific
        with encrypted(image, key="other") as opened:
            assert opened.read(0, size) != model
    assert b"changed" not in ours.read_bytes()


def test_no_passphrase_and_no_encryption(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with pytest.raises(SecretError, match="passphrase"):
        diskmill.create(str(image), MiB, format="qcow", options={"encryption": "on"})
    with pytest.raises(UsageError, match=r"encrypt\.format"):
        diskmill.create(str(image), MiB, format="qcow", options={"encrypt.key-secret": "key"}, context=context())
    assert not image.exists()
    diskmill.create(str(image), MiB, format="qcow")
    with pytest.raises(UsageError, match="none"):
        diskmill.open({"driver": "qcow", "encrypt.format": "aes", "file": {"driver": "file", "filename": str(image)}})
    with pytest.raises(UsageError, match="compressed"):
        diskmill.convert(
            [str(image)],
            str(tmp_path / "other"),
            output_format="qcow",
            compress=True,
            options={"encryption": "on", "encrypt.key-secret": "key"},
            context=context(),
        )


# -- backing images -------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [600 * KiB, 5 * MiB])
def test_chains_both_ways(tmp_path: Path, length: int) -> None:
    """Overlays have clusters of 512 bytes."""
    size = 2 * MiB + 512
    chance = random.Random(length)
    scattered_file(tmp_path / "base", length, seed=2)
    diskmill.create(str(tmp_path / "one"), size, format="qcow", backing="base", backing_format="raw")
    qemu_img("create", "-q", "-f", "qcow", "-b", "one", "-F", "qcow", "two", str(size), cwd=tmp_path)
    assert header(tmp_path / "one")[:5] == [b"QFI\xfb", 1, 48, 4, 0]
    assert header(tmp_path / "one")[6:8] == header(tmp_path / "two")[6:8] == [9, 12]
    model = bytearray((tmp_path / "base").read_bytes()[:size].ljust(size, b"\0"))
    for image in ("one", "two"):
        for step in range(1, 13):
            at = chance.randrange(size // 512 - 1) * 512
            count = min(chance.choice((512, 5 * 512, 70 * KiB // 512 * 512)), size - at)
            byte = step % 5
            if step % 2:
                qemu_io(tmp_path / image, f"write -P {byte} {at} {count}", format="qcow", cwd=tmp_path)
            else:
                with diskmill.open(str(tmp_path / image), "qcow", writable=True) as target:
                    target.write(at, bytes([byte]) * count) if byte else target.zero(at, count)
            model[at : at + count] = bytes([byte]) * count
    (tmp_path / "model").write_bytes(model)
    qemu_img("compare", "-f", "raw", "-F", "qcow", "model", "two", cwd=tmp_path)
    with diskmill.open(str(tmp_path / "two"), "qcow") as image:
        assert image.read(0, size) == model
    diskmill.commit(str(tmp_path / "two"))
    qemu_img("compare", "-f", "raw", "-F", "qcow", "model", "one", cwd=tmp_path)
    qemu_img("compare", "-f", "raw", "-F", "qcow", "model", "two", cwd=tmp_path)
    assert (tmp_path / "two").stat().st_size < 4 * KiB


def test_a_sparse_copy_over_a_backing_image(tmp_path: Path) -> None:
    base = scattered_file(tmp_path / "base", 3 * MiB, seed=5)
    top = tmp_path / "top"
    diskmill.create(str(top), 3 * MiB, format="qcow", backing="base", backing_format="raw")
    with diskmill.open(str(top), writable=True) as image:
        image.write(MiB + 5, b"new" * 1000)
        image.zero(2 * MiB - 7, 20 * KiB)
    for compress in (False, True):
        copy = tmp_path / f"copy{compress}"
        diskmill.convert(
            [str(top)], str(copy), output_format="qcow", backing=str(base), backing_format="raw", compress=compress
        )
        with diskmill.open(str(top)) as image:
            (tmp_path / "model").write_bytes(image.read(0, 3 * MiB))
        same(tmp_path / "model", copy)
        assert copy.stat().st_size < 100 * KiB
    assert base.stat().st_size == 3 * MiB


@pytest.mark.parametrize("backing", [None, "base"])
def test_rebase_is_refused(tmp_path: Path, backing: str | None) -> None:
    """The format could, QEMU cannot: with clusters larger than a sector it would lose what the backing image has."""
    (tmp_path / "base").write_bytes(b"b" * MiB)
    diskmill.create(str(tmp_path / "top"), MiB, format="qcow", backing=backing, backing_format=backing and "raw")
    with pytest.raises(UnsupportedError, match="backing file"):
        diskmill.rebase(str(tmp_path / "top"), "base", backing_format="raw", unsafe=True)
    assert qemu_img("rebase", "-u", "-b", "base", "-F", "raw", "top", cwd=tmp_path, check=False).returncode


# -- layouts that QEMU does not make --------------------------------------------------------------------


@pytest.mark.parametrize("cluster_bits", [9, 12, 16])
@pytest.mark.parametrize("l2_bits", [6, 9, 13])
def test_other_sizes_of_clusters_and_tables(tmp_path: Path, cluster_bits: int, l2_bits: int) -> None:
    size = 2 * MiB + 512
    image = tmp_path / "image"
    entries = -(-size >> cluster_bits + l2_bits)
    image.write_bytes(HEADER.pack(b"QFI\xfb", 1, 0, 0, 0, size, cluster_bits, l2_bits, 0, 48) + bytes(entries * 8))
    disk = scattered_file(tmp_path / "disk", size, seed=cluster_bits, pieces=20)
    diskmill.convert([str(disk)], str(image), format="raw", output_format="qcow", existing=True)
    same(disk, image)
    qemu_io(image, f"write -P 7 {MiB + 512} 3000", format="qcow")
    with diskmill.open(str(image)) as target:
        assert target.read(MiB + 512, 3000) == b"\x07" * 3000


def test_a_backing_file_name_at_the_end_of_the_file_stays(tmp_path: Path) -> None:
    image = tmp_path / "image"
    (tmp_path / "base").write_bytes(b"b" * MiB)
    diskmill.create(str(image), MiB, format="qcow", backing="other", backing_format="raw", unsafe=True)
    data = bytearray(image.read_bytes().ljust(8192, b"\0") + b"base")
    struct.pack_into(">QI", data, 8, 8192, 4)
    image.write_bytes(data)
    with diskmill.open(str(image), writable=True) as disk:
        disk.write(512, b"n" * 512)
    qemu_io(image, "read -P 98 0 512", "read -P 110 512 512", "read -P 98 1024 1023k", format="qcow")
    good = image.read_bytes()
    (l2,) = struct.unpack_from(">Q", good, header(image)[9])
    damaged = bytearray(good)
    struct.pack_into(">Q", damaged, l2, 8192)
    image.write_bytes(damaged)
    with diskmill.open(str(image), writable=True) as disk, pytest.raises(ImageError, match="header"):
        disk.write(0, b"/etc/shadow")
    image.write_bytes(good)
    diskmill.commit(str(image))
    with diskmill.open(str(image)) as disk:
        assert disk.read(0, 1536) == b"b" * 512 + b"n" * 512 + b"b" * 512


def test_what_is_no_qcow_image_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "image"
    good = [b"QFI\xfb", 1, 0, 0, 0, MiB, 12, 9, 0, 48]
    for index, value, words in (
        (0, b"QFI\0", "magic"),
        (1, 2, "version 2"),
        (2, 1 << 40, "backing"),
        (5, 1, "1 bytes"),
        (5, 1 << 60, "too large"),
        (6, 17, "cluster_bits"),
        (7, 14, "l2_bits"),
        (8, 2, "encryption"),
        (9, 1 << 50, "L1 table"),
    ):
        fields = [*good[:index], value, *good[index + 1 :]]
        fields[3] = 5 if index == 2 else 0
        image.write_bytes(HEADER.pack(*fields) + bytes(8))
        with pytest.raises(diskmill.DiskmillError, match=words):
            diskmill.open(str(image), "qcow")


def test_tables_are_not_overwritten(tmp_path: Path) -> None:
    """A damaged entry that names a table, and a guest that writes there."""
    image = tmp_path / "image"
    diskmill.create(str(image), 4 * MiB, format="qcow")
    with diskmill.open(str(image), writable=True) as disk:
        disk.write(0, b"a" * 4096)
        disk.write(3 * MiB, b"b" * 4096)
    data = image.read_bytes()
    first, second = struct.unpack_from(">2Q", data, 48)
    free = first + 4096  # behind an L2 table, before the cluster that it names
    for place in (first, second, first + 512, free):
        damaged = bytearray(data)
        struct.pack_into(">Q", damaged, first, place)
        image.write_bytes(damaged)
        with diskmill.open(str(image), writable=True) as disk:
            if place == free:
                disk.write(0, b"x" * 512)
                continue
            with pytest.raises(ImageError, match="belongs to a table"):
                disk.write(0, b"x" * 512)
        assert image.read_bytes() == damaged
