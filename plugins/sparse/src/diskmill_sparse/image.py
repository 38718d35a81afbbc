"""An opened sparse image: guest ranges are looked up among its chunks. Source: see :mod:`.c_sparse`."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from diskmill.contract.extents import Extent, Kind, joined
from diskmill.contract.node import Node
from diskmill.errors import ImageError, UnsupportedError
from diskmill.kit.image import ReadOnlyImage
from diskmill.sizes import MAX_SIZE, MiB

from . import c_sparse as spec
from .c_sparse import CHUNK_HEADER, CRC32, DONT_CARE, FILL, FILL_SIZE, RAW, SPARSE_HEADER

if TYPE_CHECKING:
    from diskmill.contract.requests import OpenRequest

    from . import SparseDriver
    from .c_sparse import SparseHeader

MAX_CHUNKS = 1 << 19
"""Chunks of an image at most: what Android's tools make of a full disk of terabytes."""
_CHUNK_MEMORY = 20
_PIECE = MiB
"""Guest bytes of a fill that are decoded at once."""
_WINDOW = 1 << 16
"""Bytes that are read at once while chunks are counted."""


class Chunks:
    """The chunks, in columns, in the order of the disk.

    :ivar starts: first guest byte of each.
    :ivar offsets: where in the file its contents are.
    :ivar types: RAW, FILL, DONT_CARE or CRC32.
    :ivar size: guest bytes in all.
    """

    def __init__(self) -> None:
        self.starts = array("Q")
        self.offsets = array("Q")
        self.types = array("H")
        self.size = 0

    def add(self, type: int, length: int, offset: int) -> None:
        self.starts.append(self.size)
        self.offsets.append(offset)
        self.types.append(type)
        self.size += length

    def __len__(self) -> int:
        return len(self.types)

    def end(self, index: int) -> int:
        """The guest byte after chunk *index*."""
        return self.starts[index + 1] if index + 1 < len(self) else self.size


