"""DMG images (UDIF). Sources: those of plugins/dmg's `c_udif`.

Apple's hdiutil makes them on macOS only; 7-Zip and qemu-img read what this makes.
"""

from __future__ import annotations

import bz2
import lzma
import plistlib
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import BinaryIO

import lzfse
from isal import isal_zlib

from . import Variants, in_memory, main

SECTOR = 512
ZERO, RAW, IGNORE = 0, 1, 2
ADC, ZLIB, BZIP2, LZFSE, LZMA = 0x80000004, 0x80000005, 0x80000006, 0x80000007, 0x80000008
COMMENT, TERMINATOR = 0x7FFFFFFE, 0xFFFFFFFF


def adc(data: bytes) -> bytes:
    """Apple Data Compression, greedy, with all three kinds of token."""
    out, literals, at = bytearray(), bytearray(), 0
    seen: dict[bytes, int] = {}

    def flush() -> None:
        for start in range(0, len(literals), 128):
            part = literals[start : start + 128]
            out.append(0x80 | len(part) - 1)
            out.extend(part)
        literals.clear()

    while at < len(data):
        key = data[at : at + 4]
        found = seen.get(key)
        seen[key] = at
        distance = at - found if found is not None else 0
        if len(key) == 4 and 0 < distance <= 1 << 16:
            count = 4
            while count < 67 and at + count < len(data) and data[at + count] == data[at + count - distance]:
                count += 1
            flush()
            back = distance - 1
            if count <= 18 and back < 1024:
                out += bytes(((count - 3) << 2 | back >> 8, back & 0xFF))
            else:
                out += bytes((0x40 | count - 4, back >> 8, back & 0xFF))
            at += count
            continue
        literals.append(data[at])
        at += 1
    flush()
    return bytes(out)


COMPRESS: dict[int, Callable[[bytes], bytes]] = {
    RAW: bytes,
    ADC: adc,
    ZLIB: lambda data: isal_zlib.compress(data, 1),
    BZIP2: bz2.compress,
    LZFSE: lzfse.compress,
    LZMA: lzma.compress,
}


def checksum(crc: int) -> bytes:
    return struct.pack(">III124x", 2, 32, crc)


def encode(
    source: BinaryIO,
    size: int,
    out: BinaryIO,
    *,
    types: Sequence[int] = (ZLIB,),
    chunk: int = 512,
    borders: Sequence[int] = (),
    seed: int | None = None,
    unordered: bool = False,
    fork: bool = False,
    front: bool = False,
    before: bytes = b"",
    after: bytes = b"",
) -> None:
    """Chunks of zeros are stored as such, by turns to be filled with zeros and to be ignored.

    :param types: how the others are compressed, by turns.
    :param chunk: sectors in a chunk; with `seed`, chunks are of random sizes up to that, and lie in a random order.
    :param borders: sectors where partitions begin, besides the first.
    :param unordered: let the chunks in a table, and the tables, be in a random order.
    :param fork: a resource fork in place of the property list.
    :param front: the trailer comes first, as in some old images.
    :param before: other bytes before the data fork; `after`: behind the trailer.
    """
    chance = random.Random(seed)
    sectors = size // SECTOR
    start = 512 if front else len(before)
    out.write(bytes(512) if front else before)
    fork_crc = length = turn = zeros = 0
    payloads: list[tuple[list[int], bytes]] = []
    tables = []
    limits = [0, *(border for border in borders if border < sectors), sectors]
    for first, end in pairwise(limits):
        chunks: list[list[int]] = []
        crc, at = 0, first
        while at < end:
            count = min(chunk if seed is None else chance.randint(1, chunk), end - at)
            source.seek(at * SECTOR)
            data = source.read(count * SECTOR)
            if data.count(0) == len(data):
                zeros += 1
                entry = [IGNORE if zeros % 2 else ZERO, at - first, count, length, 0]
                if zeros % 2 == 0:
                    crc = zlib.crc32(data, crc)
            else:
                type = types[turn % len(types)]
                turn += 1
                payload = COMPRESS[type](data)
                if len(payload) >= len(data):
                    type, payload = RAW, data
                crc = zlib.crc32(data, crc)
                entry = [type, at - first, count, length, len(payload)]
                if seed is None:
                    out.write(payload)
                    fork_crc = zlib.crc32(payload, fork_crc)
                    length += len(payload)
                else:
                    payloads.append((entry, payload))
            chunks.append(entry)
            at += count
        tables.append((first, end - first, crc, chunks))
    chance.shuffle(payloads)
    for entry, payload in payloads:
        gap = bytes(chance.randrange(0, 40))
        entry[3] = length + len(gap)
        out.write(gap + payload)
        fork_crc = zlib.crc32(gap + payload, fork_crc)
        length += len(gap) + len(payload)
    if unordered:
        chance.shuffle(tables)
    resources, master = [], 0
    for number, (first, count, crc, chunks) in enumerate(tables):
        if unordered:
            chance.shuffle(chunks)
        entries = [[COMMENT, 0, 0, 0, 0], *chunks, [TERMINATOR, count, 0, length, 0]]
        if seed is None:
            del entries[0]
        header = struct.pack(">4sIQQQII24x", b"mish", 1, first, count, 0, chunk + 8, number)
        body = b"".join(struct.pack(">IIQQQQ", type, 0, *rest) for type, *rest in entries)
        resources.append(header + checksum(crc) + struct.pack(">I", len(entries)) + body)
        master = zlib.crc32(struct.pack(">I", crc), master)
    listing = resource_fork(resources) if fork else property_list(resources)
    out.write(listing)
    where = (start + length, len(listing))
    places = struct.pack(">QQQQQ", 0, start, length, *(where if fork else (0, 0)))
    trailer = struct.pack(">4sIII", b"koly", 4, 512, 1) + places + struct.pack(">II16s", 1, 1, b"diskmill's tests")
    trailer += checksum(fork_crc) + struct.pack(">QQ120x", *((0, 0) if fork else where))
    trailer += checksum(master) + struct.pack(">IQ12x", 1, sectors)
    if front:
        out.seek(0)
    out.write(trailer)
    if after:
        out.seek(0, 2)
        out.write(after)


