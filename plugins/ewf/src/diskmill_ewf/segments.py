"""Segment files: their names, their sections, and the tables of chunks in those. Source: see :mod:`.c_ewf`."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from diskmill.contract.node import Node
from diskmill.errors import ImageError
from diskmill.kit.blocks import BlockTable
from diskmill.kit.structs import Record, Structure
from diskmill.sizes import MiB

from .c_ewf import CHECKSUM, ENTRY, FILE_HEADER, LAST, SECTION_DESCRIPTOR, SIGNATURE, TABLE_HEADER

T = TypeVar("T", bound=Record)

MAX_SECTIONS = 1 << 18
"""Sections of a segment at most."""


def segment_name(first: str, number: int) -> str:
    """The name of segment *number*, the *first* being called ``….E01``: up to E99, then from EAA on to ZZZ.

    :raises ImageError: the first is not called so, or there is no name for it.
    """
    stem, suffix = os.path.splitext(first)
    if len(suffix) != 4 or suffix[2:] != "01" or not suffix[1].isalpha():
        raise ImageError("its other segments are found by its name, which must end in .E01 or .s01", file=first)
    if number < 100:
        return f"{stem}.{suffix[1]}{number:02}"
    high, low = divmod(number - 100, 26)
    letters = [ord(suffix[1].upper()) + high // 26, ord("A") + high % 26, ord("A") + low]
    if letters[0] > ord("Z"):
        raise ImageError(f"there is no name for segment {number}", file=first)
    text = "".join(map(chr, letters))
    return f"{stem}.{text if suffix[1].isupper() else text.lower()}"


class Section(NamedTuple):
    """A section of *file*, what it holds being at bytes *start* to *end* of it."""

    file: Node
    name: str
    type: str
    start: int
    end: int

    @property
    def place(self) -> str:
        """Where it is, for errors."""
        return f"section '{self.type}' at offset {self.start - SECTION_DESCRIPTOR.size}"

    def bad(self, why: str) -> ImageError:
        return ImageError(why, file=self.name, place=self.place)

    def read(self, structure: Structure[T]) -> T:
        """The *structure* that it begins with, which ends with its checksum."""
        data = self.file.read(self.start, min(structure.size, self.end - self.start))
        record = structure.unpack(data, file=self.name)
        if zlib.adler32(data[:-CHECKSUM]) != int.from_bytes(data[-CHECKSUM:], "little"):
            raise self.bad("its checksum is wrong")
        return record


def sections(file: Node, number: int) -> Iterator[Section]:
    """The sections of segment *number*, which is in *file*; the last is of one of the types :data:`LAST`.

    :raises ImageError: it is another segment, or a descriptor is damaged.
    """
    name = file.name
    header = FILE_HEADER.unpack(file.read_some(0, FILE_HEADER.size), file=name)
    if header.signature != SIGNATURE:
        raise ImageError("not an EWF segment (it does not begin as one)", file=name)
    if header.segment_number != number:
        raise ImageError(f"it is segment {header.segment_number}, not {number}", file=name)
    at = FILE_HEADER.size
    for _ in range(MAX_SECTIONS):
        start = at + SECTION_DESCRIPTOR.size
        whole = Section(file, name, "", start, file.size)
        head = whole._replace(start=at, end=min(start, file.size)).read(SECTION_DESCRIPTOR)
        section = whole._replace(type=head.type.split(b"\0")[0].decode("ascii", "replace"), end=head.next_offset)
        if section.type in LAST:
            yield section._replace(end=start)
            return
        if not start <= head.next_offset < file.size:
            raise section.bad(f"next_offset {head.next_offset} is not inside the file, behind it")
        if head.size not in (0, head.next_offset - at):
            raise section.bad(f"its size is {head.size}, but the next one is at offset {head.next_offset}")
        yield section
        at = head.next_offset
    raise ImageError(f"it has more than {MAX_SECTIONS} sections", file=name)


class Table:
    """A table of chunks, in *section*.

    :param first: the number of its first chunk.
    :param data: the section that the chunks are in; None: they follow the entries.
    """

    def __init__(self, section: Section, first: int, data: Section | None) -> None:
        self.section = section
        self.first = first
        self.header = section.read(TABLE_HEADER)
        self.count: int = self.header.number_of_entries
        self.start = section.start + TABLE_HEADER.size
        end = self.start + self.count * ENTRY
        if end + (CHECKSUM if data else 0) > section.end:
            raise section.bad(f"{self.count} entries are not inside of it")
        self.data = data or section._replace(start=end)
        self.mirror: Table | None = None
        """The same table once more."""
        self.summed = data is not None
        self._entries: BlockTable | None = None

    def entries(self) -> BlockTable:
        """The entries, those of the mirror if their checksum is wrong.

        :raises ImageError: it is wrong there too.
        """
        if self._entries is None:
            if self.summed and not self.sound():
                if self.mirror is None:
                    raise self.section.bad("the checksum of its entries is wrong")
                return self.mirror.entries()
            self._entries = BlockTable(self.section.file, self.start, self.count, ENTRY, "little", lambda: None)
        return self._entries

    def sound(self) -> bool:
        """Whether the entries have the checksum that stands behind them."""
        file, sum, end = self.section.file, 1, self.start + self.count * ENTRY
        for at in range(self.start, end, MiB):
            sum = zlib.adler32(file.read(at, min(MiB, end - at)), sum)
        return sum == int.from_bytes(file.read(end, CHECKSUM), "little")

    def chunk(self, index: int) -> tuple[int, int, int]:
        """Chunk *index* of the table: (entry, file offset of it, file offset that it ends before)."""
        entries, base = self.entries(), self.header.base_offset
        entry = entries.get(index)
        end = self.data.end
        if index + 1 < self.count:
            end = base + (entries.get(index + 1) & 0x7FFFFFFF)
        at = base + (entry & 0x7FFFFFFF)
        if not self.data.start <= at < end <= self.data.end:
            raise self.section.bad(f"chunk {self.first + index} is at offsets {at} to {end}, not inside its section")
        return entry, at, end
