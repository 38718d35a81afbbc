"""What a server exports: an interface, and an opened image that fits it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from diskmill.contract.extents import Extent, Kind
from diskmill.contract.node import Image, Storage
from diskmill.contract.results import Bitmap
from diskmill.errors import UnsupportedError
from diskmill.kit.image import read_extents, walk
from diskmill.sizes import SECTOR, KiB, MiB, round_up

from . import c_nbd as c

Statuses = Callable[[int, int], Iterator[tuple[int, int]]]
"""Takes an offset and a length, gives length and flags of each stretch of that range, in order."""

PIECE = 256 * KiB
"""Bytes that are read, written or sent at a time: the buffer of a client."""
_WORTH_A_HOLE = 4 * KiB
"""Bytes of zeros that are sent as zeros, rather than as one more chunk."""
_WORTH_SENDFILE = 16 * KiB
_MAX_RANGES = 1 << 20


class Piece(NamedTuple):
    """A stretch of what is read: zeros; or *length* bytes at *offset* of the file descriptor *fd*; or neither, and
    it must be read, for which *extents* say where it is, unless that may have changed by then.
    """

    length: int
    zero: bool = False
    fd: int = -1
    offset: int = 0
    extents: tuple[Extent, ...] = ()

    @property
    def decodes(self) -> bool:
        """Whether reading it takes a processor more than copying bytes does."""
        return any(extent.kind is Kind.ENCODED for extent in self.extents)


class Export(ABC):
    """Bytes that a server exports. All methods may be called from several threads at once."""

    name: str = ""
    description: str = ""
    size: int
    writable: bool = False
    preferred: int = 64 * KiB
    """Bytes that requests are best multiples of, a power of two."""
    contexts: Mapping[str, Statuses] = {}
    """The metadata contexts that it has."""
    fast_unit: int = 0
    """Bytes of a unit: whole ones become zeros without being written. 0: nothing is known to be so fast."""

    def look(self) -> None:
        """A client is about to be told the size: it may be another than it was."""

    @abstractmethod
    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill *buffer*; the range lies inside."""

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        """What the range is, for whoever is about to send it. The default: to be read."""
        yield Piece(length)

    def read_piece(self, piece: Piece, offset: int, buffer: memoryview) -> None:
        """Fill *buffer* from *offset* on, which lies in *piece*."""
        self.read_into(offset, buffer)

    def write(self, offset: int, data: memoryview) -> None:
        """Put *data* at *offset*."""
        raise NotImplementedError

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make the range read as zeros."""
        raise NotImplementedError

    def zero_fast(self, offset: int, length: int, *, unmap: bool) -> bool:
        """The same, of whole units, without writing them; False: that cannot be, and nothing has changed."""
        return False

    def trim(self, offset: int, length: int) -> None:
        """The range's contents no longer matter."""

    def flush(self) -> None:
        """What was written reaches the disk."""

    def close(self) -> None:
        """Nobody reads or writes it any more."""


