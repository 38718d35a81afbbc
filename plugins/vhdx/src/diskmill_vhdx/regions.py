"""Where things are: the region table with its copy, and the metadata region with its table of items."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, TypeVar

from diskmill.errors import ImageError, UnsupportedError
from diskmill.kit.structs import Record, Structure
from diskmill.records import record

from .c_vhdx import (
    ALIGN,
    BAT_REGION,
    DISK_ID_ITEM,
    DISK_SIZE_ITEM,
    FILE_PARAMETERS,
    FILE_PARAMETERS_ITEM,
    HAS_PARENT,
    HEADER_SECTION,
    IS_REQUIRED,
    IS_USER,
    ITEM,
    LEAVE_BLOCKS_ALLOCATED,
    LOGICAL_SECTOR_ITEM,
    MAX_BLOCK,
    MAX_DISK,
    MAX_ENTRIES,
    METADATA_REGION,
    METADATA_TABLE,
    MIN_BLOCK,
    PARENT_LOCATOR_ITEM,
    PHYSICAL_SECTOR_ITEM,
    REGION,
    REGION_TABLE,
    REGION_TABLE_OFFSETS,
    TABLE_SIZE,
    intact,
    sealed,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diskmill.contract.node import Node

    from .c_vhdx import ItemEntry, RegionEntry

T = TypeVar("T", bound=Record)
E = TypeVar("E", bound=Record)

KNOWN_REGIONS = (BAT_REGION, METADATA_REGION)
_MOST_METADATA = 1 << 20
"""Bytes in an item at most."""


class Regions:
    """The regions of the VHDX file in *file*, by its region table, or where that is damaged by the copy.

    :raises ImageError: both are damaged, a region is missing, or regions overlap.
    :raises UnsupportedError: a region must be understood that is not.
    """

    def __init__(self, file: Node, log: tuple[int, int], name: str) -> None:
        self.name = name
        copies = [file.read(offset, TABLE_SIZE) for offset in REGION_TABLE_OFFSETS]
        self.whole = [intact(data, b"regi") for data in copies]
        """Of each copy of the table, whether signature and checksum are right."""
        self.alike = copies[0] == copies[1]
        if not any(self.whole):
            raise ImageError("both copies are damaged", file=name, place="region table")
        self.table = copies[self.whole.index(True)]
        count = REGION_TABLE.unpack(self.table).EntryCount
        if count > MAX_ENTRIES:
            raise ImageError(f"{count} entries are too many", file=name, place="region table")
        self.entries: list[RegionEntry] = [
            REGION.unpack(self.table, REGION_TABLE.size + index * REGION.size) for index in range(count)
        ]
        self._check()
        self.bat, self.metadata = (self._known(guid) for guid in KNOWN_REGIONS)
        self.ranges = _apart(
            [log, *((entry.FileOffset, entry.FileOffset + entry.Length) for entry in self.entries)], name
        )
        """(start, end) of the log and of each region, ascending."""

    def _check(self) -> None:
        for entry in self.entries:
            if entry.FileOffset < HEADER_SECTION or entry.FileOffset % ALIGN or entry.Length % ALIGN:
                raise ImageError(
                    "a region is not at a place where regions can be", file=self.name, place="region table"
                )
            if entry.Required & 1 and entry.Guid not in KNOWN_REGIONS:
                raise UnsupportedError(f"it has a region {entry.Guid.hex()} that must be understood", file=self.name)

    def _known(self, guid: bytes) -> RegionEntry:
        found = [entry for entry in self.entries if entry.Guid == guid]
        if len(found) != 1:
            what = "block allocation table" if guid == BAT_REGION else "metadata"
            raise ImageError(f"{len(found)} regions for the {what}", file=self.name, place="region table")
        return found[0]

    def moved(self, offset: int, length: int) -> Regions:
        """The regions with the block allocation table at another place."""
        new = deepcopy(self)
        old = self.bat.FileOffset, self.bat.FileOffset + self.bat.Length
        new.ranges = sorted({*self.ranges, (offset, offset + length)} - {old})
        new.bat.FileOffset, new.bat.Length = offset, length
        table = bytearray(self.table)
        at = REGION_TABLE.size + new.entries.index(new.bat) * REGION.size
        table[at : at + REGION.size] = REGION.pack(new.bat)
        new.table = sealed(bytes(table))
        return new


def _apart(ranges: Sequence[tuple[int, int]], name: str) -> list[tuple[int, int]]:
    """*ranges* in order, without empty ones.

    :raises ImageError: two of them overlap.
    """
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low < found[-1][1]:
            raise ImageError(f"log and regions overlap at byte {low}", file=name, place="region table")
        if low < high:
            found.append((low, high))
    return found


@record
class Metadata:
    """What the metadata region tells."""

    block_size: int
    fixed: bool
    """Blocks are never given back."""
    differencing: bool
    size: int
    """Of the guest disk, in bytes."""
    size_offset: int
    """Where in the file that stands."""
    sector: int
    """Bytes in a logical sector."""
    locator: bytes
    """The parent locator; empty: there is none."""


def read_metadata(file: Node, region: RegionEntry, name: str) -> Metadata:
    """The items of the metadata region that are understood.

    :raises ImageError: an item is missing or makes no sense.
    :raises UnsupportedError: an item must be understood that is not.
    """
    items = _Items(file, region, name)
    parameters = FILE_PARAMETERS.unpack(items.get(FILE_PARAMETERS_ITEM, FILE_PARAMETERS.size))
    block = parameters.BlockSize
    if not MIN_BLOCK <= block <= MAX_BLOCK or block & block - 1:
        raise items.wrong(f"the block size {block} is not a power of two from 1 MiB to 256 MiB")
    sector = int.from_bytes(items.get(LOGICAL_SECTOR_ITEM, 4), "little")
    if sector not in (512, 4096):
        raise items.wrong(f"sectors of {sector} bytes")
    size = int.from_bytes(items.get(DISK_SIZE_ITEM, 8), "little")
    if size % sector or size > MAX_DISK:
        raise items.wrong(f"a disk of {size} bytes")
    differencing = bool(parameters.Flags & HAS_PARENT)
    return Metadata(
        block_size=block,
        fixed=bool(parameters.Flags & LEAVE_BLOCKS_ALLOCATED) and not differencing,
        differencing=differencing,
        size=size,
        size_offset=items.place(DISK_SIZE_ITEM)[0],
        sector=sector,
        locator=items.get(PARENT_LOCATOR_ITEM, None) if differencing else b"",
    )


_KNOWN_ITEMS = {
    FILE_PARAMETERS_ITEM: "file parameters",
    DISK_SIZE_ITEM: "virtual disk size",
    DISK_ID_ITEM: "virtual disk id",
    LOGICAL_SECTOR_ITEM: "logical sector size",
    PHYSICAL_SECTOR_ITEM: "physical sector size",
    PARENT_LOCATOR_ITEM: "parent locator",
}


class _Items:
    """The items that are known, their places checked."""

    def __init__(self, file: Node, region: RegionEntry, name: str) -> None:
        self.file, self.region, self.name = file, region, name
        table = file.read(region.FileOffset, TABLE_SIZE)
        header = METADATA_TABLE.unpack(table)
        if header.Signature != b"metadata":
            raise self.wrong("bad signature")
        if header.EntryCount > MAX_ENTRIES:
            raise self.wrong(f"{header.EntryCount} items are too many")
        self.found: dict[bytes, ItemEntry] = {}
        for index in range(header.EntryCount):
            item = ITEM.unpack(table, METADATA_TABLE.size + index * ITEM.size)
            if item.ItemId not in _KNOWN_ITEMS or item.Flags & IS_USER:
                if item.Flags & IS_REQUIRED:
                    raise UnsupportedError(f"it has metadata {item.ItemId.hex()} that must be understood", file=name)
            elif item.ItemId in self.found:
                raise self.wrong(f"two items for the {_KNOWN_ITEMS[item.ItemId]}")
            else:
                self.found[item.ItemId] = item

    def wrong(self, cause: str) -> ImageError:
        return ImageError(cause, file=self.name, place="metadata")

    def place(self, guid: bytes) -> tuple[int, int]:
        """File offset and length of an item."""
        what = _KNOWN_ITEMS[guid]
        item = self.found.get(guid)
        if item is None:
            raise self.wrong(f"the {what} is missing")
        if item.Offset < TABLE_SIZE or item.Length > _MOST_METADATA or item.Offset + item.Length > self.region.Length:
            raise self.wrong(f"the {what} does not lie inside the metadata region")
        offset = self.region.FileOffset + item.Offset
        if offset + item.Length > self.file.size:
            raise self.wrong(f"the {what} lies beyond the end of the file")
        return offset, item.Length

    def get(self, guid: bytes, size: int | None) -> bytes:
        """An item of *size* bytes; None: of whatever size it has."""
        offset, length = self.place(guid)
        if size is not None and length < size:
            raise self.wrong(f"the {_KNOWN_ITEMS[guid]} has {length} bytes")
        return self.file.read(offset, length if size is None else size)


def packed_table(structure: Structure[T], header: T, entry: Structure[E], records: Sequence[E]) -> bytes:
    """A region or metadata table."""
    data = structure.pack(header) + b"".join(entry.pack(record) for record in records)
    return data.ljust(TABLE_SIZE, b"\0")
