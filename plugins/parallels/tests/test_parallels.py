"""Parallels: both kinds of image, the format extension, bundles, and repairs, against qemu-img where it has them."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import diskmill
import pytest
from diskmill.errors import ImageError, RefusedError, UnsupportedError
from mutations import mutants, withstand
from samples import KiB, MiB, scattered_file, sparse_file
from tools import qemu_img, qemu_io


def converted(folder: Path, name: str, size: int, seed: int) -> tuple[Path, Path]:
    disk = scattered_file(folder / f"{name}.raw", size, seed=seed, pieces=12)
    image = folder / name
    diskmill.convert([str(disk)], str(image), format="raw", output_format="parallels")
    return disk, image


def test_old_images_with_sectors_in_their_table(tmp_path: Path) -> None:
    disk, image = converted(tmp_path, "image", 9 * MiB, 1)
    data = bytearray(image.read_bytes())
    data[:16] = b"WithoutFreeSpace"
    for at in range(64, 64 + 9 * 4, 4):
        data[at : at + 4] = struct.pack("<I", struct.unpack_from("<I", data, at)[0] * 2048)
    image.write_bytes(data)
    qemu_img("compare", "-f", "raw", "-F", "parallels", disk, image)
    assert diskmill.compare(str(disk), str(image), format_a="raw").identical
    with diskmill.open(str(image), "parallels", writable=True) as opened:
        opened.write(0, b"\x05" * 9 * MiB)
    qemu_io(image, f"read -P 5 0 {9 * MiB}", format="parallels")
    qemu_img("check", "-f", "parallels", image)


def test_an_unclean_image_is_repaired_before_it_is_written(tmp_path: Path) -> None:
    disk, image = converted(tmp_path, "image", 9 * MiB, 2)
    with image.open("r+b") as file:
        file.seek(44)
        file.write(struct.pack("<I", 0x746F6E59))
    assert diskmill.info(str(image)).dirty
    assert diskmill.compare(str(disk), str(image), format_a="raw").identical
    with diskmill.open(str(image), "parallels", writable=True) as opened, pytest.raises(ImageError, match="check"):
        opened.write(0, b"x" * 512)
    assert qemu_img("check", image, check=False).returncode == 2
    assert diskmill.check(str(image)).corruptions == 1
    assert diskmill.check(str(image), repair="all").corruptions_fixed == 1
    qemu_img("check", image)
    assert not diskmill.info(str(image)).dirty


def test_repairs(tmp_path: Path) -> None:
    image = tmp_path / "image"
    diskmill.create(str(image), 4 * MiB, format="parallels")
    with diskmill.open(str(image), "parallels", writable=True) as opened:
        opened.write(0, b"a" * 2 * MiB)
    with image.open("r+b") as file:
        file.seek(64)
        file.write(struct.pack("<III", 1, 1, 77))
        file.truncate(5 * MiB)
    found = diskmill.check(str(image))
    assert (found.corruptions, found.leaks) == (2, 3)
    after = diskmill.check(str(image), repair="all")
    assert (after.corruptions, after.leaks, after.corruptions_fixed) == (0, 0, 2)
    qemu_img("check", image)
    with diskmill.open(str(image), "parallels") as opened:
        assert opened.read(0, 4 * MiB) == b"a" * 2 * MiB + bytes(2 * MiB)


def extended(folder: Path, *, flags: int = 0, magic: int = 0x20385FAE252CB34A) -> Path:
    """An image with a dirty bitmap: of 16 MiB, in grains of 64 KiB, the first, and the third to the tenth."""
    _, image = converted(folder, "extended", 16 * MiB, 3)
    data = bytearray(image.read_bytes())
    bits, where = len(data) // 512, len(data) // 512 + 2048
    data += (0b11_11111101).to_bytes(2, "little").ljust(MiB, b"\0")
    feature = struct.pack("<Q16sIIQ", 16 * MiB // 512, bytes(range(16)), 128, 1, bits)
    body = struct.pack("<QQII", magic, flags, len(feature), 0) + feature + bytes(24)
    body = body.ljust(MiB - 24, b"\0")
    data += struct.pack("<Q", 0xAB234CEF23DCEA87) + hashlib.md5(body).digest() + body
    data[56:64] = struct.pack("<Q", where)
    image.write_bytes(data)
    return image


def test_the_dirty_bitmaps_of_the_extension(tmp_path: Path) -> None:
    image = extended(tmp_path)
    specific = diskmill.info(str(image)).specific
    assert specific is not None and specific["bitmaps"][0]["granularity"] == 64 * KiB
    with diskmill.open(str(image), "parallels") as opened:
        (bitmap,) = opened.extension().bitmaps  # type: ignore[attr-defined]
        assert list(bitmap.dirty()) == [(0, 64 * KiB), (128 * KiB, 512 * KiB)]
    qemu_img("info", image)  # QEMU reads the extension too, and refuses what it finds wrong


def test_writing_keeps_the_clusters_of_the_extension_and_marks_it_stale(tmp_path: Path) -> None:
    image = extended(tmp_path)
    tail = image.read_bytes()[-2 * MiB :]
    place = image.stat().st_size - 2 * MiB
    with diskmill.open(str(image), "parallels", writable=True) as opened:
        opened.write(0, b"\x05" * 16 * MiB)
    data = image.read_bytes()
    assert data[place : place + 2 * MiB] == tail
    assert struct.unpack_from("<I", data, 44)[0] == 0
    assert diskmill.check(str(image)).findings == []


def test_an_extension_may_forbid_writing(tmp_path: Path) -> None:
    image = extended(tmp_path, flags=1, magic=0x1234)
    before = image.read_bytes()
    with diskmill.open(str(image), "parallels", writable=True) as opened, pytest.raises(UnsupportedError):
        opened.write(0, b"x" * 512)
    assert image.read_bytes() == before


def test_damage_in_the_extension(tmp_path: Path) -> None:
    """Half of the damaged ones have a right checksum."""
    data = extended(tmp_path).read_bytes()
    start = struct.unpack_from("<Q", data, 56)[0] * 512

    def sealed(count: int) -> object:
        for number, (what, copy) in enumerate(mutants(data, [(start, 112), (56, 8)], seed=1, count=count)):
            image = bytearray(copy)
            if number % 2 and len(image) == len(data):
                image[start + 8 : start + 24] = hashlib.md5(image[start + 24 : start + MiB]).digest()
            yield what, bytes(image)

    counts = withstand("parallels", sealed(60), write=False)  # type: ignore[arg-type]
    assert counts["read"] and counts["refused"]


# Bundles

ROOT, TOP, NONE = "{11111111-0000-0000-0000-000000000000}", "{5fbaabe3-6958-40ff-92a7-860e329aab41}", "{%s}"
NONE %= "00000000-0000-0000-0000-000000000000"


def descriptor(sectors: int, storages: str, *, top: str = "", padding: int = 0) -> str:
    return f"""<?xml version='1.0' encoding='UTF-8'?>
