"""Opening a DMG: the trailer, then the block tables that it leads to."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from diskmill.contract.node import Node
from diskmill.errors import ImageError, UnsupportedError
from diskmill.sizes import MAX_SIZE, SECTOR

from .c_udif import KOLY, RAW, TRAILER
from .image import DmgImage
from .resources import MAX_BYTES, from_fork, from_plist
from .tables import ChunkTable, read_tables

if TYPE_CHECKING:
    from diskmill.contract.requests import OpenRequest

    from . import DmgDriver
    from .c_udif import Trailer


def open_dmg(driver: DmgDriver, request: OpenRequest) -> DmgImage:
    """The image in ``request.file``."""
    file, name = request.below(), request.name
    trailer, end = _trailer(file, name)
    if trailer.SegmentCount > 1:
        raise UnsupportedError(
            f"it is segment {trailer.SegmentNumber} of {trailer.SegmentCount}: segments are not supported", file=name
        )
    if trailer.SectorCount > MAX_SIZE // SECTOR:
        raise ImageError(f"impossible size of {trailer.SectorCount} sectors", file=name, place="trailer")
    if trailer.DataForkOffset > end:
        raise ImageError("the data fork is not inside the file", file=name, place="trailer")
    if trailer.XMLLength:
        resources = from_plist(_part(file, trailer.XMLOffset, trailer.XMLLength, end, "property list", name), name)
    elif trailer.RsrcForkLength:
        resources = from_fork(
            _part(file, trailer.RsrcForkOffset, trailer.RsrcForkLength, end, "resource fork", name), name
        )
    elif trailer.DataForkLength == trailer.SectorCount * SECTOR > 0:
        # Read-write images (UDRW) have a trailer and no tables: the data fork is the disk.
        columns = (trailer.SectorCount,), (trailer.DataForkOffset,), (trailer.DataForkLength,)
        table = ChunkTable(array("I", (RAW,)), array("Q", (0,)), *(array("Q", column) for column in columns))
        return DmgImage(driver, file, trailer, [], table, name=name)
    else:
        raise ImageError("it has neither a property list nor a resource fork", file=name, place="trailer")
    partitions, table = read_tables(resources, trailer.DataForkOffset, name)
    return DmgImage(driver, file, trailer, partitions, table, name=name)


def _trailer(file: Node, name: str) -> tuple[Trailer, int]:
    """The trailer, and the file offset that what it leads to ends before."""
    size = file.size
    # It ends the file; what copied the file may have added up to a sector of zeros.
    start = max(size - TRAILER.size - (SECTOR - 1), 0)
    tail = file.read(start, size - start)
    at = tail.rfind(KOLY, 0, len(tail) - TRAILER.size + len(KOLY)) if len(tail) >= TRAILER.size else -1
    if at >= 0:
        trailer, end = TRAILER.unpack(tail, at, file=name), start + at
    else:
        head = file.read(0, min(TRAILER.size, size))
        if head.startswith(b"encrcdsa") or tail.endswith(b"cdsaencr"):
            raise UnsupportedError("encrypted DMG images are not supported", file=name)
        if not head.startswith(KOLY):
            raise ImageError("it has no UDIF trailer: it is cut short, or a disk without a format (-f raw)", file=name)
        trailer, end = TRAILER.unpack(head, file=name), size
    if trailer.HeaderSize != TRAILER.size:
        raise ImageError(f"impossible size {trailer.HeaderSize}", file=name, place="trailer")
    return trailer, end


def _part(file: Node, offset: int, length: int, end: int, what: str, name: str) -> bytes:
    if offset + length > end:
        raise ImageError(f"the {what} is not inside the file", file=name, place="trailer")
    if length > MAX_BYTES:
        raise UnsupportedError(f"a {what} of {length} bytes, more than {MAX_BYTES}", file=name, place="trailer")
    return file.read(offset, length)
