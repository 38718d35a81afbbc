"""Changing options of an image in place, and emptying it.

What lives in the header alone is one write of the header area. The other options are refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from diskmill.errors import UnsupportedError, UsageError

from . import c_qcow2 as c

if TYPE_CHECKING:
    from diskmill.options import Value

    from .image import Qcow2Image

_HERE = {"backing_file", "backing_fmt", "lazy_refcounts", "size", "compat", "refcount_bits", "data_file_raw"}


def amend(image: Qcow2Image, options: Mapping[str, Value]) -> None:
    """Apply *options* to *image*, all of them or none.

    :raises UnsupportedError: an option cannot be changed, or not to that value.
    :raises UsageError: the values do not go together.
    """
    with image.lock:
        _refuse(image, options)
        image.flush()
        _backing(image, options)
        lazy = options.get("lazy_refcounts")
        if lazy is not None:
            image.header.compatible_features &= ~c.LAZY_REFCOUNTS
            image.header.compatible_features |= c.LAZY_REFCOUNTS if lazy else 0
        image.header.pack()  # it fits, or nothing is changed on disk
        size = options.get("size")
        if size is not None and int(size) != image.size:
            from .resize import resize

            resize(image, int(size), "off")
        image.write_header()
        image.flush()


def _refuse(image: Qcow2Image, options: Mapping[str, Value]) -> None:
    header = image.header
    for name in options:
        if name not in _HERE:
            raise UnsupportedError(f"the option '{name}' of a qcow2 image cannot be changed", file=image.name)
    same = {
        "compat": 2 if options.get("compat") in ("0.10", "v2") else 3,
        "refcount_bits": options.get("refcount_bits"),
        "data_file_raw": bool(options.get("data_file_raw")),
    }
    now = {
        "compat": header.version,
        "refcount_bits": header.refcount_bits,
        "data_file_raw": bool(header.autoclear_features & c.RAW_EXTERNAL_DATA),
    }
    for name, value in now.items():
        if name in options and same[name] != value:
            raise UnsupportedError(f"changing '{name}' of a qcow2 image is not supported", file=image.name)
    if options.get("lazy_refcounts") and header.version < 3:
        raise UsageError("lazy_refcounts needs compat=1.1 or later", file=image.name)
    backing = options.get("backing_file")
    if backing and header.autoclear_features & c.RAW_EXTERNAL_DATA:
        raise UsageError("a backing file and data_file_raw cannot be used together", file=image.name)
    if backing and len(os.fsencode(str(backing))) > c.MAX_BACKING_NAME:
        raise UsageError(f"the backing file name is longer than {c.MAX_BACKING_NAME} bytes", file=image.name)
    if options.get("backing_fmt") and not (backing if backing is not None else header.backing_file):
        raise UsageError("backing_fmt needs a backing file", file=image.name)


def _backing(image: Qcow2Image, options: Mapping[str, Value]) -> None:
    header = image.header
    if "backing_file" in options:
        header.backing_file = str(options["backing_file"]) or None
        if not header.backing_file:
            header.set_extension(c.EXT_BACKING_FORMAT, None)
    if "backing_fmt" in options:
        text = str(options["backing_fmt"])
        header.set_extension(c.EXT_BACKING_FORMAT, text.encode() if text else None)


def empty(image: Qcow2Image) -> bool | None:
    """Drop all guest data, so that the image reads as its backing image; None where that cannot be said."""
    if image.header.autoclear_features & c.RAW_EXTERNAL_DATA:
        return None
    with image.lock:
        image.unmap(0, image.size)
        image.flush()
    return True
