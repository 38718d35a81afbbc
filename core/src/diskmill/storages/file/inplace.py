"""Outputs that are written where they stay: a block device, or a file that exists and keeps its inode.

Such an output bears its name all the time. What makes it an image comes last instead: writes to the first 64 KiB,
where every format but one has its header, and to what a driver names besides (:meth:`Storage.withhold`; a footer) are
kept in memory until the output is settled. So a process that is killed leaves nothing that opens as an image. Raw data
has no header, so of that nothing can tell whether it is whole.

What the file held stays until the first write that must reach it: what is refused before has changed nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

from ...contract.extents import Extent, Kind
from ...contract.node import Buffer, ReadBuffer, Storage
from ...errors import DiskmillError
from .storage import HEAD, FileStorage

_PAGE = 4096
"""Bytes that are written at once: a signal that kills does not part them."""


class InPlace(Storage):
    """*base*, open for writing, as the empty file that an output begins with."""

    in_place = True

    def __init__(self, base: FileStorage) -> None:
        self.base = base
        self.driver = base.driver
        self.name = base.name
        self.writable = True
        self.requests = base.requests
        self.size = 0
        self._first: InPlace | None = None
        self._begun = False
        self._settled = False
        self._withheld: list[tuple[int, bytearray]] = [(0, bytearray(HEAD))]
        self._lock = threading.RLock()

    def begin(self) -> None:
        """End what was there before, and before that, what is at the file that this one goes with."""
        with self._lock:
            if not self._begun:
                if self._first is not None:
                    self._first.begin()
                self.base.begin_anew()
                self._begun = True

    def follow(self, first: Storage) -> None:
        if isinstance(first, InPlace):
            self._first = first

    def withhold(self, offset: int, length: int) -> None:
        if not self._settled and offset >= HEAD:
            self._withheld.append((offset, bytearray(self.read(offset, length))))

    def _parts(self, offset: int, end: int) -> Iterator[tuple[int, int, memoryview | None]]:
        """The range in pieces: beginning, end, and the memory that holds the piece back, where one does."""
        if self._settled:
            yield offset, end, None
            return
        for start, kept in self._withheld:
            stop = start + len(kept)
            if offset < end and offset < stop and end > start:
                if offset < start:
                    yield offset, start, None
                    offset = start
                upto = min(end, stop)
                yield offset, upto, memoryview(kept)[offset - start : upto - start]
                offset = upto
        if offset < end:
            yield offset, end, None

    # -- reading ------------------------------------------------------------------------------------------------

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        for start, end, kept in self._parts(offset, offset + length):
            if kept is not None:
                yield Extent(start, end - start, Kind.DATA, self, start)
            elif self._begun:
                for extent in self.base.extents(start, end - start):
                    yield extent._replace(node=self)
            else:
                yield Extent(start, end - start, Kind.ZERO, self, start)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer)
        for start, end, kept in self._parts(offset, offset + len(view)):
            part = view[start - offset : end - offset]
            if kept is not None:
                part[:] = kept
            elif self._begun:
                self.base.read_into(start, part)
            else:
                part[:] = bytes(len(part))

    # -- writing ------------------------------------------------------------------------------------------------

    def _reach(self, end: int) -> None:
        with self._lock:
            self.size = max(self.size, end)

    def write(self, offset: int, data: ReadBuffer) -> None:
        view = memoryview(data)
        for start, end, kept in self._parts(offset, offset + len(view)):
            part = view[start - offset : end - offset]
            if kept is not None:
                kept[:] = part
            else:
                self.begin()
                self.base.write(start, part)
            self._reach(end)

    def write_vector(self, offset: int, buffers: Sequence[ReadBuffer]) -> None:
        end = offset + sum(map(len, buffers))
        if any(kept is not None for _, _, kept in self._parts(offset, end)):
            super().write_vector(offset, buffers)
            return
        self.begin()
        self.base.write_vector(offset, buffers)
        self._reach(end)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        for start, end, kept in self._parts(offset, offset + length):
            if kept is not None:
                kept[:] = bytes(len(kept))
            else:
                self.begin()
                self.base.zero(start, end - start, unmap=unmap)
            self._reach(end)

    def discard(self, offset: int, length: int) -> None:
        for start, end, kept in self._parts(offset, min(offset + length, self.size)):
            if kept is None and self._begun:
                self.base.discard(start, end - start)

    def truncate(self, size: int) -> None:
        self.begin()
        with self._lock:
            self.base.truncate(size)
            for _, _, kept in self._parts(size, max(self.size, size)):
                if kept is not None:
                    kept[:] = bytes(len(kept))
            self.size = size

    def allocate(self, offset: int, length: int, mode: str) -> None:
        self.begin()
        self.base.allocate(offset, length, mode)
        for _, _, kept in self._parts(offset, offset + length) if mode == "full" else ():
            if kept is not None:
                kept[:] = bytes(len(kept))
        self._reach(offset + length)

    def flush(self) -> None:
        if self._begun:
            self.base.flush()

    # -- what it is ---------------------------------------------------------------------------------------------

    def allocated(self) -> int | None:
        return self.base.allocated()

    def fileno(self) -> int | None:
        return self.base.fileno() if self._settled else None  # nobody shall pass by what is withheld

    def identity(self) -> object | None:
        return self.base.identity()

    @property
    def replaces(self) -> bool:
        return True

    def places(self) -> frozenset[object]:
        return self.base.places()

    @property
    def settled(self) -> bool:
        return self._settled

    # -- the end ------------------------------------------------------------------------------------------------

    def settle(self, others: Sequence[Storage] = ()) -> None:
        if self._settled:
            super().settle(others)
            return
        self.begin()
        super().settle(others)
        if self.base.size != self.size:
            self.base.truncate(self.size)
        self.base.flush()
        (_, head), *rest = self._withheld
        self._put(_PAGE, memoryview(head)[_PAGE:])
        self.base.flush()
        self._put(0, memoryview(head)[:_PAGE])
        for start, kept in rest:
            self.base.flush()
            self._put(start, memoryview(kept))
        self._settled = True
        self._withheld = []
        self.base.flush()
        self.base.settle()

    def _put(self, offset: int, kept: memoryview) -> None:
        """Write what was withheld, up to the end; pages of zeros are zeros already."""
        for at in range(0, min(len(kept), max(self.size - offset, 0)), _PAGE):
            page = kept[at : min(at + _PAGE, self.size - offset)]
            if any(page):
                self.base.write(offset + at, page)

    def remove(self) -> None:
        self.base.remove()

    def close(self) -> None:
        if self._settled:
            self.base.close()
        else:
            self.abandon()

    def abandon(self) -> None:
        if self._begun and not self._settled and not self.base.is_device:
            with contextlib.suppress(DiskmillError):  # what fails has told so before
                self.base.truncate(0)
        self._begun = False
        self.base.abandon()
