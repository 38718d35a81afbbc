"""Where the block tables are: in an XML property list, or in a resource fork, as old images have it."""

from __future__ import annotations

import binascii
import struct
from collections.abc import Iterator

from diskmill.errors import ImageError
from diskmill.kit.markup import Element, parse

from .c_udif import RESOURCE_HEADER, RESOURCE_MAP, RESOURCE_REFERENCE, RESOURCE_TYPE

MAX_BYTES = 16 << 20
"""Of a property list or resource fork: room for the chunks of some 100 GiB, and as much as QEMU reads."""


def from_plist(data: bytes, name: str) -> list[bytes]:
    """The ``blkx`` resources in the property list *data*.

    :raises ImageError: it is none, or not as it should be.
    """
    root = parse(data, file=name, place="property list")
    found: Element | None = root.find("dict") if root.tag == "plist" else None
    for key in ("resource-fork", "blkx"):
        found = _value(found, key)
    if found is None or found.tag != "array":
        raise ImageError("it has no block tables (blkx)", file=name, place="property list")
    return [_data(_value(one, "Data"), name) for one in found.children]


def _value(owner: Element | None, key: str) -> Element | None:
    """What the dictionary *owner* has under *key*; None: it has no such thing, or is no dictionary.

    A dictionary's children are keys and values by turns (Apple's PropertyList-1.0.dtd).
    """
    if owner is None or owner.tag != "dict":
        return None
    pairs = zip(owner.children[::2], owner.children[1::2], strict=False)
    return next((value for name, value in pairs if name.tag == "key" and name.text == key), None)


def _data(element: Element | None, name: str) -> bytes:
    """The bytes of a ``data`` element."""
    if element is None or element.tag != "data":
        raise ImageError("a block table (blkx) has no data", file=name, place="property list")
    try:
        return binascii.a2b_base64(element.text)
    except ValueError as error:
        raise ImageError(f"cannot be parsed: {error}", file=name, place="property list") from None


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
