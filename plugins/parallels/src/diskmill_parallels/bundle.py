"""Parallels bundles: a folder with the images of a disk and of its snapshots, and ``DiskDescriptor.xml`` over them.

The disk is made of storages, one for each stretch of it (almost always one for all); each storage has a chain of
images: the top one, which the guest writes to, stands on that of the snapshot before, and so on. Source: "Parallels
Disk Format", QEMU's ``docs/interop/prl-xml.rst``, which leaves split disks out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from diskmill.contract.extents import Extent, Kind
from diskmill.contract.node import Image, Node
from diskmill.contract.references import Reference
from diskmill.contract.results import CheckResult
from diskmill.errors import ImageError, UnsupportedError
from diskmill.kit.image import FormatImage
from diskmill.kit.markup import Element, parse
from diskmill.records import record, replace
from diskmill.sizes import MAX_SIZE, SECTOR, MiB

from .image import ParallelsImage

if TYPE_CHECKING:
    from diskmill.contract.requests import OpenRequest

    from . import ParallelsDriver

_TOP = "{5fbaabe3-6958-40ff-92a7-860e329aab41}"
"""The top image, where ``TopGUID`` does not name it."""
_NO_PARENT = "{00000000-0000-0000-0000-000000000000}"
_MAX_XML = 4 * MiB
_MAX_IMAGES = 1000
"""Images in a bundle at most."""


@record
class _Storage:
    """Guest bytes *start* to *end*, and its images, the top one first."""

    start: int
    end: int
    files: list[tuple[str, str]]
    top: Image | None = None
    last: Image | None = None


class BundleImage(FormatImage):
    """The disk that a descriptor describes. It can be read."""

    def __init__(self, driver: ParallelsDriver, file: Node, storages: list[_Storage], *, name: str, size: int) -> None:
        super().__init__(driver, file, name=name, size=size, writable=False)
        self.storages = storages
        self.references = tuple(
            Reference("extent", path if path.startswith("/") else f"./{path}", form, key=key)
            for key, (path, form) in enumerate(path for storage in storages for path in storage.files)
        )
        self._owners = [storage for storage in storages for _ in storage.files]
        self._images: list[Image] = []

    def attach(self, reference: Reference, node: Node) -> None:
        assert isinstance(node, Image)
        self._images.append(node)
        storage = self._owners[reference.key]
        if storage.last is None:
            storage.top = node
        else:
            storage.last.backing = node
        storage.last = node

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        for storage in self.storages:
            low, high = max(storage.start, offset), min(storage.end, end)
            if low >= high:
                continue
            if storage.top is None:
                raise ImageError(f"its image '{storage.files[0][0]}' is not open", file=self.name)
            # What an image is too short for reads as zeros.
            inside = max(min(high, storage.start + storage.top.size), low)
            if low < inside:
                yield Extent(low, inside - low, Kind.DATA, storage.top, low - storage.start)
            if inside < high:
                yield Extent(inside, high - inside, Kind.ZERO)

    def check(self, repair: str) -> CheckResult:
        """What is found in the images, all together. See :func:`diskmill.contract.hookspecs.check`."""
        result = CheckResult()
        for image in self._images:
            if isinstance(image, ParallelsImage):
                found = image.check(repair)
                result.corruptions += found.corruptions
                result.leaks += found.leaks
                result.findings += [replace(one, text=f"{image.name}: {one.text}") for one in found.findings]
        return result

    def children(self) -> Iterator[Node]:
        yield self.file
        yield from self._images


def open_bundle(driver: ParallelsDriver, request: OpenRequest) -> BundleImage:
    """The disk of the descriptor in ``request.file``.

    :raises UnsupportedError: it is to be written, or has padding.
    """
    file, name = request.below(), request.name
    if request.writable:
        raise UnsupportedError("a bundle can only be read; its images can be written one by one", file=name)
    root = _parse(file, name)
    reader = _Reader(name)
    size = reader.number(root, "Disk_Parameters/Disk_size") * SECTOR
    if size > MAX_SIZE:
        raise ImageError(f"a disk of {size} bytes is not possible", file=name)
    if root.text_at("Disk_Parameters/Padding", "0") != "0":
        raise UnsupportedError("disks with padding are not supported", file=name)
    chain = reader.chain(root)
    storages = []
    at = 0
    for element in root.all("StorageData/Storage"):
        start, end = reader.number(element, "Start") * SECTOR, reader.number(element, "End") * SECTOR
        if start != at or end < start:
            raise ImageError("the storages do not follow each other", file=name)
        storages.append(_Storage(start, end, reader.images(element, chain)))
        at = end
    if at != size:
        raise ImageError(f"the storages hold {at} bytes, the disk {size}", file=name)
    if sum(len(storage.files) for storage in storages) > _MAX_IMAGES:
        raise ImageError(f"it has more than {_MAX_IMAGES} images", file=name)
    return BundleImage(driver, file, storages, name=name, size=size)


def _parse(file: Node, name: str) -> Element:
    if file.size > _MAX_XML:
        raise ImageError(f"a descriptor of {file.size} bytes is too large", file=name)
    root = parse(file.read(0, file.size), file=name, encoding="utf-8")
    if root.tag != "Parallels_disk_image":
        raise ImageError(f"the descriptor is a '{root.tag[:40]}', not a Parallels_disk_image", file=name)
    return root


class _Reader:
    """Finds values in the descriptor *name*; what is missing or makes no sense is an :class:`ImageError`."""

    def __init__(self, name: str) -> None:
        self.name = name

    def text(self, element: Element, path: str) -> str:
        value = element.text_at(path)
        if not value:
            raise ImageError("it is missing", file=self.name, place=path)
        return value

    def number(self, element: Element, path: str) -> int:
        value = self.text(element, path)
        if not (value.isascii() and value.isdigit() and len(value) < 20):
            raise ImageError(f"'{value}' is not a number", file=self.name, place=path)
        return int(value)

    def chain(self, root: Element) -> list[str]:
        """The identifiers of the top image, of what it stands on, and so on to the root."""
        parents = {
            self.text(shot, "GUID"): shot.text_at("ParentGUID") or _NO_PARENT for shot in root.all("Snapshots/Shot")
        }
        guid = root.text_at("Snapshots/TopGUID") or _TOP
        chain: list[str] = []
        while guid != _NO_PARENT:
            if guid in chain:
                raise ImageError("the snapshots form a loop", file=self.name)
            if len(chain) >= _MAX_IMAGES:
                raise ImageError(f"it has more than {_MAX_IMAGES} snapshots", file=self.name)
            chain.append(guid)
            guid = parents.get(guid, _NO_PARENT)
        return chain

    def images(self, storage: Element, chain: list[str]) -> list[tuple[str, str]]:
        """File and format of the storage's images along the *chain*."""
        known: dict[str, tuple[str, str]] = {}
        for element in storage.all("Image"):
            kind = self.text(element, "Type")
            if kind not in ("Plain", "Compressed"):
                raise UnsupportedError(f"images of the type '{kind}' are not supported", file=self.name)
            form = "raw" if kind == "Plain" else "parallels"
            known[self.text(element, "GUID")] = (self.text(element, "File"), form)
        missing = [guid for guid in chain if guid not in known]
        if missing or not chain:
            raise ImageError(f"there is no image with the identifier {', '.join(missing)}", file=self.name)
        return [known[guid] for guid in chain]
