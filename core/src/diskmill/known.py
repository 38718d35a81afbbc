"""Drivers that exist but need not be installed: how to recognise their images, and what to install.

It lets the core say "install diskmill-qcow2" instead of "unknown format", warn that what looks like raw data is not,
and ask the likely driver first. A format that is not listed loses nothing but that.
"""

from __future__ import annotations

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
    "nbd": "diskmill-nbd",
}
"""Driver name → the distribution that brings it."""

SCHEMES = {
    "nbds": "nbd",
    "nbd+unix": "nbd",
    "nbds+unix": "nbd",
    "nbd+vsock": "nbd",
    "nbds+vsock": "nbd",
}
"""Prefix of a name → the protocol driver, where that is called otherwise."""

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
)


_SUFFIXES = {".dmg": "dmg"}
"""Formats that nothing at the start of the file tells."""


def recognise(data: bytes, filename: str = "") -> str | None:
    """The name of the format that an image beginning with *data* seems to have; None: none that is known here."""
    for name, offset, magic in _MAGICS:
        if data.startswith(magic, offset):
            return name
    return next((name for suffix, name in _SUFFIXES.items() if filename.endswith(suffix)), None)
