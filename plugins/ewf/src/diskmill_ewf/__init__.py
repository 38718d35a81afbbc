"""The Expert Witness format: images that forensic tools acquire, ``.E01`` and the segments that follow it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.contract.drivers import FormatDriver, hookimpl

if TYPE_CHECKING:
    from diskmill.contract.requests import OpenRequest
    from diskmill.contract.results import CheckResult

    from .image import EwfImage


class EwfDriver(FormatDriver):
    """``ewf``: read only."""

    contract = 1
    name = "ewf"
    title = "Expert Witness images: EnCase, FTK, ewfacquire (read only)"
    capabilities = frozenset({"check"})

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        """The signature."""
        return 100 if data.startswith(b"EVF\x09\x0d\x0a\xff\0") else 0

    @hookimpl
    def open(self, request: OpenRequest) -> EwfImage:
        """The first segment; the others are found by their names."""
        from .image import open_ewf

        return open_ewf(self, request)

    @hookimpl
    def check(self, image: EwfImage, repair: str) -> CheckResult:
        """Every chunk is decoded, and the hashes of the whole disk are told."""
        from .checking import check_ewf

        return check_ewf(image)


driver = EwfDriver()