def resources_of(image: bytes) -> list[bytes]:
    """The block tables in the property list of `image`."""
    offset, length = struct.unpack_from(">QQ", image, len(image) - 512 + 0xD8)
    found = plistlib.loads(image[offset : offset + length])
    return [one["Data"] for one in found["resource-fork"]["blkx"]]


def with_resources(image: bytes, resources: Sequence[bytes]) -> bytes:
    """`image` with other block tables in its property list."""
    (offset,) = struct.unpack_from(">Q", image, len(image) - 512 + 0xD8)
    listing, trailer = property_list(resources), bytearray(image[-512:])
    trailer[0xD8:0xE8] = struct.pack(">QQ", offset, len(listing))
    return image[:offset] + listing + bytes(trailer)


def property_list(resources: Sequence[bytes]) -> bytes:
    tables = [
        {"Attributes": "0x0050", "CFName": name, "Data": data, "ID": str(number - 1), "Name": name}
        for number, data in enumerate(resources)
        for name in (f"disk image (Apple_HFS : {number})",)
    ]
    plst = [{"Attributes": "0x0050", "Data": bytes(1032), "ID": "0", "Name": ""}]
    return plistlib.dumps({"resource-fork": {"blkx": tables, "plst": plst}})


def resource_fork(resources: Sequence[bytes]) -> bytes:
    """The resources, of type blkx, and one of another type before them."""
    data, offsets = bytearray(), []
    for resource in (b"other", *resources):
        offsets.append(len(data))
        data += struct.pack(">I", len(resource)) + resource
    names = b"".join(bytes((len(name),)) + name for name in (b"disk image (Apple_HFS : %d)" % n for n in range(1)))
    references = [struct.pack(">hHII", number - 1, 0, 0x50 << 24 | at, 0) for number, at in enumerate(offsets)]
    types = struct.pack(">H4sHH4sHH", 1, b"plst", 0, 18, b"blkx", len(resources) - 1, 30) + b"".join(references)
    header = struct.pack(">IIII", 256, 256 + len(data), len(data), 28 + len(types) + len(names))
    tail = header + bytes(8) + struct.pack(">HH", 28, 28 + len(types)) + types + names
    return header.ljust(256, b"\0") + data + tail


EVERY = (ZLIB, RAW, BZIP2, ADC, LZMA, LZFSE)

VARIANTS: Variants = {
    "zlib": in_memory(encode),
    "every type": in_memory(encode, types=EVERY, chunk=128, borders=(1, 40, 100)),
    "shuffled": in_memory(encode, types=EVERY, chunk=300, borders=(34, 77), seed=3),
    "unordered": in_memory(encode, types=EVERY, chunk=100, borders=(34, 1000), seed=4, unordered=True),
    "resource fork": in_memory(encode, types=(ZLIB, RAW), chunk=64, borders=(63,), fork=True),
    "trailer first": in_memory(encode, types=(ZLIB, RAW), front=True),
    "embedded": in_memory(encode, types=(ZLIB, RAW), before=b"MacBinary".ljust(128, b"\0"), after=bytes(300)),
    "large chunks": in_memory(encode, types=EVERY, chunk=5 << 11),
}

if __name__ == "__main__":
    main(encode)
