"""The chunks of an image, as columns: of a large image there are some hundred thousand."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from itertools import compress
from operator import add, le
from typing import TYPE_CHECKING, NamedTuple

from diskmill.errors import ImageError
from diskmill.kit import tables
from diskmill.sizes import MAX_SIZE, SECTOR

from .c_udif import BLOCK_TABLE, CHUNK, COMMENT, MISH, TERMINATOR

if TYPE_CHECKING:
    from .c_udif import BlockTable

_WORDS = CHUNK.size // 8


class ChunkTable(NamedTuple):
    """Chunks in guest order. Sectors are the guest's; offsets, the file's, and lengths are in bytes."""

    types: array[int]
    sectors: array[int]
    counts: array[int]
    offsets: array[int]
    lengths: array[int]


def read_tables(resources: Iterable[bytes], data_fork: int, name: str) -> tuple[list[BlockTable], ChunkTable]:
    """The headers of all block tables, in their order, and the chunks of all.

    :param data_fork: the file offset that chunks' offsets count from.
    :raises ImageError: a table is damaged, or two chunks have the same sector.
    """
    headers: list[BlockTable] = []
    table = ChunkTable(array("I"), *(array("Q") for _ in range(4)))
    for number, data in enumerate(resources):
        place = f"block table {number}"
        header = BLOCK_TABLE.unpack(data, file=name)
        if header.Signature != MISH:
            raise ImageError("bad signature", file=name, place=place)
        end = BLOCK_TABLE.size + header.NumberOfBlockChunks * CHUNK.size
        if end > len(data):
            raise ImageError(f"{header.NumberOfBlockChunks} chunks are not inside it", file=name, place=place)
        words = tables.from_bytes(memoryview(data)[BLOCK_TABLE.size : end], 8, "big")
        types = [word >> 32 for word in words[0::_WORDS]]
        kept = [
            type not in (COMMENT, TERMINATOR) and count > 0 for type, count in zip(types, words[2::_WORDS], strict=True)
        ]
        sectors, counts, offsets, lengths = (list(compress(words[column::_WORDS], kept)) for column in range(1, _WORDS))
        first, base = header.SectorNumber, data_fork + header.DataOffset
        limit = MAX_SIZE // SECTOR
        if max(first, header.SectorCount, *sectors, *counts, 0) > limit // 4 or base + max(offsets, default=0) >> 63:
            raise ImageError("impossible sector or offset", file=name, place=place)
        headers.append(header)
        table.types.extend(compress(types, kept))
        table.sectors.extend(sector + first for sector in sectors)
        table.counts.extend(counts)
        table.offsets.extend(offset + base for offset in offsets)
        table.lengths.extend(lengths)
    if not all(map(le, table.sectors, table.sectors[1:])):
        order = sorted(range(len(table.sectors)), key=table.sectors.__getitem__)
        table = ChunkTable(*(array(column.typecode, map(column.__getitem__, order)) for column in table))
    ends = array("Q", map(add, table.sectors, table.counts))
    if not all(map(le, ends, table.sectors[1:])):
        index = next(index for index, end in enumerate(ends) if end > table.sectors[index + 1])
        raise ImageError(f"two chunks have sector {table.sectors[index + 1]}", file=name, place="block tables")
    return headers, table
