"""What filters are built from: storage over another node that passes everything on.

A filter derives from :class:`Filter` and overrides what it is for. It may stand over storage or over an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

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
    :param others: other nodes that it stands on, which are flushed, settled and closed with *file*.
    """

    def __init__(self, driver: Driver, file: Node, others: Sequence[Node] = ()) -> None:
        self.driver = driver
        self.file = file
        self.others = tuple(others)
        self.name = file.name
        self.writable = file.writable
        self.blank = file.blank
        self.charged = file.account
        self.requests = file.requests
        self.conflict = file.conflict
        if isinstance(file, Storage):
            self.place = file.place
        self.forward = file.forward
        self.one_pass = file.one_pass
        self.resizable = file.resizable

    @property
    def size(self) -> int:  # type: ignore[override]
        """The size of the node below, in bytes."""
        return self.file.size

    @property
    def unsized(self) -> bool:  # type: ignore[override]
        """A filter that has a size of its own knows it."""
        return self.file.unsized and self.size == self.file.size

    @property
    def ended(self) -> int | None:  # type: ignore[override]
        """As of the node below."""
        return self.file.ended

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        for extent in walk(self.file, offset, length):
            if extent.reads_as_zeros:
                yield Extent(extent.start, extent.length, Kind.ZERO, self, extent.start)
            else:
                yield Extent(extent.start, extent.length, Kind.DATA, self, extent.start)

    def marks(self, offset: int, length: int) -> Iterator[tuple[int, bool, bool]] | None:
        return self.file.marks(offset, length)

    def bitmaps(self) -> list[Bitmap]:
        return self.file.bitmaps() if isinstance(self.file, Storage) else []

    def read_into(self, offset: int, buffer: Buffer) -> None:
        self.file.read_into(offset, buffer)

    def read_some(self, offset: int, length: int) -> bytes:
        if type(self).read_into is Filter.read_into:
            return self.file.read_some(offset, length)
        return super().read_some(offset, length)  # by the filter's own way of reading

    def write(self, offset: int, data: ReadBuffer) -> None:
        self.file.write(offset, data)

    def write_vector(self, offset: int, buffers: Sequence[ReadBuffer]) -> None:
        if type(self).write is Filter.write:
            self.file.write_vector(offset, buffers)
        else:
            super().write_vector(offset, buffers)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self.file.zero(offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        self.file.discard(offset, length)

    def truncate(self, size: int) -> None:
        self.file.truncate(size)

    def allocate(self, offset: int, length: int, mode: str) -> None:
        self.file.allocate(offset, length, mode)

    def flush(self) -> None:
        for child in self.children():
            child.flush()

    def barrier(self) -> None:
        for child in self.children():
            child.barrier()

    def event(self, name: str) -> None:
        self.file.event(name)

    def allocated(self) -> int | None:
        return self.file.allocated()

    def settle(self, others: Sequence[Storage] = ()) -> None:
        first, *rest = self.children()
        for child in reversed(rest):
            child.settle()
        if isinstance(first, Storage):
            first.settle(others)
        else:
            first.settle()

    @property
    def settled(self) -> bool:
        return self.file.settled

    def remove(self) -> None:
        self.file.remove()

    def interrupt(self) -> None:
        for child in self.children():
            child.interrupt()

    def identity(self) -> object | None:
        return self.file.identity()

    def children(self) -> Iterator[Node]:
        yield self.file
        yield from self.others

    def close(self) -> None:
        with ExitStack() as stack:  # whatever else can be closed, is
            for child in reversed(list(self.children())):
                stack.callback(child.close)

    def abandon(self) -> None:
        with ExitStack() as stack:
            for child in reversed(list(self.children())):
                stack.callback(child.abandon)
