"""New VHDX images, and how large they get. Block sizes by default, and what a size is rounded to, are QEMU's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from diskmill.contract.ids import fresh
from diskmill.errors import UnsupportedError, UsageError
from diskmill.sizes import SECTOR, GiB, MiB, TiB, round_up

from .bat import WIDTH, chunk_ratio, entries
from .c_vhdx import (
    ALIGN,
    BAT_REGION,
    DISK_ID_ITEM,
    DISK_SIZE_ITEM,
    FILE_PARAMETERS,
    FILE_PARAMETERS_ITEM,
    FULLY_PRESENT,
    HEADER,
    HEADER_OFFSETS,
    HEADER_SECTION,
    IS_REQUIRED,
    IS_VIRTUAL_DISK,
    ITEM,
    LEAVE_BLOCKS_ALLOCATED,
    LOGICAL_SECTOR_ITEM,
    MAX_BLOCK,
    MAX_DISK,
    METADATA_REGION,
    METADATA_TABLE,
    PHYSICAL_SECTOR_ITEM,
    REGION,
    REGION_TABLE,
    REGION_TABLE_OFFSETS,
    SIGNATURE,
    TABLE_SIZE,
    ZERO,
    sealed,
)
from .headers import Headers
from .image import VhdxImage
from .log import Log
from .regions import Regions, packed_table, read_metadata

if TYPE_CHECKING:
    from diskmill.contract.node import Node
    from diskmill.contract.options import Value
    from diskmill.contract.requests import CreateRequest, MeasureRequest
    from diskmill.contract.results import Measurement

    from . import VhdxDriver

_METADATA_LENGTH = MiB


class _Layout(NamedTuple):
    """Where everything goes. All numbers are bytes."""

    size: int
    sector: int
    block: int
    blocks: int
    fixed: bool
    log: int
    log_length: int
    bat: int
    bat_length: int
    metadata: int
    data: int


def _layout(size: int, options: Mapping[str, Value], name: str | None) -> _Layout:
    sector = int(options.get("logical_sector_size", SECTOR))
    if sector not in (512, 4096):
        raise UsageError(f"the logical_sector_size must be 512 or 4096, not {sector}")
    size = round_up(size, sector)
    if size > MAX_DISK:
        raise UnsupportedError("the largest VHDX image has 64 TiB", file=name)
    log_length = max(round_up(int(options["log_size"]), ALIGN), ALIGN)
    if log_length >= 4 * GiB:
        raise UsageError("the log_size must be smaller than 4 GiB")
    block = min(round_up(int(options["block_size"]), MiB), MAX_BLOCK) or _usual_block(size)
    if block & block - 1:
        raise UsageError(f"the block_size must be a power of two, not {block}")
    blocks = -(-size // block)
    ratio = chunk_ratio(block, sector)
    # Of a disk without blocks QEMU counts the entries below zero, and opens nothing that has room for fewer.
    count = entries(blocks, ratio) if blocks else (1 << 32) // ratio
    bat = HEADER_SECTION + log_length
    bat_length = round_up(count * WIDTH, ALIGN)
    metadata = bat + bat_length
    data = metadata + _METADATA_LENGTH
    fixed = options["subformat"] == "fixed"
    return _Layout(size, sector, block, blocks, fixed, HEADER_SECTION, log_length, bat, bat_length, metadata, data)


def _usual_block(size: int) -> int:
    for limit, block in ((32 * TiB, 64 * MiB), (100 * GiB, 32 * MiB), (GiB, 16 * MiB)):
        if size > limit:
            return block
    return 8 * MiB


def create_vhdx(driver: VhdxDriver, request: CreateRequest) -> VhdxImage:
    """An empty image in ``request.file``."""
    file, name = request.output(), request.name
    layout = _layout(request.size, request.options, name)
    file.truncate(layout.data)
    if not file.blank:  # a device holds what was there before
        file.zero(0, layout.data)
    file.write(0, SIGNATURE + "diskmill".encode("utf-16-le"))
    _write_headers(file, layout)
    _write_regions(file, layout)
    _write_metadata(file, layout)
    headers = Headers(file, name)
    log = Log(file, headers, name)
    regions = Regions(file, (layout.log, layout.bat), name)
    metadata = read_metadata(file, regions.metadata, name)
    image = VhdxImage(driver, file, file, headers, log, regions, metadata, name=name, writable=True)
    image.begun = True  # nobody has seen it as it was before
    image.blank = file.blank or not layout.fixed
    image.end = layout.data
    if layout.blocks and (layout.fixed or request.options["block_state_zero"]):
        table = image.new_table(file, layout.bat, layout.size, logged=False)
        if layout.fixed:
            image.end += layout.blocks * layout.block
            file.truncate(image.end)
            table.set(0, layout.blocks, layout.data | FULLY_PRESENT, layout.block)
        else:
            table.set(0, layout.blocks, ZERO, 0)
        table.write_back()
    return image


def _write_headers(file: Node, layout: _Layout) -> None:
    for sequence, offset in enumerate(HEADER_OFFSETS, 1):
        header = HEADER.new(
            Signature=b"head",
            SequenceNumber=sequence,
            FileWriteGuid=fresh(16),
            DataWriteGuid=fresh(16),
            Version=1,
            LogLength=layout.log_length,
            LogOffset=layout.log,
        )
        file.write(offset, sealed(HEADER.pack(header)))


def _write_regions(file: Node, layout: _Layout) -> None:
    regions = [
        REGION.new(Guid=BAT_REGION, FileOffset=layout.bat, Length=layout.bat_length, Required=1),
        REGION.new(Guid=METADATA_REGION, FileOffset=layout.metadata, Length=_METADATA_LENGTH, Required=1),
    ]
    header = REGION_TABLE.new(Signature=b"regi", EntryCount=len(regions))
    for offset in REGION_TABLE_OFFSETS:
        file.write(offset, sealed(packed_table(REGION_TABLE, header, REGION, regions)))


def _write_metadata(file: Node, layout: _Layout) -> None:
    flags = LEAVE_BLOCKS_ALLOCATED if layout.fixed else 0
    values = {
        FILE_PARAMETERS_ITEM: FILE_PARAMETERS.pack(FILE_PARAMETERS.new(BlockSize=layout.block, Flags=flags)),
        DISK_SIZE_ITEM: layout.size.to_bytes(8, "little"),
        DISK_ID_ITEM: fresh(16),
        LOGICAL_SECTOR_ITEM: layout.sector.to_bytes(4, "little"),
        PHYSICAL_SECTOR_ITEM: layout.sector.to_bytes(4, "little"),
    }
    items, place = [], TABLE_SIZE
    for guid, value in values.items():
        about_disk = 0 if guid == FILE_PARAMETERS_ITEM else IS_VIRTUAL_DISK
        items.append(ITEM.new(ItemId=guid, Offset=place, Length=len(value), Flags=IS_REQUIRED | about_disk))
        place += len(value)
    header = METADATA_TABLE.new(Signature=b"metadata", EntryCount=len(items))
    table = packed_table(METADATA_TABLE, header, ITEM, items)
    file.write(layout.metadata, table + b"".join(values.values()))


def measure_vhdx(request: MeasureRequest) -> Measurement:
    """See :func:`diskmill.contract.hookspecs.measure`."""
    from diskmill.contract.results import Measurement

    layout = _layout(request.size, request.options, None)
    full = layout.data + layout.blocks * layout.block
    if layout.fixed:
        return Measurement(full, full)
    return Measurement(layout.data + round_up(request.data_bytes(layout.block), layout.block), full)
