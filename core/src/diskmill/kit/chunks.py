"""Compressed chunks of any size, as extents: DMG, cloop and their like.

A chunk can only be decoded from its first byte on. Up to :data:`WHOLE` bytes it is a unit for the engine, which decodes
it whole, many at once on several threads. A larger chunk becomes pieces: the engine takes each for a unit, and behind
them one stream is decoded as far as it is asked for, so that memory is bounded whatever the chunk's size.

Units that are wanted in part are kept for a while, because their other parts will be wanted next: a small read costs no
more than its share, and threads that meet in one unit decode it once. So this is for images whose chunks never change
while they are open.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from ..contract.extents import Extent, Kind
from ..errors import DiskmillError, ImageError
from ..sizes import SECTOR, KiB, MiB

if TYPE_CHECKING:
    from ..contract.node import Node

WHOLE = 2 * MiB
"""The most guest bytes of a chunk that is decoded whole."""
PIECE = MiB
"""Guest bytes in a piece of a larger one."""
_STORED = 4 * MiB
"""The most stored bytes that are read at once: what takes more, whatever it decodes to, comes in pieces."""
_READ = 256 * KiB
"""Stored bytes that a stream is fed with."""
_KEPT = 16
"""How many units are kept: at most 32 MiB."""


class Stream(Protocol):
    """One compressed stream, with the methods of the standard library's ``bz2.BZ2Decompressor``."""

    @property
    def eof(self) -> bool:
        """Whether the stream's end was reached."""
        ...

    @property
    def needs_input(self) -> bool:
        """Whether there can be output only after more input."""
        ...

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        """At most *max_length* more bytes, *data* being the next of the input."""
        ...


class Method(NamedTuple):
    """A way to compress.

    :param make: gives a new stream, for a chunk of so many guest bytes.
    :param errors: what its ``decompress`` raises for damaged input.
    """

    name: str
    make: Callable[[int], Stream]
    errors: tuple[type[Exception], ...]


def zlib_method() -> Method:
    """zlib streams, by isal, which the drivers that use this bring."""
    from isal import igzip_lib

    return Method(
        "zlib",
        lambda length: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_ZLIB, hist_bits=15),
        (cast("type[Exception]", igzip_lib.error),),  # its stub types the class as an instance
    )


class Chunk(NamedTuple):
    """``length`` guest bytes from ``start`` on: ``stored`` bytes at ``offset``, compressed by ``method``."""

    start: int
    length: int
    offset: int
    stored: int
    method: Method


class Chunks:
    """The chunks of one image.

    :param node: where their stored bytes are. The caller has checked that chunks lie inside it.
    :param name: the image's, for errors.
    """

    def __init__(self, node: Node, name: str) -> None:
        self.node = node
        self.name = name
        self._codecs: dict[str, _Whole] = {}
        self._kept = _Kept()
        self._lock = threading.Lock()
        self._decoding: _Decoding | None = None

    def extents(self, chunk: Chunk, low: int, high: int) -> Iterator[Extent]:
        """The part of *chunk* in guest bytes *low* to *high*."""
        if chunk.length <= WHOLE and chunk.stored <= _STORED:
            codec = self._codecs.setdefault(chunk.method.name, _Whole(chunk.method, self.name, self._kept))
            whole = Extent(
                chunk.start, chunk.length, Kind.ENCODED, self.node, chunk.offset, chunk.stored, codec, chunk.length
            )
            yield whole.clip(low, high)
            return
        pieces = _Pieces(self, chunk)
        first = max(low - chunk.start, 0) // PIECE * PIECE
        for at in range(first, min(high - chunk.start, chunk.length), PIECE):
            size = min(PIECE, chunk.length - at)
            # The codec reads what it needs: what one piece is made of is not known before it is decoded.
            piece = Extent(chunk.start + at, size, Kind.ENCODED, self.node, chunk.offset, 0, pieces, size)
            yield piece.clip(low, high)

    def piece(self, chunk: Chunk, at: int) -> bytes:
        """The piece of *chunk* that begins at byte *at* of it."""
        with self._lock:
            return self._kept.get((chunk, at), lambda: self._advance(chunk, at))

    def _advance(self, chunk: Chunk, at: int) -> bytes:
        """Decode *chunk* up to the end of the piece at *at*, from where its stream stands or else from its start."""
        decoding, self._decoding = self._decoding, None  # one that fails is not gone on with
        if decoding is None or decoding.chunk != chunk or decoding.position > at:
            decoding = _Decoding(chunk, self.name, self._input(chunk))
        while True:
            position = decoding.position
            piece = decoding.take(min(PIECE, chunk.length - position))
            if decoding.position == chunk.length:
                decoding.finish()
            if position == at:
                break
            self._kept.get((chunk, position), lambda piece=piece: piece)  # type: ignore[misc]
        self._decoding = decoding
        return piece

    def _input(self, chunk: Chunk) -> Iterator[bytes]:
        for at in range(0, chunk.stored, _READ):
            yield self.node.read(chunk.offset + at, min(_READ, chunk.stored - at))


