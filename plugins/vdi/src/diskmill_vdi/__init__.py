"""The VDI format: VirtualBox's disk images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.contract.drivers import FormatDriver, hookimpl
from diskmill.contract.options import Option

if TYPE_CHECKING:
    from diskmill.contract.requests import CreateRequest, MeasureRequest, OpenRequest
    from diskmill.contract.results import CheckResult, Measurement

    from .image import VdiImage


class VdiDriver(FormatDriver):
    """``vdi``: dynamic and static images; differencing ones are read with their parent given as backing."""

    contract = 1
    name = "vdi"
    title = "VirtualBox's disk images"
    capabilities = frozenset({"create", "write", "zero", "check", "repair", "resize", "preallocation"})
    options = (
        Option("static", "bool", "claim the space of all blocks at creation (the same as preallocation=metadata)"),
        Option(
            "preallocation",
            "str",
            "how space is claimed: off, metadata (every block has its place, in a file with holes)",
            choices=("off", "metadata"),
        ),
        Option(
            "cluster_size",
            "size",
            "bytes in a block: a power of two; QEMU and older VirtualBox versions open only 1 MiB",
            default=1 << 20,
        ),
    )

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        """The signature stands behind 64 bytes of text, which vary."""
        return 100 if data.startswith(b"\x7f\x10\xda\xbe", 64) else 0

    @hookimpl
    def open(self, request: OpenRequest) -> VdiImage:
        """An existing image."""
        from .image import open_vdi

        return open_vdi(self, request)

    @hookimpl
    def create(self, request: CreateRequest) -> VdiImage:
        """An empty image, dynamic or static."""
        from .image import create_vdi

        return create_vdi(self, request)

    @hookimpl
    def resize(self, image: VdiImage, size: int, preallocation: str) -> bool:
        """Grow. qemu-img cannot; VirtualBox can."""
        image.grow(size, preallocation)
        return True

    @hookimpl
    def check(self, image: VdiImage, repair: str) -> CheckResult:
        """Every entry of the block map, and the count of blocks in the header."""
        return image.check(repair)

    @hookimpl
    def measure(self, request: MeasureRequest) -> Measurement:
        """Header, block map and blocks."""
        from .image import measure_vdi

        return measure_vdi(request)


driver = VdiDriver()
