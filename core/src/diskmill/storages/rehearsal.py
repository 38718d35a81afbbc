"""Storage that is written to without being changed: what a command would do is tried out and forgotten."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence

from ..contract.extents import Extent, Kind
from ..contract.node import Buffer, ReadBuffer, Storage
from ..kit.filter import Filter

_PAGE = 4096


class Rehearsal(Filter):
    """*base*, open for reading, as it would be after writes, which go to an unnamed temporary file."""

    size: int = 0

    def __init__(self, base: Storage) -> None:
        super().__init__(base.driver, base)
        self.size = base.size
        self.writable = True
        self._settled = base.settled
        self._visible = base.size
        """Bytes of *base* that are still to be seen: beyond, it was cut off."""
        self._pages: dict[int, int] = {}  # page → its place in the temporary file, in pages
        self._aside = tempfile.TemporaryFile(prefix="diskmill-")  # noqa: SIM115 - it lives as long as this object
        self._lock = threading.RLock()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        if not self._pages and self._visible == self.size:
            yield from self.file.extents(offset, length)
        elif length:
            yield Extent(offset, length, Kind.DATA, self, offset)

    def read_some(self, offset: int, length: int) -> bytes:
        return self.read(offset, max(min(length, self.size - offset), 0))

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer)
        with self._lock:
            inside = max(min(len(view), self._visible - offset), 0)
            if inside:
                self.file.read_into(offset, view[:inside])
            view[inside:] = bytes(len(view) - inside)
            for page in range(offset // _PAGE, -(-(offset + len(view)) // _PAGE)) if self._pages else ():
                if page in self._pages:
                    low, high = max(page * _PAGE, offset), min((page + 1) * _PAGE, offset + len(view))
                    view[low - offset : high - offset] = self._page(page)[low - page * _PAGE : high - page * _PAGE]

    def write(self, offset: int, data: ReadBuffer) -> None:
        view = memoryview(data)
        end, at = offset + len(view), offset
        with self._lock:
            while at < end:
                page = at // _PAGE
                upto = min((page + 1) * _PAGE, end)
                whole = bytearray(view[at - offset : upto - offset])
                if len(whole) < _PAGE:
                    whole = bytearray(_PAGE)
                    self.read_into(page * _PAGE, whole)
                    whole[at - page * _PAGE : upto - page * _PAGE] = view[at - offset : upto - offset]
                place = self._pages.setdefault(page, len(self._pages))
                os.pwrite(self._aside.fileno(), whole, place * _PAGE)
                at = upto
            self.size = max(self.size, end)

    def _page(self, page: int) -> bytes:
        return os.pread(self._aside.fileno(), _PAGE, self._pages[page] * _PAGE)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        for at in range(offset, offset + length, 256 * _PAGE):
            self.write(at, bytes(min(256 * _PAGE, offset + length - at)))

    def discard(self, offset: int, length: int) -> None:
        """What was there may stay."""

    def truncate(self, size: int) -> None:
        with self._lock:
            if size < self.size:
                self._visible = min(self._visible, size)
                rest = size % _PAGE
                if rest and size // _PAGE in self._pages:
                    self.write(size, bytes(_PAGE - rest))
                for page in [page for page in self._pages if page * _PAGE >= size]:
                    self.write(page * _PAGE, bytes(_PAGE))
            self.size = size

    def allocate(self, offset: int, length: int, mode: str) -> None:
        with self._lock:
            self.size = max(self.size, offset + length)

    def flush(self) -> None:
        """Nothing of it is meant to last."""

    def barrier(self) -> None:
        """Nothing of it is meant to last."""

    def settle(self, others: Sequence[Storage] = ()) -> None:
        """A new file gets no name: it goes when it is closed."""
        self._settled = True

    @property
    def settled(self) -> bool:
        return self._settled

    def remove(self) -> None:
        """It stays."""

    def close(self) -> None:
        self._aside.close()
        super().close()

    def abandon(self) -> None:
        self._aside.close()
        super().abandon()
