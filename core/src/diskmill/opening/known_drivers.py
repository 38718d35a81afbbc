"""Drivers that exist but need not be installed: how to recognise their images, and what to install.

It lets the core say "install diskmill-qcow2" instead of "unknown format", warn that what looks like raw data is not,
and ask the likely driver first. A format that is not listed loses nothing but that.
"""

from __future__ import annotations

import os
import sys

PACKAGES = {
    "qcow2": "diskmill-qcow2",
    "vmdk": "diskmill-vmdk",
    "luks": "diskmill-luks",
    "aes": "diskmill-luks",
    "vdi": "diskmill-vdi",
    "vpc": "diskmill-vpc",
    "vhdx": "diskmill-vhdx",
    "qcow": "diskmill-qcow",
    "qed": "diskmill-qed",
    "parallels": "diskmill-parallels",
    "dmg": "diskmill-dmg",
    "cloop": "diskmill-cloop",
    "bochs": "diskmill-bochs",
    **dict.fromkeys(("nbd", "nbds", "nbd+unix", "nbds+unix", "nbd+vsock", "nbds+vsock"), "diskmill-nbd"),
    "sparse": "diskmill-sparse",
    "ewf": "diskmill-ewf",
    "sparseimage": "diskmill-sparseimage",
    "vma": "diskmill-vma",
    "ova": "diskmill-ova",
    "nfs": "diskmill-nfs",
    "iscsi": "diskmill-iscsi",
    "rbd": "diskmill-rbd",
    "ssh": "diskmill-ssh",
    "sftp": "diskmill-ssh",
    **dict.fromkeys(
        (
            "blkdebug",
            "blklogwrites",
            "blkverify",
            "compress",
            "copy-on-read",
            "null-aio",
            "null-co",
            "vvfat",
            "preallocate",
            "quorum",
            "throttle",
        ),
        "diskmill-filters",
    ),
    "http": "diskmill-http",
    "https": "diskmill-http",
    "ftp": "diskmill-http",
    "ftps": "diskmill-http",
    **dict.fromkeys(("s3", "gs", "az"), "diskmill-object"),
    "oci": "diskmill-oci",
    "fsspec": "diskmill-fsspec",
}
"""Driver name, or prefix of names that a driver has → the distribution that brings it."""


def how_to_install(package: str) -> str:
    """What one does to have *package*, as a phrase. In a clone of the project it is there to be installed from."""
    clone = os.path.abspath(__file__)
    for _ in range(5):  # core/src/diskmill/opening/known_drivers.py
        clone = os.path.dirname(clone)
    folder = os.path.join(clone, "plugins", package.removeprefix("diskmill-"))
    if os.path.isfile(os.path.join(folder, "pyproject.toml")):
        return f"install the package {package}: {sys.executable} -m pip install {folder}"
    return f"install the package {package}: pip install {package}"


_DEVICES = ("host_device", "host_cdrom")
ALIASES = {
    **{("diskmill.format", name): "raw" for name in ("file", *_DEVICES)},
    **{("diskmill.protocol", name): "file" for name in _DEVICES},
}
"""Names of (group, driver) that QEMU's users write → what the driver is called here: a protocol alone is its bytes."""

_MAGICS = (
    ("qcow2", 0, b"QFI\xfb\x00\x00\x00\x02"),
    ("qcow2", 0, b"QFI\xfb\x00\x00\x00\x03"),
    ("qcow", 0, b"QFI\xfb\x00\x00\x00\x01"),
    ("vmdk", 0, b"KDMV"),
    ("vmdk", 0, b"COWD"),
    ("vmdk", 0, b"# Disk DescriptorFile"),
    ("luks", 0, b"LUKS\xba\xbe"),
    ("vdi", 64, b"\x7f\x10\xda\xbe"),
    ("vpc", 0, b"conectix"),
    ("vhdx", 0, b"vhdxfile"),
    ("qed", 0, b"QED\x00"),
    ("parallels", 0, b"WithoutFreeSpace"),
    ("parallels", 0, b"WithouFreSpacExt"),
    ("bochs", 0, b"Bochs Virtual HD Image"),
    ("cloop", 0, b"#!/bin/sh\n#V2.0 Format\n"),
    ("sparse", 0, b"\x3a\xff\x26\xed"),
    ("ewf", 0, b"EVF\x09\x0d\x0a\xff\0"),
    ("sparseimage", 0, b"sprs"),
    ("vma", 0, b"VMA\0"),
    ("ova", 257, b"ustar"),
)


BUNDLES = ("DiskDescriptor.xml", "Info.plist")
"""Files that describe the disk of the folder that they are in: Parallels' bundles, Apple's sparse bundles."""

_SUFFIXES = {".dmg": "dmg"}
"""Formats that nothing at the start of the file tells."""


_NO_DISKS = (
    ("gzip data", 0, b"\x1f\x8b\x08"),
    ("xz data", 0, b"\xfd7zXZ\0"),
    ("zstd data", 0, b"\x28\xb5\x2f\xfd"),
    ("bzip2 data", 0, b"BZh"),
    ("a zip archive", 0, b"PK\3\4"),
    ("an Expert Witness (EWF) image", 0, b"EVF2\x0d\x0a\x81\0"),
)
"""What holds disks, or is made of them, and is none."""


def named_after(filename: str) -> str | None:
    """The format that the suffix of *filename* stands for; None: none that is known here."""
    suffix = os.path.splitext(filename)[1][1:].lower()
    return {"vhd": "vpc", "hdd": "parallels"}.get(suffix, suffix if suffix in PACKAGES else None)


def no_disk(data: bytes, filename: str = "") -> str | None:
    """What a file beginning with *data* is, in words, if that is known to be no disk."""
    if filename.endswith(".vmdk") and filename[-10:-8] == "-f" and filename[-8:-5].isdigit():
        return "one piece of a VMDK disk in several"  # a flat one: it has no header
    for what, offset, magic in _NO_DISKS:
        if data.startswith(magic, offset) and (magic != b"BZh" or data[4:10] in _BZIP2):
            return what
    return None


_BZIP2 = (b"1AY&SY", b"\x17rE8P\x90")
"""Behind bzip2's magic and block size: the first block, or the end of an empty file."""


def recognise(data: bytes, filename: str = "") -> str | None:
    """The name of the format that an image beginning with *data* seems to have; None: none that is known here."""
    for name, offset, magic in _MAGICS:
        if data.startswith(magic, offset):
            return name
    return next((name for suffix, name in _SUFFIXES.items() if filename.endswith(suffix)), None)