class Fill:
    """Makes guest bytes of the four that a fill has."""

    granularity = 0

    def decode(self, extent: Extent, payload: memoryview, into: memoryview) -> bytes:
        """See :class:`diskmill.contract.extents.Codec`."""
        return bytes(payload) * (extent.unit // FILL_SIZE)


class SparseImage(ReadOnlyImage):
    """A sparse file."""

    def __init__(self, driver: SparseDriver, file: Node, header: SparseHeader, chunks: Chunks, *, name: str) -> None:
        super().__init__(driver, file, name=name, size=header.total_blks * header.blk_sz)
        self.header = header
        self.chunks = chunks

    def details(self) -> dict[str, Any]:
        header = self.header
        return {
            "block-size": header.blk_sz,
            "chunks": header.total_chunks,
            "image-checksum": f"{header.image_checksum:08x}" if header.image_checksum else None,
        }

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        return joined(self._extents(offset, offset + length))

    def _extents(self, low: int, high: int) -> Iterator[Extent]:
        chunks = self.chunks
        for index in range(max(bisect_right(chunks.starts, low) - 1, 0), len(chunks)):
            start, end = chunks.starts[index], chunks.end(index)
            if start >= high:
                break
            if end > max(start, low):  # a checksum is of no length
                yield from self._chunk(chunks.types[index], start, end, chunks.offsets[index], low, high)

    def _chunk(self, type: int, start: int, end: int, offset: int, low: int, high: int) -> Iterator[Extent]:
        """The part in guest bytes *low* to *high* of the chunk of *start* to *end*."""
        if type == RAW:
            yield Extent(start, end - start, Kind.DATA, self.file, offset).clip(low, high)
        elif type == DONT_CARE or not any(self.file.read(offset, FILL_SIZE)):
            yield Extent(start, end - start, Kind.HOLE if type == DONT_CARE else Kind.ZERO).clip(low, high)
        else:
            for at in range(start + max(low - start, 0) // _PIECE * _PIECE, min(end, high), _PIECE):
                size = min(_PIECE, end - at)
                piece = Extent(at, size, Kind.ENCODED, self.file, offset, FILL_SIZE, Fill(), size)
                yield piece.clip(low, high)


def open_sparse(driver: SparseDriver, request: OpenRequest) -> SparseImage:
    """The image in ``request.file``; all its chunks' headers are looked at, if it is to be read."""
    file, name = request.below(), request.name
    head = file.read(0, min(SPARSE_HEADER.size, file.size))
    if len(head) < SPARSE_HEADER.size or int.from_bytes(head[:4], "little") != spec.SPARSE_HEADER_MAGIC:
        raise ImageError("not an Android sparse image (it does not begin as one)", file=name)
    header = SPARSE_HEADER.unpack(head, file=name)
    if header.major_version != 1:
        raise UnsupportedError(f"version {header.major_version} of the sparse format", file=name)
    if header.file_hdr_sz < SPARSE_HEADER.size or header.chunk_hdr_sz < CHUNK_HEADER.size:
        raise ImageError("its headers are shorter than the format's", file=name, place=SPARSE_HEADER.name)
    if not header.blk_sz or header.blk_sz % FILL_SIZE:
        raise ImageError(f"blk_sz {header.blk_sz} is no multiple of {FILL_SIZE}", file=name, place=SPARSE_HEADER.name)
    if header.total_blks * header.blk_sz > MAX_SIZE:
        raise ImageError(f"impossible size of {header.total_blks} blocks", file=name, place=SPARSE_HEADER.name)
    chunks = Chunks() if request.shallow else read_chunks(file, header, name)
    return SparseImage(driver, file, header, chunks, name=name)


def read_chunks(file: Node, header: SparseHeader, name: str) -> Chunks:
    """The chunks that *header* counts. Those that hold no blocks are kept where they are checksums.

    :raises ImageError: one is not inside the file, or does not fit its size, or they are not the whole disk.
    """
    if header.total_chunks > MAX_CHUNKS:
        raise UnsupportedError(f"more than {MAX_CHUNKS} chunks ({header.total_chunks})", file=name)
    if header.file_hdr_sz + header.total_chunks * header.chunk_hdr_sz > file.size:
        raise ImageError(f"{header.total_chunks} chunks are not inside the file", file=name, place=SPARSE_HEADER.name)
    file.account.charge(header.total_chunks * _CHUNK_MEMORY, "a list of chunks", name)
    chunks = Chunks()
    at, window, base = header.file_hdr_sz, b"", 0
    for index in range(header.total_chunks):
        if not base <= at <= base + len(window) - CHUNK_HEADER.size:
            base, window = at, file.read(at, min(_WINDOW, max(file.size - at, 0)))
        chunk = CHUNK_HEADER.unpack(window, at - base, file=name)
        length, stored = chunk.chunk_sz * header.blk_sz, chunk.total_sz - header.chunk_hdr_sz
        right = {RAW: length, FILL: FILL_SIZE, DONT_CARE: 0, CRC32: spec.CRC_SIZE}.get(chunk.chunk_type)
        place = f"chunk {index}, at offset {at}"
        if right is None:
            raise UnsupportedError(f"chunks of type {chunk.chunk_type:#06x}", file=name, place=place)
        if stored != right or chunk.chunk_type == CRC32 and length:
            why = f"total_sz {chunk.total_sz} is wrong for {chunk.chunk_sz} blocks of type {chunk.chunk_type:#06x}"
            raise ImageError(why, file=name, place=place)
        if at + chunk.total_sz > file.size:
            raise ImageError("it is cut short: the file ends before the chunk does", file=name, place=place)
        if length or chunk.chunk_type == CRC32:
            chunks.add(chunk.chunk_type, length, at + header.chunk_hdr_sz)
        at += chunk.total_sz
    if chunks.size != header.total_blks * header.blk_sz:
        raise ImageError(f"chunks hold {chunks.size} bytes, not {header.total_blks} blocks", file=name, place="chunks")
    return chunks
