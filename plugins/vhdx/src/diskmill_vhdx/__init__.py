"""The VHDX format: Hyper-V's disk images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.contract.drivers import FormatDriver, hookimpl
from diskmill.contract.options import Option

if TYPE_CHECKING:
    from diskmill.contract.requests import CreateRequest, MeasureRequest, OpenRequest
    from diskmill.contract.results import CheckResult, Measurement

    from .image import VhdxImage


class VhdxDriver(FormatDriver):
    """``vhdx``: dynamic and fixed images; differencing ones are read through their parent locator."""

    contract = 1
    name = "vhdx"
    title = "Hyper-V's disk images"
    capabilities = frozenset({"create", "write", "zero", "check", "repair", "resize"})
    options = (
        Option(
            "subformat",
            "str",
            "dynamic (grows as it is written) or fixed (every block has its place, in a file with holes)",
            default="dynamic",
            choices=("dynamic", "fixed"),
        ),
        Option(
            "block_size",
            "size",
            "bytes in a block: a power of two from 1 MiB to 256 MiB; 0: by the disk's size",
            default=0,
        ),
        Option(
            "logical_sector_size",
            "int",
            "bytes in a sector of the guest disk: 512, the default, or 4096",
        ),
        Option("log_size", "size", "bytes of the log, whole MiB", default=1 << 20),
        Option(
            "block_state_zero",
            "bool",
            "say of each block of a new dynamic image that it reads as zeros, not only that it is not there",
            default=True,
        ),
    )

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        """The signature is long enough to be sure."""
        return 100 if data.startswith(b"vhdxfile") else 0

    @hookimpl
    def open(self, request: OpenRequest) -> VhdxImage:
        """An existing image; what its log holds is in its place then, or taken for it where the file is not written."""
        from .opening import open_vhdx

        return open_vhdx(self, request)

    @hookimpl
    def create(self, request: CreateRequest) -> VhdxImage:
        """An empty image, dynamic or fixed."""
        from .create import create_vhdx

        return create_vhdx(self, request)

    @hookimpl
    def resize(self, image: VhdxImage, size: int, preallocation: str) -> bool:
        """Grow. qemu-img cannot; Hyper-V can."""
        from .resize import grow

        grow(image, size)
        return True

    @hookimpl
    def check(self, image: VhdxImage, repair: str) -> CheckResult:
        """The log, the copies of headers and region table, and every entry of the block allocation table."""
        from .check import check

        return check(image, repair)

    @hookimpl
    def measure(self, request: MeasureRequest) -> Measurement:
        """Headers, log, tables and blocks."""
        from .create import measure_vhdx

        return measure_vhdx(request)


driver = VhdxDriver()
