"""cloop images, format V2.0. Source: `compressed_loop.h` of the cloop module."""

from __future__ import annotations

import struct
from typing import BinaryIO

from isal import isal_zlib

from . import Variants, in_memory, main

PREAMBLE = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\nexit $?\n"


def encode(source: BinaryIO, size: int, out: BinaryIO, *, block: int = 65536) -> None:
    """The last block is filled up with zeros, so the disk's size is a multiple of `block`."""
    count = -(-size // block)
    out.write(PREAMBLE.ljust(128, b"\0") + struct.pack(">II", block, count))
    at = 136 + (count + 1) * 8
    offsets = [at]
    out.seek(at)
    for _ in range(count):
        payload = isal_zlib.compress(source.read(block).ljust(block, b"\0"), 1)
        out.write(payload)
        at += len(payload)
        offsets.append(at)
    out.seek(136)
    out.write(struct.pack(f">{count + 1}Q", *offsets))


VARIANTS: Variants = {
    "64K": in_memory(encode),
    "512": in_memory(encode, block=512),
    "odd": in_memory(encode, block=77 * 512),
    "large": in_memory(encode, block=3 << 20),
}

if __name__ == "__main__":
    main(encode)
