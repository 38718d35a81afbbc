"""Compressed extents by their markers, from the first to the last: for pipes, and where the tables are damaged.

Source: VMware, "Virtual Disk Format 5.0", "Stream-Optimized Compressed Sparse Extents". Grains stand in the order of
the guest disk, so one pass forward gives the map of it as it goes, and nothing is read twice.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from diskmill.contract.extents import Extent, Kind
from diskmill.contract.node import Buffer, Node, ReadBuffer
from diskmill.errors import ImageError
from diskmill.sizes import MAX_SIZE, SECTOR, round_up

from .grains import MAX_HELD_GRAIN
from .parts import Part
from .stream import GrainCodec
from .structures import END_OF_STREAM, FLAG_ZEROED, FOOTER, GD_AT_END, MARKER

if TYPE_CHECKING:
    from .structures import SparseExtentHeader

_BLOCK = 1 << 20
"""Bytes that are read at once."""


class Payload(Node):
    """A grain's stored bytes, in memory until they are decoded."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data = data
        self.name = name
        self.size = len(data)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, Kind.DATA, self, offset)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer)
        part = self.data[offset : offset + len(view)]
        view[: len(part)] = part
        view[len(part) :] = bytes(len(view) - len(part))

    def write(self, offset: int, data: ReadBuffer) -> None:
        raise NotImplementedError

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        raise NotImplementedError

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class WalkedPart(Part):
    """A compressed extent, read forward. Going back is possible where its storage can."""

    node: Node
    compressed = True
    writable = False

    def __init__(self, node: Node, header: SparseExtentHeader, start: int, *, name: str) -> None:
        super().__init__(node, start, header.capacity * SECTOR, name=name)
        self.unit = header.grainSize * SECTOR
        if self.unit > MAX_HELD_GRAIN:
            raise ImageError(f"a compressed grain of {self.unit} bytes", file=name, place="header")
        if not 1 <= header.overHead <= MAX_SIZE // SECTOR:
            raise ImageError(f"{header.overHead} sectors of metadata", file=name, place="header")
        self.first = header.overHead * SECTOR
        # Without a footer (QEMU writes none) the file's end is all that tells the end of the stream.
        self.footed = header.gdOffset == GD_AT_END
        self.blind = bool(header.flags & FLAG_ZEROED)
        self.longest = self.unit + self.unit // 8 + 2 * SECTOR
        self.codec = GrainCodec(start, start + header.capacity * SECTOR, markers=True, name=name)
        self._lock = threading.Lock()
        self._grains: Iterator[tuple[int, bytes]] = iter(())
        self._ahead: tuple[int, bytes] | None = None
        self._passed = -1

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        at, stop = offset, offset + length
        while at < stop:
            with self._lock:
                found = self._next(at)
            if found is None:
                yield Extent(at, stop - at, Kind.HOLE)
                return
            grain, payload = found
            begin, end = self.start + grain, min(self.start + grain + self.unit, self.end)
            if begin > at:
                yield Extent(at, min(begin, stop) - at, Kind.HOLE)
                at = begin
            if at < min(end, stop):
                extent = Extent(
                    begin, self.unit, Kind.ENCODED, Payload(payload, self.name), 0, len(payload), self.codec, self.unit
                )
                yield extent.clip(at, min(end, stop))
                at = min(end, stop)
        if stop == self.end:
            with self._lock:  # a stream that breaks off behind its last grain is not whole
                self._next(self.start + round_up(self.end - self.start, self.unit))

    def details(self) -> dict[str, Any]:
        return {"cluster-size": self.unit, "compressed": True}

    def _next(self, at: int) -> tuple[int, bytes] | None:
        """The first grain that ends behind guest byte *at*; it stays the next one until it is passed."""
        wanted = at - self.start
        if wanted < self._passed:
            if self.node.forward:
                raise ImageError("a stream can be read in order only, once", file=self.name)
            self._passed = -1
        if self._passed < 0:
            self._grains = self._walk()
            self._ahead = next(self._grains, None)
            self._passed = 0
        while self._ahead is not None and self._ahead[0] + self.unit <= wanted:
            self._passed = self._ahead[0] + self.unit
            self._ahead = next(self._grains, None)
        return self._ahead

    def _walk(self) -> Iterator[tuple[int, bytes]]:
        """The grains: (byte of the part, marker and payload)."""
        source = _Source(self.node, self.first)
        last = -1
        while True:
            place = f"marker at byte {source.at}"
            head = source.take(SECTOR)
            if len(head) < SECTOR:
                if self.footed or head:
                    raise ImageError("the file was cut short: the stream has no end", file=self.name, place=place)
                return
            marker = MARKER.unpack(head)
            if marker.size == 0:
                if marker.type == END_OF_STREAM:
                    if self.footed:
                        raise ImageError("the stream ends without a footer", file=self.name, place=place)
                    return
                if marker.type == FOOTER:
                    if len(source.take(2 * SECTOR)) < 2 * SECTOR:  # the footer itself and the end-of-stream marker
                        raise ImageError("the file was cut short", file=self.name, place=place)
                    return
                if marker.val * SECTOR > self.unit + (1 << 24):
                    raise ImageError(f"{marker.val} sectors of metadata", file=self.name, place=place)
                source.take(marker.val * SECTOR)
                continue
            size = round_up(marker.size + 12, SECTOR)
            grain = marker.val * SECTOR
            if size > self.longest or grain % self.unit or grain >= self.end - self.start:
                raise ImageError(
                    f"it is damaged: {marker.size} bytes for sector {marker.val}", file=self.name, place=place
                )
            if grain <= last:
                raise ImageError("the grains are not in order", file=self.name, place=place)
            last = grain
            payload = head + source.take(size - SECTOR)
            if len(payload) < size:
                raise ImageError("the file was cut short", file=self.name, place=place)
            yield grain, payload


class _Source:
    """The bytes of a node, forward, in blocks."""

    def __init__(self, node: Node, at: int) -> None:
        self.node = node
        self.at = at
        self._block = b""
        self._used = 0

    def take(self, count: int) -> bytes:
        """The next *count* bytes; fewer at the end."""
        taken = self._block[self._used : self._used + count]
        self._used += len(taken)
        while len(taken) < count:
            self._block = self._read(self.at + len(taken))
            if not self._block:
                break
            self._used = min(count - len(taken), len(self._block))
            taken += self._block[: self._used]
        self.at += len(taken)
        return taken

    def _read(self, at: int) -> bytes:
        if self.node.resizable:
            return self.node.read_some(at, _BLOCK)
        return self.node.read(at, max(min(_BLOCK, self.node.size - at), 0))
