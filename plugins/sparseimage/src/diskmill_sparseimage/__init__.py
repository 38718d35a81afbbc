"""Apple's sparse images: in one file (``.sparseimage``), or as a folder of bands (``.sparsebundle``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.contract.drivers import FormatDriver, hookimpl

if TYPE_CHECKING:
    from diskmill.contract.requests import OpenRequest
    from diskmill.contract.results import CheckResult

    from .image import BandImage


class SparseimageDriver(FormatDriver):
    """``sparseimage``: read only."""

    contract = 1
    name = "sparseimage"
    title = "Apple's sparse images and bundles: hdiutil (read only)"
    capabilities = frozenset({"check"})

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        """The magic of the file; the type that the property list of a bundle names."""
        if data.startswith(b"sprs"):
            return 100
        return 100 if b"<plist" in data and b"com.apple.diskimage.sparsebundle" in data else 0

    @hookimpl
    def open(self, request: OpenRequest) -> BandImage:
        """A sparse image, or the property list of a sparse bundle."""
        if request.below().read_some(0, 4) == b"sprs":
            from .image import open_sparseimage

            return open_sparseimage(self, request)
        from .bundle import open_bundle

        return open_bundle(self, request)

    @hookimpl
    def check(self, image: BandImage, repair: str) -> CheckResult:
        """Whether all bands are there, whole: the formats have no checksums."""
        return image.check()


driver = SparseimageDriver()
