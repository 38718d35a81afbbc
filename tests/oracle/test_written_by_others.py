"""Images as other programs write them, and files that users take for images."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import struct
import tomllib
import uuid
import zipfile
from pathlib import Path

import diskmill
import pytest
from backports import zstd
from diskmill.errors import DiskmillError, DriverError, ImageError, UnsupportedError
from diskmill.opening.context import Context
from samples import KiB, MiB, scattered_file, sparse_file
from tools import diskmill as command
from tools import qemu_img, qemu_img_json, qemu_io


def keeping() -> Context:
    """A context that keeps its warnings."""
    warnings: list[str] = []
    context = Context(warn=warnings.append)
    context.warnings = warnings
    return context


def patched(path: Path, *changes: tuple[int, bytes]) -> Path:
    """*path* with bytes at some offsets changed."""
    data = bytearray(path.read_bytes())
    for at, value in changes:
        data[at : at + len(value)] = value
    path.write_bytes(data)
    return path


def word(path: Path, at: int) -> int:
    return int(struct.unpack_from(">Q", path.read_bytes(), at)[0])


# -- qcow2 -----------------------------------------------------------------------------------------------------------


def overlay(folder: Path) -> Path:
    """An overlay without data; clusters of 64 KiB, its L1 table in the fourth."""
    qemu_img("create", "-q", "-f", "qcow2", folder / "base", "2M")
    qemu_io(folder / "base", "write -q -P 7 0 1M", format="qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", folder / "over", cwd=folder)
    return folder / "over"


@pytest.mark.parametrize("what", ["table", "entry"])
def test_an_l1_table_or_entry_behind_the_end_is_zeros(tmp_path: Path, what: str) -> None:
    image = overlay(tmp_path)
    if what == "table":
        data = bytearray(image.read_bytes()[: 192 * KiB])
        struct.pack_into(">Q", data, 40, 448 * KiB)
        image.write_bytes(data)
    else:
        data = bytearray(image.read_bytes().ljust(256 * KiB, b"\0"))
        struct.pack_into(">Q", data, 192 * KiB, 1 << 63 | 1 << 40)
        image.write_bytes(data)
    said = keeping()
    assert diskmill.compare(str(image), str(tmp_path / "base"), context=said).identical
    assert "behind the end of the file" in said.warnings[0]
    assert diskmill.check(str(image)).corruptions >= 1
    if what == "table":
        with pytest.raises(ImageError, match="check -r all"):
            diskmill.open(str(image), writable=True)
    assert diskmill.check(str(image), repair="all").corruptions == 0
    qemu_img("check", image)
    qemu_img("compare", image, tmp_path / "base", cwd=tmp_path)


@pytest.mark.parametrize("what", ["table", "entry"])
def test_a_damaged_offset_does_not_make_zeros_of_data(tmp_path: Path, what: str) -> None:
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "2M")
    qemu_io(image, "write -q -P 7 0 1M", format="qcow2")
    at = 40 if what == "table" else word(image, 40)
    patched(image, (at, struct.pack(">Q", word(image, at) ^ 1 << 40)))
    with pytest.raises(ImageError, match="in no L1 table"):
        diskmill.convert([str(image)], str(tmp_path / "out"))
    assert diskmill.check(str(image)).corruptions


def test_an_l2_table_that_was_cut_off_does_not_read_as_zeros(tmp_path: Path) -> None:
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "2M")
    qemu_io(image, "write -q -P 7 0 64k", format="qcow2")
    image.write_bytes(image.read_bytes()[: 256 * KiB])  # the L2 table is the fifth cluster, and counted
    with pytest.raises(ImageError, match="L2 table"), diskmill.open(str(image)) as disk:
        disk.read(0, 512)


@pytest.mark.parametrize("flags", [1 << 63, 0])
def test_an_entry_behind_the_end_is_not_written_through(tmp_path: Path, flags: int) -> None:
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "2M")
    qemu_io(image, "write -q -P 7 0 64k", format="qcow2")
    table = word(image, word(image, 40)) & 0x00FFFFFFFFFFFE00
    patched(image, (table, struct.pack(">Q", flags | 1 << 40)))
    size = image.stat().st_size
    with diskmill.open(str(image)) as disk, pytest.raises(ImageError, match="L2 entry"):
        disk.read(0, 512)
    with pytest.raises(DiskmillError), diskmill.open(str(image), writable=True) as disk:
        disk.write(0, b"x" * 512)
    assert image.stat().st_size <= size + 1 * MiB


def test_a_header_of_104_bytes_stays_one(tmp_path: Path) -> None:
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "2M")
    data = image.read_bytes()
    rest = data[112:512]
    patched(image, (100, struct.pack(">I", 104)), (104, rest))
    diskmill.resize(str(image), 4 * MiB)
    diskmill.snapshot(str(image), "create", "one")
    diskmill.bitmap(str(image), "bits", [("add", "")])
    assert struct.unpack_from(">I", image.read_bytes(), 100)[0] == 104
    assert qemu_img_json("info", image)["virtual-size"] == 4 * MiB
    qemu_img("check", image)


def test_unknown_features_are_named_and_autoclear_bits_go(tmp_path: Path) -> None:
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "2M")
    patched(image, (88, struct.pack(">Q", 1 << 40 | 1 << 63)))
    diskmill.check(str(image), repair="leaks")
    assert word(image, 88) == 0
    qemu_img("check", image)
    data = image.read_bytes()
    entry = data.index(b"dirty bit\0")
    patched(image, (entry - 2, bytes([0, 40]) + b"shiny thing\0"), (72, struct.pack(">Q", 1 << 40 | 1 << 41)))
    with pytest.raises(UnsupportedError, match=r"shiny thing, bit 41$"):
        diskmill.info(str(image))


def test_what_a_copy_leaves_out_is_told_in_a_line(tmp_path: Path) -> None:
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", "qcow2", image, "2M")
    for name in ("one", "two"):
        qemu_img("snapshot", "-c", name, image)
    qemu_img("bitmap", "--add", image, "bits")
    said = keeping()
    diskmill.convert([str(image)], str(tmp_path / "out"), output_format="qcow2", context=said)
    assert said.warnings == [f"'{image}': left out of the copy: 2 internal snapshots (-l) and 1 bitmap (--bitmaps)"]
    said = keeping()
    diskmill.convert([str(image)], str(tmp_path / "out"), output_format="qcow2", context=said, bitmaps=True)
    assert len(said.warnings) == 1 and "bitmap" not in said.warnings[0].rpartition("copy: ")[2]


@pytest.mark.parametrize("sparse", [0, 4 * KiB, 1 * MiB])
@pytest.mark.parametrize("format", ["qcow2", "vmdk"])
def test_a_cluster_of_zeros_is_never_stored_compressed(tmp_path: Path, sparse: int, format: str) -> None:
    disk = sparse_file(tmp_path / "disk", 4 * MiB, {128 * KiB: b"d" * 64 * KiB, 3 * MiB: bytes(256 * KiB)})
    options = {"subformat": "streamOptimized"} if format == "vmdk" else {}
    image = tmp_path / "image"
    diskmill.convert(
        [str(disk)], str(image), format="raw", output_format=format, compress=True, sparse=sparse, options=options
    )
    entries = [one for one in qemu_img_json("map", "-f", format, image) if one["data"]]
    assert sum(one["length"] for one in entries) == 64 * KiB
    qemu_img("compare", "-f", "raw", "-F", format, disk, image)


# -- cut short -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("qcow2", []),
        ("qcow2", ["-o", "cluster_size=2M"]),
        ("parallels", []),
        ("vdi", []),
        ("vmdk", []),
        ("vmdk", ["-o", "subformat=streamOptimized"]),
        ("qed", []),
        ("vpc", []),
    ],
    ids=str,
)
def test_the_first_64_kib_tell_format_and_size(tmp_path: Path, format: str, options: list[str]) -> None:
    disk = tmp_path / "disk"
    sparse_file(disk, 20 << 30, {0: b"x" * MiB, 19 << 30: b"y" * MiB})
    whole, head = tmp_path / "whole", tmp_path / "head"
    qemu_img("convert", "-f", "raw", "-O", format, *options, disk, whole)
    head.write_bytes(whole.read_bytes()[: 64 * KiB])
    said = keeping()
    info = diskmill.info(str(head), context=said)
    assert (info.format, info.virtual_size) == (format, diskmill.info(str(whole)).virtual_size)
    if format != "vpc":  # its table is in the first 64 KiB
        assert "is cut short" in said.warnings[0]
    with pytest.raises(DiskmillError):
        diskmill.convert([str(head)], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("format", "options", "length"),
    [
        ("vmdk", ["-o", "subformat=monolithicSparse"], 64 * KiB),
        ("vmdk", ["-o", "subformat=streamOptimized"], 64 * KiB),
        ("vhdx", [], 4 * MiB),
    ],
    ids=str,
)
def test_a_beginning_with_all_tables_is_cut_short_all_the_same(
    tmp_path: Path, format: str, options: list[str], length: int
) -> None:
    """Of a small disk, all that info looks at is there; what the tables point to is not."""
    disk = sparse_file(tmp_path / "disk", 64 * MiB, {0: random.Random(5).randbytes(MiB)})
    whole, head, empty = tmp_path / "whole", tmp_path / "head", tmp_path / "empty"
    qemu_img("convert", "-f", "raw", "-O", format, *options, disk, whole)
    head.write_bytes(whole.read_bytes()[:length])
    qemu_img("create", "-f", format, *options, empty, "64M")
    for image, warnings in ((head, 1), (empty, 0)):
        said = keeping()
        assert diskmill.info(str(image), context=said).virtual_size == 64 * MiB
        assert len(said.warnings) == warnings


def test_64_kib_of_vhdx_do_not_tell_and_that_is_said(tmp_path: Path) -> None:
    whole, head = tmp_path / "whole", tmp_path / "head"
    diskmill.create(str(whole), 10 * MiB, format="vhdx")
    head.write_bytes(whole.read_bytes()[: 64 * KiB])
    with pytest.raises(ImageError, match="cut short"):
        diskmill.info(str(head))


def test_luks_without_its_payload_is_not_an_empty_disk(tmp_path: Path) -> None:
    image = tmp_path / "image"
    secret = ("--object", "secret,id=s,data=x")
    qemu_img("create", "-q", *secret, "-f", "luks", "-o", "key-secret=s,iter-time=10", image, "4M")
    data = image.read_bytes()
    image.write_bytes(data[: struct.unpack_from(">I", data, 104)[0] * 512 - 512])
    done = command("info", image)
    assert "its payload lies behind the end" in done.stderr


# -- VMDK ------------------------------------------------------------------------------------------------------------


def test_a_piece_of_a_disk_is_no_disk(tmp_path: Path) -> None:
    disk = sparse_file(tmp_path / "disk", 3 << 30, {2 << 30: b"x" * 512})
    qemu_img(
        "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", disk, tmp_path / "whole.vmdk"
    )
    with pytest.raises(ImageError, match=r"'whole\.vmdk'"):
        diskmill.info(str(tmp_path / "whole-s002.vmdk"))
    assert diskmill.info(str(tmp_path / "whole.vmdk")).virtual_size == 3 << 30


@pytest.mark.parametrize(
    "path",
    [
        r"C:\Virtual Machines\base.vmdk",
        r"\\server\share\base.vmdk",
        "[datastore1] vm/base.vmdk",
        "/vmfs/volumes/1/base.vmdk",
    ],
)
def test_a_parent_elsewhere_is_looked_for_beside_the_child(tmp_path: Path, path: str) -> None:
    base, child = tmp_path / "base.vmdk", tmp_path / "child.vmdk"
    qemu_img("create", "-q", "-f", "vmdk", base, "2M")
    qemu_io(base, "write -q -P 7 0 1M", format="vmdk")
    hint = "base.vmdk".ljust(len(path), "x")
    (tmp_path / hint).write_bytes(base.read_bytes())
    qemu_img("create", "-q", "-f", "vmdk", "-b", hint, "-F", "vmdk", child, cwd=tmp_path)
    (tmp_path / hint).unlink(missing_ok=hint == "base.vmdk")
    child.write_bytes(child.read_bytes().replace(hint.encode(), path.encode()))
    assert diskmill.compare(str(base), str(child)).identical
    qemu_io(base, "write -q -P 8 0 1M", format="vmdk")  # another disk of the same name
    with pytest.raises(ImageError, match="changed since"):
        diskmill.compare(str(base), str(child))


# -- Parallels -------------------------------------------------------------------------------------------------------


def parallels(folder: Path) -> tuple[Path, Path]:
    disk = scattered_file(folder / "disk", 5 * MiB, seed=4)
    qemu_img("convert", "-f", "raw", "-O", "parallels", disk, folder / "image")
    return disk, folder / "image"


def test_marks_of_parallels_desktop_do_not_mean_in_use(tmp_path: Path) -> None:
    disk, image = parallels(tmp_path)
    patched(image, (44, b"pd17"))
    assert diskmill.info(str(image)).dirty is False
    assert diskmill.compare(str(disk), str(image), format_a="raw").identical
    assert diskmill.check(str(image)).corruptions == 0
    with diskmill.open(str(image), writable=True) as opened:
        opened.write(0, b"new")
        assert image.read_bytes()[44:48] == struct.pack("<I", 0x746F6E59)
    assert image.read_bytes()[44:48] == b"pd17"


def test_what_a_parallels_table_does_not_cover_is_zeros(tmp_path: Path) -> None:
    disk, image = parallels(tmp_path)
    patched(image, (32, struct.pack("<I", 3)))  # entries of the table, which had five
    expected = disk.read_bytes()[: 3 * MiB].ljust(5 * MiB, b"\0")
    with diskmill.open(str(image)) as opened:
        assert opened.read(0, 5 * MiB) == expected
    with diskmill.open(str(image), writable=True) as opened, pytest.raises(UnsupportedError, match="resize"):
        opened.write(4 * MiB, b"new")
    diskmill.resize(str(image), 5 * MiB)
    with diskmill.open(str(image), writable=True) as opened:
        opened.write(4 * MiB, b"new")
    assert diskmill.check(str(image)).corruptions == 0
    back = tmp_path / "back"
    qemu_img("convert", "-f", "parallels", "-O", "raw", image, back)
    assert back.read_bytes() == expected[: 4 * MiB] + b"new".ljust(1 * MiB, b"\0")


def test_a_bundle_is_named_by_its_folder(tmp_path: Path) -> None:
    disk, image = parallels(tmp_path)
    bundle = tmp_path / "disk.hdd"
    bundle.mkdir()
    image.rename(bundle / "disk.hds")
    guid = "{5fbaabe3-6958-40ff-92a7-860e329aab41}"
    (bundle / "DiskDescriptor.xml").write_text(
        '<?xml version="1.0"?><Parallels_disk_image Version="1.0"><Disk_Parameters><Disk_size>10240</Disk_size>'
        "<Padding>0</Padding></Disk_Parameters><StorageData><Storage><Start>0</Start><End>10240</End>"
        f"<Image><GUID>{guid}</GUID><Type>Compressed</Type><File>disk.hds</File></Image></Storage></StorageData>"
        f"<Snapshots><Shot><GUID>{guid}</GUID></Shot></Snapshots></Parallels_disk_image>"
    )
    assert diskmill.compare(str(disk), str(bundle), format_a="raw").identical


# -- VDI and VHDX ----------------------------------------------------------------------------------------------------


def test_vdi_data_at_an_odd_offset_is_read_only(tmp_path: Path) -> None:
    disk = scattered_file(tmp_path / "disk", 3 * MiB, seed=5)
    image = tmp_path / "image"
    qemu_img("convert", "-f", "raw", "-O", "vdi", disk, image)
    data = image.read_bytes()
    start = struct.unpack_from("<I", data, 0x158)[0]
    image.write_bytes(data[:start] + b"\0" * 100 + data[start:])
    patched(image, (0x158, struct.pack("<I", start + 100)))
    assert diskmill.compare(str(disk), str(image), format_a="raw").identical
    with pytest.raises(UnsupportedError, match="only be read"):
        diskmill.open(str(image), writable=True)


def test_the_largest_vdi_disk(tmp_path: Path) -> None:
    """Its block map takes 2 GiB, so none is written here: only the header is, of a file of that size."""
    image, largest = tmp_path / "image", (512 << 40) - (128 << 20)
    diskmill.create(str(image), 1 * MiB, format="vdi")
    blocks = largest // MiB
    changes = {0x158: 2049 * MiB, 0x180: blocks}
    patched(image, *((at, struct.pack("<I", value)) for at, value in changes.items()))
    patched(image, (0x170, struct.pack("<Q", largest)))
    with image.open("r+b") as file:
        file.truncate(2049 * MiB)
    assert diskmill.info(str(image)).virtual_size == largest == qemu_img_json("info", image)["virtual-size"]
    with pytest.raises(UnsupportedError, match="too many"):
        diskmill.create(str(tmp_path / "more"), largest + 1, format="vdi")


def test_vhdx_with_sectors_of_4096_bytes(tmp_path: Path) -> None:
    disk = scattered_file(tmp_path / "disk", 5 * MiB + 512, seed=6)
    image, back = tmp_path / "image", tmp_path / "back"
    said = keeping()
    options = {"logical_sector_size": 4096, "block_size": 1 * MiB}
    diskmill.convert([str(disk)], str(image), format="raw", output_format="vhdx", options=options, context=said)
    assert "sectors of 512 bytes, the output has 4096" in said.warnings[0]
    info = diskmill.info(str(image))
    assert info.specific == {"logical-sector-size": 4096}
    assert info.virtual_size == 5 * MiB + 4096
    assert diskmill.check(str(image)).findings == []
    said = keeping()
    diskmill.convert([str(image)], str(back), context=said)
    assert back.read_bytes() == disk.read_bytes().ljust(5 * MiB + 4096, b"\0")
    assert "sectors of 4096 bytes, the output has 512" in said.warnings[0]


def test_blocks_of_a_vhdx_image_with_large_sectors_are_where_they_are(tmp_path: Path) -> None:
    """Of an image of QEMU, which has blocks of 1 MiB, and bitmaps after so many that no one is in this table."""
    disk, image = scattered_file(tmp_path / "disk", 8 * MiB, seed=7), tmp_path / "image"
    qemu_img("convert", "-f", "raw", "-O", "vhdx", "-o", "block_size=1M", disk, image)
    data = image.read_bytes()
    table = data.index(b"metadata")
    found = 0
    for guid in ("8141BF1D-A96F-4709-BA47-F233A8FAAB5F", "CDA348C7-445D-4471-9CC9-E9885251C556"):
        entry = data.index(uuid.UUID(guid).bytes_le, table)
        place = table + struct.unpack_from("<I", data, entry + 16)[0]
        patched(image, (place, struct.pack("<I", 4096)))
        found += 1
    assert found == 2
    assert diskmill.info(str(image)).specific == {"logical-sector-size": 4096}
    assert diskmill.compare(str(disk), str(image), format_a="raw").identical


def test_all_brings_what_reads_lzfse() -> None:
    core = tomllib.loads((Path(__file__).parents[2] / "core" / "pyproject.toml").read_text())["project"]
    assert "diskmill-dmg[lzfse]" in core["optional-dependencies"]["all"]


# -- what is no disk -------------------------------------------------------------------------------------------------


def archives() -> dict[str, bytes]:
    data = b"some data" * 100
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("disk.img", data)
    return {
        "gzip": gzip.compress(data),
        "xz": lzma.compress(data),
        "zstd": zstd.compress(data),
        "bzip2": bz2.compress(data),
        "zip": zipped.getvalue(),
        "EWF": b"EVF2\x0d\x0a\x81\0" + data,
    }


@pytest.mark.parametrize(("what", "data"), archives().items(), ids=list(archives()))
def test_what_is_no_disk_is_not_made_one(tmp_path: Path, what: str, data: bytes) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.write_bytes(data)
    said = keeping()
    assert diskmill.info(str(source), context=said).format == "raw"
    assert what in said.warnings[0]
    inside = what in ("gzip", "xz", "bzip2", "zstd")  # what is in these is copied, unless their bytes are asked for
    if inside:
        diskmill.convert([str(source)], str(out), output_format="qcow2")
        with diskmill.open(out) as image:
            assert image.read(0, 1024) == (b"some data" * 100).ljust(1024, b"\0")
    else:
        with pytest.raises(DriverError, match=what):
            diskmill.convert([str(source)], str(out), output_format="qcow2")
        assert not out.exists()
    diskmill.convert([str(source)], str(out), format="raw", output_format="qcow2")
    kept = "raw" if inside else None  # as raw it stays what it is
    diskmill.convert([str(source)], str(tmp_path / "copy"), format=kept, context=said)
    assert (tmp_path / "copy").read_bytes().startswith(data)


def test_a_flat_piece_of_a_vmdk_is_no_disk(tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentFlat", tmp_path / "whole.vmdk", "3G")
    with pytest.raises(DriverError, match="one piece"):
        diskmill.convert([str(tmp_path / "whole-f001.vmdk")], str(tmp_path / "out"), output_format="qcow2")
    diskmill.convert([str(tmp_path / "whole.vmdk")], str(tmp_path / "out"), output_format="qcow2")


def test_a_disk_that_begins_like_bzip2_is_one(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"BZh1 is no magic".ljust(512, b"\0"))
    said = keeping()
    diskmill.info(str(tmp_path / "disk"), context=said)
    assert said.warnings == []
