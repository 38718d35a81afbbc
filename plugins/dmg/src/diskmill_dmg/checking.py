"""Checking a DMG: its checksums, and whether every sector has a chunk."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from diskmill.contract.node import Node
from diskmill.contract.results import CheckResult
from diskmill.errors import DiskmillError
from diskmill.sizes import SECTOR, MiB
from isal import isal_zlib

from .c_udif import CRC32, IGNORE, ZERO

if TYPE_CHECKING:
    from .image import DmgImage


def check_dmg(image: DmgImage) -> CheckResult:
    """Every checksum that is a CRC-32; the chunks, by reading them."""
    result = CheckResult()
    trailer = image.trailer
    if _is_crc(trailer.DataChecksumType, trailer.DataChecksumSize):
        start, length = trailer.DataForkOffset, trailer.DataForkLength
        if start + length > image.file.size:
            result.found("corruption", "the data fork is not inside the file")
        elif _crc(image.file, start, start + length) != _stored(trailer.DataChecksum):
            result.found("corruption", "the checksum of the data fork is wrong")
    partitions = image.partitions
    if _is_crc(trailer.ChecksumType, trailer.ChecksumSize):
        master = 0
        for one in partitions:
            master = zlib.crc32(one.Checksum[: min(one.ChecksumSize // 8, len(one.Checksum))], master)
        if partitions and master != _stored(trailer.Checksum):
            result.found("corruption", "the checksum of the partitions' checksums is wrong")
    covered = 0
    size = image.size // SECTOR
    for first, count in zip(image.table.sectors, image.table.counts, strict=True):
        if first > covered:
            result.found("corruption", f"no chunk has sectors {covered} to {first - 1}")
        covered = first + count
    if covered < size:
        result.found("corruption", f"no chunk has sectors {covered} to {size - 1}")
    elif covered > size:
        result.found("corruption", f"chunks go on to sector {covered - 1} of a disk of {size}")
    _check_contents(image, result)
    return result


def _check_contents(image: DmgImage, result: CheckResult) -> None:
    """Read all chunks, each with those of its partition, so that their checksum can be told."""
    sectors = image.table.sectors
    index = 0
    for one in sorted(image.partitions, key=lambda one: one.SectorNumber):
        end = one.SectorNumber + one.SectorCount
        crc: int | None = 0
        while index < len(sectors) and sectors[index] < end:
            crc = _chunk_crc(image, index, crc, result)
            index += 1
        if crc is not None and _is_crc(one.ChecksumType, one.ChecksumSize) and crc != _stored(one.Checksum):
            result.found(
                "corruption", f"the checksum of the partition in sectors {one.SectorNumber} to {end - 1} is wrong"
            )
    for rest in range(index, len(sectors)):
        _chunk_crc(image, rest, None, result)


def _chunk_crc(image: DmgImage, index: int, crc: int | None, result: CheckResult) -> int | None:
    """*crc* with the bytes of a chunk added; None where it cannot be told any more."""
    start = image.table.sectors[index] * SECTOR
    end = start + image.table.counts[index] * SECTOR
    type = image.table.types[index]
    if type == IGNORE or end > image.size:
        return crc if type == IGNORE else None
    if type == ZERO:
        return crc if crc is None else _crc_zeros(crc, end - start)
    try:
        added = _crc(image, start, end)
    except DiskmillError as error:
        result.found("corruption", ": ".join(part for part in (error.place, error.cause) if part))
        return None
    return crc if crc is None else isal_zlib.crc32_combine(crc, added, end - start)


def _is_crc(type: int, bits: int) -> bool:
    return type == CRC32 and bits == 32


def _stored(checksum: bytes) -> int:
    return int.from_bytes(checksum[:4], "big")


def _crc(node: Node, start: int, end: int) -> int:
    crc = 0
    buffer = bytearray(min(MiB, end - start))
    for at in range(start, end, MiB):
        part = memoryview(buffer)[: end - at]
        node.read_into(at, part)
        crc = zlib.crc32(part, crc)
    return crc


def _crc_zeros(crc: int, count: int) -> int:
    """*crc* with *count* zeros added, however many they are: by doubling."""
    zeros, length = zlib.crc32(b"\0"), 1
    while count:
        if count & 1:
            crc = isal_zlib.crc32_combine(crc, zeros, length)
        zeros, length, count = isal_zlib.crc32_combine(zeros, zeros, length), length * 2, count >> 1
    return crc
