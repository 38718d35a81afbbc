"""Checking a sparse image: the checksums in it. Source: see :mod:`.c_sparse`.

A checksum is the CRC-32 of the disk from its first byte on, what nobody wrote being zeros. Stretches that repeat four
bytes are reckoned by doubling, however long they are.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from diskmill.contract.results import CheckResult
from diskmill.sizes import MiB
from isal import isal_zlib

from .c_sparse import CRC32, CRC_SIZE, FILL, FILL_SIZE, RAW

if TYPE_CHECKING:
    from diskmill.contract.node import Node

    from .image import SparseImage


def check_sparse(image: SparseImage) -> CheckResult:
    """Each crc32 chunk, and the header's checksum of all; that chunks fit was seen when the image was opened."""
    result = CheckResult()
    chunks = image.chunks
    if not image.header.image_checksum and CRC32 not in chunks.types:
        return result
    crc = 0
    for index, type in enumerate(chunks.types):
        start, end, offset = chunks.starts[index], chunks.end(index), chunks.offsets[index]
        if type == CRC32:
            stored = int.from_bytes(image.file.read(offset, CRC_SIZE), "little")
            if stored != crc:
                result.found("corruption", f"the checksum of guest bytes 0 to {start} is wrong (offset {offset})")
        elif type == RAW:
            crc = _crc_data(crc, image.file, offset, end - start)
        else:
            fill = image.file.read(offset, FILL_SIZE) if type == FILL else bytes(FILL_SIZE)
            crc = _crc_fill(crc, fill, (end - start) // FILL_SIZE)
    if image.header.image_checksum not in (0, crc):
        result.found("corruption", "the checksum of the whole disk is wrong")
    return result


def _crc_data(crc: int, file: Node, offset: int, length: int) -> int:
    for at in range(0, length, MiB):
        crc = zlib.crc32(file.read(offset + at, min(MiB, length - at)), crc)
    return crc


def _crc_fill(crc: int, fill: bytes, count: int) -> int:
    """*crc* with *count* times *fill* added."""
    part, length = zlib.crc32(fill), len(fill)
    while count:
        if count & 1:
            crc = isal_zlib.crc32_combine(crc, part, length)
        part, length, count = isal_zlib.crc32_combine(part, part, length), length * 2, count >> 1
    return crc
