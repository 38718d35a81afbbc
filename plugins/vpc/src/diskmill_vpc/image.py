"""VHD images: a footer; dynamic ones also a header, a block allocation table, and blocks with a bitmap of sectors each.

Entries of the table are sector numbers of bitmaps; a block's data follows its bitmap. A dynamic image begins with a
copy of its footer. The new footer behind new blocks, their data and their bitmaps are on disk before the table points
to them. For the source see :mod:`diskmill_vpc.c_vhd`; which creators go by which size is QEMU's experience.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import TYPE_CHECKING

from diskmill.contract.extents import Extent, Kind, Placement
from diskmill.contract.node import Image, Node
from diskmill.contract.results import CheckResult, Finding
from diskmill.errors import ImageError, StorageError, UnsupportedError
from diskmill.kit import tables
from diskmill.kit.blocks import BlockImage, BlockTable
from diskmill.kit.window import WindowImage
from diskmill.sizes import SECTOR, KiB, MiB, round_up

from .c_vhd import (
    BATMAP,
    BATMAP_COOKIE,
    BATMAP_CREATOR,
    COOKIE,
    DIFFERENCING,
    DYNAMIC,
    FIXED,
    FOOTER,
    GEOMETRY_CREATORS,
    GROWING,
    HEADER,
    HEADER_COOKIE,
    MAX_GEOMETRY,
    MAX_GEOMETRY_SECTORS,
    MAX_SECTORS,
    NONE,
    checksum,
    enclosing_geometry,
    geometry,
    sealed,
)

if TYPE_CHECKING:
    from diskmill.contract.references import Reference
    from diskmill.contract.requests import OpenRequest

    from . import VpcDriver
    from .c_vhd import Footer, Header

_ALIGN = 4 * KiB
"""Block data begins at a multiple of this, as in Hyper-V's newer images: disks write that much at once."""
_PENDING = 1 << 14
"""Bitmaps that wait in memory at most."""
_KNOWN = 1 << 17
"""Bitmaps known to be full that are remembered at most."""


