"""Formats with one flat table (VDI, VHD, Parallels, VHDX): blocks that are named more often than they are there."""

from __future__ import annotations

from array import array
from pathlib import Path

from diskmill_parallels.c_parallels import CLOSED, HEADER, MAGIC_EXT
from diskmill_vdi import c_vdi
from diskmill_vpc import c_vhd

from . import attack, put

SECTOR = 512
WAYS = ("one block", "two blocks", "free", "count down", "behind the end")


def entries(way: str, count: int, empty: int) -> list[int]:
    """*count* entries that name blocks 0, 1, …"""
    match way:
        case "one block":
            return [0] * count
        case "two blocks":
            return [0, 1] * (count // 2)
        case "count down":
            return list(range(count - 1, -1, -1))
        case "behind the end":
            return [0x10000000 + 7 * index for index in range(count)]
    return [empty] * count


def _vdi(path: Path, block: int, table: list[int], claimed: int, size: int = 0) -> None:
    data = (SECTOR + claimed * 4 + SECTOR - 1) // SECTOR * SECTOR
    header = c_vdi.HEADER.new(
        u32Signature=c_vdi.SIGNATURE,
        u32Version=c_vdi.VERSION,
        cbHeader=0x180,
        u32Type=c_vdi.NORMAL,
        offBlocks=SECTOR,
        offData=data,
        cbSector=SECTOR,
        cbDisk=claimed * block,
        cbBlock=block,
        cBlocks=claimed,
        cBlocksAllocated=len(set(table)),
    )
    map_ = array("I", table).tobytes()
    put(path, (0, c_vdi.HEADER.pack(header)), (SECTOR, map_), (data, b"\x5a" * 4096), size=max(size, data + 4096))


@attack("vdi/table", way=WAYS, block=(512, 1 << 31), count=(200_000,))
def vdi(path: Path, way: str, block: int, count: int) -> None:
    """Tables of some kilobytes that claim up to petabytes."""
    _vdi(path, block, entries(way, count, 0xFFFFFFFF), count)


@attack("vdi/sparse", block=(512, 1 << 20), size=(1 << 43,))
def vdi_sparse(path: Path, block: int, size: int) -> None:
    """The largest table there can be, and terabytes of data, all holes: the file has 4 KiB."""
    _vdi(path, block, [0, 0, 5], 0x1FFFFF80, size)


@attack("vpc/table", way=WAYS, block=(2 << 20,), count=(100_000,))
def vpc(path: Path, way: str, block: int, count: int) -> None:
    """VHD with all its blocks in one place."""
    size = min(count * block, 2040 << 30) // SECTOR * SECTOR
    footer = c_vhd.FOOTER.new(
        cookie=b"conectix",
        features=2,
        file_format_version=0x10000,
        data_offset=SECTOR,
        creator_application=b"win ",
        creator_version=0x60001,
        creator_host_os=b"Wi2k",
        original_size=size,
        current_size=size,
        cylinders=65535,
        heads=16,
        sectors=255,
        disk_type=3,
    )
    header = c_vhd.HEADER.new(
        cookie=b"cxsparse",
        data_offset=0xFFFFFFFFFFFFFFFF,
        table_offset=1536,
        header_version=0x10000,
        max_table_entries=count,
        block_size=block,
    )
    sealed = c_vhd.sealed(c_vhd.FOOTER, footer)
    data = (1536 + count * 4 + SECTOR - 1) // SECTOR
    named = array("I", [data + one * 8 & 0xFFFFFFFE if way != "free" else 0xFFFFFFFF for one in entries(way, count, 0)])
    named.byteswap()
    put(
        path,
        (0, sealed),
        (SECTOR, c_vhd.sealed(c_vhd.HEADER, header)),
        (1536, named.tobytes()),
        (data * SECTOR, b"\xff" * SECTOR + b"\x5a" * 65536),
        (data * SECTOR + (8 << 20), sealed),
    )


@attack("parallels/table", way=WAYS, tracks=(1, 2048), count=(200_000,))
def parallels(path: Path, way: str, tracks: int, count: int) -> None:
    """Parallels images with all clusters in one place."""
    end = HEADER.size + count * 4
    start = -(-end // (tracks * SECTOR)) * tracks
    named = [one + start // tracks if way != "free" else 0 for one in entries(way, count, 0)]
    header = HEADER.new(
        magic=MAGIC_EXT,
        version=2,
        heads=16,
        cylinders=1,
        tracks=tracks,
        nb_bat_entries=count,
        nb_sectors=count * tracks,
        in_use=CLOSED,
        data_off=start,
    )
    put(path, (0, HEADER.pack(header)), (HEADER.size, array("I", named).tobytes()), (start * SECTOR, b"\x5a" * 65536))


@attack("vhdx/table", way=("one block", "two blocks", "free", "zero"), count=(100_000,))
def vhdx(path: Path, way: str, count: int) -> None:
    """VHDX with all its payload blocks in one place."""
    from tools import qemu_img

    from .vhdx_tables import fill

    qemu_img("create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, f"{count}M")
    fill(path, way, count)