class ImageExport(Export):
    """An opened image, or a window of it.

    :param offset: where in the guest disk the export begins, in bytes.
    :param length: how long it is; None: up to the end.
    :param depth: whether it has the context ``qemu:allocation-depth``.
    :param bitmaps: dirty bitmaps of the image that become contexts.
    """

    def __init__(
        self,
        image: Image,
        name: str = "",
        *,
        description: str = "",
        writable: bool = False,
        offset: int = 0,
        length: int | None = None,
        depth: bool = False,
        bitmaps: tuple[Bitmap, ...] = (),
    ) -> None:
        self.image = image
        self.name = name
        self.description = description
        self.writable = writable
        self.size = image.size - offset if length is None else length
        self._offset = offset
        self._grows = length is None and image.window == 0 and not writable and isinstance(image.file, Storage)
        if writable and image.window is None and not offset and length is None and "zero" in image.driver.capabilities:
            self.fast_unit = image.unit
        unit = image.unit if image.window is None else 64 * KiB
        self.preferred = max(min(1 << (unit - 1).bit_length(), 2 * MiB), 4 * KiB)
        contexts: dict[str, Statuses] = {c.BASE_ALLOCATION: self._allocation}
        if depth:
            contexts[c.ALLOCATION_DEPTH] = self._depth
        for bitmap in bitmaps:
            contexts[c.DIRTY_BITMAP + bitmap.name] = _Dirty(bitmap, offset).statuses
        self.contexts = contexts

    def look(self) -> None:
        """Raw data may have become longer. It never becomes shorter here: reading says that it is cut off."""
        fd = self.image.file.fileno() if self._grows else None
        if fd is None:
            return
        with suppress(OSError):
            size = os.lseek(fd, 0, os.SEEK_END)  # of devices, too; nobody goes by the file's position
            if size > self.image.file.size:
                self.image.file.size = size
                self.image.size = round_up(size, SECTOR)
                self.size = self.image.size - self._offset

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.image.read_into(offset + self._offset, buffer)

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        # The kernel takes bytes from a file when they leave the socket: what tables name may be another's by then.
        files = not self.image.writable or self.image.window is not None
        # What others write may be elsewhere when it is read: it is looked up again then.
        still = not self.image.writable
        held: Piece | None = None
        for extent in walk(self.image, offset + self._offset, length):
            piece = _piece(extent, files, still)
            if held is None:
                held = piece
            elif _go_together(held, piece):
                held = held._replace(length=held.length + piece.length, extents=held.extents + piece.extents)
            else:
                yield held
                held = piece
        if held is not None:
            yield held

    def read_piece(self, piece: Piece, offset: int, buffer: memoryview) -> None:
        if not piece.extents:
            self.read_into(offset, buffer)
            return
        at, end = offset + self._offset, offset + self._offset + len(buffer)
        extents: Iterable[Extent] = piece.extents
        if piece.extents[0].start != at or piece.extents[-1].end != end:
            extents = (one.clip(at, end) for one in extents if one.start < end and one.end > at)
        read_extents(extents, at, buffer)

    def write(self, offset: int, data: memoryview) -> None:
        self.image.write(offset + self._offset, data)

    def zero(self, offset: int, length: int, *, unmap: bool) -> None:
        self.image.zero(offset + self._offset, length, unmap=unmap)

    def zero_fast(self, offset: int, length: int, *, unmap: bool) -> bool:
        try:
            with self.image.writing(offset, length), self.image.lock:
                self.image.zero_units(offset, length, unmap=unmap and self.image.discards)
        except UnsupportedError:
            return False
        return True

    def trim(self, offset: int, length: int) -> None:
        self.image.discard(offset + self._offset, length)

    def flush(self) -> None:
        self.image.flush()

    def close(self) -> None:
        self.image.close()

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        return walk(self.image, offset + self._offset, length)

    def _allocation(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        for extent in self._extents(offset, length):
            if not extent.reads_as_zeros:
                flags = 0
            elif extent.kind is Kind.ZERO and extent.node is not None and not isinstance(extent.node, Storage):
                flags = c.NBD_STATE_ZERO
            else:
                flags = c.NBD_STATE_HOLE | c.NBD_STATE_ZERO
            yield extent.length, flags

    def _depth(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        for extent in self._extents(offset, length):
            yield extent.length, 0 if extent.kind is Kind.HOLE else extent.depth + 1


def _piece(extent: Extent, files: bool, still: bool) -> Piece:
    if extent.reads_as_zeros and extent.length >= _WORTH_A_HOLE:
        return Piece(extent.length, zero=True)
    node = extent.node
    if (
        files
        and extent.kind is Kind.DATA
        and isinstance(node, Storage)
        and node.requests.align == 1
        and extent.length >= _WORTH_SENDFILE
    ):
        fd = node.fileno()
        if fd is not None:
            return Piece(extent.length, fd=fd, offset=extent.offset)
    return Piece(extent.length, extents=(extent,) if still else ())


def _go_together(one: Piece, other: Piece) -> bool:
    if one.fd != other.fd or one.zero != other.zero:
        return False
    if one.fd >= 0:
        return one.offset + one.length == other.offset
    return not one.extents or one.length + other.length <= PIECE


class _Dirty:
    """A dirty bitmap as a metadata context."""

    def __init__(self, bitmap: Bitmap, shift: int) -> None:
        self._bitmap = bitmap
        self._shift = shift
        self._starts: array[int] | None = array("Q")
        self._ends = array("Q")
        for start, length in bitmap.ranges():
            if len(self._ends) and self._ends[-1] == start:
                self._ends[-1] = start + length
                continue
            if len(self._ends) >= _MAX_RANGES:
                self._starts = None  # too many to keep: they are asked for each time
                break
            self._starts.append(start)
            self._ends.append(start + length)

    def _ranges(self, offset: int) -> Iterator[tuple[int, int]]:
        """Start and end of the dirty ranges that end behind *offset*."""
        if self._starts is None:
            for start, length in self._bitmap.ranges():
                if start + length > offset:
                    yield start, start + length
            return
        for index in range(bisect_right(self._ends, offset), len(self._ends)):
            yield self._starts[index], self._ends[index]

    def statuses(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        at, end = offset + self._shift, offset + self._shift + length
        for start, stop in self._ranges(at):
            if start >= end:
                break
            if start > at:
                yield start - at, 0
                at = start
            if min(stop, end) > at:
                yield min(stop, end) - at, c.NBD_STATE_DIRTY
                at = min(stop, end)
        if at < end:
            yield end - at, 0
