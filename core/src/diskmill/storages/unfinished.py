"""Outputs that can be gone on with: at any moment what they were at their last mark, but for what came later.

What the marked state needs is not touched between marks: writes behind its end go to the file, and writes into it (to
tables, mostly) are held in memory. A mark is a journal, which replaces the one before in one step, with what is held;
then it is written to the file. So a process that is killed at any moment leaves a file that the last journal makes, by
writing its pages once more and cutting the file, what it was at that mark.

The first 64 KiB stand in the journal until the output is settled: an unfinished one does not open as an image.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from ..contract.extents import Extent, Kind
from ..contract.node import Buffer, ReadBuffer, Storage
from ..errors import DiskmillError

PAGE = 4096
_HEAD = 65536


class Unfinished(Storage):
    """*base*, an output of which nothing is settled, as storage that has marks.

    :param pages: what is held of it: page number → its bytes.
    """

    def __init__(self, base: Storage, pages: dict[int, bytearray] | None = None) -> None:
        self.base = base
        self.driver, self.name, self.place = base.driver, base.name, base.place
        self.charged, self.requests = base.charged, base.requests
        self.writable = True
        self.size = base.size
        self.plain = False
        """Whether all is written at once: of images without tables, into which the same can be written again."""
        self.keep: Callable[[], None] = lambda: None
        """Writes the journal that the settled output begins from; until it ends, that is what is gone by."""
        self._marked = self.size if pages else 0
        self._pages: dict[int, bytearray] = dict(pages or {})
        self._settled = False
        self._lock = threading.RLock()

    # -- marks --------------------------------------------------------------------------------------------------

    @property
    def pages(self) -> dict[int, bytearray]:
        """What is held: page number → its bytes. With what the file has up to ``size``, that is the marked state."""
        return self._pages

    def marked(self) -> None:
        """What is held stands in a journal that is on disk: it may reach the file."""
        with self._lock:
            self._marked = self.size
            for number in sorted(self._pages):
                if number * PAGE >= _HEAD:
                    self._put(number)
            self._pages = {number: page for number, page in self._pages.items() if number * PAGE < _HEAD}

    def _put(self, number: int) -> None:
        start = number * PAGE
        page = memoryview(self._pages[number])[: max(min(PAGE, self.size - start), 0)]
        if page:
            self.base.write(start, page)

    def _holds(self, offset: int, end: int) -> bool:
        """Whether a write there has to be held, whole or in part."""
        return not (self.plain or self._settled) and offset < min(self._limit, end)

    @property
    def _limit(self) -> int:
        """Where the pages end that the marked state needs."""
        return -(-max(self._marked, _HEAD) // PAGE) * PAGE

    def _pieces(self, offset: int, end: int) -> Iterator[tuple[int, int, bytearray | None]]:
        """The range in pieces, with the page that is held of each; None: that is as the file has it."""
        limit = min(self._limit, end)
        while offset < end:
            page = self._pages.get(offset // PAGE)
            upto = offset // PAGE * PAGE + PAGE
            while page is None and upto < limit and upto // PAGE not in self._pages:
                upto += PAGE
            upto = min(upto, end) if page is not None or upto < limit else end
            yield offset, upto, page
            offset = upto

    def _page(self, number: int) -> bytearray:
        page = self._pages.get(number)
        if page is None:
            page = bytearray(PAGE)
            self.base.read_into(number * PAGE, page)
            self._pages[number] = page
        return page

    # -- bytes --------------------------------------------------------------------------------------------------

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer)
        if not self._pages:
            self.base.read_into(offset, view)
            return
        with self._lock:
            for start, end, page in self._pieces(offset, offset + len(view)):
                part = view[start - offset : end - offset]
                if page is None:
                    self.base.read_into(start, part)
                else:
                    part[:] = page[start % PAGE : start % PAGE + len(part)]

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        with self._lock:
            pieces = list(self._pieces(offset, offset + length))
        for start, end, page in pieces:
            if page is not None:
                yield Extent(start, end - start, Kind.DATA, self, start)
            else:
                for extent in self.base.extents(start, end - start):
                    yield extent._replace(node=self) if extent.kind is Kind.DATA else extent

    def write(self, offset: int, data: ReadBuffer) -> None:
        view = memoryview(data).cast("B")
        end = offset + len(view)
        if self._holds(offset, end):
            with self._lock:
                held = min(end, self._limit)
                at = offset
                while at < held:
                    upto = min(held, at // PAGE * PAGE + PAGE)
                    page = self._page(at // PAGE)
                    page[at % PAGE : at % PAGE + upto - at] = view[at - offset : upto - offset]
                    at = upto
                self._reach(held)
            view = view[held - offset :]
            offset = held
        if view:
            self.base.write(offset, view)
            self._reach(end)

    def write_vector(self, offset: int, buffers: Sequence[ReadBuffer]) -> None:
        end = offset + sum(len(memoryview(one).cast("B")) for one in buffers)
        if self._holds(offset, end):
            super().write_vector(offset, buffers)
            return
        self.base.write_vector(offset, buffers)
        self._reach(end)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        end = offset + length
        if self._holds(offset, end):
            held = min(end, self._limit)
            super().zero(offset, held - offset)
            offset = held
        if offset < end:
            self.base.zero(offset, end - offset, unmap=unmap)
            self._reach(end)

    def discard(self, offset: int, length: int) -> None:
        """The marked state may need what the present one does not; it is given back by no one."""
        if self.plain or self._settled:
            self.base.discard(offset, length)

    def truncate(self, size: int) -> None:
        with self._lock:
            if size < self.size and not self._settled:
                self.zero(size, self.size - size)  # the marked state may need what is cut off
            if self._settled or size > self.base.size:
                self.base.truncate(size)
            self.size = size

    def allocate(self, offset: int, length: int, mode: str) -> None:
        if self._holds(offset, offset + length) and mode == "full":
            self.zero(offset, length)
            return
        self.base.allocate(offset, length, mode)
        self._reach(offset + length)

    def _reach(self, end: int) -> None:
        if end > self.size:
            with self._lock:
                self.size = max(self.size, end)

    def flush(self) -> None:
        """What was written since the last mark need not last, nor come in order: it is not gone by after a crash."""
        if self._settled:
            self.base.flush()

    def barrier(self) -> None:
        if self._settled:
            self.base.barrier()

    # -- the end ------------------------------------------------------------------------------------------------

    def allocated(self) -> int | None:
        return self.base.allocated()

    def identity(self) -> object | None:
        return self.base.identity()

    def places(self) -> frozenset[object]:
        return self.base.places()

    def forget(self) -> None:
        self.base.forget()

    def write_behind(self) -> None:
        self.base.write_behind()

    @property
    def replaces(self) -> bool:
        return self.base.replaces

    @property
    def settled(self) -> bool:
        return self._settled

    def settle(self, others: Sequence[Storage] = ()) -> None:
        if self._settled:
            return
        self.keep()
        with self._lock:
            if self.size != self.base.size:
                self.base.truncate(self.size)
            self.base.flush()
            for number in sorted(self._pages, reverse=True):  # what makes it an image comes last
                if not number:
                    self.base.flush()
                self._put(number)
            self._pages = {}
            self._settled = True
        self.base.flush()
        self.base.settle(others)

    def close(self) -> None:
        if self._settled:
            self.base.close()
        else:
            self.abandon()

    def abandon(self) -> None:
        if not self._marked and not self._settled:  # nobody can go on with it
            with suppress(DiskmillError):
                self.base.go_on(0)
        self.base.abandon()
