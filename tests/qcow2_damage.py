"""Damaged qcow2 images: qemu-img's, with random entries of their metadata overwritten."""

from __future__ import annotations

import random
import struct
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from tools import assert_clean, qemu_img, qemu_io

LAYOUTS = (
    "cluster_size=64k",
    "cluster_size=4k",
    "cluster_size=512,refcount_bits=64",
    "extended_l2=on,cluster_size=16k",
    "compat=0.10,cluster_size=2k",
    "refcount_bits=1,cluster_size=4k",
    "refcount_bits=8,cluster_size=1k",
)
"""`create` options of the samples."""
_OFFSET = 0x00FFFFFFFFFFFE00


def sample(path: Path, layout: str) -> None:
    """A good image that has whatever *layout* can have: zeros, snapshots, compressed clusters, bitmaps."""
    qemu_img("create", "-q", "-f", "qcow2", "-o", layout, path, "3M")
    qemu_io(path, "write -P 1 0 300k", "write -P 2 700k 100k", "write -P 3 2M 64k", "write -z 1M 128k", format="qcow2")
    if "refcount_bits=1," not in layout:
        qemu_img("snapshot", "-c", "one", path)
        qemu_io(path, "write -P 4 100k 100k", "write -P 5 1100k 30k", format="qcow2")
        qemu_img("snapshot", "-c", "two", path)
        if "extended_l2" not in layout:
            qemu_io(path, "write -c -P 7 512k 64k", format="qcow2")
    qemu_io(path, "write -P 6 2100k 100k", format="qcow2")
    if "compat" not in layout:
        for name, granularity in (("fine", "512"), ("coarse", "4k")):
            qemu_img("bitmap", "--add", "-g", granularity, path, name)
            qemu_io(path, "write -P 8 400k 10k", format="qcow2")
    assert_clean(path)


@dataclass
class Anatomy:
    """Where the metadata of an image is: kind → (offset, length) of each piece."""

    data: bytes
    cluster: int = 0
    parts: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        data = self.data
        self.cluster = 1 << int(struct.unpack_from(">I", data, 20)[0])
        entries, table, counts, clusters, snapshots, at = struct.unpack_from(">IQQIIQ", data, 36)
        self.l1("l1", table, entries)
        self.parts["refcount table"].append((counts, 64))
        blocks = struct.unpack_from(f">{clusters * self.cluster // 8}Q", data, counts)
        self.parts["refcount block"] += [(block, self.cluster) for block in blocks if block]
        for _ in range(snapshots):
            at = (at + 7) & ~7
            table, entries, key, name = struct.unpack_from(">QIHH", data, at)
            self.l1("snapshot l1", table, entries)
            length = 40 + int(struct.unpack_from(">I", data, at + 36)[0]) + key + name
            self.parts["snapshot table"].append((at, length))
            at += length
        self.bitmaps(data.find(struct.pack(">I", 0x23852875), 0, self.cluster))
        self.parts["l2"] = sorted(set(self.parts["l2"]))

    def l1(self, kind: str, at: int, entries: int) -> None:
        self.parts[kind].append((at, entries * 8))
        for entry in struct.unpack_from(f">{entries}Q", self.data, at):
            if entry & _OFFSET:
                self.parts["l2"].append((entry & _OFFSET, self.cluster))

    def bitmaps(self, extension: int) -> None:
        if extension < 0:
            return
        count, _, length, at = struct.unpack_from(">IIQQ", self.data, extension + 8)
        self.parts["bitmap directory"].append((at, length))
        for _ in range(count):
            table, entries = struct.unpack_from(">QI", self.data, at)
            self.parts["bitmap table"].append((table, entries * 8))
            at += (24 + int(struct.unpack_from(">H", self.data, at + 18)[0]) + 7) & ~7

    def damaged(self, chance: random.Random) -> tuple[bytes, list[tuple[str, str, int]]]:
        """The image with one to three entries overwritten, and what was done: (kind of metadata, manner, offset)."""
        data, done = bytearray(self.data), []
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            kind = chance.choice([kind for kind, parts in self.parts.items() if parts])
            start, length = chance.choice(self.parts[kind])
            spots = range(start, start + max(length, 8), 8)
            used = [spot for spot in spots if any(data[spot : spot + 8])]
            at = chance.choice(used if used and chance.random() < 0.9 else spots)
            manner = chance.choice(("bit", "zeros", "noise", "shifted", "copy", "garbage", "elsewhere"))
            value = int.from_bytes(data[at : at + 8], "big")
            new = {
                "bit": (value ^ 1 << chance.randrange(64)).to_bytes(8, "big"),
                "zeros": bytes(8),
                "noise": chance.randbytes(8),
                "shifted": ((value + chance.choice((-1, 1, 2, 512, self.cluster))) % 2**64).to_bytes(8, "big"),
                "copy": bytes(data[(spot := chance.choice(spots)) : spot + 8]),
                "garbage": chance.randbytes(min(chance.choice((16, 64, 512)), start + length - at)),
                "elsewhere": (
                    chance.randrange(len(data) // self.cluster) * self.cluster | chance.choice((0, 1 << 63))
                ).to_bytes(8, "big"),
            }[manner]
            data[at : at + len(new)] = new
            done.append((kind, manner, at))
        return bytes(data), done
