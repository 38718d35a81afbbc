"""An export as the output of a command that makes a new image: taken for an empty file that grows.

What the export held before is made zeros wherever the image reaches, so none of it turns up in the image; what lies
behind stays. What makes it an image comes last: writes to the first 64 KiB, and to what a driver names besides
(:meth:`Storage.withhold`), are kept in memory until the output is settled. So whatever ends the operation, be it a
server that stalls, nothing is left that looks whole. Raw data has no header, so of that nothing can tell.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING

from diskmill.contract.extents import Extent, Kind
from diskmill.contract.node import Buffer, ReadBuffer, Storage
from diskmill.errors import StorageError, UsageError
from diskmill.sizes import KiB

from . import c_nbd as c
from .client import Client, Settings
from .place import NbdPlace, place_of
from .storage import NbdStorage

if TYPE_CHECKING:
    from diskmill.contract.requests import CreateRequest

    from . import NbdDriver

_HEAD = 64 * KiB
"""Bytes at the beginning in which every format but one has something to be known by."""
_PAGE = 4 * KiB
"""Bytes of a head that are written last."""


class NbdOutput(NbdStorage):
    """An export that is being made anew; once it is settled, it is like any other."""

    in_place = True

    def __init__(self, driver: NbdDriver, client: Client, cache: str) -> None:
        super().__init__(driver, client, c.BASE_ALLOCATION, cache)
        self._capacity = client.size
        self._used: int | None = 0
        """Up to where the export holds what the image has, or zeros; None: it is settled."""
        self._withheld: list[tuple[int, bytearray]] = [(0, bytearray(_HEAD))]
        self._growing = threading.RLock()
        self.size = 0
        super().zero(0, min(_HEAD, self._capacity))
        self.client.flush()

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
            why = f"the export has {self._capacity} bytes, too few for {end}"
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
                super().zero(self._used, offset - self._used)
            self._used = max(self._used, end)

    def withhold(self, offset: int, length: int) -> None:
        if self._used is not None and offset >= _HEAD:
            kept = bytearray(length)
            self.read_into(offset, kept)
            self._withheld.append((offset, kept))

    def write(self, offset: int, data: ReadBuffer) -> None:
        view = memoryview(data).cast("B")
        for start, end, kept in self._parts(offset, offset + len(view)):
            part = view[start - offset : end - offset]
            if kept is None:
                self._reach(start, end)
                super().write(start, part)
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
                super().zero(start, upto - start, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        end = offset + length if self._used is None else min(offset + length, self._used)
        for start, stop, kept in self._parts(offset, end):
            if kept is None:
                super().discard(start, stop - start)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        used = self.size if self._used is None else self._used
        for start, end, kept in self._parts(offset, offset + len(view)):
            part = view[start - offset : end - offset]
            if kept is not None:
                part[:] = kept
                continue
            inside = min(max(used - start, 0), len(part))
            super().read_into(start, part[:inside])
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
            yield from super().extents(start, inside - start)
            if inside < end:
                yield Extent(inside, end - inside, Kind.ZERO)

    def truncate(self, size: int) -> None:
        if self._used is None:
            super().truncate(size)
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

    def settle(self, others: Sequence[Storage] = ()) -> None:
        super().settle(others)
        if self._used is None:
            return
        self._reach(self.size, self.size)
        self.client.flush()
        (_, head), *rest = self._withheld
        self._withheld = []
        for start, kept in ((_PAGE, head[_PAGE:]), (0, head[:_PAGE]), *rest):
            kept = kept[: max(self.size - start, 0)]
            if any(kept):  # it is zeros already
                super().write(start, kept)
                self.client.flush()
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
        super().zero(0, min(_HEAD, self._capacity))
        self.client.flush()

    def close(self) -> None:
        if self._used is None:
            super().close()
        else:
            self.abandon()


def create_nbd(driver: NbdDriver, request: CreateRequest) -> NbdOutput:
    """The export called ``request.name``, emptied.

    :raises StorageError: it cannot be reached, or not be written.
    """
    if request.like is not None:
        raise UsageError("an NBD export cannot be replaced", file=request.name)
    place = request.place
    if not isinstance(place, NbdPlace):
        place = place_of(driver, {"filename": request.name})
    client = Client(place.location, Settings(), writable=True)
    try:
        output = NbdOutput(driver, client, request.context.cache)
        output.place = place
        return output
    except BaseException:
        client.close()
        raise
