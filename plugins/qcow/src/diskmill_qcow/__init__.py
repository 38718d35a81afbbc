"""qcow, the first version of QEMU's own format: for old images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.contract.crypto import CRYPTO_OPTIONS
from diskmill.contract.drivers import FormatDriver, hookimpl
from diskmill.contract.options import Option
from diskmill.records import replace

if TYPE_CHECKING:
    from diskmill.contract.requests import CreateRequest, MeasureRequest, OpenRequest
    from diskmill.contract.results import Measurement

    from .image import QcowImage


class QcowDriver(FormatDriver):
    """``qcow``."""

    contract = 1
    name = "qcow"
    title = "version 1 of QEMU's own format"
    capabilities = frozenset({"create", "write", "backing", "compression", "zero", "encryption"})
    options = (
        Option("encryption", "bool", "encrypt with format aes; the old name of encrypt.format=aes", default=False),
        Option("encrypt.format", "str", "how the image is encrypted", choices=("aes",), when=("create", "open")),
        *(replace(option, name=f"encrypt.{option.name}") for option in CRYPTO_OPTIONS if option.name == "key-secret"),
    )

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        """By magic and version."""
        return 100 if data.startswith(b"QFI\xfb\0\0\0\1") else 0

    @hookimpl
    def open(self, request: OpenRequest) -> QcowImage:
        """An existing image."""
        from .image import open_qcow

        return open_qcow(self, request)

    @hookimpl
    def create(self, request: CreateRequest) -> QcowImage:
        """An empty image."""
        from .image import create_qcow

        return create_qcow(self, request)

    @hookimpl
    def empty(self, image: QcowImage) -> bool:
        """Nothing of its own: the backing image shows."""
        image.drop_blocks()
        return True

    @hookimpl
    def measure(self, request: MeasureRequest) -> Measurement:
        """Header, tables and clusters."""
        from .image import measure_qcow

        return measure_qcow(request)


driver = QcowDriver()
