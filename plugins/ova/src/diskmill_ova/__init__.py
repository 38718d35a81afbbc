"""Disks in archives: OVA packages and other tar files, and OVF descriptors with their disks beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.contract.drivers import FormatDriver, hookimpl
from diskmill.contract.options import Option

if TYPE_CHECKING:
    from diskmill.contract.node import Image
    from diskmill.contract.requests import CreateRequest, MeasureRequest, OpenRequest
    from diskmill.contract.results import CheckResult, Measurement


class OvaDriver(FormatDriver):
    """``ova``: a tar file with a disk in it, read in place, and written with a descriptor and a manifest; and a
    descriptor whose disk lies beside it."""

    contract = 1
    name = "ova"
    title = "disks in OVA, OVF and tar"
    capabilities = frozenset({"create", "check", "zero", "pipe", "archive"})
    options = (
        Option("disk", "str", "which of several disks: the name of its file, or its number from 1 on", when=("open",)),
        Option("compression_level", "int", "1 to 9 of zlib; by default a fast one"),
    )

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        """By tar's magic, which stands behind the name of the first file; of a descriptor, by its namespace."""
        if data[257:262] == b"ustar":
            return 80
        return 90 if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<") and b"/ovf/envelope" in data else 0

    @hookimpl
    def open(self, request: OpenRequest) -> Image:
        """The disk in an archive, or beside a descriptor."""
        from .archive import is_archive
        from .described import open_ovf
        from .image import open_ova

        return (open_ova if is_archive(request.below()) else open_ovf)(self, request)

    @hookimpl
    def create(self, request: CreateRequest) -> Image:
        """A new package, with an empty disk."""
        from .create import create_ova

        return create_ova(self, request)

    @hookimpl
    def check(self, image: Image, repair: str) -> CheckResult:
        """The digests of the manifest, by reading all of it."""
        from .checking import check_ova

        return check_ova(image)

    @hookimpl
    def measure(self, request: MeasureRequest) -> Measurement:
        """At most so many bytes."""
        from .create import measure_ova

        return measure_ova(request)


driver = OvaDriver()
