"""The DMG format: Apple's disk images (UDIF)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.contract.drivers import FormatDriver, hookimpl

if TYPE_CHECKING:
    from diskmill.contract.requests import OpenRequest
    from diskmill.contract.results import CheckResult

    from .image import DmgImage


class DmgDriver(FormatDriver):
    """``dmg``: read only."""

    contract = 1
    name = "dmg"
    title = "Apple's disk images, UDIF (read only)"
    capabilities = frozenset({"check"})

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        """What tells the format stands at the file's end, so the name must do; any magic at the start is stronger."""
        return 50 if name.endswith(".dmg") else 0

    @hookimpl
    def open(self, request: OpenRequest) -> DmgImage:
        """An existing image."""
        from .opening import open_dmg

        return open_dmg(self, request)

    @hookimpl
    def check(self, image: DmgImage, repair: str) -> CheckResult:
        """The block tables, and the checksums of the data fork, of each partition and of all of them."""
        from .checking import check_dmg

        return check_dmg(image)


driver = DmgDriver()
