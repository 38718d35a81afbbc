"""An opened EWF image: chunks are looked up in the tables of its segments. Source: see :mod:`.c_ewf`."""

from __future__ import annotations

import os
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from diskmill.contract.extents import Extent
from diskmill.contract.node import Node
from diskmill.contract.references import Reference
from diskmill.errors import DiskmillError, ImageError
from diskmill.kit.chunks import Chunk, Chunks, Method, unreadable, zlib_method
from diskmill.kit.image import ReadOnlyImage
from diskmill.sizes import MAX_SIZE, MiB

from .c_ewf import CHECKSUM, COMPRESSED, HASHES, VOLUME, VOLUME_SMART
from .segments import Section, Table, sections, segment_name

if TYPE_CHECKING:
    from diskmill.contract.requests import OpenRequest

    from . import EwfDriver

MAX_CHUNK = 64 * MiB
"""Bytes in a chunk at most; EnCase's are up to 16 MiB."""
_TABLE_MEMORY = 1024
"""Bytes that a table takes in memory, its entries aside."""
ZLIB = zlib_method()


class Summed:
    """The stream of a chunk that is stored as it is, with its Adler-32 behind it."""

    def __init__(self, length: int) -> None:
        self.eof = False
        self._left = length
        self._held = b""
        self._sum = 1

    @property
    def needs_input(self) -> bool:
        return not self.eof and len(self._held) < (1 if self._left else CHECKSUM)

    def decompress(self, data: bytes | memoryview, max_length: int) -> bytes:
        held = self._held + bytes(data)
        count = min(max_length, self._left, len(held))
        part, self._held = held[:count], held[count:]
        self._left -= count
        self._sum = zlib.adler32(part, self._sum)
        if not self._left and len(self._held) >= CHECKSUM:
            if int.from_bytes(self._held[:CHECKSUM], "little") != self._sum:
                raise ValueError("its checksum is wrong")
            self.eof = True
        return part


STORED = Method("stored", Summed, (ValueError,))


class EwfImage(ReadOnlyImage):
    """The disk of a set of segments.

    :ivar hashes: MD5 and SHA1 of the disk, as far as the image tells them.
    """

    def __init__(self, driver: EwfDriver, file: Node, size: int, chunk: int, sector: int, *, name: str) -> None:
        super().__init__(driver, file, name=name, size=size)
        self.sector_size = sector
        self.chunk_size = chunk
        self.hashes: dict[str, bytes] = {}
        self.references: list[Reference] = []
        self.tables: list[Table] = []
        self._firsts: list[int] = []
        self._count = 0
        self._chunks: list[Chunks] = []
        self._segments: list[Node] = []

    def details(self) -> dict[str, Any]:
        told: dict[str, Any] = {"segments": len(self._segments), "chunk-size": self.chunk_size}
        return told | {name: value.hex() for name, value in self.hashes.items()}

    def children(self) -> Iterator[Node]:
        yield self.file
        yield from self._segments[1:]

    # -- putting it together ------------------------------------------------------------------------------------

    def attach(self, reference: Reference, node: Node) -> None:
        if reference.role != "extent":
            super().attach(reference, node)
        self.add_segment(node)

    def add_segment(self, node: Node) -> None:
        """The next segment is in *node*."""
        number = len(self._segments) + 1
        data: Section | None = None
        of: Section | None = None
        tables: list[Table] = []
        for section in sections(node, number):
            if section.type == "sectors":
                data = section
            elif section.type == "table":
                node.account.charge(_TABLE_MEMORY, "a list of tables", self.name)
                tables.append(Table(section, self._count, data))
                self._count += tables[-1].count
                of, data = data, None  # chunks belong to one table
            elif section.type == "table2" and tables:
                with suppress(ImageError):  # a damaged one is no better than none
                    mirror = Table(section, tables[-1].first, of)
                    tables[-1].mirror = mirror if mirror.count == tables[-1].count else None
            elif section.type in HASHES:
                told = vars(section.read(HASHES[section.type]))
                self.hashes |= {name: told[name] for name in ("md5", "sha1") if any(told.get(name, b""))}
        self.tables += tables
        self._firsts += [table.first for table in tables]
        self._chunks += [Chunks(node, self.name)] * len(tables)
        self._segments.append(node)
        if section.type == "next":
            name = segment_name(os.path.basename(self.file.name), number + 1)
            self.references.append(Reference("extent", f"./{name}", storage=True))

    # -- the map ------------------------------------------------------------------------------------------------

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        held = min(end, self.held)
        for number in range(offset // self.chunk_size, -(-held // self.chunk_size)):
            start = number * self.chunk_size
            upto = min(start + self.chunk_size, self.size)
            try:
                chunks, chunk = self._chunk(number, start, upto - start)
            except DiskmillError as error:
                yield unreadable(self.file, start, upto - start, error).clip(offset, end)
            else:
                yield from chunks.extents(chunk, offset, held)
        if held < end:
            why = ImageError(f"no table has a chunk for guest bytes {self.held} to {self.size}", file=self.name)
            yield unreadable(self.file, max(held, offset), end - max(held, offset), why)

    @property
    def held(self) -> int:
        """The guest byte up to which tables have chunks."""
        return min(self._count * self.chunk_size, self.size)

    def _chunk(self, number: int, start: int, length: int) -> tuple[Chunks, Chunk]:
        index = bisect_right(self._firsts, number) - 1
        table = self.tables[index]
        entry, at, end = table.chunk(number - table.first)
        chunks = self._chunks[index]
        if entry & COMPRESSED:
            return chunks, Chunk(start, length, at, end - at, ZLIB)
        if end - at < length + CHECKSUM:
            raise table.section.bad(f"chunk {number} has {end - at} bytes for {length} and their checksum")
        return chunks, Chunk(start, length, at, length + CHECKSUM, STORED)


def open_ewf(driver: EwfDriver, request: OpenRequest) -> EwfImage:
    """The image whose first segment is in ``request.file``."""
    file, name = request.below(), request.name
    section = next((one for one in sections(file, 1) if one.type in ("volume", "disk")), None)
    if section is None:
        raise ImageError("it has no volume section", file=name)
    large = section.end - section.start >= VOLUME.size
    volume = section.read(VOLUME) if large else section.read(VOLUME_SMART)
    chunk, size = (volume.bytes_per_sector * n for n in (volume.sectors_per_chunk, volume.number_of_sectors))
    if not 0 < chunk <= MAX_CHUNK or size > MAX_SIZE:
        raise section.bad(f"a disk of {size} bytes in chunks of {chunk} is not possible")
    image = EwfImage(driver, file, size, chunk, volume.bytes_per_sector, name=name)
    image.add_segment(file)
    return image
