"""The option ``partition`` of raw, held against what sfdisk made; and tables that are damaged."""

from __future__ import annotations

import json
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from diskmill.sizes import MiB
from tools import diskmill, qemu_img, run, tool

SIZE = 32 * MiB
GPT = """label: gpt
size=4MiB, name="EFI system"
size=8MiB, name="root"
size=2MiB, name="root"
size=1MiB, name="7"
"""
MBR = """label: dos
label-id: 0xdeadbeef
size=4MiB, type=83
size=2MiB, type=83
size=16MiB, type=5
size=3MiB, type=83
size=1MiB, type=83
size=2MiB, type=83
"""


def partitioned(path: Path, script: str, *options: str) -> list[dict[str, Any]]:
    """A disk of noise with the partitions that *script* describes; what sfdisk says of them."""
    path.write_bytes(random.Random(1).randbytes(SIZE))
    run(tool("sfdisk"), "-q", "--wipe=never", *options, path, input=script)
    table = json.loads(run(tool("sfdisk"), "--json", path).stdout)["partitiontable"]
    return [{**one, "sectorsize": table.get("sectorsize", 512)} for one in table["partitions"]]


def opened(disk: Path, partition: str, out: Path, *, check: bool = True) -> Any:
    options = f"driver=raw,partition={partition},file.filename={disk}"
    return diskmill("convert", "--image-opts", "-O", "raw", options, out, check=check)


@pytest.mark.parametrize("script", [GPT, MBR], ids=["gpt", "mbr"])
def test_each_partition_is_where_sfdisk_has_it(tmp_path: Path, script: str) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out"
    for one in partitioned(disk, script):
        number = one["node"].removeprefix(str(disk))
        start, length = one["start"] * 512, one["size"] * 512
        expected = disk.read_bytes()[start : start + length]
        names = [number]
        if script == GPT:
            names += [one["uuid"], one["uuid"].lower()] + ([one["name"]] if one["name"] == "EFI system" else [])
        else:
            names.append(f"deadbeef-{int(number):02x}")
        for name in names:
            opened(disk, name, out)
            assert out.read_bytes() == expected, name


def test_a_partition_inside_of_an_image(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    one = next(one for one in partitioned(disk, MBR) if one["node"].endswith("5"))
    qemu_img("convert", "-f", "raw", "-O", "qcow2", disk, tmp_path / "disk.qcow2")
    options = f"driver=raw,partition=5,file.driver=qcow2,file.file.filename={tmp_path}/disk.qcow2"
    diskmill("convert", "--image-opts", "-O", "raw", options, tmp_path / "out")
    start = one["start"] * 512
    assert (tmp_path / "out").read_bytes() == disk.read_bytes()[start : start + one["size"] * 512]


def test_what_is_written_stays_in_the_partition(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    one = partitioned(disk, GPT)[1]
    before = disk.read_bytes()
    data = random.Random(2).randbytes(one["size"] * 512)
    (tmp_path / "source").write_bytes(data)
    target = f"driver=raw,partition=2,file.filename={disk}"
    diskmill("convert", "-n", "-f", "raw", "--target-image-opts", tmp_path / "source", target)
    start = one["start"] * 512
    assert disk.read_bytes() == before[:start] + data + before[start + len(data) :]
    done = diskmill("resize", "--image-opts", target, "64M", check=False)
    assert done.returncode == 1 and "cannot be resized" in done.stderr


def test_the_copy_of_a_damaged_gpt_is_taken(tmp_path: Path) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out"
    one = partitioned(disk, GPT)[0]
    data = bytearray(disk.read_bytes())
    data[512 + 60] ^= 1
    disk.write_bytes(data)
    opened(disk, "1", out)
    assert out.stat().st_size == one["size"] * 512
    data[-512 + 60] ^= 1
    disk.write_bytes(data)
    assert "damaged" in opened(disk, "1", out, check=False).stderr


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        ("9", "there is no partition '9'"),
        ("swap", "there is no partition 'swap'"),
        ("root", "several partitions are called 'root': take one of 2, 3"),
        ("9" * 5000, "there is no partition"),
        ("1,offset=512", "either 'partition'"),
    ],
    ids=["number", "name", "ambiguous", "digits", "both"],
)
def test_what_is_not_there_is_refused(tmp_path: Path, partition: str, message: str) -> None:
    partitioned(tmp_path / "disk", GPT)
    done = opened(tmp_path / "disk", partition, tmp_path / "out", check=False)
    assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_damaged_tables_end_in_one_line(tmp_path: Path) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.write_bytes(bytes(MiB))
    assert "no partition table" in opened(disk, "1", out, check=False).stderr
    partitioned(disk, MBR)
    data = bytearray(disk.read_bytes())
    extended = struct.unpack_from("<I", data, 446 + 2 * 16 + 8)[0]
    struct.pack_into(
        "<BBBBBBBBII", data, extended * 512 + 446 + 16, 0, 0, 0, 0, 5, 0, 0, 0, 0, 100
    )  # it follows itself
    disk.write_bytes(data)
    assert "no end" in opened(disk, "9", out, check=False).stderr
    struct.pack_into("<I", data, 446 + 12, 1 << 30)  # the first one ends far behind the disk
    struct.pack_into("<I", data, 446 + 2 * 16 + 12, 0)
    disk.write_bytes(data)
    assert "does not lie inside the disk" in opened(disk, "1", out, check=False).stderr


def test_sectors_of_4096_bytes(tmp_path: Path) -> None:
    """A GPT written by a disk of such sectors; made here, since sfdisk asks the device."""
    entry = struct.pack("<16s16sQQQ72s", b"\1" * 16, b"\2" * 16, 10, 19, 0, "data".encode("utf-16-le"))
    table = entry.ljust(128 * 128, b"\0")
    fields = (1, 255, 6, 250, b"\3" * 16, 2, 128, 128, zlib.crc32(table))
    header = struct.pack("<8sIII4sQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, bytes(4), *fields)
    header = header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]
    disk = bytearray(random.Random(3).randbytes(256 * 4096))
    disk[510:512] = b"\x55\xaa"
    disk[4096 : 4096 + len(header)] = header
    disk[2 * 4096 : 2 * 4096 + len(table)] = table
    (tmp_path / "disk").write_bytes(disk)
    opened(tmp_path / "disk", "data", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == disk[10 * 4096 : 20 * 4096]