def unreadable(node: Node, start: int, length: int, error: DiskmillError) -> Extent:
    """Guest bytes of which nobody knows what they are: whoever reads them gets *error*, whoever maps them does not."""
    return Extent(start, length, Kind.ENCODED, node, 0, codec=_Unreadable(error))


class _Unreadable:
    granularity = SECTOR

    def __init__(self, error: DiskmillError) -> None:
        self._error = error

    def decode(self, extent: Extent, payload: memoryview, into: memoryview) -> bytes:
        raise self._error


class _Whole:
    """Decodes chunks that are units."""

    granularity = 0

    def __init__(self, method: Method, name: str, kept: _Kept) -> None:
        self._method = method
        self._name = name
        self._kept = kept
        self._short: tuple[bytes, bytes] = b"", b""

    def decode(self, extent: Extent, payload: memoryview, into: memoryview) -> bytes:
        """See :class:`diskmill.contract.extents.Codec`."""
        chunk = Chunk(extent.start - extent.skip, extent.unit, extent.offset, extent.stored, self._method)
        if extent.length == extent.unit:
            return self._decoded(chunk, payload)
        return self._kept.get(chunk, lambda: self._decoded(chunk, payload))

    def _decoded(self, chunk: Chunk, payload: memoryview) -> bytes:
        if chunk.stored * 64 > chunk.length:
            return self._whole(chunk, payload)
        # Most of what gets so short is zeros, which are the same few bytes each time.
        stored = bytes(payload)
        known, plain = self._short
        if stored != known or len(plain) != chunk.length:
            plain = self._whole(chunk, payload)
            self._short = stored, plain
        return plain

    def _whole(self, chunk: Chunk, payload: memoryview) -> bytes:
        decoding = _Decoding(chunk, self._name, iter((payload,)))
        plain = decoding.take(chunk.length)
        decoding.finish()
        return plain


class _Pieces:
    """Gives the pieces of a large chunk."""

    granularity = 0

    def __init__(self, chunks: Chunks, chunk: Chunk) -> None:
        self._chunks = chunks
        self._chunk = chunk

    def decode(self, extent: Extent, payload: memoryview, into: memoryview) -> bytes:
        """See :class:`diskmill.contract.extents.Codec`."""
        return self._chunks.piece(self._chunk, extent.start - extent.skip - self._chunk.start)


class _Decoding:
    """A chunk's stream, and how far it has come."""

    def __init__(self, chunk: Chunk, name: str, input: Iterator[bytes | memoryview]) -> None:
        self.chunk = chunk
        self.position = 0
        self._name = name
        self._input = input
        self._stream = chunk.method.make(chunk.length)

    def take(self, count: int) -> bytes:
        """The next *count* bytes."""
        parts = []
        missing = count
        while missing:
            part = self._more(missing)
            if not part and self._stream.eof:
                raise self._damaged(f"it holds {self.position + count - missing} bytes, not {self.chunk.length}")
            parts.append(part)
            missing -= len(part)
        self.position += count
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def finish(self) -> None:
        """Make sure that the stream ends here: its checksum, where it has one, stands at its end."""
        while not self._stream.eof:
            if self._more(1):
                raise self._damaged(f"it holds more than {self.chunk.length} bytes")

    def _more(self, limit: int) -> bytes:
        stream = self._stream
        if stream.eof:
            return b""
        hungry = stream.needs_input
        data = next(self._input, b"") if hungry else b""
        if hungry and not data:
            raise self._damaged("it is cut short")
        try:
            plain = stream.decompress(data, limit)
        except self.chunk.method.errors as error:
            raise self._damaged(str(error) or "it cannot be decoded") from None
        if not (plain or hungry or stream.needs_input or stream.eof):
            raise self._damaged("it comes to nothing")
        return plain

    def _damaged(self, why: str) -> ImageError:
        return ImageError(
            f"the {self.chunk.method.name} chunk of guest offset {self.chunk.start} is damaged: {why}",
            file=self._name,
            place=f"offset {self.chunk.offset}",
        )


class _Slot:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.data: bytes | None = None


class _Kept:
    """The last units that were wanted. Each is made once, however many threads want it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots: OrderedDict[Hashable, _Slot] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """The unit of *key*, made by *make* where it is not there."""
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            self._slots.move_to_end(key)
            if len(self._slots) > _KEPT:
                self._slots.popitem(last=False)
        with slot.lock:
            if slot.data is None:
                slot.data = make()
            return slot.data