class FixedVpcImage(WindowImage):
    """A fixed image: the guest disk, then the footer."""

    def __init__(self, driver: VpcDriver, file: Node, footer: Footer, *, name: str, size: int, writable: bool) -> None:
        super().__init__(driver, file, name=name, size=size, writable=writable)
        self.footer = footer
        self.unfinished = self._old_footer()
        """Where the footer is that a resize which did not end left in the disk; the guest has zeros there."""
        if self.unfinished is not None:
            self.window = None
        self.preallocated = True
        self.due = b""
        """The footer of a new image that is written forward: it comes when all else was."""

    def _old_footer(self) -> int | None:
        reserved = bytes(self.footer.reserved)
        if not reserved.startswith(GROWING):
            return None
        at = int.from_bytes(reserved[len(GROWING) : len(GROWING) + 8], "big")
        if not 0 <= at <= self.size - SECTOR:
            return None
        old = FOOTER.unpack(self.file.read(at, SECTOR))
        mine = old.cookie == COOKIE and old.checksum == checksum(FOOTER, old) and old.unique_id == self.footer.unique_id
        return at if mine and old.disk_type == FIXED and old.current_size == at else None

    def settle(self) -> None:
        if self.due:
            self.file.write(self.size, self.due)
            self.due = b""
        super().settle()

    def finish(self) -> None:
        """Take away what a resize that did not end left."""
        if self.unfinished is not None:
            self.file.zero(self.unfinished, SECTOR, unmap=False)
            self.file.barrier()
            self.unfinished = None
            self.window = 0
        if bytes(self.footer.reserved).startswith(GROWING):
            self.footer.reserved = bytes(len(self.footer.reserved))
            self.file.write(self.size, sealed(FOOTER, self.footer))
            self.file.barrier()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        if self.unfinished is None:
            yield Extent(offset, length, Kind.DATA, self.file, offset)  # all of it is allocated, over holes too
            return
        low, high, end = self.unfinished, self.unfinished + SECTOR, offset + length
        for start, stop, kind in ((0, low, Kind.DATA), (low, high, Kind.ZERO), (high, self.size, Kind.DATA)):
            start, stop = max(start, offset), min(stop, end)
            if start < stop:
                yield Extent(start, stop - start, kind, self.file, start)

    def grow(self, size: int, preallocation: str) -> None:
        """Make the guest disk at least *size* bytes: as large as its geometry can tell."""
        footer = copy(self.footer)
        size = resized(footer, size, self.size, self.name)
        old, reserved = self.size, footer.reserved
        if size > old:
            footer.reserved = (GROWING + old.to_bytes(8, "big")).ljust(len(reserved), b"\0")
        # The new footer goes behind the new end before the old one, which the guest would see, goes. It says so.
        self.file.write(size, sealed(FOOTER, footer))
        self.flush()
        if size > old:
            try:
                self.file.zero(old, min(SECTOR, size - old), unmap=False)
            except StorageError:  # the disk stays as it was: the old footer is the file's end again
                if self.file.resizable:
                    self.file.truncate(old + SECTOR)
                raise
            if preallocation != "off" and self.file.resizable:
                self.file.allocate(old, size - old, preallocation)
            self.flush()
            footer.reserved = reserved
            self.file.write(size, sealed(FOOTER, footer))
        self.footer, self.size = footer, size
        self.flush()

    def check(self, repair: str) -> CheckResult:
        """A fixed image has nothing but the footer, which was read when it was opened, and sometimes an old one."""
        blocks = -(-self.size // MiB)
        result = CheckResult(image_end_offset=self.size + SECTOR, total_clusters=blocks, allocated_clusters=blocks)
        if self.unfinished is not None:
            if repair == "all":
                self.finish()
                result.corruptions_fixed = 1
            else:
                result.found("corruption", f"the old footer, at offset {self.unfinished}, lies over the disk")
        return result


class VpcImage(BlockImage):
    """A dynamic or differencing image."""

    def __init__(
        self, driver: VpcDriver, file: Node, footer: Footer, header: Header, *, name: str, size: int, writable: bool
    ) -> None:
        self.footer, self.header = footer, header
        self.differencing = footer.disk_type == DIFFERENCING
        block: int = header.block_size
        self.bitmap_size = round_up(-(-block // (8 * SECTOR)), SECTOR)
        super().__init__(
            driver,
            file,
            name=name,
            size=size,
            writable=writable,
            table=BlockTable(file, header.table_offset, header.max_table_entries, 4, "big", self.flush),
            block_size=block,
            empty={NONE: Kind.HOLE if self.differencing else Kind.ZERO},
            step=round_up(self.bitmap_size + block, _ALIGN) // SECTOR,
            data_start=SECTOR + self.bitmap_size,
        )
        self.footprint = self.bitmap_size + block
        self.preallocated = False
        self._pending: list[int] = []
        self._full: set[int] = set()
        self._footer_moved = False
        self.batmap = self._batmap()
        """Where XenServer's map of full blocks and its header are; empty where there is none."""

    def _batmap(self) -> tuple[tuple[int, int], ...]:
        at = self.header.table_offset + round_up(len(self.table) * 4, SECTOR)
        if self.footer.creator_application != BATMAP_CREATOR or at + SECTOR > self.file.size:
            return ()
        head = BATMAP.unpack(self.file.read(at, SECTOR))
        start, length = head.batmap_offset, head.batmap_size * SECTOR
        if head.cookie != BATMAP_COOKIE:
            return ()
        if start < at + SECTOR or start + length > self.file.size:
            raise ImageError("it does not lie inside the file", file=self.name, place="dd_batmap_hdr")
        return ((at, at + SECTOR), (start, start + length))

    # -- mapping ------------------------------------------------------------------------------------------------

    def attach(self, reference: Reference, node: Node) -> None:
        if not self.differencing:
            raise UnsupportedError("it is not a differencing image: it has no parent", file=self.name)
        if not any(self.header.parent_unique_id):
            _require_raw(node, self.name)
        footer = getattr(node, "footer", None)
        if footer is not None and footer.unique_id != self.header.parent_unique_id:
            raise ImageError(f"'{node.name}' is not its parent (another unique id)", file=self.name)
        super().attach(reference, node)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        extents = super().extents(offset, length)
        return self._by_sectors(extents) if self.differencing else extents

    def _by_sectors(self, extents: Iterator[Extent]) -> Iterator[Extent]:
        """Blocks of a differencing image hold only the sectors whose bit is set; the others are the parent's."""
        for extent in extents:
            if extent.kind is not Kind.DATA:
                yield extent
                continue
            start = extent.start
            while start < extent.end:  # blocks that lie close together came as one extent
                inside = start % self.block_size
                end = min(start - inside + self.block_size, extent.end)
                base = extent.offset + start - extent.start - inside - self.bitmap_size
                first, last = inside // SECTOR, -(-(end - start + inside) // SECTOR)
                data = self.file.read(base + first // 8, -(-last // 8) - first // 8)
                for at, count, present in tables.bit_runs(data, first % 8, last - first, "big"):
                    low = max(start - inside + (first + at) * SECTOR, start)
                    high = min(start - inside + (first + at + count) * SECTOR, end)
                    yield extent.clip(low, high) if present else Extent(low, high - low, Kind.HOLE)
                start = end

    def position(self, entry: int) -> int:
        return entry * SECTOR + self.bitmap_size

    def check_place(self, block: int, count: int, entry: int, step: int) -> None:
        super().check_place(block, count, entry, step)
        if self._meets_metadata(count, entry, step):
            raise ImageError("its place in the file belongs to the metadata", file=self.name, place=f"block {block}")

    def _meets_metadata(self, count: int, entry: int, step: int) -> bool:
        """Whether one of *count* blocks from *entry* on lies over the header or the table, which can be anywhere."""
        length, stride, start = self.bitmap_size + self.block_size, step * SECTOR or 1, entry * SECTOR
        for low, high in self._metadata():
            first = max((low - length - start) // stride + 1, 0)
            last = min(-(-(high - start) // stride) - 1, count - 1 if step else 0)
            if first <= last:
                return True
        return False

    def _metadata(self) -> tuple[tuple[int, int], ...]:
        header, table = self.footer.data_offset, self.header.table_offset
        return ((header, header + HEADER.size), (table, table + len(self.table) * 4), *self.batmap)

    # -- writing ------------------------------------------------------------------------------------------------

    def reserve(self, offset: int, length: int) -> list[Placement]:
        if self.differencing:
            raise UnsupportedError("a differencing image can only be read", file=self.name)
        if len(self._pending) >= _PENDING:
            self.write_tables()
        return super().reserve(offset, length)

    def find_end(self) -> int:
        if self.end is None and self.file.read(0, SECTOR) != (kept := sealed(FOOTER, self.footer)):
            # New blocks take the place of the footer that holds, so that its copy must be whole before.
            self.file.write(0, kept)
            self.order_files()
        return super().find_end()

    def used_end(self) -> int:
        return max(SECTOR, *(high for _, high in self._metadata()))

    def entry_at(self, end: int, count: int) -> int:
        entry = (round_up(end + self.bitmap_size, _ALIGN) - self.bitmap_size) // SECTOR
        if entry + (count - 1) * self.step >= NONE:
            raise ImageError("the block allocation table cannot name places beyond 2 TiB", file=self.name)
        return entry

    def overwritten(self, block: int, count: int, entry: int) -> None:
        for one in range(entry, entry + count * self.step, self.step):
            if one not in self._full:
                if len(self._full) >= _KNOWN:
                    self._full.clear()
                self._full.add(one)
                self._pending.append(one)

    def _take(self, count: int) -> int:
        entry = super()._take(count)
        self._footer_moved = True
        return entry

    def cut(self, file: Node, end: int) -> None:
        # The footer stays until the next one is there; a new block's bitmap goes over it.
        if file.size > end + SECTOR:
            file.write(end, sealed(FOOTER, self.footer))
            file.truncate(end + SECTOR)

    def write_tables(self) -> None:
        if self._footer_moved:
            assert self.end is not None
            self.file.write(self.end, sealed(FOOTER, self.footer))
            self._footer_moved = False
        bits = b"\xff" * self.bitmap_size
        for entry in self._pending:
            self.file.write(entry * SECTOR, bits)
        self._pending.clear()
        if self.table.dirty:
            self.order_files()
            self.table.write_back()

    # -- resize -------------------------------------------------------------------------------------------------

    def grow(self, size: int, preallocation: str) -> None:
        """Make the guest disk at least *size* bytes: as large as its geometry can tell.

        A larger table goes behind everything else, with a header of its own; the footer's copy in the first sector,
        written last, switches over.
        """
        if self.differencing:
            raise UnsupportedError("a differencing image cannot be resized", file=self.name)
        if self.batmap:
            raise UnsupportedError("an image with XenServer's batmap cannot be resized", file=self.name)
        if preallocation != "off":
            raise UnsupportedError(f"preallocation={preallocation} is not supported", file=self.name)
        with self.lock:
            end = self.find_end()
            self.flush()
            footer, header, table = copy(self.footer), copy(self.header), self.table
            size = resized(footer, size, self.size, self.name)
            blocks = -(-size // self.block_size)
            self.end = None  # until all is there, what follows the last block belongs to nothing
            if blocks > len(table):
                table, end = self._larger_table(blocks, end, footer, header)
            self.file.write(end, sealed(FOOTER, footer))
            self.order_files()
            self.file.write(0, FOOTER.pack(footer))
            self.footer, self.header, self.table = footer, header, table
            self.size, self.end = size, end
        self.flush()

    def _larger_table(self, blocks: int, end: int, footer: Footer, header: Header) -> tuple[BlockTable, int]:
        """A table for *blocks* blocks and its *header* behind *end*, which *footer* shall name; the end behind them."""
        place = round_up(end + SECTOR, _ALIGN)  # the old footer stays whole
        # The table comes last: QEMU puts new blocks behind it, wherever the header is.
        offset = place + HEADER.size
        new = BlockTable(self.file, offset, blocks, 4, "big", lambda: new.write_back())
        fill_table(self.file, offset, blocks)
        for run in self.table.runs(0, len(self.table), self.step):
            new.set(run.at, run.length, run.value, run.step)
        new.write_back()
        header.table_offset, header.max_table_entries = offset, blocks
        self.file.write(place, sealed(HEADER, header))
        self.order_files()
        footer.data_offset = place
        table = BlockTable(self.file, offset, blocks, 4, "big", self.flush)
        return table, offset + round_up(blocks * 4, SECTOR)

    # -- check --------------------------------------------------------------------------------------------------

    def check(self, repair: str) -> CheckResult:
        """See :func:`diskmill.contract.hookspecs.check`."""
        result = CheckResult()
        every = repair == "all"
        kept = sealed(FOOTER, self.footer)
        copied = self.file.read(0, SECTOR) == kept
        over = False
        if every and not copied:  # while the footer at the end is where it is
            self.file.write(0, kept)
            self.order_files()
        if self.header.checksum != checksum(HEADER, self.header):
            text = "the dynamic disk header has a wrong checksum"
            result.findings.append(Finding("corruption", text, fixed=every))
            result.corruptions, result.corruptions_fixed = 1, int(every)
            if every:
                self.file.write(self.footer.data_offset, sealed(HEADER, self.header))
        for block, count, entry, step, kind in self._told_apart(0, len(self.table)):
            if kind is Kind.DATA and self._meets_metadata(count, entry, step):
                over = True
                result.findings.append(Finding("corruption", f"block {block}, or one after it, lies over metadata"))
                result.corruptions += 1
                break
        end = self.check_blocks(result, drop=NONE if every else None, repair=every and not over)
        end = max(end, self.used_end())
        at = max(self.file.size - SECTOR, 0)
        fine = copied and at >= end and self.file.read(at, SECTOR) == kept
        if not fine:
            text = "the footer at the end of the file and its copy at the beginning are not both whole"
            result.findings.append(Finding("corruption", text, fixed=every))
            result.corruptions, result.corruptions_fixed = result.corruptions + 1, result.corruptions_fixed + every
        # Between the last block and the footer a few sectors may lie unused, for alignment.
        spare = at - end if fine else 0
        leaks = -(-spare // self.block_size) if spare >= _ALIGN else 0
        if leaks:
            result.findings.append(Finding("leak", f"{spare} bytes before the footer", leaks, fixed=bool(repair)))
            result.leaks, result.leaks_fixed = leaks, leaks if repair else 0
        if every and not fine or repair and leaks:
            self.write_tables()
            self.file.write(end, kept)
            if self.file.resizable:
                self.file.truncate(end + SECTOR)
        result.image_end_offset = end + SECTOR
        return result


def open_vpc(driver: VpcDriver, request: OpenRequest) -> Image:
    """The image in ``request.file``, every field of its structures checked."""
    file, name = request.below(), request.name
    footer, whole = _footer(file, name)
    calculation = str(request.options.get("force_size_calc", ""))
    size, _ = disk_size(footer, calculation)
    if not whole:
        _doubt(request, "footer")
    if not calculation and size < footer.current_size // SECTOR * SECTOR:
        request.context.warn(
            f"'{name}': its geometry gives the disk {size} bytes, its size field {footer.current_size}; "
            "force_size_calc=current_size reads them all"
        )
    if size > MAX_SECTORS * SECTOR:
        raise ImageError(f"a disk of {size} bytes is too large, the largest is 2040 GiB", file=name, place="footer")
    if footer.disk_type == FIXED:
        if size > file.size - (SECTOR - 1):
            raise ImageError(f"truncated: the disk has {size} bytes, the file {file.size}", file=name)
        fixed = FixedVpcImage(driver, file, footer, name=name, size=size, writable=request.writable)
        if fixed.unfinished is not None:
            at = f"a resize of it did not end: its old footer still lies over the disk, at offset {fixed.unfinished}"
            mends = request.writable and not request.repair
            does = "it is taken away" if mends else "the disk reads as zeros there (check -r all takes it away)"
            request.context.warn(f"'{name}': {at}; {does}")
        if request.writable and not request.repair:
            fixed.finish()
        return fixed
    if footer.disk_type not in (DYNAMIC, DIFFERENCING):
        raise UnsupportedError(f"VHD images of type {footer.disk_type} are not supported", file=name)
    header = _header(file, footer, size, name)
    if header.checksum != checksum(HEADER, header):
        _doubt(request, "dynamic disk header")
    if request.writable and not request.repair and not _both_whole(file, footer):
        text = "one of the two copies of its footer is damaged, the other is used (check -r all mends it)"
        request.context.warn(f"'{name}': {text}")
    image = VpcImage(driver, file, footer, header, name=name, size=size, writable=request.writable)
    if image.differencing:
        from .parent import parent_reference

        image.references = (parent_reference(file, header, name),)
    return image


def _require_raw(node: Node, name: str) -> None:
    """See that *node*, the parent of *name* and opened as raw because nothing but a raw file has no id, is no VHD.

    :raises ImageError: it is one.
    """
    for at in (0, max(node.size - SECTOR, 0)):
        if node.read(at, min(SECTOR, node.size)).startswith(COOKIE):
            raise ImageError(f"'{node.name}' is not its parent (that has no unique id, and is no VHD image)", file=name)


def _footer(file: Node, name: str) -> tuple[Footer, bool]:
    """The footer that holds, and whether its checksum is right.

    A fixed image has it at the end only, and the first sector is the guest's, who may write there what he likes: so a
    footer at the end that describes exactly this file as a fixed image wins over what looks like a copy. A footer with
    a wrong checksum is taken where there is no better one.
    """
    if file.size < SECTOR - 1:
        raise ImageError("too small for a VHD image", file=name)
    # Versions of Virtual PC before 2004 wrote one byte less.
    length = SECTOR if file.size % SECTOR != SECTOR - 1 else SECTOR - 1
    last = FOOTER.unpack(file.read(file.size - length, length) + bytes(SECTOR - length))
    first = FOOTER.unpack(file.read(0, SECTOR) if file.size >= SECTOR else bytes(SECTOR))
    fixed = last.disk_type == FIXED and last.current_size == file.size - length
    found = [one for one in ((last, first) if fixed else (first, last)) if one.cookie == COOKIE]
    for one in found:
        if one.checksum == checksum(FOOTER, one):
            return one, True
    if not found:
        raise ImageError("not a VHD image (no footer)", file=name)
    return found[0], False


def _both_whole(file: Node, footer: Footer) -> bool:
    """Whether a dynamic image begins and ends with *footer*: one copy is enough, but who writes should know."""
    kept = sealed(FOOTER, footer)
    return file.read(0, SECTOR) == kept == file.read(file.size - SECTOR, SECTOR)


def _header(file: Node, footer: Footer, size: int, name: str) -> Header:
    place = "Dynamic Disk Header"
    if footer.data_offset + HEADER.size > file.size:
        raise ImageError("it lies beyond the end of the file", file=name, place=place)
    header = HEADER.unpack(file.read(footer.data_offset, HEADER.size))
    if header.cookie != HEADER_COOKIE:
        raise ImageError("bad cookie", file=name, place=place)
    block = header.block_size
    if block < SECTOR or block & block - 1:
        raise ImageError(f"the block size {block} is not a power of two from 512 on", file=name, place=place)
    if header.max_table_entries * block < size:
        raise ImageError(f"{header.max_table_entries} blocks cannot hold {size} bytes", file=name, place=place)
    if header.table_offset < SECTOR or header.table_offset + header.max_table_entries * 4 > file.size:
        raise ImageError("the block allocation table does not lie inside the file", file=name, place=place)
    return header


def _doubt(request: OpenRequest, what: str) -> None:
    """The checksum of *what* is wrong: its fields passed as possible, which is enough to read, not to write.

    :raises ImageError: the image is to be written, and not to be repaired.
    """
    if request.writable and not request.repair:
        cause = f"the {what} has a wrong checksum, so the image can only be read: check -r all mends it"
        raise ImageError(cause, file=request.name)
    request.context.warn(f"'{request.name}': the {what} has a wrong checksum; the image may read wrong")


def disk_size(footer: Footer, calculation: str = "") -> tuple[int, bool]:
    """The guest disk's size in bytes, and whether it comes from the geometry.

    :param calculation: ``chs`` or ``current_size``; empty: as the creator meant it.
    """
    by_field = footer.creator_application not in GEOMETRY_CREATORS and calculation != "chs"
    sectors = footer.cylinders * footer.heads * footer.sectors
    if by_field or calculation == "current_size" or sectors == MAX_GEOMETRY_SECTORS:
        return footer.current_size // SECTOR * SECTOR, False
    return sectors * SECTOR, True


def resized(footer: Footer, size: int, old: int, name: str) -> int:
    """Let *footer* tell of a disk of *size* bytes, or where the geometry gives the size, the next larger one it can.

    :return: the disk's new size in bytes.
    """
    shape = (footer.cylinders, footer.heads, footer.sectors)
    if size > MAX_SECTORS * SECTOR:
        raise UnsupportedError("the largest VHD image has 2040 GiB", file=name)
    if disk_size(footer)[1]:
        shape = enclosing_geometry(size // SECTOR)
        if shape != MAX_GEOMETRY:
            size = shape[0] * shape[1] * shape[2] * SECTOR
    elif shape != MAX_GEOMETRY:
        shape = geometry(size // SECTOR)
    if size < old:
        raise UnsupportedError("a VHD image cannot be made smaller", file=name)
    footer.cylinders, footer.heads, footer.sectors = shape
    footer.current_size = size
    return size


def fill_table(file: Node, offset: int, count: int) -> None:
    """Write a table of *count* entries, none of which names a block; its last sector is filled up."""
    length = round_up(count * 4, SECTOR)
    for at in range(0, length, MiB):
        file.write(offset + at, b"\xff" * min(MiB, length - at))
