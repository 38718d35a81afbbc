"""Compressed extents: the streamOptimized layout of OVF packages and ESXi exports.

Source: VMware, "Virtual Disk Format 5.0", "Stream-Optimized Compressed Sparse Extents". Every grain is a zlib stream
behind a marker with its place on the guest disk, in ascending order; each grain table follows the grains that it
points to, the grain directory and a footer follow them all. So a stream is written, and can be read, from its first
byte to its last, once.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from diskmill.contract.extents import Extent, Placement
from diskmill.contract.node import Storage
from diskmill.errors import ImageError, UnsupportedError
from diskmill.kit import tables
from diskmill.sizes import SECTOR, round_up

from .grains import CompressedPart
from .hosted import FLAGS_STREAM, GRAIN, LAST_SECTOR, MAX_ENTRIES, make_extent
from .structures import (
    DEFLATE,
    END_OF_STREAM,
    FOOTER,
    GD_AT_END,
    GRAIN_DIRECTORY,
    GRAIN_MARKER,
    GRAIN_TABLE,
    NEWLINES,
    SPARSE_HEADER,
    SPARSE_MAGIC,
    marker,
)

if TYPE_CHECKING:
    pass

LEVEL = 1
"""Of the deflate: ISA-L's level 1 gives about the size of zlib's default at many times its speed."""


class GrainCodec:
    """Decodes grains.

    :param start: the part's first guest byte, which the grains' places count from.
    :param end: its last: a grain that reaches beyond may decode to less than a whole one.
    :param markers: whether a marker stands before each grain.
    """

    granularity = 0

    def __init__(self, start: int, end: int, *, markers: bool, name: str) -> None:
        from isal import igzip_lib, isal_zlib

        self._start = start
        self._end = end
        self._markers = markers
        self._name = name
        self._decompressor = isal_zlib.decompressobj
        # The stubs take this class for one of its instances.
        self._error = cast("type[Exception]", igzip_lib.IsalError)

    def decode(self, extent: Extent, payload: memoryview, into: memoryview) -> bytes:
        at = extent.start - extent.skip
        data = payload
        if self._markers:
            if len(payload) < GRAIN_MARKER.size:
                raise self._damaged(at, "it is cut short")
            lba = int.from_bytes(payload[:8], "little")
            size = int.from_bytes(payload[8:12], "little")
            if lba * SECTOR != at - self._start:
                raise self._damaged(at, f"its marker says sector {lba}")
            if size > len(payload) - GRAIN_MARKER.size:
                raise self._damaged(at, "it is cut short, or overlaps another one")
            data = payload[GRAIN_MARKER.size : GRAIN_MARKER.size + size]
        decompressor = self._decompressor()
        try:
            plain = bytes(decompressor.decompress(data, extent.unit + 1))
        except self._error as error:
            raise self._damaged(at, str(error)) from None
        if not decompressor.eof and len(plain) <= extent.unit:
            raise self._damaged(at, "it ends too early")
        if len(plain) < extent.unit and at + len(plain) >= self._end:
            plain += bytes(extent.unit - len(plain))
        if len(plain) != extent.unit:
            raise self._damaged(at, f"it holds {len(plain)} bytes, not {extent.unit}")
        return plain

    def _damaged(self, at: int, why: str) -> ImageError:
        return ImageError(f"the compressed grain is damaged: {why}", file=self._name, place=f"guest byte {at}")


class StreamEncoder:
    """Makes a grain with its marker, which fills whole sectors.

    :param level: zlib's, 1 to 9; None: the fast one.
    """

    def __init__(self, level: int | None = None) -> None:
        if level is None:
            from isal import isal_zlib

            self._compress, self._level = isal_zlib.compress, LEVEL
        else:
            import zlib

            self._compress, self._level = zlib.compress, level

    def encode(self, start: int, data: memoryview) -> bytes:
        payload = self._compress(data, self._level)
        size = len(payload)
        head = (start // SECTOR).to_bytes(8, "little") + size.to_bytes(4, "little")
        return b"".join((head, payload, bytes(-(GRAIN_MARKER.size + size) % SECTOR)))


class StreamWriter(CompressedPart):
    """A new compressed extent: grains are appended in guest order, each grain table after its grains."""

    node: Storage
    writable = True

    def __init__(self, node: Storage, size: int, *, name: str, descriptor: bytes) -> None:
        capacity = size // SECTOR
        room = round_up(len(descriptor), SECTOR)
        overhead = round_up(SECTOR + room, GRAIN * SECTOR)
        self.header = SPARSE_HEADER.new(
            magicNumber=SPARSE_MAGIC,
            version=3,
            flags=FLAGS_STREAM,
            capacity=capacity,
            grainSize=GRAIN,
            descriptorOffset=1,
            descriptorSize=room // SECTOR,
            numGTEsPerGT=MAX_ENTRIES,
            gdOffset=GD_AT_END,
            overHead=overhead // SECTOR,
            newlines=NEWLINES,
            compressAlgorithm=DEFLATE,
        )
        node.truncate(overhead)
        node.write(0, SPARSE_HEADER.pack(self.header) + descriptor)
        super().__init__(
            node,
            0,
            size,
            name=name,
            grain=GRAIN * SECTOR,
            per_table=MAX_ENTRIES,
            width=4,
            # Until the end the directory is in memory alone.
            directory=-(1 << 62),
            codec=GrainCodec(0, size, markers=True, name=name),
        )
        self._directory = tables.filled(self.count, 4)
        self._sector = overhead // SECTOR
        self._index = -1
        self._last = -1
        self._finished = False

    def reserve(self, offset: int, length: int) -> list[Placement]:
        raise UnsupportedError("a streamOptimized image takes whole compressed grains only, in order", file=self.name)

    def zero_units(self, offset: int, length: int, *, unmap: bool, backing: bool) -> None:
        """What was not written reads as zeros, or as the parent does; what was cannot be changed."""
        if backing:
            raise UnsupportedError("a streamOptimized image takes zeros as grains of them", file=self.name)
        if offset < self._last + self.unit and self._last >= 0:
            raise UnsupportedError("a streamOptimized image is written in order, once", file=self.name)

    def reserve_encoded(self, units: Sequence[tuple[int, int, int]]) -> list[Placement]:
        """Places for grains, one after the other, with a table between them where the next one begins."""
        result = []
        for start, _, size in units:
            if start <= self._last or start % self.unit:
                raise UnsupportedError("a streamOptimized image is written in order, once", file=self.name)
            index, at = divmod(start // self.unit, self.per_table)
            if index != self._index:
                self._close_table()
                self._index = index
                self.changed[index] = tables.filled(self.per_table, 4)
                # The table's place is not known yet, but it is there to be looked at.
                self.directory[index] = LAST_SECTOR - 1
            self.changed[index][at] = self._sector
            result.append(Placement(start, self.unit, self.node, self._sector * SECTOR, stored=size))
            self._advance(size // SECTOR)
            self._last = start
        return result

    def _advance(self, count: int) -> None:
        self._sector += count
        if self._sector >= LAST_SECTOR - 1:
            raise UnsupportedError("a streamOptimized image cannot be larger than 2 TiB", file=self.name)

    def _append(self, type: int, data: bytes) -> int:
        """Metadata behind its marker; the sector where it begins."""
        data = data.ljust(round_up(len(data), SECTOR), b"\0")
        self.node.write(self._sector * SECTOR, marker(type, len(data) // SECTOR) + data)
        at = self._sector + 1
        self._advance(1 + len(data) // SECTOR)
        return at

    def _close_table(self) -> None:
        if self._index >= 0:
            table = self.changed.pop(self._index)
            self.directory[self._index] = self._append(GRAIN_TABLE, tables.to_bytes(table, "little"))
            self._index = -1

    def finish(self) -> None:
        """Write what ends the stream.

        Without a grain it is no stream, but an extent whose tables are there beforehand: QEMU writes into such an one,
        and where a table is missing, or a footer, it destroys the image.
        """
        if self._finished:
            return
        self._finished = True
        if self._last < 0 and self.node.forward:  # what was written is a stream's header already
            grain = StreamEncoder().encode(0, memoryview(bytes(self.unit)))
            (placed,) = self.reserve_encoded([(0, self.unit, len(grain))])
            self.node.write(placed.offset, grain)
        if self._last < 0:
            make_extent(self.node, self.end - self.start, compressed=True)
            return
        self._close_table()
        self.header.gdOffset = self._append(GRAIN_DIRECTORY, tables.to_bytes(self.directory, "little"))
        self._append(FOOTER, SPARSE_HEADER.pack(self.header))
        self.node.write(self._sector * SECTOR, marker(END_OF_STREAM, 0))

    def entries(self, first: int, sector: int, count: int) -> array[int]:
        if first == self._index:
            return self.changed[first]
        return super().read_tables(first, sector, count)
