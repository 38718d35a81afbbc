"""The ``pak`` format: a header, a table of offsets, and a zlib stream for each 64 KiB of the disk; two equal offsets:
zeros."""

from __future__ import annotations

from collections.abc import Iterator

from diskmill.contract.drivers import Driver, FormatDriver, hookimpl
from diskmill.contract.extents import Extent, Kind, joined
from diskmill.contract.node import Node
from diskmill.contract.requests import OpenRequest
from diskmill.errors import ImageError
from diskmill.kit import tables
from diskmill.kit.chunks import Chunk, Chunks, zlib_method
from diskmill.kit.image import FormatImage
from diskmill.kit.structs import Record, Structure, raw, u64
from diskmill.sizes import SECTOR, KiB

MAGIC = b"pak\0"
BLOCK = 64 * KiB
MOST = 1 << 20  # blocks: it bounds the table that is kept in memory


class Header(Record):
    magic = raw(4)
    _reserved = raw(4)
    size = u64


HEADER = Structure("header", "<", Header)


class PakImage(FormatImage):
    """An open image."""

    def __init__(self, driver: Driver, file: Node, header: Header, name: str) -> None:
        super().__init__(driver, file, name=name, size=header.size, writable=False)
        count = -(-header.size // BLOCK)
        if header.size % SECTOR or count > MOST or HEADER.size + (count + 1) * 8 > file.size:
            raise ImageError(f"no table for {header.size} bytes is behind it", file=name, place="header")
        self.offsets = tables.read(file, HEADER.size, count + 1, 8, "little")
        self.chunks = Chunks(file, name)
        self.zlib = zlib_method()
        for block in range(count):
            if not self.offsets[block] <= self.offsets[block + 1] <= file.size:
                raise ImageError(f"block {block} is not inside the file", file=name, place="table")

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        return joined(self._blocks(offset, offset + length))

    def _blocks(self, offset: int, end: int) -> Iterator[Extent]:
        for block in range(offset // BLOCK, -(-end // BLOCK)):
            start, at, upto = block * BLOCK, self.offsets[block], self.offsets[block + 1]
            size = min(BLOCK, self.size - start)
            if at == upto:
                yield Extent(start, size, Kind.ZERO).clip(offset, end)
            else:
                yield from self.chunks.extents(Chunk(start, size, at, upto - at, self.zlib), offset, end)


class PakDriver(FormatDriver):
    """Only read: ``create`` and ``write`` are not among its capabilities."""

    contract = 1
    name = "pak"
    title = "an example that compresses"

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        return 100 if data.startswith(MAGIC) else 0

    @hookimpl
    def open(self, request: OpenRequest) -> PakImage:
        file = request.below()
        header = HEADER.unpack(file.read(0, min(HEADER.size, file.size)), file=request.name)
        if header.magic != MAGIC:
            raise ImageError("it is no pak image", file=request.name, place="header")
        return PakImage(self, file, header, request.name)


driver = PakDriver()
