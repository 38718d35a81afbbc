"""Where the block tables are: in an XML property list, or in a resource fork, as old images have it."""

from __future__ import annotations

import plistlib
import struct
from collections.abc import Iterator
from xml.parsers.expat import ExpatError

from diskmill.errors import ImageError

from .c_udif import RESOURCE_HEADER, RESOURCE_MAP, RESOURCE_REFERENCE, RESOURCE_TYPE

MAX_BYTES = 16 << 20
"""Of a property list or resource fork: room for the chunks of some 100 GiB, and as much as QEMU reads."""
_MAX_TAGS = 100_000
"""In a property list: an image has some dozen for each partition and each page of its licence."""


def from_plist(data: bytes, name: str) -> list[bytes]:
    """The ``blkx`` resources in the property list *data*.

    :raises ImageError: it is none, or not as it should be.
    """
    if data.count(b"<") > _MAX_TAGS:  # each may become an object
        raise ImageError(f"more than {_MAX_TAGS} tags", file=name, place="property list")
    try:
        # Entities, with which a few bytes could be made endless, are refused by plistlib.
        root = plistlib.loads(data, fmt=plistlib.FMT_XML)
    except (ExpatError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ImageError(f"cannot be parsed: {error}", file=name, place="property list") from None
    found = root
    for key in ("resource-fork", "blkx"):
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, list):
        raise ImageError("it has no block tables (blkx)", file=name, place="property list")
    tables = [one.get("Data") if isinstance(one, dict) else None for one in found]
    if not all(isinstance(table, bytes) for table in tables):
        raise ImageError("a block table (blkx) has no data", file=name, place="property list")
    return [bytes(table) for table in tables if table is not None]


def from_fork(data: bytes, name: str) -> list[bytes]:
    """The ``blkx`` resources in the resource fork *data*.

    :raises ImageError: it is damaged, or has none.
    """
    try:
        found = list(_resources(data, b"blkx", name))
    except struct.error:
        raise ImageError("a length is missing", file=name, place="resource fork") from None
    if not found:
        raise ImageError("it has no block tables (blkx)", file=name, place="resource fork")
    return found


def _resources(data: bytes, type: bytes, name: str) -> Iterator[bytes]:
    header = RESOURCE_HEADER.unpack(data, file=name)
    types = header.map + RESOURCE_MAP.unpack(data, header.map, file=name).type_list
    for index in range(_count(struct.unpack_from(">H", data, types)[0])):
        entry = RESOURCE_TYPE.unpack(data, types + 2 + index * RESOURCE_TYPE.size, file=name)
        if entry.type != type:
            continue
        left = len(data)  # resources that lie one on another could multiply it
        for number in range(_count(entry.last)):
            reference = RESOURCE_REFERENCE.unpack(
                data, types + entry.references + number * RESOURCE_REFERENCE.size, file=name
            )
            at = header.data + (reference.data & 0xFFFFFF)
            (length,) = struct.unpack_from(">I", data, at)
            left -= length
            if at + 4 + length > len(data) or left < 0:
                raise ImageError(f"resource {number} is not inside it", file=name, place="resource fork")
            yield data[at + 4 : at + 4 + length]


def _count(last: int) -> int:
    """How many there are, of what is counted by the number of the last: none is 0xffff."""
    return last + 1 & 0xFFFF
