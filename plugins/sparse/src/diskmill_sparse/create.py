"""New sparse images: chunks are appended in the order of the disk. Source: see :mod:`.c_sparse`.

What the engine takes for a compressed unit is a row of chunks: blocks that are alike become fills, the others raw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from diskmill.contract.extents import Encoder, Extent, Placement
from diskmill.contract.node import Storage
from diskmill.contract.results import Measurement
from diskmill.errors import UnsupportedError, UsageError
from diskmill.kit.image import FormatImage
from diskmill.sizes import SECTOR, MiB, round_up

from .c_sparse import CHUNK_HEADER, DONT_CARE, FILL, FILL_SIZE, MAX_BLOCKS, RAW, SPARSE_HEADER, SPARSE_HEADER_MAGIC
from .image import MAX_CHUNKS

if TYPE_CHECKING:
    from diskmill.contract.requests import CreateRequest, MeasureRequest

    from . import SparseDriver

_UNIT = MiB
_LARGEST = MiB
"""Bytes in a block at most."""


def _chunk(type: int, blocks: int, data: bytes | memoryview = b"") -> tuple[bytes, bytes | memoryview]:
    head = CHUNK_HEADER.new(chunk_type=type, chunk_sz=blocks, total_sz=CHUNK_HEADER.size + len(data))
    return CHUNK_HEADER.pack(head), data


class ChunkEncoder:
    """Makes chunks of a unit of a disk of *size* bytes."""

    def __init__(self, block: int, size: int, zeros: int) -> None:
        self.block = block
        self.size = size
        self.zeros = zeros
        """The type of chunk that zeros become."""
        self.counts: dict[int, int] = {}
        """Guest offset of a unit → its chunks, until they have a place."""

    def encode(self, start: int, data: memoryview) -> bytes:
        view = data[: self.size - start]
        parts: list[bytes | memoryview] = []
        for fill, low, high in self._runs(view):
            length = high - low
            parts += _chunk(RAW, length // self.block, view[low:high]) if fill is None else self.alike(length, fill)
        self.counts[start] = len(parts) // 2
        return b"".join(parts)

    def alike(self, length: int, fill: bytes = bytes(FILL_SIZE)) -> tuple[bytes, bytes | memoryview]:
        """A chunk of *length* guest bytes that repeat *fill*."""
        skipped = self.zeros == DONT_CARE and not any(fill)
        return _chunk(DONT_CARE if skipped else FILL, length // self.block, b"" if skipped else fill)

    def _runs(self, view: memoryview) -> Iterator[tuple[bytes | None, int, int]]:
        """(what is repeated, start, end) for the stretches of *view*; None: nothing is."""
        held: bytes | None = None
        begin = 0
        for at in range(0, len(view), self.block):
            block = view[at : at + self.block]
            fill = bytes(block[:FILL_SIZE]) if block[FILL_SIZE:] == block[:-FILL_SIZE] else None
            if at and fill != held:
                yield held, begin, at
                begin = at
            held = fill
        yield held, begin, len(view)


class SparseWriter(FormatImage):
    """A new image. It is written once, in order; it is read when it is opened again."""

    file: Storage
    sequential = True

    def __init__(self, driver: SparseDriver, file: Storage, *, name: str, size: int, block: int, zeros: int) -> None:
        super().__init__(driver, file, name=name, size=size, writable=True)
        self.header = SPARSE_HEADER.new(
            magic=SPARSE_HEADER_MAGIC,
            major_version=1,
            file_hdr_sz=SPARSE_HEADER.size,
            chunk_hdr_sz=CHUNK_HEADER.size,
            blk_sz=block,
            total_blks=size // block,
        )
        self.unit = round_up(_UNIT, block)
        self._encoder = ChunkEncoder(block, size, zeros)
        self._at = SPARSE_HEADER.size
        """Where in the file the next chunk goes."""
        self._written = 0
        """The guest byte up to which there are chunks."""
        self._whole = False

    def encoder(self) -> Encoder:
        return self._encoder

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        raise UnsupportedError("a sparse image cannot be read while it is written", file=self.name)

    def reserve_encoded(self, units: Sequence[tuple[int, int, int]]) -> list[Placement]:
        placed = []
        for start, length, stored in units:
            if start < self._written or self._whole:
                raise UnsupportedError("a sparse image is written in order, once", file=self.name)
            self._skip_to(start)
            self._count(self._encoder.counts.pop(start))
            placed.append(Placement(start, length, self.file, self._at, stored=stored))
            self._at += stored
            self._written = start + length
        return placed

    def publish(self, placements: Sequence[Placement]) -> None:
        """A chunk is there by being behind the one before it."""

    def reserve(self, offset: int, length: int) -> list[Placement]:
        raise UnsupportedError("a sparse image is written in order, once: convert into it", file=self.name)

    def _count(self, chunks: int) -> None:
        self.header.total_chunks += chunks
        if self.header.total_chunks > MAX_CHUNKS:
            raise UnsupportedError(f"more than {MAX_CHUNKS} chunks: take a larger block_size", file=self.name)

    def _skip_to(self, start: int) -> None:
        """What was left out up to guest byte *start* is zeros."""
        if start > self._written:
            chunk = b"".join(self._encoder.alike(start - self._written))
            self.file.write(self._at, chunk)
            self._count(1)
            self._at += len(chunk)
            self._written = start

    def flush(self) -> None:
        """The last chunk, and the header, which counts them: nothing can follow."""
        if not self._whole:
            self._skip_to(self.size)
            self.file.write(0, SPARSE_HEADER.pack(self.header))
            self._whole = True
        super().flush()


def create_sparse(driver: SparseDriver, request: CreateRequest) -> SparseWriter:
    """A new image in ``request.file``: the disk is rounded up to whole blocks.

    :raises UsageError: no blocks are of that size. UnsupportedError: the disk has too many.
    """
    file, block = request.output(), _block(request)
    size = round_up(request.size, block)
    if size // block > MAX_BLOCKS:
        raise UnsupportedError(f"more than {MAX_BLOCKS} blocks: take a larger block_size", file=request.name)
    zeros = DONT_CARE if request.options["zeros"] == "skip" else FILL
    return SparseWriter(driver, file, name=request.name, size=size, block=block, zeros=zeros)


def measure_sparse(request: MeasureRequest) -> Measurement:
    """Headers, and data in whole blocks, as if none were alike: a bound, for fills take next to nothing."""
    block = _block(request)
    size = round_up(request.size, block)
    overhead = SPARSE_HEADER.size + (CHUNK_HEADER.size + FILL_SIZE) * (2 * -(-size // _UNIT) + 1)
    return Measurement(min(request.data_bytes(block), size) + overhead, size + overhead)


def _block(request: CreateRequest | MeasureRequest) -> int:
    block = int(request.options["block_size"])
    if block % SECTOR or not 0 < block <= _LARGEST or block & (block - 1):
        raise UsageError(f"block_size must be a power of two of {SECTOR} to {_LARGEST} bytes, not {block}")
    return block
