"""New VHD images. The layout and the sizes are QEMU's: what it makes of a size is what users know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from diskmill.contract.ids import fresh, now
from diskmill.contract.results import Measurement
from diskmill.errors import UnsupportedError
from diskmill.kit.forward import foretell
from diskmill.sizes import SECTOR, MiB, round_up

from .c_vhd import (
    COOKIE,
    DYNAMIC,
    EPOCH,
    FIXED,
    FOOTER,
    HEADER,
    HEADER_COOKIE,
    MAX_GEOMETRY,
    MAX_SECTORS,
    enclosing_geometry,
    sealed,
)
from .image import FixedVpcImage, VpcImage, fill_table

if TYPE_CHECKING:
    from diskmill.contract.node import Image, Storage
    from diskmill.contract.options import Value
    from diskmill.contract.requests import CreateRequest, MeasureRequest

    from . import VpcDriver
    from .c_vhd import Footer

_BLOCK = 2 * MiB
_TABLE_OFFSET = SECTOR + HEADER.size
_NOWHERE = 0xFFFFFFFFFFFFFFFF


def create_vpc(driver: VpcDriver, request: CreateRequest) -> Image:
    """An empty image in ``request.file``; its disk may be larger than asked for."""
    file, options = request.output(), request.options
    size, shape = _size(request.size, options, request.name)
    fixed = options["subformat"] == "fixed"
    footer = FOOTER.new(
        cookie=COOKIE,
        features=2,  # a bit that is always set
        file_format_version=0x00010000,
        data_offset=_NOWHERE if fixed else SECTOR,
        time_stamp=max(now() - EPOCH, 0) & 0xFFFFFFFF,
        # By the creator, other programs tell where the size stands: these two are QEMU's.
        creator_application=b"qem2" if options["force_size"] else b"qemu",
        creator_version=0x00050003,
        creator_host_os=b"Wi2k",
        original_size=size,
        current_size=size,
        cylinders=shape[0],
        heads=shape[1],
        sectors=shape[2],
        disk_type=FIXED if fixed else DYNAMIC,
        unique_id=fresh(16),
    )
    if fixed:
        return _fixed(driver, request, file, footer, size)
    header = HEADER.new(
        cookie=HEADER_COOKIE,
        data_offset=_NOWHERE,
        table_offset=_TABLE_OFFSET,
        header_version=0x00010000,
        max_table_entries=-(-size // _BLOCK),
        block_size=_BLOCK,
    )
    file.write(0, sealed(FOOTER, footer) + sealed(HEADER, header))
    fill_table(file, _TABLE_OFFSET, header.max_table_entries)
    end = _TABLE_OFFSET + round_up(header.max_table_entries * 4, SECTOR)
    file.write(end, FOOTER.pack(footer))
    image = VpcImage(driver, file, footer, header, name=request.name, size=size, writable=True)
    image.end = end
    return image


def _fixed(driver: VpcDriver, request: CreateRequest, file: Storage, footer: Footer, size: int) -> FixedVpcImage:
    """The disk's bytes, and *footer* behind them; what is written forward gets it last."""
    image = FixedVpcImage(driver, file, footer, name=request.name, size=size, writable=True)
    if request.layout is not None:
        foretell(file, size + SECTOR)
    file.truncate(size)
    if file.forward:
        image.due = sealed(FOOTER, footer)
    else:
        file.withhold(size, SECTOR)
        file.write(size, sealed(FOOTER, footer))
    return image


def measure_vpc(request: MeasureRequest) -> Measurement:
    """See :func:`diskmill.contract.hookspecs.measure`."""
    size, _ = _size(request.size, request.options, None)
    if request.options["subformat"] == "fixed":
        return Measurement(size + SECTOR, size + SECTOR)
    blocks = -(-size // _BLOCK)
    front = _TABLE_OFFSET + round_up(blocks * 4, SECTOR)
    needed = round_up(request.data_bytes(_BLOCK), _BLOCK) // _BLOCK
    return Measurement(_file_size(front, needed), _file_size(front, blocks))


def _file_size(front: int, blocks: int) -> int:
    """Bytes of a file with *blocks* blocks, whose data begins at multiples of 4096 bytes."""
    if not blocks:
        return front + SECTOR
    first = round_up(front + SECTOR, 4096)
    return first + blocks * _BLOCK + (blocks - 1) * 4096 + SECTOR


def _size(size: int, options: Mapping[str, Value], name: str | None) -> tuple[int, tuple[int, int, int]]:
    """The disk's size in bytes for a wanted one, and its geometry."""
    shape = MAX_GEOMETRY if options["force_size"] else enclosing_geometry(size // SECTOR)
    if shape != MAX_GEOMETRY:
        return shape[0] * shape[1] * shape[2] * SECTOR, shape
    if size > MAX_SECTORS * SECTOR:
        raise UnsupportedError("the largest VHD image has 2040 GiB", file=name)
    return size, shape
