"""Proxmox VMA archives: disks by name, and what is damaged or not whole.

No tool of Debian's writes or reads them. The encoder's archives were held against dissect's reader by hand.
"""

from __future__ import annotations

from pathlib import Path

import diskmill
import pytest
from diskmill.contract.extents import Kind
from diskmill.errors import DiskmillError, UsageError
from diskmill.sizes import KiB, MiB
from encoders import vma
from formats import Machine, pattern
from tools import diskmill as command
from tools import run, tool

DISKS = {
    "drive-scsi0": pattern(1, 300 * KiB) + bytes(MiB) + pattern(2, 512),
    "drive-virtio1": b"another; " * 30000 + bytes(7 * 512 - 270000 % 512),
    "vmstate": b"memory " * 5120,
}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "vm.vma"
    path.write_bytes(vma.archive(DISKS, seed=3))
    return path


def options(path: Path, device: str) -> str:
    return f"driver=vma,device={device},file.filename={path}"


@pytest.mark.parametrize("device", DISKS)
def test_a_disk_by_its_name(archive: Path, tmp_path: Path, device: str) -> None:
    name, out, raw = options(archive, device), tmp_path / "out", tmp_path / "raw"
    raw.write_bytes(DISKS[device])
    command("convert", "--image-opts", "-O", "raw", name, out)
    assert out.read_bytes() == DISKS[device]
    assert "identical" in command("compare", "--image-opts", name, f"driver=raw,file.filename={raw}").stdout
    assert "No errors" in command("check", "--image-opts", name).stdout
    assert "required size" in command("measure", "--image-opts", "-O", "qcow2", name).stdout
    command("map", "--image-opts", name)


def test_info_tells_what_there_is(archive: Path) -> None:
    told = diskmill.info(options(archive, "drive-virtio1"), image_opts=True)
    assert told.specific is not None
    assert told.virtual_size == len(DISKS["drive-virtio1"])
    assert told.specific["devices"] == [{"name": name, "virtual-size": len(data)} for name, data in DISKS.items()]
    assert told.specific["configs"] == [{"name": "qemu-server.conf", "size": len(vma.CONFIG[1])}]
    assert told.specific["uuid"] == "00010203-0405-0607-0809-0a0b0c0d0e0f"


@pytest.mark.parametrize(("name", "words"), [("vm.vma", "it holds 2 disks"), ("none", "no disk 'none'")])
def test_which_disk_has_to_be_said(archive: Path, name: str, words: str) -> None:
    given = str(archive) if name == "vm.vma" else options(archive, name)
    with pytest.raises(UsageError, match=f"{words}.*drive-scsi0, drive-virtio1, vmstate"):
        diskmill.info(given, image_opts=name != "vm.vma")


def test_the_only_disk_need_not_be_named(tmp_path: Path) -> None:
    for disks in ({"a": bytes(MiB)}, {"vmstate": b"m" * 512, "a": bytes(MiB)}):
        (tmp_path / "vm").write_bytes(vma.archive(disks))
        assert diskmill.info(str(tmp_path / "vm")).virtual_size == MiB
        assert [entry.zero for entry in diskmill.map(str(tmp_path / "vm"))] == [True]


def test_qemu_img_reads_what_comes_of_it(archive: Path, tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.write_bytes(DISKS["drive-scsi0"])
    command("convert", "--image-opts", "-O", "qcow2", options(archive, "drive-scsi0"), out)
    run(tool("qemu-img"), "compare", "-f", "qcow2", "-F", "raw", out, raw)


def test_zeros_are_known_without_reading() -> None:
    machine = Machine()
    machine.put("disk", vma.archive({"a": pattern(1, 4096) + bytes(60 * KiB) + bytes(MiB)}))
    with machine.open("disk", None) as image:
        found = [(extent.kind, extent.length) for extent in image.extents(0, image.size)]
    assert found == [(Kind.DATA, 4096), (Kind.ZERO, 60 * KiB + MiB)]


# -- damage ------------------------------------------------------------------------------------------------------------

GOOD = vma.archive({"a": pattern(1, 70 * 64 * KiB)})
EXTENT = GOOD.index(b"VMAE")
SECOND = GOOD.index(b"VMAE", EXTENT + 1)


def resummed(data: bytes) -> bytes:
    """*data* with the first extent's checksum made right."""
    head = data[EXTENT : EXTENT + 24] + bytes(16) + data[EXTENT + 40 : EXTENT + 512]
    return data[:EXTENT] + vma.summed(head, 24) + data[EXTENT + 512 :]


def put(at: int, value: bytes) -> bytes:
    return GOOD[:at] + value + GOOD[at + len(value) :]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"VMA\0", "truncated"),
        (put(7, b"\2"), "version 2"),
        (put(8, b"x"), "checksum is wrong"),
        (put(56, b"\xff"), "header_size"),
        (GOOD[:SECOND], "59 of the disk's 70 clusters"),
        (GOOD[:-1], "cut short"),
        (GOOD[: SECOND + 100], "truncated"),
        (put(SECOND, b"none"), "no extent of this archive"),
        (put(SECOND + 8, b"x"), "no extent of this archive"),
        (put(SECOND + 60, b"x"), "checksum is wrong"),
        (resummed(put(EXTENT + 7, b"\1")), "block_count"),
        (resummed(put(EXTENT + 44, b"\0\1\0\0")), "behind the end"),
        (vma.header([("a", 1 << 60)]), "impossible size"),
        (vma.header([("a", 1 << 40)]), "0 of the disk's"),
        (vma.header([]), "0 disks"),
    ],
    ids=range(15),
)
def test_what_is_refused(data: bytes, words: str) -> None:
    machine = Machine()
    machine.put("disk", data)
    with pytest.raises(DiskmillError) as caught, machine.open("disk", "vma"):
        pass
    assert words in str(caught.value)
