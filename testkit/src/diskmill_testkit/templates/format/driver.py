"""The ``sample`` image format: a header of one sector, and the disk behind it, which is only read."""

from __future__ import annotations

from collections.abc import Iterator

from diskmill.contract.drivers import FormatDriver, hookimpl
from diskmill.contract.extents import Extent, Kind
from diskmill.contract.requests import OpenRequest
from diskmill.errors import ImageError
from diskmill.kit.image import FormatImage
from diskmill.kit.structs import Record, Structure, raw, u64
from diskmill.sizes import SECTOR

# FILL IN: the structures on disk, in the names of the specification.
MAGIC = b"sample".ljust(32, b"\0")


class Header(Record):
    magic = raw(32)
    size = u64


HEADER = Structure("header", "<", Header)


class SampleImage(FormatImage):
    """An open image."""

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        # FILL IN: where the bytes of the guest disk lie; Kind.ZERO where it reads as zeros.
        if length:
            yield Extent(offset, length, Kind.DATA, self.file, SECTOR + offset)


class SampleDriver(FormatDriver):
    """``sample``: see diskmill's page "Writing a driver"."""

    contract = 1
    name = "sample"
    title = "sample images"  # FILL IN

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        """How sure it is, from 0 to 100, by the first 4096 bytes."""
        return 100 if data.startswith(MAGIC) else 0

    @hookimpl
    def open(self, request: OpenRequest) -> SampleImage:
        """An image that is there, and of which nothing is believed."""
        file = request.below()
        header = HEADER.unpack(file.read(0, min(HEADER.size, file.size)), file=request.name)
        if header.magic != MAGIC:
            raise ImageError("not a sample image", file=request.name, place="header")
        if header.size % SECTOR or header.size > file.size - SECTOR:
            raise ImageError(f"impossible size {header.size}", file=request.name, place="header")
        return SampleImage(self, file, name=request.name, size=header.size, writable=request.writable)


driver = SampleDriver()
