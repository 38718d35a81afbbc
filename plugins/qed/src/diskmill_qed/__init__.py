"""The QED format: QEMU's "enhanced disk", two levels of tables and no reference counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diskmill.contract.drivers import FormatDriver, hookimpl
from diskmill.contract.options import Option
from diskmill.sizes import KiB

if TYPE_CHECKING:
    from diskmill.contract.options import Value
    from diskmill.contract.requests import CreateRequest, MeasureRequest, OpenRequest
    from diskmill.contract.results import CheckResult, Measurement

    from .image import QedImage


class QedDriver(FormatDriver):
    """``qed``."""

    contract = 1
    name = "qed"
    title = "QEMU's enhanced disk format"
    capabilities = frozenset({"create", "write", "backing", "zero", "check", "repair", "resize"})
    options = (
        Option("cluster_size", "size", "bytes in a cluster: a power of two from 4k to 64M", default=64 * KiB),
        Option("table_size", "size", "clusters in an L1 or L2 table: 2, 4, 8 or 16", default=4),
    )

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        """By magic."""
        return 100 if data.startswith(b"QED\0") and len(data) >= 64 else 0

    @hookimpl
    def open(self, request: OpenRequest) -> QedImage:
        """An existing image."""
        from .image import open_qed

        return open_qed(self, request)

    @hookimpl
    def create(self, request: CreateRequest) -> QedImage:
        """An empty image."""
        from .image import create_qed

        return create_qed(self, request)

    @hookimpl
    def preflight(self, image: QedImage, action: str, options: Mapping[str, Any]) -> bool | None:
        """Whether the header has room for the name of another backing file."""
        if action == "amend":
            image.room_for(str(options["options"].get("backing_file", "")))
        return True if action in ("amend", "empty") else None

    @hookimpl
    def amend(self, image: QedImage, options: Mapping[str, Value], force: bool) -> bool:
        """Another backing file, for rebase. Nothing else can be changed."""
        image.change_backing(str(options.get("backing_file", "")), str(options.get("backing_fmt", "")))
        return True

    @hookimpl
    def empty(self, image: QedImage) -> bool:
        """Nothing of its own: the backing image shows."""
        image.begin()
        image.drop_blocks()
        return True

    @hookimpl
    def resize(self, image: QedImage, size: int, preallocation: str) -> bool:
        """Grow."""
        image.grow(size)
        return True

    @hookimpl
    def check(self, image: QedImage, repair: str) -> CheckResult:
        """Every entry of the tables, overlaps, leaks, and the mark of an image that was not closed cleanly."""
        from .check import check

        return check(image, repair)

    @hookimpl
    def measure(self, request: MeasureRequest) -> Measurement:
        """Header, all tables and clusters."""
        from .image import measure_qed

        return measure_qed(request)


driver = QedDriver()
