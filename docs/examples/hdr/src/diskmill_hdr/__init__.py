"""The ``hdr`` format: a header of one sector, and the disk behind it."""

from __future__ import annotations

from collections.abc import Iterator

from diskmill.contract.drivers import FormatDriver, hookimpl
from diskmill.contract.extents import Extent, Kind
from diskmill.contract.requests import OpenRequest
from diskmill.errors import ImageError
from diskmill.kit.image import FormatImage
from diskmill.kit.structs import Record, Structure, raw, u64
from diskmill.sizes import SECTOR

MAGIC = b"hdr\0"


class Header(Record):
    magic = raw(4)
    _reserved = raw(4)
    size = u64


HEADER = Structure("header", "<", Header)


class HdrImage(FormatImage):
    """An open image."""

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        if length:
            yield Extent(offset, length, Kind.DATA, self.file, SECTOR + offset)


class HdrDriver(FormatDriver):
    """It declares nothing: what it has no hook for is refused in its name."""

    contract = 1
    name = "hdr"
    title = "an example that is only read"

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        return 100 if data.startswith(MAGIC) else 0

    @hookimpl
    def open(self, request: OpenRequest) -> HdrImage:
        file = request.below()
        header = HEADER.unpack(file.read(0, min(HEADER.size, file.size)), file=request.name)
        if header.magic != MAGIC or header.size % SECTOR or header.size > file.size - SECTOR:
            raise ImageError(f"no disk of {header.size} bytes is behind it", file=request.name, place="header")
        return HdrImage(self, file, name=request.name, size=header.size, writable=request.writable)


driver = HdrDriver()
