"""Images on images: long chains, and chains of large tables."""

from __future__ import annotations

from array import array
from pathlib import Path

from diskmill_parallels.c_parallels import CLOSED, HEADER, MAGIC_EXT

from . import attack, put
from .qcow2 import header, words

SECTOR = 512


def overlay(path: Path, *, bits: int, size: int, entries: int, backing: str, tail: int = 0) -> None:
    """An empty qcow2 on *backing*."""
    name = backing.encode()
    cluster = 1 << bits
    head = header(
        bits=bits,
        size=size,
        l1_size=entries,
        l1=4 * cluster,
        backing_file_offset=256 if name else 0,
        backing_file_size=len(name),
    )
    kind = b"\xe2\x79\x2a\xca\0\0\0\5qcow2\0\0\0" if name else b""
    put(path, (0, head + kind), (256, name), size=4 * cluster + entries * 8 + tail)


@attack("chains/large L1", count=(300,), content=("holes", "entries"))
def large_l1(path: Path, count: int, content: str) -> None:
    """A chain of images that each have an L1 table of 32 MiB, all holes or with some entries."""
    entries = 1 << 22
    for number in range(count):
        here = path if not number else path.with_name(f"base{number}")
        below = f"base{number + 1}" if number + 1 < count else ""
        overlay(here, bits=16, size=entries << 29 >> 1, entries=entries, backing=below, tail=65536)
        if content == "entries":
            table = 4 * 65536 + entries * 8
            with here.open("r+b") as file:
                file.seek(4 * 65536 + number * 4096)
                file.write(words(array("Q", [table | 1 << 63])))


@attack("chains/overlays", count=(300, 900, 1500))
def overlays(path: Path, count: int) -> None:
    """A chain of small, empty overlays; the last one is longer than the limit."""
    for number in range(count):
        here = path if not number else path.with_name(f"base{number}")
        overlay(here, bits=16, size=1 << 30, entries=2, backing=f"base{number + 1}" if number + 1 < count else "")


@attack("chains/taking turns", count=(300,))
def turns(path: Path, count: int) -> None:
    """A chain in which each image leaves every other cluster to the next one."""
    for number in range(count):
        here = path if not number else path.with_name(f"base{number}")
        below = f"base{number + 1}" if number + 1 < count else ""
        overlay(here, bits=16, size=1 << 29, entries=1, backing=below)
        with here.open("r+b") as file:
            file.seek(4 << 16)
            file.write(words(array("Q", [5 << 16 | 1 << 63])))
            file.seek(5 << 16)
            file.write(words(array("Q", [0, 1] * 4096)))


@attack("chains/parallels bundle", count=(350, 999), clusters=(4096,))
def bundle(path: Path, count: int, clusters: int) -> None:
    """A Parallels bundle of many images, each of which stands on the next one."""
    tracks = 2048
    ids = [f"{{{number:08x}-0000-0000-0000-000000000001}}" for number in range(count)]
    for number in range(count):
        start = -(-(HEADER.size + clusters * 4) // SECTOR)
        record = HEADER.new(
            magic=MAGIC_EXT,
            version=2,
            heads=16,
            cylinders=1,
            tracks=tracks,
            nb_bat_entries=clusters,
            nb_sectors=clusters * tracks,
            in_use=CLOSED,
            data_off=start,
        )
        put(path.with_name(f"image{number}.hds"), (0, HEADER.pack(record)), size=start * SECTOR)
    none = "{00000000-0000-0000-0000-000000000000}"
    images = "".join(
        f"<Image><GUID>{key}</GUID><Type>Compressed</Type><File>image{number}.hds</File></Image>"
        for number, key in enumerate(ids)
    )
    shots = "".join(
        f"<Shot><GUID>{key}</GUID><ParentGUID>{below}</ParentGUID></Shot>"
        for key, below in zip(ids, [*ids[1:], none], strict=True)
    )
    size = clusters * tracks
    path.write_text(
        f"<?xml version='1.0' encoding='UTF-8'?><Parallels_disk_image Version='1.0'><Disk_Parameters>"
        f"<Disk_size>{size}</Disk_size><Padding>0</Padding></Disk_Parameters><StorageData><Storage><Start>0</Start>"
        f"<End>{size}</End><Blocksize>{tracks}</Blocksize>{images}</Storage></StorageData>"
        f"<Snapshots><TopGUID>{ids[0]}</TopGUID>{shots}</Snapshots></Parallels_disk_image>"
    )
