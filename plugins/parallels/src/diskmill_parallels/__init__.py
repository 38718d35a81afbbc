"""The Parallels format: expandable images of Parallels Desktop and Virtuozzo, and their .hdd bundles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.contract.drivers import FormatDriver, hookimpl
from diskmill.contract.options import Option

if TYPE_CHECKING:
    from diskmill.contract.node import Image
    from diskmill.contract.requests import CreateRequest, MeasureRequest, OpenRequest
    from diskmill.contract.results import CheckResult, Measurement

    from .bundle import BundleImage
    from .image import ParallelsImage


_IDLE = "without effect: by how much QEMU makes the file longer at once, and how"


class ParallelsDriver(FormatDriver):
    """``parallels``: expandable images of both kinds; bundles are read by their ``DiskDescriptor.xml``."""

    contract = 1
    name = "parallels"
    title = "Parallels Desktop and Virtuozzo"
    capabilities = frozenset({"create", "write", "zero", "check", "repair", "resize"})
    options = (
        Option(
            "cluster_size",
            "size",
            "bytes in a cluster: a multiple of 512; Parallels itself uses 1 MiB",
            default=1 << 20,
        ),
        Option("prealloc-size", "size", _IDLE, when=("open",), runtime=True),
        Option("prealloc-mode", "str", _IDLE, choices=("falloc", "truncate"), when=("open",), runtime=True),
    )

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        """One of two magic words and version 2; or the descriptor of a bundle."""
        if data.startswith((b"WithoutFreeSpace\2\0\0\0", b"WithouFreSpacExt\2\0\0\0")):
            return 100
        return 100 if data.startswith((b"<?xml", b"<Parallels")) and b"<Parallels_disk_image" in data else 0

    @hookimpl
    def open(self, request: OpenRequest) -> Image:
        """An existing image, or a bundle's descriptor."""
        file = request.below()
        if file.size and file.read(0, 1) == b"<":
            from .bundle import open_bundle

            return open_bundle(self, request)
        from .image import open_parallels

        return open_parallels(self, request)

    @hookimpl
    def create(self, request: CreateRequest) -> ParallelsImage:
        """An empty image."""
        from .image import create_parallels

        return create_parallels(self, request)

    @hookimpl
    def resize(self, image: ParallelsImage, size: int, preallocation: str) -> bool:
        """Grow. qemu-img cannot."""
        image.grow(size, preallocation)
        return True

    @hookimpl
    def check(self, image: ParallelsImage | BundleImage, repair: str) -> CheckResult:
        """Whether the image was closed properly, and every entry of its table; of a bundle, each of its images."""
        return image.check(repair)

    @hookimpl
    def measure(self, request: MeasureRequest) -> Measurement:
        """Header, table and clusters."""
        from .image import measure_parallels

        return measure_parallels(request)


driver = ParallelsDriver()
