"""Apple's sparse images and sparse bundles. Sources: those of plugins/sparseimage's `c_sparseimage`.

hdiutil makes them on macOS only; libmodi reads what this makes.
"""

from __future__ import annotations

import plistlib
import random
import struct
from pathlib import Path
from typing import BinaryIO

from . import Variants, in_memory, main

SECTOR = 512
NODE = 4096


def encode(source: BinaryIO, size: int, out: BinaryIO, *, band: int = 64 * 1024, seed: int | None = None) -> None:
    """Bands of zeros are left out; with *seed* the others lie in the file in a random order."""
    sectors = -(-size // SECTOR)
    used = []
    for number in range(-(-size // band)):
        source.seek(number * band)
        if any(source.read(band)):
            used.append(number)
    if seed is not None:
        random.Random(seed).shuffle(used)
    groups = [used[:1008], *(used[at : at + 1010] for at in range(1008, len(used), 1010))]
    for index, group in enumerate(groups):
        slots = 1008 if index == 0 else 1010
        at = out.tell()
        following = at + NODE + slots * band if index + 1 < len(groups) else 0
        if index == 0:
            head = struct.pack(">4sIIIIQQ28x", b"sprs", 3, band // SECTOR, 1, sectors & 0xFFFFFFFF, following, sectors)
        else:
            head = struct.pack(">4sIIQ36x", b"sprs", index - 1, 1, following)
        numbers = [number + 1 for number in group] + [0] * (slots - len(group))
        out.write(head + struct.pack(f">{slots}I", *numbers))
        for number in group:
            source.seek(number * band)
            out.write(source.read(min(band, size - number * band)).ljust(band, b"\0"))


def bundle(data: bytes, folder: Path, *, band: int = 64 * 1024, token: bytes = b"") -> Path:
    """A sparse bundle in *folder*: bands of zeros have no file, and zeros at a band's end are left out."""
    (folder / "bands").mkdir(parents=True)
    (folder / "token").write_bytes(token)
    for number, at in enumerate(range(0, len(data), band)):
        stored = data[at : at + band].rstrip(b"\0")
        if stored:
            (folder / "bands" / f"{number:x}").write_bytes(stored)
    plist = plistlib.dumps(
        {
            "CFBundleInfoDictionaryVersion": "6.0",
            "band-size": band,
            "bundle-backingstore-version": 1,
            "diskimage-bundle-type": "com.apple.diskimage.sparsebundle",
            "size": len(data),
        }
    )
    (folder / "Info.plist").write_bytes(plist)
    (folder / "Info.bckup").write_bytes(plist)
    return folder


VARIANTS: Variants = {
    "64K": in_memory(encode),
    "1M": in_memory(encode, band=1 << 20),
    "512": in_memory(encode, band=512, seed=3),
    "shuffled": in_memory(encode, seed=4),
}

if __name__ == "__main__":
    main(encode)
