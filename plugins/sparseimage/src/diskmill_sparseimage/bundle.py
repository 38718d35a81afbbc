"""Sparse bundles: ``Info.plist`` says how large disk and bands are; band *N* is the file ``bands/N``, in hexadecimal.

A band's file may be shorter than a band, or absent: what is missing reads as zeros. Source: see
:mod:`.c_sparseimage`.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from typing import TYPE_CHECKING

from diskmill.contract.node import Node
from diskmill.contract.references import Reference
from diskmill.errors import ImageError, UnsupportedError
from diskmill.kit.markup import Element, parse
from diskmill.sizes import MAX_SIZE, MiB

from .c_sparseimage import BUNDLE_TYPE, ENCRYPTED
from .image import BandImage

if TYPE_CHECKING:
    from diskmill.contract.requests import OpenRequest

    from . import SparseimageDriver

_MAX_PLIST = MiB
_TOKEN = -1
"""The key of the reference to the file ``token``, which tells whether the bundle is encrypted."""


class BundleImage(BandImage):
    """The disk of a sparse bundle."""

    def __init__(self, driver: SparseimageDriver, file: Node, band: int, *, name: str, size: int) -> None:
        super().__init__(driver, file, band, name=name, size=size)
        # Any of them may be absent, and there is no list: all are asked for.
        names = {_TOKEN: "token"} | {number: f"bands/{number:x}" for number in range(-(-size // band))}
        self.references = tuple(
            Reference("extent", f"./{path}", storage=True, key=key, optional=True) for key, path in names.items()
        )
        self._bands: dict[int, Node] = {}

    def attach(self, reference: Reference, node: Node) -> None:
        if reference.key == _TOKEN:
            encrypted = node.read_some(0, 8) in ENCRYPTED
            node.close()
            if encrypted:
                raise UnsupportedError("encrypted sparse bundles are not supported", file=self.name)
            return
        self._bands[reference.key] = node
        insort(self.numbers, reference.key)

    def located(self, index: int) -> tuple[Node, int, int]:
        node = self._bands[self.numbers[index]]
        return node, 0, node.size

    def children(self) -> Iterator[Node]:
        yield self.file
        yield from self._bands.values()


def open_bundle(driver: SparseimageDriver, request: OpenRequest) -> BundleImage:
    """The bundle that the property list in ``request.file`` describes.

    :raises UnsupportedError: it has more bands than an image may have files.
    """
    file, name = request.below(), request.name
    if file.size > _MAX_PLIST:
        raise ImageError(f"a property list of {file.size} bytes is too large", file=name)
    values = _values(parse(file.read(0, file.size), file=name, encoding="utf-8"), name)
    if values.get("diskimage-bundle-type") != BUNDLE_TYPE:
        raise ImageError("not a sparse image, nor the Info.plist of a sparse bundle", file=name)
    band, size = _number(values, "band-size", name), _number(values, "size", name)
    if not 0 < band <= MAX_SIZE or size > MAX_SIZE:
        raise ImageError(f"a disk of {size} bytes in bands of {band} is not possible", file=name)
    most = file.account.limits.files
    if size // band >= most:
        why = f"it has {-(-size // band)} bands, and an image may have {most} files (--limits files=… raises it)"
        raise UnsupportedError(why, file=name)
    return BundleImage(driver, file, band, name=name, size=size)


def _values(root: Element, name: str) -> dict[str, str]:
    """The dictionary of a property list, values as text."""
    found = root.find("dict")
    if root.tag != "plist" or found is None or len(found.children) % 2:
        raise ImageError("it is no property list with a dictionary", file=name)
    pairs = zip(found.children[::2], found.children[1::2], strict=True)
    return {key.text: value.text.strip() for key, value in pairs}


def _number(values: dict[str, str], key: str, name: str) -> int:
    text = values.get(key, "")
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ImageError(f"'{text[:40]}' is not a number", file=name, place=key)
    return int(text)
