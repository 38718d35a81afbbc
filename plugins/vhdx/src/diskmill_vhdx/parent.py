"""Where a differencing image says that its parent is, and what it knows it by: [MS-VHDX] 2.6.2.6."""

from __future__ import annotations

from typing import NamedTuple

from diskmill.errors import ImageError, UnsupportedError

from .c_vhdx import LOCATOR, LOCATOR_ENTRY, VHDX_LOCATOR, guid


class Parent(NamedTuple):
    """The parent of a differencing image."""

    path: str
    """As a backing file's name, relative to the image's folder."""
    linkage: frozenset[bytes]
    """What its ``DataWriteGuid`` may be."""


def parent(locator: bytes, name: str) -> Parent:
    """What the metadata item *locator* says.

    A relative path comes first. Of an absolute one, or one by the volume's GUID, only the last part says anything on
    this machine: the file of that name beside the image.

    :raises ImageError: it makes no sense, or names no parent.
    :raises UnsupportedError: the parent is no VHDX file.
    """
    header = LOCATOR.unpack(locator, file=name)
    if header.LocatorType != VHDX_LOCATOR:
        raise UnsupportedError(f"its parent is of an unknown type {header.LocatorType.hex()}", file=name)
    values: dict[str, str] = {}
    for index in range(header.KeyValueCount):
        entry = LOCATOR_ENTRY.unpack(locator, LOCATOR.size + index * LOCATOR_ENTRY.size, file=name)
        key = _text(locator, entry.KeyOffset, entry.KeyLength, name)
        values.setdefault(key, _text(locator, entry.ValueOffset, entry.ValueLength, name))
    path = values.get("relative_path", "").replace("\\", "/")
    if not path:
        path = (values.get("volume_path") or values.get("absolute_win32_path") or "").replace("\\", "/")
        path = path.rpartition("/")[2]
    if not path:
        raise ImageError("it names no parent", file=name, place="parent locator")
    if not path.startswith(("/", "./", "../")):
        path = f"./{path}"  # no part of it is a protocol
    linkage = set()
    for key in ("parent_linkage", "parent_linkage2"):
        if key in values:
            try:
                linkage.add(guid(values[key]))
            except ValueError:
                raise ImageError(f"its {key} is no GUID", file=name, place="parent locator") from None
    if not linkage:
        raise ImageError("it does not say what to know the parent by", file=name, place="parent locator")
    return Parent(path, frozenset(linkage))


def _text(data: bytes, offset: int, length: int, name: str) -> str:
    if offset + length > len(data):
        raise ImageError("a text does not lie inside it", file=name, place="parent locator")
    return data[offset : offset + length].decode("utf-16-le", "replace").partition("\0")[0]
