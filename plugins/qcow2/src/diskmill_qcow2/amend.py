"""Changing options of an image in place, and emptying it.

What lives in the header alone is one write of the header area; another version or refcount width is a new revision of
the metadata.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from diskmill.errors import UsageError

from . import c_qcow2 as c

if TYPE_CHECKING:
    from diskmill.contract.options import Value

    from .header import Header
    from .image import Qcow2Image


def amend(image: Qcow2Image, options: Mapping[str, Value], force: bool) -> None:
    """Apply *options* to *image*, all of them or none.

    :param force: the disk may become smaller.
    :raises UnsupportedError: an option cannot be changed, or not to that value.
    :raises UsageError: the values do not go together.
    """
    header = image.header
    with image.lock:
        refuse(image, options, force)
        image.flush()
        version = _version(options, header.version)
        order = _refcount_order(image, options, version)
        size = int(options.get("size") or image.size)
        grows = size != image.size
        if grows and header.version <= version == 2:
            _resize(image, size)
            grows = False
        if version != header.version or order != header.refcount_order:
            from .versions import rewrite

            rewrite(image, version, order, lambda new: _header(new, options))
        else:
            new = header.copy()
            _header(new, options)
            image.order.replace_header(new)
        if grows:
            _resize(image, size)
        image.flush()


def refuse(image: Qcow2Image, options: Mapping[str, Value], force: bool) -> None:
    """Refuse *options* that cannot be, as far as that is known before anything is written.

    :raises DiskmillError: as :func:`amend`.
    """
    header = image.header
    version = _version(options, header.version)
    _refcount_order(image, options, version)
    _refuse(image, options, version, force)
    size = int(options.get("size") or image.size)
    if version < header.version:
        from .versions import refuse_downgrade

        refuse_downgrade(image, size)
    if size != image.size:
        from .resize import refuse_size

        refuse_size(image, size, "off", min(version, header.version) if version == 2 else version)
    new = header.copy()
    _header(new, options)
    new.pack()


def _resize(image: Qcow2Image, size: int) -> None:
    from .resize import resize

    resize(image, size, "off")


def _version(options: Mapping[str, Value], now: int) -> int:
    if "compat" not in options:
        return now
    return 2 if options["compat"] in ("0.10", "v2") else 3


def _refcount_order(image: Qcow2Image, options: Mapping[str, Value], version: int) -> int:
    bits = int(options.get("refcount_bits", image.header.refcount_bits))
    if bits & (bits - 1) or not 1 <= bits <= 64:
        raise UsageError(f"refcount_bits must be a power of two from 1 to 64, not {bits}", file=image.name)
    if version < 3 and bits != 16:
        raise UsageError("compat=0.10 needs refcount_bits=16", file=image.name)
    return bits.bit_length() - 1


def _refuse(image: Qcow2Image, options: Mapping[str, Value], version: int, force: bool) -> None:
    """Refuse *options* that contradict one another or the image, which has *version* by then; *force* lets it shrink.

    :raises UsageError: they do.
    """
    header = image.header
    raw = bool(header.autoclear_features & c.RAW_EXTERNAL_DATA)
    if options.get("lazy_refcounts") and version < 3:
        raise UsageError("lazy_refcounts needs compat=1.1 or later", file=image.name)
    if "data_file" in options and not image.external:
        raise UsageError("data_file is for images that have an external data file", file=image.name)
    if options.get("data_file_raw") and not raw:
        raise UsageError("data_file_raw can only be set when an image is made", file=image.name)
    for name, what in (("backing_file", "backing file"), ("data_file", "data file")):
        if len(os.fsencode(str(options.get(name, "")))) > c.MAX_BACKING_NAME:
            raise UsageError(f"the {what} name is longer than {c.MAX_BACKING_NAME} bytes", file=image.name)
    backing = options.get("backing_file")
    if backing and raw:
        raise UsageError("a backing file and data_file_raw cannot be used together", file=image.name)
    if options.get("backing_fmt") and not (backing if backing is not None else header.backing_file):
        raise UsageError("backing_fmt needs a backing file", file=image.name)
    if int(options.get("size") or image.size) < image.size and not force:
        raise UsageError("the disk would become smaller: use resize --shrink, or --force", file=image.name)


def _header(header: Header, options: Mapping[str, Value]) -> None:
    """What *options* change in the header alone."""
    if "backing_file" in options:
        header.backing_file = str(options["backing_file"]) or None
        if not header.backing_file:
            header.set_extension(c.EXT_BACKING_FORMAT, None)
    if "backing_fmt" in options:
        text = str(options["backing_fmt"])
        header.set_extension(c.EXT_BACKING_FORMAT, text.encode() if text else None)
    if "lazy_refcounts" in options:
        header.compatible_features &= ~c.LAZY_REFCOUNTS
        header.compatible_features |= c.LAZY_REFCOUNTS if options["lazy_refcounts"] else 0
    if "data_file" in options:
        text = str(options["data_file"])
        header.set_extension(c.EXT_DATA_FILE, os.fsencode(text) if text else None)
    if "data_file_raw" in options and not options["data_file_raw"]:
        header.autoclear_features &= ~c.RAW_EXTERNAL_DATA


def can_be_emptied(image: Qcow2Image) -> bool:
    """Whether it can say that a cluster is its backing image's: all of a raw data file is the disk's own."""
    return not image.header.autoclear_features & c.RAW_EXTERNAL_DATA


def empty(image: Qcow2Image) -> bool | None:
    """Drop all guest data, so that the image reads as its backing image; None where that cannot be said."""
    if not can_be_emptied(image):
        return None
    with image.lock:
        image.placing.unmap(0, image.size)
        image.flush()
    return True
