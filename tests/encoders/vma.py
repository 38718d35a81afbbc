"""Proxmox VMA archives. Source: that of plugins/vma's `c_vma`."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from . import Variants, in_memory, main

CLUSTER, BLOCK = 65536, 4096
UUID = bytes(range(16))
CONFIG = (b"qemu-server.conf", b"boot: order=scsi0\ncores: 2\n")


def summed(data: bytes, at: int) -> bytes:
    """*data* with its MD5 at byte *at*, where zeros are."""
    return data[:at] + hashlib.md5(data).digest() + data[at + 16 :]


def header(devices: Sequence[tuple[str, int]], configs: Sequence[tuple[bytes, bytes]] = (CONFIG,)) -> bytes:
    """The header of an archive of *devices*, names and sizes in bytes; the first is number 1."""
    blobs = b"\0"

    def blob(data: bytes) -> int:
        nonlocal blobs
        at = len(blobs)
        blobs += struct.pack("<H", len(data)) + data
        return at

    names = [blob(name + b"\0") for name, _ in configs]
    contents = [blob(data) for _, data in configs]
    info = bytes(32) + b"".join(struct.pack(">IIQ16x", blob(name.encode() + b"\0"), 0, size) for name, size in devices)
    blobs = blobs.ljust(-(-len(blobs) // 512) * 512, b"\0")
    start = 4096 + 256 * 32
    head = struct.pack(">4sI16sq16xIII1984x", b"VMA\0", 1, UUID, 1700000000, start, len(blobs), start + len(blobs))
    lists = struct.pack(">256I256I4x", *pad(names), *pad(contents))
    return summed(head + lists + info.ljust(256 * 32, b"\0") + blobs, 32)


def pad(numbers: list[int]) -> list[int]:
    return numbers + [0] * (256 - len(numbers))


def extent(clusters: Sequence[tuple[int, int, bytes]]) -> bytes:
    """An extent of clusters: (device, number, its bytes)."""
    infos, stored = [], []
    for device, number, data in clusters:
        blocks = [data[at : at + BLOCK].ljust(BLOCK, b"\0") for at in range(0, len(data), BLOCK)]
        mask = sum(1 << index for index, block in enumerate(blocks) if any(block))
        stored += [block for block in blocks if any(block)]
        infos.append(mask << 48 | device << 32 | number)
    infos += [0] * (59 - len(infos))
    head = struct.pack(">4sHH16s16x59Q", b"VMAE", 0, len(stored), UUID, *infos)
    return summed(head, 24) + b"".join(stored)


def archive(disks: Mapping[str, bytes], *, seed: int | None = None) -> bytes:
    """An archive of *disks*, by name; their clusters lie in turns, or with *seed* in a random order."""
    clusters = [
        (device, at // CLUSTER, data[at : at + CLUSTER])
        for device, data in enumerate(disks.values(), 1)
        for at in range(0, len(data), CLUSTER)
    ]
    clusters.sort(key=lambda one: one[1])
    if seed is not None:
        random.Random(seed).shuffle(clusters)
    extents = [extent(clusters[at : at + 59]) for at in range(0, len(clusters), 59)]
    return header([(name, len(data)) for name, data in disks.items()]) + b"".join(extents)


def encode(source: BinaryIO, size: int, out: BinaryIO, *, seed: int | None = None) -> None:
    out.write(archive({"drive-scsi0": source.read(size)}, seed=seed))


def with_state(data: bytes) -> bytes:
    """As of a machine that ran: its memory is in the archive too."""
    return archive({"vmstate": b"memory " * 20000, "drive-virtio0": data})


VARIANTS: Variants = {"one disk": in_memory(encode), "shuffled": in_memory(encode, seed=5), "with memory": with_state}

if __name__ == "__main__":
    main(encode)
