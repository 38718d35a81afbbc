"""The images that the command lines of cases.txt name: small, made by qemu-img, of every kind that it can make."""

from __future__ import annotations

import os
import struct
import tarfile
from pathlib import Path

import diskmill
from diskmill.opening.registry import default_registry
from encoders import bochs, cloop, dmg, ewf, in_memory, sparseimage, vma
from tools import qemu_img, qemu_io

FORMATS = tuple(
    name
    for name in ("raw", "qcow2", "qcow", "qed", "vmdk", "vpc", "vdi", "vhdx", "parallels")
    if default_registry().has("diskmill.format", name)
)
"""The formats that the lines with {f} and {w} are repeated for: of those that qemu-img makes without more options, the
ones that are installed."""

ENCODERS = {"bochs": bochs, "cloop": cloop, "dmg": dmg, "ewf": ewf, "sparseimage": sparseimage, "vma": vma}
"""Of formats that are only read."""
OURS = tuple(name for name in ("sparse", "ova") if default_registry().has("diskmill.format", name))
"""Formats that qemu-img does not know, and that are written."""

DATA = ("write -P 1 0 64k", "write -P 2 1M 192k", "write -z 2560k 128k", "write -P 3 3M 4k")
MASTER = bytes(range(32))
"""The key that seals a secret, for the AES form of --object secret."""
IV = bytes(range(16))


