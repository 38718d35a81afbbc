"""The ``blk`` format, as an example of a driver from outside: what the entry point names.

This module stays light. It is imported to probe any image at all; the rest of the driver only for its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.contract.drivers import FormatDriver, hookimpl
from diskmill.contract.options import Option
from diskmill.sizes import KiB

if TYPE_CHECKING:
    from diskmill.contract.requests import CreateRequest, MeasureRequest, OpenRequest
    from diskmill.contract.results import CheckResult, Measurement

    from .image import BlkImage

MAGIC = b"BLKDISK\n"


class BlkDriver(FormatDriver):
    """``blk``: one header, one table."""

    contract = 1
    name = "blk"
    title = "the worked example of a driver"
    capabilities = frozenset({"create", "write", "zero", "check", "resize", "shrink"})
    options = (Option("block_size", "size", "bytes that are allocated together", default=64 * KiB),)

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        """The magic is long enough to be sure."""
        return 100 if data.startswith(MAGIC) else 0

    @hookimpl
    def open(self, request: OpenRequest) -> BlkImage:
        """An existing image."""
        from .image import BlkImage

        return BlkImage.open(self, request)

    @hookimpl
    def create(self, request: CreateRequest) -> BlkImage:
        """A new one."""
        from .image import BlkImage

        return BlkImage.create(self, request)

    @hookimpl
    def check(self, image: BlkImage, repair: str) -> CheckResult:
        """Do two guest blocks share a place, or point into the metadata?"""
        return image.check()

    @hookimpl
    def resize(self, image: BlkImage, size: int, preallocation: str) -> bool:
        """A longer or shorter table."""
        image.resize(size)
        return True

    @hookimpl
    def measure(self, request: MeasureRequest) -> Measurement:
        """The metadata, and the blocks that hold data."""
        from .image import measure

        return measure(request)


driver = BlkDriver()
