"""Storage that is written to without being changed: what a command would do is tried out and forgotten."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence

from .extents import Extent, Kind
from .node import Buffer, ReadBuffer, Storage

_PAGE = 4096


class Rehearsal(Storage):
    """*base*, open for reading, as it would be after writes, which go to an unnamed temporary file."""

    def __init__(self, base: Storage) -> None:
        self.base = base
        self.driver = base.driver
        self.name = base.name
        self.size = base.size
        self.writable = True
        self.align = base.align
        self.conflict = base.conflict
        self._settled = base.settled
        self._visible = base.size
        """Bytes of *base* that are still to be seen: beyond, it was cut off."""
        self._pages: dict[int, int] = {}  # page → its place in the temporary file, in pages
        self._aside = tempfile.TemporaryFile(prefix="diskmill-")  # noqa: SIM115 - it lives as long as this object

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        if not self._pages and self._visible == self.size:
            yield from self.base.extents(offset, length)
        elif length:
            yield Extent(offset, length, Kind.DATA, self, offset)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer)
        inside = max(min(len(view), self._visible - offset), 0)
        if inside:
            self.base.read_into(offset, view[:inside])
        view[inside:] = bytes(len(view) - inside)
        for page in range(offset // _PAGE, -(-(offset + len(view)) // _PAGE)) if self._pages else ():
            if page in self._pages:
                low, high = max(page * _PAGE, offset), min((page + 1) * _PAGE, offset + len(view))
                view[low - offset : high - offset] = self._page(page)[low - page * _PAGE : high - page * _PAGE]

    def write(self, offset: int, data: ReadBuffer) -> None:
        view = memoryview(data)
        end, at = offset + len(view), offset
        while at < end:
            page = at // _PAGE
            upto = min((page + 1) * _PAGE, end)
            whole = bytearray(view[at - offset : upto - offset])
            if len(whole) < _PAGE:
                whole = bytearray(_PAGE)
                self.read_into(page * _PAGE, whole)
                whole[at - page * _PAGE : upto - page * _PAGE] = view[at - offset : upto - offset]
            place = self._pages.setdefault(page, len(self._pages))
            self._aside.seek(place * _PAGE)
            self._aside.write(whole)
            at = upto
        self.size = max(self.size, end)

    def _page(self, page: int) -> bytes:
        self._aside.seek(self._pages[page] * _PAGE)
        return self._aside.read(_PAGE)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        for at in range(offset, offset + length, 256 * _PAGE):
            self.write(at, bytes(min(256 * _PAGE, offset + length - at)))

    def truncate(self, size: int) -> None:
        if size < self.size:
            self._visible = min(self._visible, size)
            rest = size % _PAGE
            if rest and size // _PAGE in self._pages:
                self.write(size, bytes(_PAGE - rest))
            for page in [page for page in self._pages if page * _PAGE >= size]:
                self.write(page * _PAGE, bytes(_PAGE))
        self.size = size

    def allocate(self, offset: int, length: int, mode: str) -> None:
        self.size = max(self.size, offset + length)

    def allocated(self) -> int | None:
        return self.base.allocated()

    def identity(self) -> object | None:
        return self.base.identity()

    def flush(self) -> None:
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
        self.base.close()

    def abandon(self) -> None:
        self._aside.close()
        self.base.abandon()
