"""The Android sparse format: images that are flashed to phones, with what is all alike left out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.contract.drivers import FormatDriver, hookimpl
from diskmill.contract.options import Option

if TYPE_CHECKING:
    from diskmill.contract.requests import CreateRequest, MeasureRequest, OpenRequest
    from diskmill.contract.results import CheckResult, Measurement

    from .create import SparseWriter
    from .image import SparseImage


class SparseDriver(FormatDriver):
    """``sparse``: read, and written once, from the first byte to the last."""

    contract = 1
    name = "sparse"
    title = "Android sparse images: fastboot, simg2img (read, create)"
    capabilities = frozenset({"create", "check", "zero"})
    options = (
        Option("block_size", "size", "bytes that are counted together", default=4096),
        Option(
            "zeros",
            "str",
            "what becomes of zeros: stored as a fill, or skipped, so that a device keeps what it has there",
            default="fill",
            choices=("fill", "skip"),
        ),
    )

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        """The magic."""
        return 100 if data.startswith(b"\x3a\xff\x26\xed") else 0

    @hookimpl
    def open(self, request: OpenRequest) -> SparseImage:
        """An existing image."""
        from .image import open_sparse

        return open_sparse(self, request)

    @hookimpl
    def create(self, request: CreateRequest) -> SparseWriter:
        """A new image, to be written in order."""
        from .create import create_sparse

        return create_sparse(self, request)

    @hookimpl
    def check(self, image: SparseImage, repair: str) -> CheckResult:
        """The checksums that the image has, by reading all of it."""
        from .checking import check_sparse

        return check_sparse(image)

    @hookimpl
    def measure(self, request: MeasureRequest) -> Measurement:
        """At most so many bytes: what is alike takes none."""
        from .create import measure_sparse

        return measure_sparse(request)


driver = SparseDriver()
