"""The cloop format: images of the compressed loop device, as live CDs have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.contract.drivers import FormatDriver, hookimpl

if TYPE_CHECKING:
    from diskmill.contract.requests import OpenRequest
    from diskmill.contract.results import CheckResult

    from .image import CloopImage


class CloopDriver(FormatDriver):
    """``cloop``: read only."""

    contract = 1
    name = "cloop"
    title = "compressed loop devices: live CDs (read only)"
    capabilities = frozenset({"check"})

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        """The file begins as a shell script, whose second line says what it is."""
        return 100 if data.startswith(b"#!/bin/sh\n#V2.0 Format\n") else 0

    @hookimpl
    def open(self, request: OpenRequest) -> CloopImage:
        """An existing image."""
        from .image import open_cloop

        return open_cloop(self, request)

    @hookimpl
    def check(self, image: CloopImage, repair: str) -> CheckResult:
        """Every block is decoded: each has a checksum."""
        return image.check()


driver = CloopDriver()
