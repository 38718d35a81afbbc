"""VDI images: a header, a map with an entry for each block, blocks.

Entries count blocks from ``offData`` on; VirtualBox and QEMU put a new block where ``cBlocksAllocated`` says. So that
a crash between two writes cannot make them overwrite a block, the header that counts a block is on disk before the map
points to it. For the sources see :mod:`diskmill_vdi.c_vdi`.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import TYPE_CHECKING

from diskmill.contract.extents import Extent, Kind, Placement
from diskmill.contract.ids import fresh
from diskmill.contract.node import Node
from diskmill.contract.results import CheckResult, Finding, Measurement
from diskmill.errors import ImageError, UnsupportedError, UsageError
from diskmill.kit.blocks import BlockImage, BlockTable
from diskmill.sizes import SECTOR, MiB, round_up

from .c_vdi import DIFF, FIXED, FREE, HEADER, NORMAL, SIGNATURE, UNDO, VERSION, ZERO

if TYPE_CHECKING:
    from diskmill.contract.references import Reference
    from diskmill.contract.requests import CreateRequest, MeasureRequest, OpenRequest

    from . import VdiDriver
    from .c_vdi import Header

MAX_BLOCKS = 0x1FFFFF80
"""Blocks in an image: what QEMU opens."""
MIN_BLOCK, MAX_BLOCK = SECTOR, 1 << 31
_TEXT = b"<<< diskmill Virtual Disk Image >>>\n"
_MAP_OFFSET = SECTOR
_ALIGN = MiB
"""Data begins at a multiple of this, as in VirtualBox's own images: blocks lie well, the map has room to grow."""


