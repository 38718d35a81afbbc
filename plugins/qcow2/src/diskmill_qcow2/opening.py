"""Opening an image: which tables must be there, what must be repaired first, and what must not be written at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.errors import ImageError

from . import c_qcow2 as c
from .bounds import counted
from .header import check_refcount_table, read_header
from .image import Qcow2Image

if TYPE_CHECKING:
    from diskmill.contract.drivers import FormatDriver
    from diskmill.contract.requests import OpenRequest


def open_image(driver: FormatDriver, request: OpenRequest) -> Qcow2Image:
    """The image in ``request.file``."""
    file = request.below()
    header = read_header(file, request.name)
    image = Qcow2Image(driver, file, header, name=request.name, writable=request.writable)
    image.warn = request.context.warn
    _require_tables(image, request)
    if image.cut_short:
        return image
    if image.encrypted or "encrypt.format" in request.options:
        from .encryption import unlock

        unlock(image, request.context, request.options, shallow=request.shallow)
    image.repairing = request.repair
    if request.writable and not request.repair:
        _prepare_writing(image)
    return image


def _require_tables(image: Qcow2Image, request: OpenRequest) -> None:
    """See that the tables that the header names lie inside the file.

    Of an image of which only the beginning is there, the header can be told all the same. An L1 table behind the end
    that no refcount counts never was there, and stands for zeros.

    :raises ImageError: they do not, and more is asked for than what the header says.
    """
    file, header = image.file, image.header
    missing = header.beyond(file.size)
    if not missing:
        return
    what, offset, length = missing[0]
    if what == "L1 table" and len(missing) == 1 and offset and not counted(file, header, offset):
        if request.writable and not request.repair:
            cause = f"it lies behind the end of the file at offset {offset}: check -r all mends it"
            raise ImageError(cause, file=image.name, place=what)
        image.l1_behind = True
    elif request.excuses(what):
        image.cut_short = True
    else:
        cause = f"its {length} bytes at offset {offset} are not inside the file of {file.size} bytes"
        raise ImageError(cause, file=image.name, place=what)


def _prepare_writing(image: Qcow2Image) -> None:
    """Refuse what must not be written; repair first what was not closed properly.

    :raises ImageError: the image is marked as corrupt, or cannot be repaired.
    """
    if image.header.incompatible_features & c.CORRUPT:
        raise ImageError("it is marked as corrupt: repair it with check -r all before writing", file=image.name)
    if image.dirty:
        from .repair import repair

        repair(image, "all", give_up=False)
    check_refcount_table(image.header, image.file.size, image.name)
    if image.header.autoclear_features & c.BITMAPS:
        _ = image.bitmaps  # a directory that cannot be kept up is refused before anything changes
