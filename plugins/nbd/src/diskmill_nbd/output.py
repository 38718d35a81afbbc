"""An export as the output of a command that makes a new image: taken for an empty file that grows.

What the export held before is made zeros wherever the image reaches, so none of it turns up in the image; what lies
behind stays. Its beginning is zeros until the image is written there, and again when the operation fails, so that
nothing is left that looks whole.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterator, Sequence
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
"""Bytes at the beginning in which every format has something to be known by."""


class NbdOutput(NbdStorage):
    """An export that is being made anew; once it is settled, it is like any other."""

    def __init__(self, driver: NbdDriver, client: Client, cache: str) -> None:
        super().__init__(driver, client, c.BASE_ALLOCATION, cache)
        self._capacity = client.size
        self._used: int | None = 0
        """Up to where the export holds what the image has, or zeros; None: it is settled."""
        self._growing = threading.RLock()
        self.size = 0
        self._blank_head()

    def _blank_head(self) -> None:
        super().zero(0, min(_HEAD, self._capacity))
        self.client.flush()

    def _reach(self, offset: int, end: int) -> None:
        """What lies before *offset* is zeros or written, and up to *end* is about to be. Others' writes wait."""
        if end > self._capacity:
            why = f"the export has {self._capacity} bytes, too few for {end}"
            raise StorageError(why, file=self.name, errno=errno.ENOSPC)
        with self._growing:
            if self._used is None:
                return
            if offset > self._used:
                super().zero(self._used, offset - self._used)
            self._used = max(self._used, end)
            self.size = max(self.size, end)

    def write(self, offset: int, data: ReadBuffer) -> None:
        if len(data):
            self._reach(offset, offset + memoryview(data).nbytes)
            super().write(offset, data)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        end = offset + length
        if end > self._capacity:
            self._reach(end, end)
        with self._growing:
            if self._used is not None:
                self.size = max(self.size, end)
                end = min(end, self._used)  # the rest becomes zeros when something is written behind it
        if offset < end:
            super().zero(offset, end - offset, unmap=unmap)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        used = self.size if self._used is None else self._used
        inside = min(max(used - offset, 0), len(view))
        super().read_into(offset, view[:inside])
        view[inside:] = bytes(len(view) - inside)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        inside = end if self._used is None else max(min(end, self._used), offset)
        yield from super().extents(offset, inside - offset)
        if inside < end:
            yield Extent(inside, end - inside, Kind.ZERO)

    def truncate(self, size: int) -> None:
        if self._used is None:
            super().truncate(size)
            return
        if size > self._capacity:
            self._reach(size, size)
        with self._growing:
            self.size, self._used = size, min(self._used, size)

    def allocate(self, offset: int, length: int, mode: str) -> None:
        if mode == "full":
            self.zero(offset, length, unmap=False)
        elif self._used is not None:  # its space is there
            self.truncate(max(self.size, offset + length))

    def settle(self, others: Sequence[Storage] = ()) -> None:
        super().settle(others)
        self._reach(self.size, self.size)
        self.client.flush()
        self._used = None

    @property
    def settled(self) -> bool:
        return self._used is None

    def remove(self) -> None:
        """Let nothing be left that looks like an image."""
        self._blank_head()

    def close(self) -> None:
        if self._used is None:
            super().close()
        else:
            self.abandon()

    def abandon(self) -> None:
        if self._used is not None and not self._closed:
            self._used = None
            with contextlib.suppress(StorageError):  # a server that fails has told so before
                self._blank_head()
        super().abandon()


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
        return NbdOutput(driver, client, request.context.cache)
    except BaseException:
        client.close()
        raise