class VdiImage(BlockImage):
    """A VDI file."""

    def __init__(self, driver: VdiDriver, file: Node, header: Header, *, name: str, writable: bool) -> None:
        self.header = header
        self.differencing = header.u32Type == DIFF or any(header.uuidLinkage)
        self.extra: int = header.cbBlockExtra
        self.stride: int = header.cbBlock + self.extra
        super().__init__(
            driver,
            file,
            name=name,
            size=round_up(header.cbDisk, SECTOR),
            writable=writable,
            table=BlockTable(file, header.offBlocks, header.cBlocks, 4, "little", self.flush),
            block_size=header.cbBlock,
            empty={FREE: Kind.HOLE if self.differencing else Kind.ZERO, ZERO: Kind.ZERO},
            step=1,
            data_start=header.offData,
        )
        self.preallocated = header.u32Type == FIXED
        self.touched = False

    def attach(self, reference: Reference, node: Node) -> None:
        if not self.differencing:
            raise UsageError("it is not a differencing image: it has no parent", file=self.name)
        if isinstance(node, VdiImage):  # of other formats nobody can tell
            if node.header.uuidCreate != self.header.uuidLinkage:
                raise ImageError(f"'{node.name}' is not its parent (another UUID)", file=self.name)
            if any(self.header.uuidParentModify) and node.header.uuidModify != self.header.uuidParentModify:
                raise ImageError(f"its parent '{node.name}' has changed since", file=self.name)
        super().attach(reference, node)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        if self.differencing and self.backing is None:
            parent = _uuid(self.header.uuidLinkage)
            raise UnsupportedError(
                f"it holds only what differs from its parent {parent}: name that with backing.file.filename=…",
                file=self.name,
            )
        return super().extents(offset, length)

    def reserve(self, offset: int, length: int) -> list[Placement]:
        if self.differencing:
            raise UnsupportedError("a differencing image can only be read", file=self.name)
        self.touch()
        return super().reserve(offset, length)

    def discard_units(self, offset: int, length: int) -> None:
        self.touch()
        super().discard_units(offset, length)

    def touch(self) -> None:
        """The first change since the image was opened: by another ``uuidModify`` its children can tell."""
        if not self.touched:
            self.touched = True
            self.header.uuidModify = _new_uuid()
            self.write_header()

    def position(self, entry: int) -> int:
        return self.data_start + entry * self.stride + self.extra

    def entry_at(self, end: int, count: int) -> int:
        entry = -(-(end - self.data_start) // self.stride)
        if entry + count > ZERO:
            raise ImageError("the block map cannot name any more blocks", file=self.name)
        return entry

    def write_tables(self) -> None:
        if self.table.dirty and self.end is not None:
            self.lengthen()  # before all else: where the disk is full, header and map go on to agree
            # The count is what others give the next block by: it covers each block before the map names it.
            self.header.cBlocksAllocated = self.entry_at(self.end, 0)
            self.write_header()
        super().write_tables()

    def write_header(self) -> None:
        """Write the first sector."""
        self.file.write(0, HEADER.pack(self.header))

    # -- resize -------------------------------------------------------------------------------------------------

    def grow(self, size: int, preallocation: str) -> None:
        """Make the guest disk *size* bytes.

        The map grows where it is, as far as the data lets it; else the first blocks go to the end of the file, and the
        new map takes their place. One write of the header's sector switches over.
        """
        if self.differencing:
            raise UnsupportedError("a differencing image cannot be resized", file=self.name)
        if preallocation not in ("off", "metadata"):
            raise UnsupportedError(f"preallocation={preallocation} is not supported", file=self.name)
        if size < self.size:
            raise UnsupportedError("a VDI image cannot be made smaller", file=self.name)
        blocks = max(-(-size // self.block_size), self.header.cBlocks)
        _check_count(blocks, self.name)
        added = blocks - self.header.cBlocks
        with self.lock:
            self.touch()
            self.find_end()
            self.write_tables()
            header = copy(self.header)
            if added:
                room = self.data_start - _MAP_OFFSET
                if blocks * 4 > room or header.offBlocks != _MAP_OFFSET:
                    self._move_map(blocks, header)
                else:
                    _fill(self.file, _MAP_OFFSET + header.cBlocks * 4, added)
                self.order_files()
            header.cBlocks, header.cbDisk = blocks, size
            self.file.write(0, HEADER.pack(header))
            self.header = header
            self.table = BlockTable(self.file, self.header.offBlocks, blocks, 4, "little", self.flush)
            self.data_start = self.header.offData
            self.size = size
            if added and (preallocation == "metadata" or self.preallocated):
                self._allocate(blocks - added, added)
                self.write_tables()
        self.flush()

    def _move_map(self, blocks: int, header: Header) -> None:
        """Put a map for *blocks* blocks where the first blocks of data are; *header*, the next one, points to it."""
        spare = -(-blocks * 4 // self.stride)
        if self.data_start + spare * self.stride >= 1 << 32:
            raise UnsupportedError("the block map has no room to grow", file=self.name)
        end = self.find_end()
        # Blocks in the way get a copy behind all others, and the map on disk points to that before their place is used.
        moved = [
            block + index
            for block, count, entry, step, kind in self._told_apart(0, len(self.table))
            if kind is Kind.DATA and entry < spare
            for index in range(count)
            if entry + index * step < spare
        ]
        self.end = max(end, self.data_start + spare * self.stride)
        for block in moved:
            self._part(block)
        self.write_tables()
        self.order_files()
        offset = self.data_start
        new = BlockTable(self.file, offset, blocks, 4, "little", lambda: new.write_back())
        _fill(self.file, offset, blocks)
        for block, count, entry, step, kind in self._told_apart(0, len(self.table)):
            new.set(block, count, entry - spare if kind is Kind.DATA else entry, step)
        new.write_back()
        header.offBlocks, header.offData = offset, offset + spare * self.stride
        assert self.end is not None
        header.cBlocksAllocated = -(-(self.end - header.offData) // self.stride)

    # -- check --------------------------------------------------------------------------------------------------

    def check(self, repair: str) -> CheckResult:
        """See :func:`diskmill.contract.hookspecs.check`."""
        result = CheckResult()
        every = repair == "all"
        end = self.check_blocks(result, drop=FREE if every else None, repair=every)
        counted = -(-(end - self.data_start) // self.stride)
        if every and self.table.dirty:
            self.header.cBlocksAllocated = counted  # what the repair made of it
            self.write_header()
        elif self.header.cBlocksAllocated != counted:
            # Too small, and the next block that another program adds overwrites one; too large, and space is lost.
            lost = self.header.cBlocksAllocated > counted
            fixed = every or lost and bool(repair)
            text = f"the header counts {self.header.cBlocksAllocated} blocks, the block map {counted}"
            result.findings.append(Finding("leak" if lost else "corruption", text, fixed=fixed))
            if lost:
                result.leaks, result.leaks_fixed = result.leaks + 1, result.leaks_fixed + fixed
            else:
                result.corruptions, result.corruptions_fixed = result.corruptions + 1, result.corruptions_fixed + fixed
            if fixed:
                self.header.cBlocksAllocated = counted
                self.write_header()
        spare = self.file.size - max(end, self.data_start)
        if spare > 0:
            count = -(-spare // self.stride)
            result.findings.append(Finding("leak", f"{spare} bytes behind the last block", count, fixed=bool(repair)))
            result.leaks += count
            if repair and self.file.resizable:
                result.leaks_fixed += count
                self.file.truncate(end)
        # QEMU tells no totals for the format.
        result.total_clusters = result.allocated_clusters = result.fragmented_clusters = None
        return result


def open_vdi(driver: VdiDriver, request: OpenRequest) -> VdiImage:
    """The image in ``request.file``, every field of its header checked."""
    file, name = request.below(), request.name
    header = HEADER.unpack(file.read(0, min(HEADER.size, file.size)), file=name)
    if header.u32Signature != SIGNATURE:
        raise ImageError("not a VDI image (bad signature)", file=name)
    if header.u32Version != VERSION:
        version = f"{header.u32Version >> 16}.{header.u32Version & 0xFFFF}"
        raise UnsupportedError(f"VDI version {version} is not supported, only 1.1", file=name)
    if header.u32Type == UNDO:
        raise UnsupportedError("VDI images of the type 'undo' are not supported", file=name)
    if header.u32Type not in (NORMAL, FIXED, DIFF):
        raise ImageError(f"unknown image type {header.u32Type}", file=name, place="header")
    if header.cbSector != SECTOR:
        raise UnsupportedError(f"sectors of {header.cbSector} bytes are not supported", file=name)
    block = header.cbBlock
    if not MIN_BLOCK <= block <= MAX_BLOCK or block & block - 1:
        raise ImageError(f"the block size {block} is not a power of two from 512 on", file=name, place="header")
    if header.cbBlockExtra % SECTOR or header.cbBlockExtra > block:
        raise UnsupportedError(f"{header.cbBlockExtra} extra bytes in a block are not supported", file=name)
    if request.writable and (header.offBlocks % SECTOR or header.offData % SECTOR):
        cause = "the block map or the data does not begin at a whole sector, so the image can only be read"
        raise UnsupportedError(cause, file=name)
    _check_count(header.cBlocks, name)
    if header.cbDisk > header.cBlocks * block:
        raise ImageError(f"{header.cBlocks} blocks cannot hold {header.cbDisk} bytes", file=name, place="header")
    map_end = header.offBlocks + header.cBlocks * 4
    if header.offBlocks < SECTOR or header.offData < map_end:
        raise ImageError("header, block map and data overlap", file=name, place="header")
    cut = map_end > file.size and request.excuses("block map")
    if map_end > file.size and not cut:
        raise ImageError("the block map lies beyond the end of the file", file=name, place="header")
    image = VdiImage(driver, file, header, name=name, writable=request.writable)
    image.cut_short = cut
    return image


def create_vdi(driver: VdiDriver, request: CreateRequest) -> VdiImage:
    """An empty image in ``request.file``."""
    file, size = request.output(), request.size
    block = _block_size(request.options.get("cluster_size"))
    static = _static(request)
    blocks = -(-size // block)
    _check_count(blocks, request.name)
    header = HEADER.new(
        szFileInfo=_TEXT,
        u32Signature=SIGNATURE,
        u32Version=VERSION,
        cbHeader=0x180,
        u32Type=FIXED if static else NORMAL,
        offBlocks=_MAP_OFFSET,
        offData=round_up(_MAP_OFFSET + blocks * 4, _ALIGN),
        cbSector=SECTOR,
        cbDisk=size,
        cbBlock=block,
        cBlocks=blocks,
        uuidCreate=_new_uuid(),
        uuidModify=_new_uuid(),
    )
    file.truncate(header.offData)
    file.write(0, HEADER.pack(header))
    _fill(file, _MAP_OFFSET, blocks)
    image = VdiImage(driver, file, header, name=request.name, writable=True)
    image.blank = file.blank or not static
    image.touched = True  # nobody knows it yet
    image.end = header.offData
    if static and blocks:
        image._allocate(0, blocks)
    return image


def measure_vdi(request: MeasureRequest) -> Measurement:
    """See :func:`diskmill.contract.hookspecs.measure`."""
    block = _block_size(request.options.get("cluster_size"))
    blocks = -(-request.size // block)
    front = round_up(_MAP_OFFSET + blocks * 4, _ALIGN)
    full = front + blocks * block
    if _static(request):
        return Measurement(full, full)
    return Measurement(front + round_up(request.data_bytes(block), block), full)


def _block_size(value: object) -> int:
    size = value if isinstance(value, int) else MiB
    if not MIN_BLOCK <= size <= MAX_BLOCK or size & size - 1:
        raise UsageError(f"the cluster_size must be a power of two from {MIN_BLOCK} to {MAX_BLOCK}")
    return size


def _static(request: CreateRequest | MeasureRequest) -> bool:
    static, preallocation = request.options.get("static"), request.options.get("preallocation")
    if static is False and preallocation == "metadata":
        raise UsageError("static=off contradicts preallocation=metadata")
    return bool(static) or preallocation == "metadata"


def _check_count(blocks: int, name: str) -> None:
    if blocks > MAX_BLOCKS:
        raise UnsupportedError(f"{blocks} blocks are too many, the most are {MAX_BLOCKS}", file=name)


def _fill(file: Node, offset: int, count: int) -> None:
    """Write *count* free entries."""
    for at in range(0, count * 4, MiB):
        file.write(offset + at, b"\xff" * min(MiB, count * 4 - at))


def _new_uuid() -> bytes:
    data = bytearray(fresh(16))
    data[7] = data[7] & 0x0F | 0x40  # version 4 (the first three fields are little-endian)
    data[8] = data[8] & 0x3F | 0x80
    return bytes(data)


def _uuid(data: bytes) -> str:
    import uuid

    return str(uuid.UUID(bytes_le=data))
