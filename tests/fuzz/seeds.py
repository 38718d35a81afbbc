"""What the fuzzer starts from: small images in each layout of each format, and the files that lie beside them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

import diskmill.commands.bitmap
import diskmill.commands.convert
import diskmill.commands.snapshot
import esx
import vhdx_samples
from diskmill.sizes import KiB, MiB
from diskmill_testkit.traits import made_by
from encoders import bochs, cloop, dmg, in_memory
from formats import FORMATS, Machine, subformats
from twins import Content

from .mutant import Mutant

DISK = 256 * KiB
MORE = {
    "qcow2": (
        {"compat": "0.10", "cluster_size": 512},
        {"extended_l2": True, "cluster_size": 16 * KiB},
        {"refcount_bits": 1, "cluster_size": 4 * KiB},
        {"refcount_bits": 64, "lazy_refcounts": True},
        {"data_file": "memory:data", "data_file_raw": True},
        {"encrypt.format": "luks", "encrypt.cipher-alg": "aes-128"},
        {"encrypt.format": "aes"},
    ),
    "qcow": ({"encryption": True},),
    "qed": ({"cluster_size": 4 * KiB, "table_size": 2},),
    "vdi": ({"static": True},),
    "vhdx": ({"block_size": MiB, "log_size": MiB},),
    "vmdk": ({"zeroed_grain": True},),
    "parallels": ({"cluster_size": 4 * KiB},),
    "luks": ({"version": "2", "pbkdf": "pbkdf2"}, {"version": "2"}),
}
"""Options that a seed is made with, besides the layouts."""
XML = b"""<?xml version='1.0' encoding='UTF-8'?>
<Parallels_disk_image Version="1.0">
<Disk_Parameters><Disk_size>512</Disk_size><Padding>0</Padding></Disk_Parameters>
<StorageData><Storage><Start>0</Start><End>512</End><Blocksize>2048</Blocksize>
<Image><GUID>{1}</GUID><Type>Plain</Type><File>raw</File></Image>
<Image><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID><Type>Compressed</Type><File>beside</File></Image>
</Storage></StorageData>
<Snapshots><Shot><GUID>{1}</GUID><ParentGUID>{00000000-0000-0000-0000-000000000000}</ParentGUID></Shot>
<Shot><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID><ParentGUID>{1}</ParentGUID></Shot></Snapshots>
</Parallels_disk_image>
"""


def disk() -> bytes:
    """A disk with a little in a few places: what it holds does not matter, only that it is there."""
    data = bytearray(DISK)
    for at, length in ((0, 600), (70_000, 40), (131_072, 512), (200_000, 9), (DISK - 512, 512)):
        data[at : at + length] = b"text%d" % at * (length // 9) + b"." * (length - length // 9 * len(b"text%d" % at))
    return bytes(data[:DISK])


def seeds(machine: Machine, format: str) -> Iterator[Content]:
    """Images of *format*. What they refer to is left in *machine*."""
    machine.put("raw", disk())
    maker = {"bochs": _bochs, "cloop": _cloop, "dmg": _dmg}.get(format)
    if maker is not None:
        yield from map(Content, maker())
        return
    encoders = made_by(format)
    if encoders:
        yield from (Content(make(disk())[0]) for make in encoders.values())
        return
    choices = [one.values[1] for one in subformats("create") if one.values[0] == format] or [{}]
    for number, options in enumerate((*choices, *MORE.get(format, ()))):
        yield _made(machine, f"seed{number}", format, options)
    if "compression" in FORMATS[format].capabilities and format != "vmdk":  # which has a layout for it
        for options in ({"compression_type": "zstd"}, {}) if format == "qcow2" else ({},):
            yield _made(machine, "packed", format, options, compress=True)
    if "backing" in FORMATS[format].capabilities:
        machine.create("base", format, DISK)
        machine.create("over", format, DISK, backing=machine.backing("base", format))
        with machine.open("over", format, writable=True) as image:
            image.write(5000, b"above")
        yield machine.files["over"]
    if format == "qcow2":
        content = _made(machine, "full", format, {"cluster_size": 4 * KiB})
        diskmill.commands.snapshot.snapshot("memory:full", "create", "one", context=machine.context)
        diskmill.commands.bitmap.bitmap("memory:full", "marks", [("add", "")], context=machine.context)
        yield content
    elif format == "vmdk":
        yield Content(esx.cowd(DISK // 512, {0: b"a" * 512, 5: b"b" * 512}))
        yield Content(esx.sesparse(DISK // 512, {0: b"a" * 4096, 5: None, 9: b"c" * 4096}))
    elif format == "parallels":
        machine.files["beside"] = _made(machine, "beside", format, {})
        yield Content(XML)
    elif format == "vhdx":
        yield from map(Content, _vhdx(bytes(machine.files["seed0"])))


def _made(machine: Machine, name: str, format: str, options: dict[str, object], *, compress: bool = False) -> Content:
    diskmill.commands.convert.convert(
        ["memory:raw"],
        f"memory:{name}",
        format="raw",
        output_format=format,
        options=machine.options(format, options),
        compress=compress,
        context=machine.context,
    )
    content = machine.files[name]
    if format == "luks" or any(name.startswith("encrypt") for name in options):
        mutant = Mutant.of(content)  # of random bytes that nobody looks at a few will do
        mutant.pieces = [(at, data[:4096] if len(data) > 16384 else data) for at, data in mutant.pieces]
        content = mutant.content()
    return content


def _bochs() -> Iterator[bytes]:
    for version in (1, 2):
        yield in_memory(bochs.encode, extent=4096, version=version, seed=1)(disk())


def _cloop() -> Iterator[bytes]:
    for block in (4096, 64 * KiB):
        yield in_memory(cloop.encode, block=block)(disk())


def _dmg() -> Iterator[bytes]:
    for name in ("zlib", "every type", "resource fork", "trailer first"):
        yield dmg.VARIANTS[name](disk())


def _vhdx(plain: bytes) -> Iterator[bytes]:
    """One with a log to replay, and one with a parent."""
    data, name = bytearray(plain), bytes(range(16))
    updates = [*vhdx_samples.with_entries(plain, {0: 6}), (4 * MiB, 4096)]
    vhdx_samples.put_in_log(data, 0, vhdx_samples.entry(name, 1, 0, updates, flushed=len(plain), last=len(plain)))
    vhdx_samples.announce(data, name)
    yield bytes(data)


def seal(format: str, content: Content) -> None:
    """Give the structures of *content* the checksums that they should have."""
    if format == "vhdx":
        _seal_vhdx(content)
    elif format == "vpc":
        for at, length, place in ((0, 512, 64), (512, 1024, 36), (content.size - 512, 512, 64)):
            if at >= 0 and at + length <= content.size:
                structure = content.read(at, length)
                structure[place : place + 4] = bytes(4)
                content.write(at + place, struct.pack(">I", ~sum(structure) & 0xFFFFFFFF))
    elif format == "luks" and content.read(0, 8) == b"LUKS\xba\xbe\0\2":
        (length,) = struct.unpack(">Q", content.read(8, 8))
        for at in (0, length):
            if length <= 4 * MiB and at + length <= content.size:
                structure = content.read(at, length)
                structure[448:512] = bytes(64)
                content.write(at + 448, hashlib.sha256(structure).digest().ljust(64, b"\0"))


def _seal_vhdx(content: Content) -> None:
    structures = [*((at, 4096) for at in vhdx_samples.HEADERS), *((at, 65536) for at in vhdx_samples.REGION_TABLES)]
    for header in vhdx_samples.HEADERS:
        length, offset = struct.unpack("<IQ", content.read(header + 68, 12))
        if 0 < offset < content.size and offset % 4096 == 0:
            (entry,) = struct.unpack("<I", content.read(offset + 8, 4))
            if content.read(offset, 4) == b"loge" and 0 < entry <= min(length, MiB):
                structures.append((offset, entry))
    for at, length in structures:
        if at + length <= content.size:
            structure = content.read(at, length)
            vhdx_samples.seal(structure, 0, length)
            content.write(at, structure)
