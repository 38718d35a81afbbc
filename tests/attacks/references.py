"""Images that name other files: what nobody may open, what never ends, what is no name at all.

A file ``outside`` lies beside the folder of each image. No name of an image's may lead there, nor to another machine,
nor have a program run.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Callable
from pathlib import Path

from diskmill_qcow import c_qcow
from diskmill_qcow2 import c_qcow2
from diskmill_qed import c_qed
from diskmill_vpc import c_vhd

from . import attack, put
from .qcow2 import header

SECTOR = 512
NAMES: dict[str, bytes] = {
    "parent": b"../outside",
    "absolute": b"/etc/passwd",
    "link": b"link",
    "link in the middle": b"up/outside",
    "pipe": b"pipe",
    "json": b'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}',
    "NUL": b"a\0b",
    "surrogate": b"\xed\xa0\x80",
    "itself": b"image",
    "device": b"/dev/zero",
    "link to a device": b"zero",
    "socket": b"nbd+unix:///x?socket=../socket",
    "descriptor": b"/proc/self/fd/0",
    "protocol": b"file:../outside",
    "escape": b"\x1b[2J\r\nforged: line",
    "folder": b".",
    "long": b"n" * 1023,
    "http": b"http://127.0.0.1:9/outside",
    "s3": b"s3://bucket/outside",
    "ssh": b"ssh://-oProxyCommand=id/outside",
    "nbd": b"nbd://127.0.0.1:9/outside",
    "oci": b"oci://127.0.0.1:9/outside:1",
    "gs": b"gs://bucket/outside",
    "az": b"az://bucket/outside",
    "ftp": b"ftp://127.0.0.1:9/outside",
    "nfs": b"nfs://127.0.0.1/outside/disk",
    "iscsi": b"iscsi://127.0.0.1:9/iqn.2026-11.outside/0",
    "rbd": b"rbd:outside/disk:mon_host=127.0.0.1",
    "fsspec": b"fsspec+http://127.0.0.1:9/outside",
}
ELSEWHERE = ("http", "s3", "ssh", "nbd", "oci")
"""Those that a program which trusts images connects for, or runs another one."""
FEW = ("parent", "absolute", "link", "link in the middle", "pipe", "json", "NUL", "surrogate", "itself", *ELSEWHERE)


def beside(path: Path) -> None:
    """What the names lead to."""
    put(path.parent.parent / "outside", (0, b"secret"), size=65536)
    for link, target in (("link", "../outside"), ("up", ".."), ("zero", "/dev/zero")):
        os.symlink(target, path.with_name(link))
    os.mkfifo(path.with_name("pipe"))


def named(*names: str) -> Callable[[Callable[[Path, bytes], None]], Callable[..., None]]:
    """Put the decorated function, which is given a path and a name, into the corpus with each of *names*."""

    def add(write: Callable[[Path, bytes], None]) -> Callable[..., None]:
        def made(path: Path, of: str) -> None:
            beside(path)
            write(path, NAMES[of])

        made.__module__ = __name__
        kind = write.__name__.strip("_").replace("_", " ")
        return attack(f"references/{kind}", of=names)(made)

    return add


@named(*NAMES)
def _qcow2_backing(path: Path, name: bytes) -> None:
    kind = b"\xe2\x79\x2a\xca\0\0\0\3raw\0\0\0\0\0"
    head = header(bits=16, size=65536, l1_size=1, l1=3 << 16, backing_file_offset=4096, backing_file_size=len(name))
    put(path, (0, head + kind), (4096, name), size=4 << 16)


@named(*FEW)
def _qcow2_backing_without_format(path: Path, name: bytes) -> None:
    head = header(bits=16, size=65536, l1_size=1, l1=3 << 16, backing_file_offset=4096, backing_file_size=len(name))
    put(path, (0, head), (4096, name), size=4 << 16)


@named(*NAMES)
def _qcow2_data_file(path: Path, name: bytes) -> None:
    feature = c_qcow2.EXTERNAL_DATA_FILE
    extension = struct.pack(">II", c_qcow2.EXT_DATA_FILE, len(name)) + name.ljust(-(-len(name) // 8) * 8, b"\0")
    head = header(bits=16, size=65536, l1_size=1, l1=3 << 16, features=feature)
    l1, l2 = (array("Q", [value]) for value in (4 << 16 | 1 << 63, 1 << 63))
    for table in (l1, l2):
        table.byteswap()
    put(path, (0, head + extension), (3 << 16, l1.tobytes()), (4 << 16, l2.tobytes()), size=5 << 16)


@named(*FEW)
def _qed_backing(path: Path, name: bytes) -> None:
    record = c_qed.HEADER.new(
        magic=b"QED\0",
        cluster_size=65536,
        table_size=4,
        header_size=1,
        features=1 | 4,
        l1_table_offset=65536,
        image_size=65536,
        backing_filename_offset=4096,
        backing_filename_size=len(name),
    )
    put(path, (0, c_qed.HEADER.pack(record)), (4096, name), size=5 * 65536)


@named(*FEW)
def _qcow_backing(path: Path, name: bytes) -> None:
    record = c_qcow.HEADER.new(
        magic=b"QFI\xfb",
        version=1,
        backing_file_offset=4096,
        backing_file_size=len(name),
        size=65536,
        cluster_bits=12,
        l2_bits=9,
        l1_table_offset=64,
    )
    put(path, (0, c_qcow.HEADER.pack(record)), (4096, name), size=8192)


def _descriptor(path: Path, text: bytes, kind: bytes, more: bytes = b"") -> None:
    head = b"# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=" + (b"00000001" if more else b"ffffffff")
    path.write_bytes(head + b'\ncreateType="' + kind + b'"\n' + more + text)


@named(*FEW, "device", "descriptor")
def _vmdk_flat_extent(path: Path, name: bytes) -> None:
    _descriptor(path, b'RW 8 FLAT "' + name + b'" 0\n', b"monolithicFlat")


@named(*FEW)
def _vmdk_sparse_extent(path: Path, name: bytes) -> None:
    _descriptor(path, b'RW 128 SPARSE "' + name + b'"\n', b"twoGbMaxExtentSparse")


@named(*FEW)
def _vmdk_parent(path: Path, name: bytes) -> None:
    _descriptor(path, b'RW 8 FLAT "flat" 0\n', b"monolithicFlat", b'parentFileNameHint="' + name + b'"\n')
    put(path.with_name("flat"), size=4096)


@named(*FEW)
def _parallels_image(path: Path, name: bytes) -> None:
    text = name.replace(b"&", b"&amp;").replace(b"\0", b"&#0;")
    key = b"{5fbaabe3-6958-40ff-92a7-860e329aab41}"
    path.write_bytes(
        b"<?xml version='1.0' encoding='UTF-8'?><Parallels_disk_image Version='1.0'><Disk_Parameters>"
        b"<Disk_size>2048</Disk_size><Padding>0</Padding></Disk_Parameters><StorageData><Storage><Start>0</Start>"
        b"<End>2048</End><Blocksize>2048</Blocksize><Image><GUID>" + key + b"</GUID><Type>Compressed</Type><File>"
        b"" + text + b"</File></Image></Storage></StorageData><Snapshots><TopGUID>" + key + b"</TopGUID><Shot><GUID>"
        b"" + key + b"</GUID><ParentGUID>{00000000-0000-0000-0000-000000000000}</ParentGUID></Shot></Snapshots>"
        b"</Parallels_disk_image>"
    )


@named(*FEW)
def _vpc_parent(path: Path, name: bytes) -> None:
    footer = c_vhd.FOOTER.new(
        cookie=b"conectix",
        features=2,
        file_format_version=0x10000,
        data_offset=SECTOR,
        creator_application=b"win ",
        creator_host_os=b"Wi2k",
        original_size=2 << 20,
        current_size=2 << 20,
        cylinders=60,
        heads=4,
        sectors=17,
        disk_type=4,
    )
    wide = name.decode("latin-1").encode("utf-16-le") if b"\xed" not in name else b"\0\xd8"
    place = 1024 + 512 + 512
    record = c_vhd.LOCATOR.new(
        platform_code=b"W2ru",
        platform_data_space=SECTOR,
        platform_data_length=len(wide),
        platform_data_offset=place,
    )
    head = c_vhd.HEADER.new(
        cookie=b"cxsparse",
        data_offset=0xFFFFFFFFFFFFFFFF,
        table_offset=1536,
        header_version=0x10000,
        max_table_entries=1,
        block_size=2 << 20,
        parent_unicode_name="outside".encode("utf-16-be"),
        parent_locators=c_vhd.LOCATOR.pack(record),
    )
    sealed = c_vhd.sealed(c_vhd.FOOTER, footer)
    end = place + -(-len(wide) // SECTOR) * SECTOR
    put(
        path,
        (0, sealed),
        (SECTOR, c_vhd.sealed(c_vhd.HEADER, head)),
        (1536, b"\xff" * SECTOR),
        (place, wide),
        (end, sealed),
    )


@named(*FEW)
def _vhdx_parent(path: Path, name: bytes) -> None:
    from tools import qemu_img
    from vhdx_samples import differencing

    qemu_img("create", "-q", "-f", "vhdx", "-o", "block_size=1M", path, "2M")
    plain = path.read_bytes()
    text = name.decode("latin-1") if b"\xed" not in name else "\U00010000"
    path.write_bytes(differencing(bytearray(plain), plain, {"relative_path": text}, {}))
