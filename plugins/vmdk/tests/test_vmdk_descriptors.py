"""Descriptors as people and tools write them, and what ESX makes of them; what they name, and what may be opened."""

from __future__ import annotations

import os
import random
from pathlib import Path

import diskmill
import pytest
from diskmill.errors import DiskmillError, ImageError, RefusedError, StorageError, UnsupportedError
from diskmill.opening.context import Context
from diskmill.opening.gate import ANYTHING, FOLDER, NOTHING, Trust
from diskmill.opening.graph import open_image
from samples import KiB, MiB
from tools import diskmill as command
from tools import qemu_img, run, tool

SECTOR = 512
DATA = random.Random(1).randbytes(MiB)

PLAIN = """# Disk DescriptorFile
version=1
CID=0badcafe
parentCID=ffffffff
createType="{type}"

# Extent description
{extents}

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.adapterType = "ide"
"""


def descriptor(extents: str, type: str = "monolithicFlat") -> str:
    return PLAIN.format(type=type, extents=extents)


def put(folder: Path, text: str | bytes, name: str = "disk.vmdk") -> Path:
    (folder / "disk-flat.vmdk").write_bytes(DATA)
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read_all(path: Path, trust: Trust = FOLDER) -> bytes:
    with open_image(str(path), context=Context(trust=trust)) as image:
        return image.read(0, image.size)


FLAT = 'RW 2048 FLAT "disk-flat.vmdk" 0'

SPELLINGS = {
    "crlf": descriptor(FLAT).replace("\n", "\r\n"),
    "cr": descriptor(FLAT).replace("\n", "\r"),
    "no last line end": descriptor(FLAT).rstrip("\n"),
    "spaces around": "\n".join(f"  {line} \t" for line in descriptor(FLAT).split("\n")),
    "spaces at equals": descriptor(FLAT).replace("createType=", "createType = ").replace("CID=", "CID = "),
    "unquoted type": descriptor(FLAT).replace('"monolithicFlat"', "monolithicFlat"),
    "quoted number": descriptor(FLAT).replace("CID=0badcafe", 'CID="0badcafe"'),
    "comments": descriptor("# a comment\n" + FLAT + "\n#RW 2048 FLAT \"other\" 0\n   # more"),
    "comments before": "# written by hand\n\n# Disk DescriptorFile\n" + descriptor(FLAT),
    "tabs": descriptor(FLAT.replace(" ", "\t")),
    "wide spaces": descriptor(FLAT.replace(" ", "    ")),
    "case": descriptor(FLAT.lower()).replace("createType", "CREATETYPE"),
    "byte order mark": "\ufeff" + descriptor(FLAT),
    "encoding": descriptor(FLAT).replace("version=1", 'version=1\nencoding="windows-1252"'),
    "unknown encoding": descriptor(FLAT).replace("version=1", 'version=1\nencoding="x-none"'),
    "zeros behind": descriptor(FLAT) + "\0" * 700,
    "version 3": descriptor(FLAT).replace("version=1", "version=3") + '\n# Change Tracking File\nchangeTrackPath="x"\n',
    "device id": descriptor(FLAT + ' partitionUUID "x"'),
    "vmfs": descriptor('RW 2048 VMFS "disk-flat.vmdk"', "vmfs"),
    "full device": descriptor(FLAT, "fullDevice"),
    "custom": descriptor(FLAT, "custom"),
    "thin": descriptor('RW 2048 VMFS "disk-flat.vmdk"', "vmfsThin"),
    "read-only": descriptor(FLAT.replace("RW", "RDONLY")),
}  # fmt: skip


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS)
def test_descriptors_are_read_however_they_are_written(text: str, tmp_path: Path) -> None:
    path = put(tmp_path, text)
    assert read_all(path) == DATA
    told = diskmill.info(str(path))
    assert (told.format, told.virtual_size) == ("vmdk", MiB)
    assert told.specific is not None
    assert told.specific["cid"] == 0x0BADCAFE


