"""The VMA format: Proxmox VE's archives of a virtual machine, with its configuration and all its disks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.contract.drivers import FormatDriver, hookimpl
from diskmill.contract.options import Option

if TYPE_CHECKING:
    from diskmill.contract.requests import OpenRequest
    from diskmill.contract.results import CheckResult

    from .image import VmaImage


class VmaDriver(FormatDriver):
    """``vma``: one disk of an archive, read only."""

    contract = 1
    name = "vma"
    title = "Proxmox VE backups: one disk of an archive (read only)"
    capabilities = frozenset({"check"})
    options = (Option("device", "str", "which disk, by its name in the archive: drive-scsi0, say", when=("open",)),)

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        """The magic."""
        return 100 if data.startswith(b"VMA\0") else 0

    @hookimpl
    def open(self, request: OpenRequest) -> VmaImage:
        """An existing archive."""
        from .opening import open_vma

        return open_vma(self, request)

    @hookimpl
    def check(self, image: VmaImage, repair: str) -> CheckResult:
        """Every extent of the archive was looked at, its checksum too, when it was opened."""
        return image.check()


driver = VmaDriver()
