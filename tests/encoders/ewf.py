"""EWF images of one segment. Source: that of plugins/ewf's `c_ewf`. ewf-tools read what this makes."""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import BinaryIO

from . import Variants, in_memory, main

SECTOR = 512
SIGNATURE = b"EVF\x09\x0d\x0a\xff\0"


def summed(data: bytes) -> bytes:
    """*data* with its checksum."""
    return data + struct.pack("<I", zlib.adler32(data))


def section(type: bytes, at: int, data: bytes = b"", *, last: bool = False) -> bytes:
    """A section that stands at offset *at*."""
    following = at if last else at + 76 + len(data)
    return summed(struct.pack("<16sQQ40x", type, following, 76 + len(data))) + data


def encode(
    source: BinaryIO,
    size: int,
    out: BinaryIO,
    *,
    sectors: int = 64,
    smart: bool = False,
    level: int = 1,
    entries: int = 16375,
    base: bool = False,
    extra: int = 0,
) -> None:
    """A disk of whole sectors, in chunks of *sectors*, those that do not shrink stored as they are.

    :param smart: as SMART writes them: all chunks compressed, behind their table.
    :param entries: how many chunks a table has at most.
    :param base: offsets count from a base.
    :param extra: bytes of no use at the start of each section of chunks.
    """
    chunk = sectors * SECTOR
    count = -(-size // chunk)
    md5, sha1 = hashlib.md5(), hashlib.sha1()
    out.write(SIGNATURE + struct.pack("<BHH", 1, 1, 0))
    if smart:
        volume = struct.pack("<IIIII65x5s", 1, count, sectors, SECTOR, size // SECTOR, b"SMART")
    else:
        volume = struct.pack(
            "<B3xIIIQ12xB15xB7xI16s963x5s", 1, count, sectors, SECTOR, size // SECTOR, 1, 1, 0, bytes(16), b""
        )
    out.write(section(b"volume", out.tell(), summed(volume)))
    for first in range(0, count, entries):
        chunks, flags = [], []
        for _ in range(first, min(first + entries, count)):
            data = source.read(chunk)
            md5.update(data)
            sha1.update(data)
            packed = zlib.compress(data, level)
            small = smart or len(packed) < len(data)
            chunks.append(packed if small else summed(data))
            flags.append(small)
        at = out.tell()
        head = 76 + (24 + 4 * len(chunks) if smart else extra)
        start = at + head
        zero = at if base else 0
        table, place = b"", start
        for stored, small in zip(chunks, flags, strict=True):
            table += struct.pack("<I", place - zero | small << 31)
            place += len(stored)
        header = summed(struct.pack("<I4xQ4x", len(chunks), zero))
        if smart:
            out.write(section(b"table", at, header + table + b"".join(chunks)))
            continue
        out.write(section(b"sectors", at, bytes(extra) + b"".join(chunks)))
        for name in (b"table", b"table2"):
            out.write(section(name, out.tell(), header + summed(table)))
    if not smart:
        out.write(section(b"digest", out.tell(), summed(md5.digest() + sha1.digest() + bytes(40))))
    out.write(section(b"hash", out.tell(), summed(md5.digest() + bytes(16))))
    out.write(section(b"done", out.tell(), last=True))


VARIANTS: Variants = {
    "EnCase": in_memory(encode),
    "SMART": in_memory(encode, smart=True),
    "many tables": in_memory(encode, entries=3, base=True),
    "one sector": in_memory(encode, sectors=1),
    "large": in_memory(encode, sectors=6000),
    "large, stored": in_memory(encode, sectors=6000, level=0, extra=7),
}

if __name__ == "__main__":
    main(encode)