NAMES = ["plain", "with space.vmdk", "grün.vmdk", "a:b.vmdk", "json:{}", "file:x", "-x", "#x", "é=\u2028.vmdk"]


@pytest.mark.parametrize("name", NAMES)
def test_extents_may_have_any_name(name: str, tmp_path: Path) -> None:
    path = put(tmp_path, descriptor(f'RW 2048 FLAT "{name}" 0'))
    (tmp_path / "disk-flat.vmdk").rename(tmp_path / name)
    assert read_all(path) == DATA


@pytest.mark.parametrize("encoding", ["windows-1252", "iso-8859-1", "GBK"])
def test_names_are_read_in_the_encoding_that_the_descriptor_states(encoding: str, tmp_path: Path) -> None:
    name = "磁盘.vmdk" if encoding == "GBK" else "übung.vmdk"
    text = descriptor(f'RW 2048 FLAT "{name}" 0').replace("version=1", f'version=1\nencoding="{encoding}"')
    path = put(tmp_path, text.encode(encoding))
    (tmp_path / "disk-flat.vmdk").rename(tmp_path / name)
    assert read_all(path) == DATA


def test_names_that_no_encoding_explains_stand_for_their_bytes(tmp_path: Path) -> None:
    path = put(tmp_path, descriptor(FLAT).encode().replace(b"disk-flat", b"\xff\xfe"))
    os.rename(tmp_path / "disk-flat.vmdk", os.fsencode(tmp_path) + b"/\xff\xfe.vmdk")
    assert read_all(path) == DATA


@pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentSparse"])
def test_disks_with_names_beyond_ascii_read_everywhere(subformat: str, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_bytes(DATA)
    path = tmp_path / "größe 磁盘.vmdk"
    diskmill.convert([str(raw)], str(path), output_format="vmdk", options={"subformat": subformat})
    assert read_all(path) == DATA
    qemu_img("compare", "-f", "raw", "-F", "vmdk", raw, path)
    assert f"({MiB} bytes)" in run(tool("vmdkinfo"), path, env={"LC_ALL": "C.UTF-8"}).stdout


def test_extents_of_all_kinds_make_one_disk(tmp_path: Path) -> None:
    """A sparse file, zeros, and stretches of flat files."""
    sparse = tmp_path / "sparse.raw"
    sparse.write_bytes(DATA[::-1])
    diskmill.convert([str(sparse)], str(tmp_path / "part.vmdk"), output_format="vmdk")
    text = descriptor(
        'RW 2048 SPARSE "part.vmdk"\nRW 128 ZERO\nRW 1024 FLAT "disk-flat.vmdk" 1024\nRW 1024 FLAT "other.vmdk" 0',
        "custom",
    )
    path = put(tmp_path, text)
    (tmp_path / "other.vmdk").write_bytes(DATA)
    expected = DATA[::-1] + bytes(64 * KiB) + DATA[MiB // 2 :] + DATA[: MiB // 2]
    assert read_all(path) == expected
    with open_image(str(path), context=Context(), writable=True) as image:
        image.write(MiB - 5, b"over the edge"[:5])
        image.write(MiB + 64 * KiB + 7, b"flat")
        with pytest.raises(UnsupportedError, match="an extent of zeros"):
            image.write(MiB, b"x")
    changed = bytearray(expected)
    changed[MiB - 5 : MiB] = b"over "
    changed[MiB + 64 * KiB + 7 : MiB + 64 * KiB + 11] = b"flat"
    assert read_all(path) == bytes(changed)


def test_one_extent_of_a_split_disk_opens_alone_under_another_name_with_a_warning(tmp_path: Path) -> None:
    diskmill.create(str(tmp_path / "disk.vmdk"), 3 << 30, format="vmdk", options={"subformat": "twoGbMaxExtentSparse"})
    piece, warnings = (tmp_path / "disk-s002.vmdk").rename(tmp_path / "extent.vmdk"), list[str]()
    assert diskmill.info(str(piece), context=Context(warn=warnings.append)).virtual_size == 1 << 30
    assert "extent without a descriptor" in warnings[0]


def test_the_content_id_changes_where_it_stands_and_nothing_else(tmp_path: Path) -> None:
    text = descriptor(FLAT).replace("CID=0badcafe", "CID=badcafe ", 1)  # seven digits, as QEMU may print it
    path = put(tmp_path, text.replace("\n", "\r\n"))
    with open_image(str(path), context=Context(), writable=True) as image:
        image.write(0, b"x")
    lines, before = path.read_bytes().split(b"\r\n"), text.encode().split(b"\n")
    assert lines[2].startswith(b"CID=")
    assert lines[2].strip() != before[2].strip()
    assert [line.rstrip(b"\n") for line in lines[:2] + lines[3:]] == before[:2] + before[3:]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"], ids=["lf", "crlf", "cr"])
def test_values_change_whatever_the_line_ends(line_end: str, tmp_path: Path) -> None:
    path = put(tmp_path, descriptor(FLAT).replace("\n", line_end))
    with open_image(str(path), context=Context(), writable=True) as image:
        image.write(0, b"x")
    told = diskmill.info(str(path)).specific
    assert told is not None and told["cid"] != 0x0BADCAFE
    diskmill.resize(str(path), 2 * MiB)
    with open_image(str(path), context=Context()) as image:
        assert image.read(0, image.size) == b"x" + DATA[1:] + bytes(MiB)


def test_an_embedded_descriptor_need_not_say_what_the_header_says(tmp_path: Path) -> None:
    """As when a tool, or a crash, leaves its extent line in disorder: it can mean nothing but the file itself."""
    path = tmp_path / "disk.vmdk"
    diskmill.create(str(path), MiB, format="vmdk")
    data = path.read_bytes()
    assert data.count(b"RW 2048 SPARSE") == 1
    path.write_bytes(data.replace(b"RW 2048 SPARSE", b"RW S048 SPARSE"))
    with open_image(str(path), context=Context(), writable=True) as image:
        image.write(0, DATA)
    qemu_img("convert", "-f", "vmdk", "-O", "raw", path, tmp_path / "raw")
    assert (tmp_path / "raw").read_bytes() == read_all(path) == DATA


# -- what is refused ------------------------------------------------------------------------------------------------

DAMAGED = {
    "no type": (descriptor(FLAT).replace("createType", "x"), ImageError),
    "no name": (descriptor("RW 2048 FLAT"), ImageError),
    "no number": (descriptor('RW many FLAT "disk-flat.vmdk" 0'), ImageError),
    "too short": (descriptor('RW 2049 FLAT "disk-flat.vmdk" 0'), ImageError),
    "offset too far": (descriptor('RW 2048 FLAT "disk-flat.vmdk" 1'), ImageError),
    "far too large": (descriptor('RW 99999999999999999999 FLAT "disk-flat.vmdk" 0'), ImageError),
    "sum too large": (descriptor('RW 9007199254740992 ZERO\nRW 9007199254740992 ZERO\n' * 2), ImageError),
    "unknown kind": (descriptor('RW 2048 STRANGE "disk-flat.vmdk" 0'), UnsupportedError),
    "not sparse": (descriptor('RW 2048 SPARSE "disk-flat.vmdk"'), ImageError),
    "not there": (descriptor('RW 2048 FLAT "missing.vmdk" 0'), StorageError),
    "barred": (descriptor(FLAT.replace("RW", "NOACCESS")), ImageError),
    "itself": (descriptor('RW 1 FLAT "disk.vmdk" 0'), ImageError),
    "itself, by a way": (descriptor('RW 1 FLAT "../images/disk.vmdk" 0'), ImageError),
    "itself, by a link": (descriptor('RW 1 FLAT "link.vmdk" 0'), ImageError),
    "too many": (descriptor("RW 1 ZERO\n" * 8193), ImageError),
    "zero bytes before the extents": (descriptor(FLAT).replace("\nRW", "\0\0RW"), ImageError),
    "a type that ends nowhere": (descriptor(FLAT).replace('createType="', 'createType="\x01'), ImageError),
}  # fmt: skip


@pytest.mark.parametrize(("text", "error"), DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("trust", [FOLDER, ANYTHING], ids=["folder", "anything"])
def test_descriptors_that_make_no_disk(text: str, error: type[DiskmillError], trust: Trust, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    path = put(folder, text)
    (folder / "link.vmdk").symlink_to("disk.vmdk")
    spec = {"driver": "vmdk", "filename": str(path)}
    with pytest.raises(error) as caught, open_image(spec, context=Context(trust=trust)) as image:
        image.read(0, image.size)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


OUTSIDE = ["{secret}", "../secret.raw", "link.vmdk", "/dev/zero", "../images/../secret.raw", "//{secret}"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("line", ['RW 2 FLAT "{}" 0', 'RW 2 SPARSE "{}"', 'RW 2 VMFSSPARSE "{}"', 'RW 2 SESPARSE "{}"'])
def test_names_that_lead_out_of_the_folder_are_refused(line: str, name: str, tmp_path: Path) -> None:
    folder, secret = tmp_path / "images", tmp_path / "secret.raw"
    folder.mkdir()
    secret.write_bytes(b"secret".ljust(1024))
    (folder / "link.vmdk").symlink_to("../secret.raw")
    path = put(folder, descriptor(line.format(name.format(secret=secret)), "custom"))
    for trust in (FOLDER, NOTHING):
        with pytest.raises(RefusedError, match=r"allow it with trust"):
            read_all(path, trust)
    warnings: list[str] = []
    told = diskmill.info(str(path), context=Context(warn=warnings.append))
    assert told.virtual_size == 1024  # info tells what the descriptor says, and that it did not look
    assert any("not opened" in warning for warning in warnings)
    if "FLAT" in line and "/dev" not in name:
        assert read_all(path, ANYTHING) == secret.read_bytes()
        assert read_all(path, Trust([str(tmp_path)])) == secret.read_bytes()


def test_nothing_at_all_is_opened_where_nothing_is_trusted(tmp_path: Path) -> None:
    path = put(tmp_path, descriptor(FLAT))
    with pytest.raises(RefusedError):
        read_all(path, NOTHING)
    assert diskmill.info(str(path), context=Context(trust=NOTHING)).virtual_size == MiB


@pytest.mark.parametrize("hint", ["/etc/passwd", "../base.vmdk", "C:\\\\VMs\\\\..", "nbd://localhost/x"])
def test_parents_pass_the_gate_too(hint: str, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    text = descriptor(FLAT).replace("parentCID=ffffffff", f'parentCID=00000001\nparentFileNameHint="{hint}"')
    path = put(folder, text)
    with pytest.raises(DiskmillError) as caught:
        read_all(path)
    assert isinstance(caught.value, RefusedError), caught.value


def test_info_tells_of_a_flat_extent_that_is_too_short(tmp_path: Path) -> None:
    """And of the image what there is to tell, with qemu-img's exit status; nothing else opens it."""
    qemu_img("create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", tmp_path / "disk.vmdk", "1M")
    os.truncate(tmp_path / "disk-flat.vmdk", 512 << 10)
    assert qemu_img("info", tmp_path / "disk.vmdk").returncode == 0
    done = command("info", tmp_path / "disk.vmdk")
    assert "virtual size: 1 MiB" in done.stdout
    assert done.stderr.count("\n") == 1
    assert "disk-flat.vmdk': it has 524288 bytes" in done.stderr
    done = command("convert", "-O", "raw", tmp_path / "disk.vmdk", tmp_path / "output", check=False)
    assert done.returncode == 1
    assert "it has 524288 bytes" in done.stderr
