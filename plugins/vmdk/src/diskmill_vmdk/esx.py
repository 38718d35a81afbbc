"""Sparse extents of ESX: COWD (vmfsSparse) and seSparse, to read.

Sources: VMware, "Virtual Disk Format 5.0", "ESX Server Sparse Extents"; for seSparse what QEMU's documentation of the
format in its driver tells: entries of 64 bits whose highest four say what they are.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from diskmill.errors import ImageError, UnsupportedError
from diskmill.kit import tables
from diskmill.sizes import MAX_SIZE, SECTOR

from .grains import GrainPart
from .structures import (
    COWD_ENTRIES,
    COWD_HEADER,
    SESPARSE_HEADER,
    SESPARSE_MAGIC,
    SESPARSE_VERSION,
    SESPARSE_VOLATILE,
    SESPARSE_VOLATILE_MAGIC,
)

if TYPE_CHECKING:
    from diskmill.contract.node import Node

_KIND = 0xF << 60
_TABLE = 0x10000000_00000000
_ZERO = (0x1 << 60, 0x2 << 60)
_GRAIN = 0x3 << 60


def open_cowd(node: Node, start: int, *, name: str) -> GrainPart:
    """The COWD extent in *node*."""
    header = COWD_HEADER.unpack(node.read(0, min(node.size, COWD_HEADER.size)), file=name)
    if header.version != 1:
        raise UnsupportedError(f"COWD version {header.version}", file=name)
    part = GrainPart(
        node,
        start,
        header.numSectors * SECTOR,
        name=name,
        grain=header.grainSize * SECTOR,
        per_table=COWD_ENTRIES,
        width=4,
        directory=header.gdOffset * SECTOR,
    )
    if header.numGDEntries < part.count:
        raise ImageError(
            f"a grain directory of {header.numGDEntries} entries, but the disk needs {part.count}",
            file=name,
            place="header",
        )
    return part


class SeSparsePart(GrainPart):
    """A seSparse extent: table and grain numbers instead of sectors."""

    tables_sector = 0
    grains_sector = 0

    def read_directory(self, offset: int) -> array[int]:
        directory = super().read_directory(offset)
        size, base = self.table_sectors, self.tables_sector
        for index, entry in enumerate(directory):
            if entry == 0:
                continue
            if entry & 0xFFFFFFFF_00000000 != _TABLE:
                raise ImageError(
                    f"an entry {entry:#x} of unknown kind", file=self.name, place=f"grain directory entry {index}"
                )
            directory[index] = base + (entry & 0xFFFFFFFF) * size
        return directory

    def decode_table(self, table: array[int]) -> array[int]:
        if table == tables.filled(len(table), 8):
            return table
        grain, base = self.unit // SECTOR, self.grains_sector
        for index, entry in enumerate(table):
            if entry == 0:
                continue
            kind = entry & _KIND
            if kind == _GRAIN:
                # The number's lowest 12 bits are stored above its higher 48.
                table[index] = base + ((entry >> 48 & 0xFFF) | (entry & 0xFFFF_FFFFFFFF) << 12) * grain
            elif kind in _ZERO:
                table[index] = 1
            else:
                raise ImageError(f"an entry {entry:#x} of unknown kind", file=self.name, place="grain table")
        return table


def open_sesparse(node: Node, start: int, *, name: str) -> SeSparsePart:
    """The seSparse extent in *node*."""
    header = SESPARSE_HEADER.unpack(node.read(0, min(node.size, SESPARSE_HEADER.size)), file=name)
    if header.magic != SESPARSE_MAGIC:
        raise ImageError("not a seSparse extent: a bad magic", file=name, place="header")
    if header.version != SESPARSE_VERSION:
        raise UnsupportedError(f"seSparse version {header.version:#x}", file=name)
    # Not documented by VMware, so what was never seen is not guessed at.
    if header.grain_size != 8 or header.grain_table_size != 64 or header.flags or any(header.reserved):
        raise UnsupportedError("seSparse with unknown flags, grain or table sizes", file=name)
    at = header.volatile_header_offset * SECTOR
    if at + SECTOR > node.size:
        raise ImageError("the volatile header lies beyond the end of the file", file=name, place="header")
    volatile = SESPARSE_VOLATILE.unpack(node.read(at, SECTOR), file=name)
    if volatile.magic != SESPARSE_VOLATILE_MAGIC:
        raise ImageError("a bad magic", file=name, place="volatile header")
    if volatile.replay_journal:
        raise UnsupportedError("it was not closed properly, and its journal must be replayed first", file=name)
    limit = MAX_SIZE // SECTOR
    if max(header.capacity, header.grain_dir_offset, header.grain_tables_offset, header.grains_offset) > limit:
        raise ImageError("offsets or a capacity that no file can have", file=name, place="header")
    part = SeSparsePart(
        node,
        start,
        header.capacity * SECTOR,
        name=name,
        grain=header.grain_size * SECTOR,
        per_table=header.grain_table_size * SECTOR // 8,
        width=8,
        directory=header.grain_dir_offset * SECTOR,
        zeroed=True,
    )
    if header.grain_dir_size * SECTOR < part.count * 8:
        raise ImageError("a grain directory that is too small for the disk", file=name, place="header")
    part.tables_sector = header.grain_tables_offset
    part.grains_sector = header.grains_offset
    return part
