"""Opening a VHDX file: headers, then the log, then everything else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.contract.references import Reference
from diskmill.errors import ImageError
from diskmill.kit import tables
from diskmill.sizes import MiB

from .bat import WIDTH
from .c_vhdx import FULLY_PRESENT, HEADER_SECTION, PLACE, SIGNATURE, STATE
from .headers import Headers
from .image import VhdxImage
from .log import Log, Replayed
from .regions import Regions, read_metadata

if TYPE_CHECKING:
    from diskmill.contract.node import Node
    from diskmill.contract.requests import OpenRequest

    from . import VhdxDriver


_GLANCE = 1 * MiB
"""A table up to this many bytes is looked at where only metadata is asked, so that a broken-off download shows."""


def open_vhdx(driver: VhdxDriver, request: OpenRequest) -> VhdxImage:
    """The image in ``request.file``, every field of its structures checked.

    What its log holds is put in place where the image is opened for writing, and laid over the file where it is not.
    """
    file, name = request.below(), request.name
    if file.read(0, len(SIGNATURE)) != SIGNATURE:
        raise ImageError("not a VHDX image (bad signature)", file=name)
    if file.size < HEADER_SECTION:
        cause = f"the file is cut short: {file.size} bytes, and the disk's size stands behind the first MiB"
        raise ImageError(cause, file=name)
    headers = Headers(file, name)
    log = Log(file, headers, name)
    updates = log.pending()
    meta: Node = file
    if updates is not None and request.writable:
        log.finish(updates)
    elif updates is not None:
        meta = Replayed(file, updates)
    regions = Regions(meta, (log.offset, log.offset + log.length), name)
    metadata = read_metadata(meta, regions.metadata, name)
    image = VhdxImage(driver, file, meta, headers, log, regions, metadata, name=name, writable=request.writable)
    room = image.table.count * WIDTH
    if room > regions.bat.Length:
        raise ImageError(f"it has no room for {len(image.table)} blocks", file=name, place="block allocation table")
    if regions.bat.FileOffset + room > meta.size:
        image.cut_short = request.excuses("block allocation table")
    if regions.bat.FileOffset + room > meta.size and not image.cut_short:
        raise ImageError("it lies beyond the end of the file", file=name, place="block allocation table")
    if request.shallow and not image.cut_short and room <= _GLANCE:
        table = tables.read(meta, regions.bat.FileOffset, image.table.count, WIDTH, "little")
        if any(entry & STATE >= FULLY_PRESENT and entry & PLACE >= meta.size for entry in table):
            request.context.warn(f"'{name}' is cut short: data lies behind the end of the file")
    image.replayed = updates is not None
    if updates is not None and not request.writable:
        image.end = updates.size  # blocks can lie as far as the file would reach
        # The log is for metadata: blocks are read from the file itself.
        image.occupied = _joined([*image.occupied, *updates.ranges()])
    if image.parent is not None:
        image.references = (Reference("backing", image.parent.path, "vhdx"),)
    return image


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """*ranges*, which may overlap, in order and apart."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1]:
            found[-1] = found[-1][0], max(high, found[-1][1])
        else:
            found.append((low, high))
    return found
