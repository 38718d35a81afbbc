"""cloop images: a shell script, a header, a table of offsets, zlib streams.

Source: ``compressed_loop.h`` of the cloop module, format V2.0. Behind the script's 128 bytes stand the size of a block
and how many there are; then the file offset of each block and of the end of the last, 64 bits each, big-endian. Every
block is a zlib stream of one block's bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from diskmill.contract.extents import Extent
from diskmill.contract.limits import READ_PER_WORK, Meter
from diskmill.contract.node import Node
from diskmill.contract.results import CheckResult
from diskmill.errors import ImageError, UnsupportedError
from diskmill.kit.blocks import BlockTable
from diskmill.kit.chunks import Chunk, Chunks, unreadable, zlib_method
from diskmill.kit.image import ReadOnlyImage
from diskmill.kit.structs import Record, Structure, u32
from diskmill.sizes import MAX_SIZE, SECTOR, MiB

if TYPE_CHECKING:
    from diskmill.contract.requests import OpenRequest

    from . import CloopDriver

PREAMBLE = 128
"""Bytes of the shell script."""
VERSION = b"#V2.0 Format"


class Header(Record):
    block_size = u32
    num_blocks = u32


HEADER = Structure("cloop_head", ">", Header)
TABLE = PREAMBLE + HEADER.size
MAX_BLOCK = 64 * MiB
"""Bytes in a block: as many as QEMU opens."""

ZLIB = zlib_method()


class CloopImage(ReadOnlyImage):
    """A cloop file."""

    def __init__(self, driver: CloopDriver, file: Node, block_size: int, count: int, *, name: str) -> None:
        super().__init__(driver, file, name=name, size=count * block_size)
        self.block_size = block_size
        self.count = count
        self.offsets = BlockTable(file, TABLE, count + 1, 8, "big", lambda: None)
        self.chunks = Chunks(file, name)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        for block, count, at, upto in self._places(offset // self.block_size, -(-end // self.block_size)):
            start = block * self.block_size
            if TABLE <= at < upto <= self.file.size:
                yield from self.chunks.extents(Chunk(start, self.block_size, at, upto - at, ZLIB), offset, end)
            else:
                error = self._fault(block, count, at, upto)
                yield unreadable(self.file, start, count * self.block_size, error).clip(offset, end)

    def _places(self, first: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(block, count, offset, where it ends) for blocks *first* to *end - 1*: those without bytes together."""
        last: int | None = None
        for run in self.offsets.runs(first, end + 1, 0):
            if last is not None:
                yield run.at - 1, 1, last, run.value
            if run.length > 1:
                yield run.at, run.length - 1, run.value, run.value
            last = run.value

    def _fault(self, block: int, count: int, at: int, upto: int) -> ImageError:
        which = f"block {block} is" if count == 1 else f"blocks {block} to {block + count - 1} are"
        return ImageError(
            f"{which} at offsets {at} to {upto} of a file of {self.file.size} bytes",
            file=self.name,
            place="block offsets",
        )

    def check(self) -> CheckResult:
        """Decode every block.

        :raises LimitError: more is to be decoded than a file of its size can hold.
        """
        result = CheckResult()
        piece = bytearray(min(self.block_size, MiB))
        meter = Meter(self.file)
        for block, count, at, upto in self._places(0, self.count):
            meter.add(1)
            if not TABLE <= at < upto <= self.file.size:
                result.found("corruption", self._fault(block, count, at, upto).cause, count)
                continue
            meter.add(self.block_size >> READ_PER_WORK)
            start = block * self.block_size
            try:
                for low in range(start, start + self.block_size, len(piece)):
                    self.read_into(low, memoryview(piece)[: start + self.block_size - low])
            except ImageError as error:
                result.found("corruption", error.cause)
        return result


def open_cloop(driver: CloopDriver, request: OpenRequest) -> CloopImage:
    """The image in ``request.file``; its table is looked at as it is needed."""
    file, name = request.below(), request.name
    head = file.read(0, min(TABLE, file.size))
    if not head.startswith(b"#!/bin/sh\n"):
        raise ImageError("not a cloop image (it does not begin as one)", file=name)
    if VERSION not in head[:PREAMBLE]:
        raise UnsupportedError("only version 2.0 of the cloop format is supported", file=name)
    header = HEADER.unpack(head, PREAMBLE, file=name)
    block_size, count = header.block_size, header.num_blocks
    if block_size % SECTOR or not 0 < block_size <= MAX_BLOCK:
        raise ImageError(
            f"block_size {block_size} is not a multiple of {SECTOR} up to {MAX_BLOCK}", file=name, place="header"
        )
    if TABLE + (count + 1) * 8 > file.size or count * block_size > MAX_SIZE:
        raise ImageError(f"the offsets of {count} blocks are not inside the file", file=name, place="header")
    return CloopImage(driver, file, block_size, count, name=name)
