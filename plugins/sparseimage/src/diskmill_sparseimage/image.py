"""Disks made of bands, and sparse images, which have them in one file. Source: see :mod:`.c_sparseimage`."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from diskmill.contract.extents import Extent, Kind, joined
from diskmill.contract.node import Node
from diskmill.contract.results import CheckResult
from diskmill.errors import ImageError, UnsupportedError
from diskmill.kit.chunks import unreadable
from diskmill.kit.image import ReadOnlyImage
from diskmill.sizes import MAX_SIZE, SECTOR

from .c_sparseimage import FILE_HEADER, INDEX_NODE, SIGNATURE, VERSION

if TYPE_CHECKING:
    from diskmill.contract.requests import OpenRequest
    from diskmill.kit.structs import Structure

    from . import SparseimageDriver
    from .c_sparseimage import FileHeader, IndexNode

_BAND_MEMORY = 128
"""Bytes that a band takes in memory while bands are sorted."""


class BandImage(ReadOnlyImage):
    """A disk of bands, each of which may be absent: it reads as zeros then. The last may reach beyond the disk's end.

    :param band: bytes in a band.
    :ivar numbers: the bands that are there, from 0 on, ascending.
    """

    def __init__(self, driver: SparseimageDriver, file: Node, band: int, *, name: str, size: int) -> None:
        super().__init__(driver, file, name=name, size=size)
        self.band = band
        self.numbers = array("Q")

    def details(self) -> dict[str, Any]:
        return {"band-size": self.band, "bands": len(self.numbers)}

    def located(self, index: int) -> tuple[Node, int, int]:
        """Where band ``numbers[index]`` is, and how many of its bytes are there: (node, offset, length)."""
        raise NotImplementedError

    def missing(self, index: int, length: int) -> ImageError | None:
        """What is wrong if only *length* bytes of the band are there; None: the others are zeros."""
        return None

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        return joined(self._extents(offset, offset + length))

    def _extents(self, low: int, high: int) -> Iterator[Extent]:
        at = low
        for index in range(bisect_left(self.numbers, low // self.band), len(self.numbers)):
            start = self.numbers[index] * self.band
            if start >= high:
                break
            if start > at:
                yield Extent(at, start - at, Kind.HOLE)
            end = min(start + self.band, self.size)
            for extent in self._band(index, start, end):
                if extent.start < high and extent.end > low:
                    yield extent.clip(low, high)
            at = min(end, high)
        if at < high:
            yield Extent(at, high - at, Kind.HOLE)

    def _band(self, index: int, start: int, end: int) -> Iterator[Extent]:
        node, offset, length = self.located(index)
        inside = max(min(start + length, end), start)
        if inside > start:
            yield Extent(start, inside - start, Kind.DATA, node, offset)
        if inside < end:
            error = self.missing(index, inside - start)
            hole = Extent(inside, end - inside, Kind.HOLE)
            yield hole if error is None else unreadable(node, inside, end - inside, error)

    def check(self) -> CheckResult:
        """Whether the bands are whole."""
        result = CheckResult(total_clusters=-(-self.size // self.band), allocated_clusters=len(self.numbers))
        for index, number in enumerate(self.numbers):
            end = min(self.band, self.size - number * self.band)
            inside = min(self.located(index)[2], end)
            error = self.missing(index, inside) if inside < end else None
            if error is not None:
                result.found("corruption", f"{error.place}: {error.cause}")
        return result


class SparseImage(BandImage):
    """A sparse image."""

    def __init__(self, driver: SparseimageDriver, file: Node, header: FileHeader, size: int, *, name: str) -> None:
        super().__init__(driver, file, header.sectors_per_band * SECTOR, name=name, size=size)
        places = self._places(header)
        self.numbers = array("Q", sorted(places))
        self._offsets = array("Q", map(places.__getitem__, self.numbers))

    def located(self, index: int) -> tuple[Node, int, int]:
        offset = self._offsets[index]
        return self.file, offset, min(max(self.file.size - offset, 0), self.band)

    def missing(self, index: int, length: int) -> ImageError:
        why = f"the file ends behind {length} of its bytes: it is cut short"
        return ImageError(why, file=self.name, place=f"band {self.numbers[index]}")

    def _places(self, header: FileHeader) -> dict[int, int]:
        """Band of the disk → its offset in the file, for the bands that there are."""
        places: dict[int, int] = {}
        at, last = 0, -(-self.size // self.band)
        node: FileHeader | IndexNode = header
        structure: Structure[FileHeader] | Structure[IndexNode] = FILE_HEADER
        while True:
            place = f"{structure.name} at offset {at}"
            start = at + structure.size
            self.file.account.charge(len(node.band_numbers) * _BAND_MEMORY, "a list of bands", self.name)
            for index, number in enumerate(node.band_numbers):
                if number > last:
                    raise self._bad(f"band number {number} lies behind the end of the disk", place)
                if number - 1 in places:
                    raise self._bad(f"band number {number} is there twice", place)
                if number:
                    places[number - 1] = start + index * self.band
            following = node.next_index_node_offset
            if not following:
                return places
            if following != start + len(node.band_numbers) * self.band:
                raise self._bad(f"next_index_node_offset {following} is not where its bands end", place)
            structure, at = INDEX_NODE, following
            node = structure.unpack(self.file.read_some(at, structure.size), file=self.name)
            if node.signature != SIGNATURE:
                raise self._bad("there is none", f"{structure.name} at offset {at}")

    def _bad(self, why: str, place: str) -> ImageError:
        return ImageError(why, file=self.name, place=place)


def open_sparseimage(driver: SparseimageDriver, request: OpenRequest) -> SparseImage:
    """The sparse image in ``request.file``."""
    file, name = request.below(), request.name
    header = FILE_HEADER.unpack(file.read_some(0, FILE_HEADER.size), file=name)
    if header.format_version != VERSION:
        raise UnsupportedError(f"version {header.format_version} of the sparse image format", file=name)
    if not header.sectors_per_band:
        raise ImageError("bands of no sectors", file=name, place=FILE_HEADER.name)
    size = (header.number_of_sectors or header.number_of_sectors_low) * SECTOR
    if size > MAX_SIZE:
        raise ImageError(f"impossible size of {size} bytes", file=name, place=FILE_HEADER.name)
    return SparseImage(driver, file, header, size, name=name)
