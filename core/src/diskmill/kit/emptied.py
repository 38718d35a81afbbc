"""Storage of a given size on a server (an export, a LUN) as the output of a command that makes a new image: taken for
an empty file that grows.

What it held before is made zeros wherever the image reaches, so none of it turns up in the image; what lies behind
stays. What makes it an image comes last: writes to the first 64 KiB, and to what a driver names besides
(:meth:`Storage.withhold`), are kept in memory until the output is settled. So whatever ends the operation, be it a
server that stalls, nothing is left that looks whole. Raw data has no header, so of that nothing can tell.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter

from ..contract.extents import Extent, Kind
from ..contract.node import Buffer, ReadBuffer, Storage
from ..errors import StorageError
from ..sizes import KiB

_HEAD = 64 * KiB
"""Bytes at the beginning in which every format but one has something to be known by."""
_PAGE = 4 * KiB
"""Bytes of a head that are written last."""


class Emptied(Storage):
    """*base*, which is open for writing, made anew; once it is settled, it is what *base* is.

    :param base: closed with this.
    :param flush: lets what was written reach the disk, whatever the cache mode: what comes last comes last there, too.
    """

    in_place = True

    def __init__(self, base: Storage, flush: Callable[[], None]) -> None:
        self.base = base
        self.driver = base.driver
        self.name = base.name
        self.place = base.place
        self.writable = True
        self.requests = base.requests
        self._flush = flush
        self._capacity = base.size
        self._used: int | None = 0
        """Up to where it holds what the image has, or zeros; None: it is settled."""
        self._withheld: list[tuple[int, bytearray]] = [(0, bytearray(_HEAD))]
        self._growing = threading.RLock()
        self.size = 0
        base.zero(0, min(_HEAD, self._capacity))
        flush()

    def _parts(self, offset: int, end: int) -> Iterator[tuple[int, int, memoryview | None]]:
        """The range in pieces: beginning, end, and the memory that holds the piece back, where one does."""
        for start, kept in sorted(self._withheld, key=itemgetter(0)):
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

    def _grow(self, end: int) -> None:
        """The image reaches to *end* at least."""
        if end > self._capacity:
            why = f"it has {self._capacity} bytes, too few for {end}"
            raise StorageError(why, file=self.name, errno=errno.ENOSPC)
        if self._used is not None:
            self.size = max(self.size, end)

    def _reach(self, offset: int, end: int) -> None:
        """What lies before *offset* is zeros or written, and up to *end* is about to be. Others' writes wait."""
        with self._growing:
            self._grow(end)
            if self._used is None:
                return
            if offset > self._used:
                self.base.zero(self._used, offset - self._used)
            self._used = max(self._used, end)

    def withhold(self, offset: int, length: int) -> None:
        if self._used is not None and offset >= _HEAD:
            kept = bytearray(length)
            self.read_into(offset, kept)
            self._withheld.append((offset, kept))

    # -- reading and writing ------------------------------------------------------------------------------------

    def write(self, offset: int, data: ReadBuffer) -> None:
        view = memoryview(data).cast("B")
        for start, end, kept in self._parts(offset, offset + len(view)):
            part = view[start - offset : end - offset]
            if kept is None:
                self._reach(start, end)
                self.base.write(start, part)
            else:
                with self._growing:
                    self._grow(end)
                    kept[:] = part

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        for start, end, kept in self._parts(offset, offset + length):
            with self._growing:
                self._grow(end)
                # What lies behind what was written becomes zeros when something is written behind that.
                upto = end if self._used is None else min(end, self._used)
                if kept is not None:
                    kept[:] = bytes(len(kept))
            if kept is None and start < upto:
                self.base.zero(start, upto - start, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        end = offset + length if self._used is None else min(offset + length, self._used)
        for start, stop, kept in self._parts(offset, end):
            if kept is None:
                self.base.discard(start, stop - start)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        used = self.size if self._used is None else self._used
        for start, end, kept in self._parts(offset, offset + len(view)):
            part = view[start - offset : end - offset]
            if kept is not None:
                part[:] = kept
                continue
            inside = min(max(used - start, 0), len(part))
            if inside:
                self.base.read_into(start, part[:inside])
            part[inside:] = bytes(len(part) - inside)

    def read_pieces(self, pieces: Sequence[tuple[int, Buffer]]) -> None:
        for offset, buffer in pieces:  # some of it is held back
            self.read_into(offset, buffer)

    def write_pieces(self, pieces: Sequence[tuple[int, ReadBuffer]]) -> None:
        for offset, data in pieces:
            self.write(offset, data)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        for start, end, kept in self._parts(offset, offset + length):
            if kept is not None:
                yield Extent(start, end - start, Kind.DATA, self, start)
                continue
            inside = end if self._used is None else max(min(end, self._used), start)
            if start < inside:
                for extent in self.base.extents(start, inside - start):
                    yield extent._replace(node=self)
            if inside < end:
                yield Extent(inside, end - inside, Kind.ZERO)

    def truncate(self, size: int) -> None:
        if self._used is None:
            self.base.truncate(size)
            return
        with self._growing:
            self._grow(size)
            for _, _, kept in self._parts(size, max(self.size, size)):
                if kept is not None:
                    kept[:] = bytes(len(kept))
            self.size, self._used = size, min(self._used, size)

    def allocate(self, offset: int, length: int, mode: str) -> None:
        if mode == "full":
            self.zero(offset, length, unmap=False)
        elif self._used is not None:  # its space is there
            self._grow(offset + length)

    def flush(self) -> None:
        self.base.flush()

    def identity(self) -> object | None:
        return self.base.identity()

    def interrupt(self) -> None:
        self.base.interrupt()

    # -- the end ------------------------------------------------------------------------------------------------

    def settle(self, others: Sequence[Storage] = ()) -> None:
        super().settle(others)
        if self._used is None:
            return
        self._reach(self.size, self.size)
        self._flush()
        (_, head), *rest = self._withheld
        self._withheld = []
        for start, kept in ((_PAGE, head[_PAGE:]), (0, head[:_PAGE]), *rest):
            kept = kept[: max(self.size - start, 0)]
            if any(kept):  # it is zeros already
                self.base.write(start, kept)
                self._flush()
        self._used = None

    @property
    def settled(self) -> bool:
        return self._used is None

    @property
    def replaces(self) -> bool:
        return True

    def places(self) -> frozenset[object]:
        return frozenset((self.identity(),))

    def remove(self) -> None:
        """Let nothing be left that looks like an image."""
        self.base.zero(0, min(_HEAD, self._capacity))
        self._flush()

    def close(self) -> None:
        if self._used is None:
            self.base.close()
        else:
            self.abandon()

    def abandon(self) -> None:
        self.base.abandon()
