"""The Bochs format: the emulator's redologs, of which a growing disk is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.contract.drivers import FormatDriver, hookimpl

if TYPE_CHECKING:
    from diskmill.contract.requests import OpenRequest
    from diskmill.contract.results import CheckResult

    from .image import BochsImage

MAGIC = b"Bochs Virtual HD Image\0"


class BochsDriver(FormatDriver):
    """``bochs``: growing disks; undoable and volatile redologs with their base image given as backing. Read only."""

    contract = 1
    name = "bochs"
    title = "growing disks of the Bochs emulator (read only)"
    capabilities = frozenset({"check"})

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        """The magic is long enough to be sure."""
        return 100 if data.startswith(MAGIC) else 0

    @hookimpl
    def open(self, request: OpenRequest) -> BochsImage:
        """An existing image."""
        from .image import open_bochs

        return open_bochs(self, request)

    @hookimpl
    def check(self, image: BochsImage, repair: str) -> CheckResult:
        """Every entry of the catalog."""
        return image.check()


driver = BochsDriver()
