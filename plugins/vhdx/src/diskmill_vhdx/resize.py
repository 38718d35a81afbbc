"""Making the guest disk larger."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.errors import UnsupportedError
from diskmill.sizes import round_down, round_up

from .bat import WIDTH
from .c_vhdx import ALIGN, FULLY_PRESENT, LOG_SECTOR, MAX_DISK, REGION_TABLE_OFFSETS, STATE

if TYPE_CHECKING:
    from .bat import Bat
    from .image import VhdxImage


def grow(image: VhdxImage, size: int) -> None:
    """Make the guest disk of *image* *size* bytes.

    The table grows where it is, as far as its region lets it; else a larger one goes behind everything else. One entry
    of the log switches over: it has the new size, and the region table.
    """
    size = round_up(size, image.metadata.sector)
    if size > MAX_DISK:
        raise UnsupportedError("the largest VHDX image has 64 TiB", file=image.name)
    with image.lock:
        image.begin()
        image.find_end()
        image.flush()
        _clear_tail(image)
        regions, region = image.regions, image.regions.bat
        table = image.new_table(image.file, region.FileOffset, size)
        changes: list[tuple[int, bytes]] = []
        if table.count * WIDTH > region.Length:
            table = _larger_table(image, size, table.count)
            regions = regions.moved(table.offset, round_up(table.count * WIDTH, ALIGN))
            for offset in REGION_TABLE_OFFSETS:
                changes += sectors(image, offset, regions.table)
        else:  # entries that no disk had may hold anything
            old = region.FileOffset + image.table.count * WIDTH
            image.file.zero(old, region.FileOffset + table.count * WIDTH - old)
        changes += sectors(image, image.metadata.size_offset, size.to_bytes(8, "little"))
        image.log.announce(changes, image.find_end())
        old_blocks = len(image.table)
        image.table, image.regions, image.occupied = table, regions, regions.ranges
        image.size = image.metadata.size = size
        image.log.settle()
        if image.metadata.fixed and len(table) > old_blocks:
            image._allocate(old_blocks, len(table) - old_blocks)
    image.flush()


def _clear_tail(image: VhdxImage) -> None:
    """Let the last block hold zeros behind the disk's end: what is there becomes the guest's."""
    block, inside = divmod(image.size, image.block_size)
    if inside and (entry := image.table.get(block)) & STATE == FULLY_PRESENT:
        image.lengthen()
        image.file.zero(image.position(entry) + inside, image.block_size - inside)


def _larger_table(image: VhdxImage, size: int, count: int) -> Bat:
    """A copy of the table behind everything else, with *count* entries for a disk of *size* bytes."""
    offset = round_up(image.find_end(), ALIGN)
    image.end = offset + round_up(count * WIDTH, ALIGN)
    if image.file.blank and image.file.resizable:
        image.file.truncate(image.end)
    else:
        image.file.zero(offset, image.end - offset)
    table = image.new_table(image.file, offset, size, logged=False)
    for run in image.table.runs(0, len(image.table), image.step):
        table.set(run.at, run.length, run.value, run.step)
    table.write_back()
    return image.new_table(image.file, offset, size)


def sectors(image: VhdxImage, offset: int, data: bytes) -> list[tuple[int, bytes]]:
    """*data* at *offset* of the file, as updates for the log: whole sectors."""
    low, high = round_down(offset, LOG_SECTOR), round_up(offset + len(data), LOG_SECTOR)
    whole = bytearray(image.file.read(low, high - low))
    whole[offset - low : offset - low + len(data)] = data
    return [(low + at, bytes(whole[at : at + LOG_SECTOR])) for at in range(0, len(whole), LOG_SECTOR)]
