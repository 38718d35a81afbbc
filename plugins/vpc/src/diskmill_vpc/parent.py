"""Where a differencing image says that its parent is.

The header has up to eight parent locators, a name each in the manner of one platform, and the parent's bare name. See
:mod:`diskmill_vpc.c_vhd` for the source; XenServer writes ``MacX`` ones, with a path relative to the image's folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from diskmill.contract.references import Reference
from diskmill.errors import ImageError

from .c_vhd import LOCATOR, LOCATORS

if TYPE_CHECKING:
    from diskmill.contract.node import Node

    from .c_vhd import Header

_LONGEST = 8192
"""Bytes in a locator's name at most."""


def parent_reference(file: Node, header: Header, name: str) -> Reference:
    """The parent as a backing image: the first name that can be one here.

    Relative Windows paths come first, then Unix ones; of what is left, absolute Windows paths among it, only the bare
    name says anything on this machine: the file of that name beside the image.

    :raises ImageError: there is no name at all.
    """
    found: dict[bytes, str] = {}
    for index in range(LOCATORS):
        locator = LOCATOR.unpack(header.parent_locators, index * LOCATOR.size)
        length, offset = locator.platform_data_length, locator.platform_data_offset
        if locator.platform_code == bytes(4) or not length:
            continue
        if length > _LONGEST or offset + length > file.size:
            raise ImageError("it does not lie inside the file", file=name, place=f"parent locator {index + 1}")
        found.setdefault(locator.platform_code, _text(file.read(offset, length), locator.platform_code))
    relative = found.get(b"W2ru", "").replace("\\", "/")
    url = found.get(b"MacX", "")
    bare = header.parent_unicode_name.decode("utf-16-be", "replace").partition("\0")[0]
    if relative:
        path = relative
    elif url.startswith("file://"):
        path = unquote(url.removeprefix("file://").removeprefix("localhost"))
    else:
        path = (bare or found.get(b"W2ku", "")).replace("\\", "/").rpartition("/")[2]
    if not path:
        raise ImageError("a differencing image that names no parent", file=name)
    if not path.startswith(("/", "./", "../")):
        path = f"./{path}"  # no part of it is a protocol
    # XenServer's mark of a parent that is a raw file: no unique id.
    return Reference("backing", path, "vpc" if any(header.parent_unique_id) else "raw")


def _text(data: bytes, platform: bytes) -> str:
    coding = "utf-16-le" if platform in (b"W2ru", b"W2ku") else "utf-8"
    return data.decode(coding, "replace").partition("\0")[0]
