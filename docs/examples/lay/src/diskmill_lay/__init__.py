"""The ``lay`` format: a header with the name of the backing file, a byte for each 64 KiB block of the disk, and the
blocks behind one another: 0, ask the backing file; 1, zeros; 2, data."""

from __future__ import annotations

import os
from collections.abc import Iterator

from diskmill.contract.drivers import Driver, FormatDriver, hookimpl
from diskmill.contract.extents import Extent, Kind, joined
from diskmill.contract.node import Node
from diskmill.contract.references import Reference
from diskmill.contract.requests import OpenRequest
from diskmill.errors import ImageError
from diskmill.kit.image import FormatImage
from diskmill.kit.structs import Record, Structure, raw, u64
from diskmill.sizes import SECTOR, KiB

MAGIC = b"lay\0"
BLOCK = 64 * KiB
MOST = 1 << 20  # blocks: it bounds what is kept in memory


class Header(Record):
    magic = raw(4)
    _reserved = raw(4)
    size = u64
    backing = raw(496)


HEADER = Structure("header", "<", Header)


class LayImage(FormatImage):
    """An open image."""

    def __init__(self, driver: Driver, file: Node, header: Header, name: str) -> None:
        super().__init__(driver, file, name=name, size=header.size, writable=False)
        count = -(-header.size // BLOCK)
        if header.size % SECTOR or count > MOST:
            raise ImageError(f"impossible size {header.size}", file=name, place="header")
        self.states = file.read_some(HEADER.size, count)
        places, self.places = HEADER.size + count, []
        for state in self.states:
            self.places.append(places)
            places += BLOCK if state == 2 else 0
        if len(self.states) < count or max(self.states, default=0) > 2 or places > file.size:
            raise ImageError("the blocks that it tells of are not there", file=name, place="table")
        backing = os.fsdecode(header.backing.rstrip(b"\0"))
        if backing:  # a name out of the file: whether it may be opened is not for a driver to say
            self.references = [Reference("backing", backing)]

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        return joined(self._blocks(offset, offset + length))

    def _blocks(self, offset: int, end: int) -> Iterator[Extent]:
        for block in range(offset // BLOCK, -(-end // BLOCK)):
            start, state = block * BLOCK, self.states[block]
            size = min(BLOCK, self.size - start)
            if state == 2:
                yield Extent(start, size, Kind.DATA, self.file, self.places[block]).clip(offset, end)
            else:
                yield Extent(start, size, Kind.ZERO if state else Kind.HOLE).clip(offset, end)


class LayDriver(FormatDriver):
    """The core opens the backing file, and hands it to the image."""

    contract = 1
    name = "lay"
    title = "an example with a backing file"
    capabilities = frozenset({"backing"})

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        return 100 if data.startswith(MAGIC) else 0

    @hookimpl
    def open(self, request: OpenRequest) -> LayImage:
        file = request.below()
        header = HEADER.unpack(file.read(0, min(HEADER.size, file.size)), file=request.name)
        if header.magic != MAGIC:
            raise ImageError("it is no lay image", file=request.name, place="header")
        return LayImage(self, file, header, request.name)


driver = LayDriver()