<Parallels_disk_image Version="1.0">
  <Disk_Parameters><Disk_size>{sectors}</Disk_size><Padding>{padding}</Padding></Disk_Parameters>
  <StorageData>{storages}</StorageData>
  <Snapshots>{top}
    <Shot><GUID>{ROOT}</GUID><ParentGUID>{NONE}</ParentGUID></Shot>
    <Shot><GUID>{TOP}</GUID><ParentGUID>{ROOT}</ParentGUID></Shot>
  </Snapshots>
</Parallels_disk_image>
"""


def storage(start: int, end: int, *images: tuple[str, str, str]) -> str:
    inner = "".join(
        f"<Image><GUID>{guid}</GUID><Type>{kind}</Type><File>{file}</File></Image>" for guid, kind, file in images
    )
    return f"<Storage><Start>{start}</Start><End>{end}</End><Blocksize>2048</Blocksize>{inner}</Storage>"


def bundle(folder: Path, text: str) -> Path:
    path = folder / "DiskDescriptor.xml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("kind", ["Plain", "Compressed"])
def test_a_bundle_with_a_snapshot(tmp_path: Path, kind: str) -> None:
    below, _ = converted(tmp_path, "root.hds", 4 * MiB, 4)
    above = sparse_file(tmp_path / "above", 4 * MiB, {MiB: b"n" * MiB})
    diskmill.convert([str(above)], str(tmp_path / "top.hds"), format="raw", output_format="parallels")
    file = "root.hds.raw" if kind == "Plain" else "root.hds"
    images = ((ROOT, kind, file), (TOP, "Compressed", "top.hds"))
    path = bundle(tmp_path, descriptor(4 * MiB // 512, storage(0, 4 * MiB // 512, *images)))
    diskmill.convert([str(path)], str(tmp_path / "back"))
    expected = bytearray(below.read_bytes())
    expected[MiB : 2 * MiB] = b"n" * MiB
    assert (tmp_path / "back").read_bytes() == expected
    assert diskmill.info(str(path)).format == "parallels"
    assert diskmill.check(str(path)).findings == []
    top = descriptor(4 * MiB // 512, storage(0, 4 * MiB // 512, *images), top=f"<TopGUID>{ROOT}</TopGUID>")
    diskmill.convert([str(bundle(tmp_path, top))], str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == below.read_bytes()


def test_a_check_of_a_bundle_looks_at_its_images(tmp_path: Path) -> None:
    _, first = converted(tmp_path, "a.hds", 2 * MiB, 5)
    path = bundle(
        tmp_path, descriptor(4096, storage(0, 4096, (ROOT, "Plain", "a.hds.raw"), (TOP, "Compressed", "a.hds")))
    )
    assert diskmill.check(str(path)).findings == []
    with first.open("r+b") as file:
        file.seek(44)
        file.write(struct.pack("<I", 0x746F6E59))
    found = diskmill.check(str(path))
    assert found.corruptions == 1 and found.findings[0].text == f"{first}: the image was not closed properly"
    with pytest.raises(UnsupportedError):
        diskmill.check(str(path), repair="all")


def test_a_split_disk(tmp_path: Path) -> None:
    first, _ = converted(tmp_path, "a.hds", 2 * MiB, 5)
    second, _ = converted(tmp_path, "b.hds", 3 * MiB, 6)
    parts = storage(0, 4096, (TOP, "Compressed", "a.hds")) + storage(4096, 10240, (TOP, "Compressed", "b.hds"))
    text = descriptor(10240, parts).replace(f"<ParentGUID>{ROOT}", f"<ParentGUID>{NONE}")
    diskmill.convert([str(bundle(tmp_path, text))], str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == first.read_bytes() + second.read_bytes()


def test_bundles_that_are_refused(tmp_path: Path) -> None:
    converted(tmp_path, "a.hds", 2 * MiB, 5)
    image = (TOP, "Compressed", "a.hds")
    whole = storage(0, 4096, (ROOT, "Compressed", "a.hds"), image)
    good = descriptor(4096, whole)
    for text, words in (
        (good.replace("<Padding>0", "<Padding>1"), "padding"),
        (good.replace("<End>4096", "<End>4000"), "storages"),
        (good.replace("<Parallels_disk_image", "<!DOCTYPE x [<!ENTITY a 'b'>]><Parallels_disk_image"), "document type"),
        (good.replace("</Snapshots>", ""), "well-formed"),
        (descriptor(4096, storage(0, 4096, image)), "no image"),
        (good.replace(f"<ParentGUID>{NONE}", f"<ParentGUID>{TOP}"), "loop"),
        (good.replace("<Disk_size>4096", "<Disk_size>99999999999999999999"), "number"),
        (good.replace("Compressed", "Mystery"), "Mystery"),
    ):
        with pytest.raises(diskmill.DiskmillError, match=words):
            diskmill.info(str(bundle(tmp_path, text)), format="parallels")
    outside = good.replace("a.hds", "/etc/hostname")
    with pytest.raises(RefusedError):
        diskmill.convert([str(bundle(tmp_path, outside))], str(tmp_path / "back"))
    with pytest.raises(UnsupportedError):
        diskmill.open(str(bundle(tmp_path, good)), "parallels", writable=True)


def test_an_empty_image_whose_table_grows(tmp_path: Path) -> None:
    """Its data would begin behind the end of the file, were that not made longer."""
    image = tmp_path / "image"
    diskmill.create(str(image), 9 * MiB, format="parallels", options={"cluster_size": 4 * KiB})
    diskmill.resize(str(image), 20 * MiB, format="parallels")
    found = diskmill.check(str(image))
    assert not found.corruptions and not found.leaks, found.findings
    qemu_io(image, "read -P 0 0 20M", "write -P 3 19M 64k", format="parallels")
    with diskmill.open(str(image), "parallels") as opened:
        assert opened.read(0, 20 * MiB) == bytes(19 * MiB) + b"\x03" * 64 * KiB + bytes(MiB - 64 * KiB)
