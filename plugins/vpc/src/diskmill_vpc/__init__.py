"""The VHD format, which QEMU calls vpc: the disk images of Virtual PC, Hyper-V, XenServer and Azure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diskmill.contract.drivers import FormatDriver, hookimpl
from diskmill.contract.node import Storage
from diskmill.contract.options import Option

if TYPE_CHECKING:
    from diskmill.contract.node import Image
    from diskmill.contract.requests import CreateRequest, MeasureRequest, OpenRequest
    from diskmill.contract.results import CheckResult, Measurement

    from .image import VpcImage


class VpcDriver(FormatDriver):
    """``vpc``: dynamic and fixed images; differencing ones are read through their parent locators."""

    contract = 1
    name = "vpc"
    title = "VHD: Virtual PC, Hyper-V, XenServer and Azure"
    capabilities = frozenset({"create", "write", "zero", "check", "repair", "resize", "forward", "pipe"})
    options = (
        Option(
            "subformat",
            "str",
            "dynamic (grows as it is written) or fixed (the disk's bytes and a footer)",
            default="dynamic",
            choices=("dynamic", "fixed"),
        ),
        Option(
            "force_size",
            "bool",
            "keep the exact size; without, it is rounded up to a geometry that Virtual PC understands",
            default=False,
        ),
        Option(
            "force_size_calc",
            "str",
            "where the disk's size is taken from: chs (the geometry) or current_size; by default the creator decides",
            choices=("chs", "current_size"),
            when=("open",),
        ),
    )

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        """Dynamic images begin with a copy of the footer; fixed ones with the guest's bytes, so those need ``-f``."""
        return 100 if data.startswith(b"conectix") else 0

    @hookimpl
    def open(self, request: OpenRequest) -> Image:
        """An existing image."""
        from .image import open_vpc

        if isinstance(request.file, Storage) and request.file.forward:
            from .stream import open_stream

            return open_stream(self, request, request.file)
        return open_vpc(self, request)

    def goes_forward(self, options: Mapping[str, Any], *, foreseen: bool) -> bool:
        """A fixed one is the disk, and the footer behind it."""
        return bool(options["subformat"] == "fixed")

    @hookimpl
    def create(self, request: CreateRequest) -> Image:
        """An empty image."""
        from .create import create_vpc

        return create_vpc(self, request)

    @hookimpl
    def resize(self, image: VpcImage, size: int, preallocation: str) -> bool:
        """Grow. qemu-img cannot; Hyper-V can."""
        image.grow(size, preallocation)
        return True

    @hookimpl
    def check(self, image: VpcImage, repair: str) -> CheckResult:
        """The copies of the footer, and every entry of the block allocation table. qemu-img has no check for it."""
        return image.check(repair)

    @hookimpl
    def measure(self, request: MeasureRequest) -> Measurement:
        """Footers, header, table and blocks."""
        from .create import measure_vpc

        return measure_vpc(request)


driver = VpcDriver()
