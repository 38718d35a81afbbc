"""What filters are built from: storage over another node that passes everything on.

A filter derives from :class:`Filter` and overrides what it is for. It may stand over storage or over an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..contract.drivers import Driver
from ..contract.extents import Extent, Kind
from ..contract.node import Buffer, Node, ReadBuffer, Storage
from ..contract.results import Bitmap
from ..engine.walk import walk


class Filter(Storage):
    """Storage that is *file*, the node below, seen through the filter.

    Whatever is read or written passes through the filter's own methods: extents of the node below that hold data are
    shown as data of the filter.

    :param driver: the filter's own driver.
    """

    def __init__(self, driver: Driver, file: Node) -> None:
        self.driver = driver
        self.file = file
        self.name = file.name
        self.writable = file.writable
        self.blank = file.blank
        if isinstance(file, Storage):
            self.charged = file.charged
            self.requests = file.requests
            self.place = file.place
            self.conflict = file.conflict
            self.forward = file.forward

    @property
    def size(self) -> int:  # type: ignore[override]
        """The size of the node below, in bytes."""
        return self.file.size

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        for extent in walk(self.file, offset, length):
            if extent.reads_as_zeros:
                yield Extent(extent.start, extent.length, Kind.ZERO, self, extent.start)
            else:
                yield Extent(extent.start, extent.length, Kind.DATA, self, extent.start)

    def marks(self, offset: int, length: int) -> Iterator[tuple[int, bool, bool]] | None:
        return self.file.marks(offset, length) if isinstance(self.file, Storage) else None

    def bitmaps(self) -> list[Bitmap]:
        return self.file.bitmaps() if isinstance(self.file, Storage) else []

    def read_into(self, offset: int, buffer: Buffer) -> None:
        self.file.read_into(offset, buffer)

    def read_some(self, offset: int, length: int) -> bytes:
        return self.file.read_some(offset, length)

    def write(self, offset: int, data: ReadBuffer) -> None:
        self.file.write(offset, data)

    def write_vector(self, offset: int, buffers: Sequence[ReadBuffer]) -> None:
        for buffer in buffers:
            self.write(offset, buffer)
            offset += len(buffer)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self.file.zero(offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        self.file.discard(offset, length)

    def truncate(self, size: int) -> None:
        self.file.truncate(size)

    def allocate(self, offset: int, length: int, mode: str) -> None:
        self.file.allocate(offset, length, mode)

    def flush(self) -> None:
        self.file.flush()

    def barrier(self) -> None:
        self.file.barrier()

    def allocated(self) -> int | None:
        return self.file.allocated()

    def settle(self, others: Sequence[Storage] = ()) -> None:
        if isinstance(self.file, Storage):
            self.file.settle(others)
        else:
            self.file.settle()

    @property
    def settled(self) -> bool:
        return self.file.settled if isinstance(self.file, Storage) else True

    def remove(self) -> None:
        if isinstance(self.file, Storage):
            self.file.remove()
        else:
            super().remove()

    def interrupt(self) -> None:
        if isinstance(self.file, Storage):
            self.file.interrupt()

    def identity(self) -> object | None:
        return self.file.identity() if isinstance(self.file, Storage) else None

    def children(self) -> Iterator[Node]:
        yield self.file

    def close(self) -> None:
        self.file.close()

    def abandon(self) -> None:
        self.file.abandon()