def build(folder: Path) -> None:
    """Fill *folder*."""

    def make(name: str, format: str, size: str, *options: str, commands: tuple[str, ...] = ()) -> None:
        qemu_img("create", "-q", "-f", format, *options, name, size, cwd=folder)
        if commands:
            qemu_io(name, *commands, format=format, cwd=folder)

    def convert(name: str, *options: str, source: str = "img.raw") -> None:
        qemu_img("convert", "-f", "raw", *options, source, name, cwd=folder)

    (folder / "sub").mkdir()
    for format in FORMATS:
        make(f"img.{format}", format, "4M", commands=DATA)
    for format, encoder in ENCODERS.items():
        disk = (folder / "img.raw").read_bytes()
        (folder / f"img.{format}").write_bytes(in_memory(encoder.encode)(disk))
    for format in OURS:
        diskmill.convert([folder / "img.raw"], folder / f"img.{format}", format="raw", output_format=format)
    make("other.raw", "raw", "4M", commands=("write -P 9 0 192k",))
    make("other.qcow2", "qcow2", "4M", commands=("write -P 9 0 192k",))
    make("long.raw", "raw", "6M", commands=DATA)
    make("longdata.raw", "raw", "6M", commands=(*DATA, "write -P 5 5M 64k"))
    make("zero.raw", "raw", "4M")
    make("blank.qcow2", "qcow2", "4M")
    make("twin.raw", "raw", "4M", commands=DATA)
    (folder / "reads.ini").write_text('[inject-error]\nevent = "read_aio"\nerrno = "28"\n')
    (folder / "states.ini").write_text(
        '# the second read of sector 0 fails\n[set-state]\nevent = "read_aio"\nstate = "1"\nnew_state = "2"\n'
        '[inject-error "second"]\nevent = "read_aio"\nstate = "2"\nonce = "on"\n'
    )
    (folder / "group.ini").write_text('[inject]\nevent = "read_aio"\n')
    (folder / "key.ini").write_text('[inject-error]\nevnt = "read_aio"\n')
    (folder / "event.ini").write_text('[inject-error]\nevent = "nothing"\n')
    (folder / "odd.raw").write_bytes(bytes(range(250)) * 4)
    (folder / "empty.raw").touch()
    make("base.qcow2", "qcow2", "4M", commands=DATA)
    make("sub/base.qcow2", "qcow2", "4M", commands=DATA)
    overlay = ("write -P 7 512k 64k", "write -z 1M 64k", "write -P 8 3968k 128k")
    for name, base, kind in (
        ("over.qcow2", "base.qcow2", "qcow2"),
        ("top.qcow2", "over.qcow2", "qcow2"),
        ("rawover.qcow2", "img.raw", "raw"),
        ("sub/rel.qcow2", "../base.qcow2", "qcow2"),
    ):
        make(name, "qcow2", "4M", "-b", base, "-F", kind)
        qemu_io(name, *(overlay if name != "top.qcow2" else ("write -P 6 2M 64k",)), cwd=folder)
    make("v2over.qcow2", "qcow2", "4M", "-o", "compat=0.10", "-b", "base.qcow2", "-F", "qcow2", commands=overlay[:1])
    make("shortbase.qcow2", "qcow2", "2M", commands=("write -P 4 0 128k",))
    make("short.qcow2", "qcow2", "4M", "-b", "shortbase.qcow2", "-F", "qcow2", commands=("write -P 5 1M 64k",))
    make("lost.qcow2", "qcow2", "4M", "-u", "-b", "gone.qcow2", "-F", "qcow2")
    make("loop.qcow2", "qcow2", "4M", "-b", "base.qcow2", "-F", "qcow2")
    qemu_img("rebase", "-u", "-b", "loop.qcow2", "-F", "qcow2", "loop.qcow2", cwd=folder)
    make("v2.qcow2", "qcow2", "4M", "-o", "compat=0.10", commands=DATA[:2])
    make("lazy.qcow2", "qcow2", "4M", "-o", "lazy_refcounts=on", commands=DATA)
    make("subclusters.qcow2", "qcow2", "4M", "-o", "extended_l2=on", commands=DATA)
    make("prealloc.qcow2", "qcow2", "4M", "-o", "preallocation=metadata", commands=DATA[:1])
    make("datafile.qcow2", "qcow2", "4M", "-o", "data_file=datafile.data", commands=DATA)
    make("snap.qcow2", "qcow2", "4M", commands=DATA[:1])
    qemu_img("snapshot", "-c", "s1", "snap.qcow2", cwd=folder)
    qemu_io("snap.qcow2", *DATA[1:], cwd=folder)
    qemu_img("snapshot", "-c", "s2", "snap.qcow2", cwd=folder)
    qemu_io("snap.qcow2", "write -P 4 0 128k", cwd=folder)
    make("umlaut.qcow2", "qcow2", "1M")
    qemu_img("snapshot", "-c", "grün 日本", "umlaut.qcow2", cwd=folder)
    make("bitmaps.qcow2", "qcow2", "4M")
    qemu_img("bitmap", "--add", "-g", "64k", "bitmaps.qcow2", "one", cwd=folder)
    qemu_io("bitmaps.qcow2", *DATA, cwd=folder)
    qemu_img("bitmap", "--add", "--disable", "-g", "32k", "bitmaps.qcow2", "two", cwd=folder)
    convert("comp.qcow2", "-c", "-O", "qcow2")
    convert("zstd.qcow2", "-c", "-O", "qcow2", "-o", "compression_type=zstd")
    convert("flat.vmdk", "-O", "vmdk", "-o", "subformat=monolithicFlat")
    convert("stream.vmdk", "-O", "vmdk", "-o", "subformat=streamOptimized")
    make("pieces.vmdk", "vmdk", "4M", "-o", "subformat=twoGbMaxExtentSparse")
    (folder / "gone.vmdk").write_bytes((folder / "flat.vmdk").read_bytes().replace(b"flat-flat", b"gone-gone"))
    convert("fixed.vpc", "-O", "vpc", "-o", "subformat=fixed")
    convert("static.vdi", "-O", "vdi", "-o", "static=on")
    secret = ("--object", "secret,id=s,data=letmein")
    convert("enc.luks", *secret, "-O", "luks", "-o", "key-secret=s,iter-time=10")
    encrypted = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    convert("enc.qcow2", *secret, "-O", "qcow2", "-o", encrypted)
    (folder / "letmein.txt").write_text("letmein")
    (folder / "master.txt").write_text(base64_of(MASTER))
    with tarfile.open(folder / "disk.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        entry = tarfile.TarInfo("disk.img")
        entry.size = 1 << 20
        with (folder / "longdata.raw").open("rb") as file:
            file.seek(1 << 20)
            archive.addfile(entry, file)
    damage(folder)


def damage(folder: Path) -> None:
    """Images that are not as they should be."""
    whole = (folder / "img.qcow2").read_bytes()
    (folder / "truncated.qcow2").write_bytes(whole[:60])
    big = bytearray(whole)
    struct.pack_into(">I", big, 36, 0x80000000)  # l1_size
    (folder / "bigl1.qcow2").write_bytes(big)
    overlay = (folder / "over.qcow2").read_bytes()  # the header extension that names the format, made an unknown one
    (folder / "noformat.qcow2").write_bytes(overlay.replace(struct.pack(">I", 0xE2792ACA), struct.pack(">I", 1), 1))
    table = struct.unpack_from(">Q", whole, 48)[0]
    block = struct.unpack_from(">Q", whole, table)[0]
    leaked = bytearray(whole) + bytes(65536)
    struct.pack_into(">H", leaked, block + 2 * (len(whole) // 65536), 1)
    (folder / "leaked.qcow2").write_bytes(leaked)
    corrupt = bytearray(whole)
    unreadable = bytearray((folder / "comp.qcow2").read_bytes())  # the payload of its first compressed cluster
    tables = struct.unpack_from(">Q", unreadable, struct.unpack_from(">Q", unreadable, 40)[0])[0] & 0x00FFFFFFFFFFFE00
    payload = struct.unpack_from(">Q", unreadable, tables)[0] & ((1 << 54) - 1)
    unreadable[payload : payload + 16] = b"\xff" * 16
    (folder / "unreadable.qcow2").write_bytes(unreadable)
    l1 = struct.unpack_from(">Q", whole, 40)[0]
    l2 = struct.unpack_from(">Q", whole, l1)[0] & 0x00FFFFFFFFFFFE00
    data = struct.unpack_from(">Q", whole, l2)[0] & 0x00FFFFFFFFFFFE00
    struct.pack_into(">H", corrupt, block + 2 * (data // 65536), 0)
    (folder / "corrupt.qcow2").write_bytes(corrupt)
    behind = bytearray(whole)
    struct.pack_into(">Q", behind, l2, (1 << 63) | (1 << 40))
    (folder / "behind.qcow2").write_bytes(behind)
    (folder / "head.qed").write_bytes((folder / "img.qed").read_bytes()[:65536])
    vhd = bytearray((folder / "img.vpc").read_bytes())  # of a creator that rounds its geometry down
    for place in (0, len(vhd) - 512):
        vhd[place + 28 : place + 32] = b"SIMH"
        struct.pack_into(">HBBI", vhd, place + 56, 1, 4, 17, 3)
        struct.pack_into(">II", vhd, place + 60, 3, 0)
        struct.pack_into(">I", vhd, place + 64, ~sum(vhd[place : place + 512]) & 0xFFFFFFFF)
    (folder / "rounded.vpc").write_bytes(vhd)
    for format, at, mark in (("qed", 16, 2), ("vmdk", 72, 1)):  # QED_F_NEED_CHECK and uncleanShutdown
        if format in FORMATS:
            marked = bytearray((folder / f"img.{format}").read_bytes())
            marked[at] |= mark
            (folder / f"unclean.{format}").write_bytes(marked)
    vhd = bytearray((folder / "img.vpc").read_bytes())
    vhd[70] ^= 1  # its checksum, in both copies
    vhd[len(vhd) - 442] ^= 1
    (folder / "checksum.vpc").write_bytes(vhd)
    qemu_img("create", "-q", "-f", "qcow2", "resized.qcow2", "2M", cwd=folder)
    qemu_img("snapshot", "-c", "large", "resized.qcow2", cwd=folder)
    qemu_img("resize", "-q", "-f", "qcow2", "resized.qcow2", "3M", cwd=folder)
    qemu_img("create", "-q", "-f", "qcow2", "shrunk.qcow2", "1536", cwd=folder)
    qemu_io(folder / "shrunk.qcow2", "write -P 2 0 1536", format="qcow2")
    qemu_img("resize", "-q", "-f", "qcow2", "--shrink", "shrunk.qcow2", "512", cwd=folder)


def base64_of(data: bytes) -> str:
    """As ``format=base64`` wants it."""
    import base64

    return base64.b64encode(data).decode()


def sealed() -> str:
    """The passphrase of the encrypted images, sealed with :data:`MASTER`."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import CBC

    plain = b"letmein"
    padding = 16 - len(plain) % 16
    encryptor = Cipher(AES(MASTER), CBC(IV)).encryptor()
    return base64_of(encryptor.update(plain + bytes([padding]) * padding) + encryptor.finalize())


STANDS_ON = {
    "over.qcow2": ("base.qcow2", "other.qcow2"),
    "v2over.qcow2": ("base.qcow2",),
    "noformat.qcow2": ("base.qcow2",),
    "lost.qcow2": ("base.qcow2",),
    "top.qcow2": ("over.qcow2", "base.qcow2"),
    "rawover.qcow2": ("img.raw",),
    "short.qcow2": ("shortbase.qcow2",),
    "sub/rel.qcow2": ("base.qcow2",),
    "sub/new": ("sub/base.qcow2",),
    "datafile.qcow2": ("datafile.data",),
    "flat.vmdk": ("flat-flat.vmdk",),
}
"""Files that an image needs, and that a line need not name."""


def copy(source: Path, target: Path, line: str) -> None:
    """The files of *source* that *line* needs, holes included."""
    target.mkdir()
    (target / "sub").mkdir()
    for entry in sorted(source.rglob("*")):
        name = str(entry.relative_to(source))
        needed = name in line or any(name in files for image, files in STANDS_ON.items() if image in line)
        if entry.is_dir() or not needed:
            continue
        place = target / name
        with entry.open("rb") as old, place.open("wb") as new:
            os.truncate(new.fileno(), entry.stat().st_size)
            for start, end in _stretches(old.fileno(), entry.stat().st_size):
                os.pwrite(new.fileno(), os.pread(old.fileno(), end - start, start), start)


def _stretches(fd: int, size: int) -> list[tuple[int, int]]:
    found = []
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        found.append((start, at))
    return found
