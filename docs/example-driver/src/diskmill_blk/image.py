"""``blk`` images: where guest blocks live, and where new ones may be put.

The format is in README.md. Two rules keep an image whole whenever the machine stops: the table goes to disk only
after the blocks that it points to, and a block that it let go of is given out again only after that, and when nobody
can be reading it any more.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from diskmill.contract.extents import Extent, Kind, Placement
from diskmill.contract.node import Node, Storage
from diskmill.contract.results import CheckResult, Finding, Measurement
from diskmill.contract.threads import Retired
from diskmill.errors import ImageError, UnsupportedError, UsageError
from diskmill.kit import tables
from diskmill.kit.image import FormatImage
from diskmill.kit.structs import Record, Structure, raw, u32, u64
from diskmill.sizes import SECTOR

from . import MAGIC

if TYPE_CHECKING:
    from diskmill.contract.drivers import Driver
    from diskmill.contract.requests import CreateRequest, MeasureRequest, OpenRequest


class Header(Record):
    magic = raw(8)
    version = u32
    block_bits = u32
    size = u64
    table = u32
    _reserved = raw(4)


HEADER = Structure("header", "<", Header)
ENTRY = 4
"""Bytes in a table entry."""
MAX_BLOCKS = 1 << 22
"""Guest blocks in a disk: the table, which is kept in memory, takes 16 MiB at most."""
BLOCK_BITS = range(12, 22)


def blocks(count: int, block: int) -> int:
    """How many blocks *count* bytes take."""
    return -(-count // block)


class BlkImage(FormatImage):
    """An open ``blk`` image, with its whole table in memory."""

    def __init__(self, driver: Driver, file: Node, header: Header, table: array[int], *, name: str, writable: bool):
        super().__init__(driver, file, name=name, size=header.size, writable=writable)
        self.header = header
        self.table = table
        self.unit = 1 << header.block_bits
        self.end = blocks(file.size, self.unit)  # the first block after all that are used
        self.free = array("I")  # blocks that nothing points to, neither here nor on disk
        self.freed = array("I")  # blocks that only the table on disk still points to
        self.retired: Retired[array[int]] = Retired(self.readers)  # nothing points to them, but they may be being read
        self.changed = range(0)  # the entries that differ from the table on disk lie in here

    # -- opening and creating ------------------------------------------------------------------------------------

    @classmethod
    def open(cls, driver: Driver, request: OpenRequest) -> BlkImage:
        """Believe nothing: every field is held against the file before it is used."""
        file = request.below()
        header = HEADER.unpack(file.read(0, min(HEADER.size, file.size)), file=request.name)

        def require(good: bool, cause: str) -> None:
            if not good:
                raise ImageError(cause, file=request.name, place="header")

        require(header.magic == MAGIC, "not a blk image")
        if header.version != 1:
            raise UnsupportedError(f"version {header.version} of the blk format", file=request.name)
        require(header.block_bits in BLOCK_BITS, f"impossible block_bits {header.block_bits}")
        block = 1 << header.block_bits
        count = blocks(header.size, block)
        require(header.size % SECTOR == 0, f"size {header.size} is not a multiple of {SECTOR}")
        require(count <= MAX_BLOCKS, f"size {header.size} is more than {MAX_BLOCKS} blocks")
        # MAX_BLOCKS bounds what is allocated for the table; the file's size bounds where it can be.
        end = (header.table + blocks(count * ENTRY, block)) * block
        require(header.table > 0 and end <= file.size, f"the table at block {header.table} is not inside the file")
        table = tables.read(file, header.table * block, count, ENTRY, "little")
        last = max(table, default=0)
        if (last + 1) * block > file.size:
            raise ImageError(f"block {last} is not inside the file", file=request.name, place="table")
        image = cls(driver, file, header, table, name=request.name, writable=request.writable)
        if image.writable:
            used, findings = image.survey()
            if findings:
                raise ImageError(f"cannot be written: {findings[0].text}", file=request.name, place="table")
            image.free.extend(number for number, taken in enumerate(used) if not taken)
        return image

    @classmethod
    def create(cls, driver: Driver, request: CreateRequest) -> BlkImage:
        """Nobody can see the new image yet, so nothing need be written in a certain order."""
        file = request.output()
        block, count = layout(request)
        header = HEADER.new(magic=MAGIC, version=1, block_bits=block.bit_length() - 1, size=request.size, table=1)
        file.truncate((1 + blocks(count * ENTRY, block)) * block)
        file.write(0, HEADER.pack(header))
        return cls(driver, file, header, tables.filled(count, ENTRY), name=request.name, writable=True)

    # -- reading -------------------------------------------------------------------------------------------------

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """A run of the table is an extent: zeros, or blocks that lie one after the other."""
        first = offset // self.unit
        part = self.table[first : blocks(offset + length, self.unit)]
        for run in pieces(part):
            start = (first + run.at) * self.unit
            kind = Kind.DATA if run.value else Kind.ZERO
            node = self.file if run.value else None
            extent = Extent(start, run.length * self.unit, kind, node, run.value * self.unit)
            yield extent.clip(offset, offset + length)

    # -- writing -------------------------------------------------------------------------------------------------

    def reserve(self, offset: int, length: int) -> list[Placement]:
        """Blocks that are there are overwritten in place; for the others, new ones that nothing points to yet."""
        places = []
        first = offset // self.unit
        for run in pieces(self.table[first : blocks(offset + length, self.unit)]):
            start = (first + run.at) * self.unit
            if run.value:
                low, high = max(start, offset), min(start + run.length * self.unit, offset + length)
                places.append(Placement(low, high - low, self.file, run.value * self.unit + low - start))
                continue
            for number, count in self.allocate(run.length):
                places.append(Placement(start, count * self.unit, self.file, number * self.unit, fresh=True))
                start += count * self.unit
        return places

    def allocate(self, count: int) -> Iterator[tuple[int, int]]:
        """(first block, how many) of *count* blocks: free ones first, then new ones at the end."""
        while count and self.free:
            yield self.free.pop(), 1
            count -= 1
        if count:
            if self.end + count > 2 * MAX_BLOCKS:
                raise UnsupportedError("the file has no room for more blocks", file=self.name)
            self.end += count
            yield self.end - count, count

    def publish(self, placements: Sequence[Placement]) -> None:
        """Point the table at the new blocks, in memory."""
        for place in placements:
            if place.fresh:
                at, count = place.start // self.unit, place.length // self.unit
                tables.fill_run(self.table, at, count, place.offset // self.unit, 1)
                self.mark(at, at + count)

    def zero_units(self, offset: int, length: int, *, unmap: bool) -> None:
        """An entry of 0 reads as zeros, and its block is free once the table on disk says so too."""
        at, upto = offset // self.unit, blocks(offset + length, self.unit)
        self.freed.extend(filter(None, self.table[at:upto]))
        tables.fill_run(self.table, at, upto - at, 0, 0)
        self.mark(at, upto)

    def discard_units(self, offset: int, length: int) -> None:
        self.zero_units(offset, length, unmap=True)

    def mark(self, at: int, upto: int) -> None:
        """Entries *at* to *upto* have changed."""
        if self.changed:
            at, upto = min(at, self.changed.start), max(upto, self.changed.stop)
        self.changed = range(at, upto)

    def flush(self) -> None:
        """The blocks, then the table; what that let go of can be used again."""
        with self.lock:
            if self.changed:
                self.file.barrier()
                part = self.table[self.changed.start : self.changed.stop]
                self.file.write(
                    self.header.table * self.unit + self.changed.start * ENTRY, tables.to_bytes(part, "little")
                )
                self.changed = range(0)
            self.file.flush()
            self.retired.add(self.freed)
            self.freed = array("I")
            for unread in self.retired.take():
                self.free += unread

    # -- operations ----------------------------------------------------------------------------------------------

    def survey(self) -> tuple[bytearray, list[Finding]]:
        """Which blocks of the file are used, a byte for each; and what is wrong with the table."""
        end = blocks(self.file.size, self.unit)
        if end > 2 * MAX_BLOCKS:
            raise UnsupportedError(f"the file is more than {2 * MAX_BLOCKS} blocks", file=self.name)
        used, findings = bytearray(end), []
        used[0] = 1
        upto = self.header.table + blocks(len(self.table) * ENTRY, self.unit)
        used[self.header.table : upto] = b"\1" * (upto - self.header.table)
        for run in pieces(self.table):
            if run.value:
                place = slice(run.value, run.value + run.length)
                shared = used.count(1, place.start, place.stop)
                if shared:
                    text = f"of blocks {place.start} to {place.stop - 1}, {shared} have another use too"
                    findings.append(Finding("corruption", text, shared))
                used[place] = b"\1" * run.length
        return used, findings

    def check(self) -> CheckResult:
        """Space is never lost in this format: blocks that nobody uses are free."""
        _, findings = self.survey()
        result = CheckResult(findings=findings, corruptions=sum(finding.count for finding in findings))
        result.image_end_offset = self.file.size
        result.total_clusters = len(self.table)
        result.allocated_clusters = len(self.table) - self.table.count(0)
        return result

    def resize(self, size: int) -> None:
        """Write a new table beside the old one; the header, in one sector, decides which of them holds."""
        count = blocks(size, self.unit)
        if count > MAX_BLOCKS:
            raise UsageError(f"a disk has at most {MAX_BLOCKS * self.unit} bytes with this block size", file=self.name)
        if not isinstance(self.file, Storage):
            raise UnsupportedError("only an image in a file of its own can be resized", file=self.name)
        with self.lock:
            self.flush()
            tail = self.size % self.unit
            if size > self.size and tail and self.table[-1]:  # what now becomes visible reads as zeros
                self.file.zero(self.table[-1] * self.unit + tail, self.unit - tail)
            old = range(self.header.table, self.header.table + blocks(len(self.table) * ENTRY, self.unit))
            gone = filter(None, self.table[count:])
            table = self.table[:count]
            table.extend(tables.filled(count - len(table), ENTRY))
            place, room = self.end, blocks(count * ENTRY, self.unit)
            self.end += room
            self.file.truncate(self.end * self.unit)
            self.file.write(place * self.unit, tables.to_bytes(table, "little"))
            self.file.barrier()
            header = HEADER.new(**vars(self.header) | {"size": size, "table": place})
            self.file.write(0, HEADER.pack(header))
            self.file.flush()
            self.header, self.size, self.table = header, size, table
            self.retired.add(array("I", [*old, *gone]))


def pieces(table: array[int]) -> Iterator[tables.Run]:
    """The runs of *table*, with 0 ("reads as zeros") kept apart from 1, which only happens to come after it."""
    for run in tables.runs(table, 1):
        if run.value == 0 and run.step:
            yield tables.Run(run.at, 1, 0, 0)
            run = tables.Run(run.at + 1, run.length - 1, 1, 1)
        if run.value and not run.step and run.length > 1:  # one block in several places: an extent for each
            for index in range(run.length):
                yield tables.Run(run.at + index, 1, run.value, 0)
        else:
            yield run


def layout(request: CreateRequest | MeasureRequest) -> tuple[int, int]:
    """The block size that *request* asks for, and how many blocks the guest disk has."""
    block = int(request.options["block_size"])
    if block.bit_length() - 1 not in BLOCK_BITS or block & (block - 1):
        raise UsageError("block_size must be a power of two from 4 KiB to 2 MiB")
    count = blocks(request.size, block)
    if count > MAX_BLOCKS:
        raise UsageError(f"with block_size {block}, a disk has at most {MAX_BLOCKS * block} bytes")
    return block, count


def measure(request: MeasureRequest) -> Measurement:
    """Bytes that an image takes."""
    block, count = layout(request)
    metadata = (1 + blocks(count * ENTRY, block)) * block
    return Measurement(metadata + request.data_bytes(block), metadata + count * block)
