"""The filter ``compress``: what is written is stored compressed.

See the QEMU manual, "compress". Writes of part of a cluster, and of clusters that have data, are taken here too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.contract.drivers import FilterDriver, hookimpl
from diskmill.contract.node import Image
from diskmill.errors import UnsupportedError
from diskmill.kit.filter import Filter

if TYPE_CHECKING:
    from diskmill.contract.node import Node, ReadBuffer
    from diskmill.contract.requests import OpenRequest


class Compress(Filter):
    """*file*, an image whose units are written compressed, whole."""

    file: Image

    def __init__(self, driver: CompressDriver, file: Image) -> None:
        super().__init__(driver, file)
        self._encoder = file.encoder()

    def write(self, offset: int, data: ReadBuffer) -> None:
        view, image = memoryview(data).cast("B"), self.file
        unit, end = image.unit, offset + len(view)
        start = offset - offset % unit
        for at in range(start, end, unit):
            low, high = max(at, offset), min(at + unit, end)
            with image.writing(at, unit):
                whole = view[low - offset : high - offset]
                if high - low < min(unit, image.size - at):
                    own = bytearray(unit)
                    image.read_into(at, own)
                    own[low - at : high - at] = whole
                    whole = memoryview(own)[: image.size - at]
                self._put(at, whole)

    def _put(self, at: int, data: memoryview) -> None:
        """Store *data*, the unit at *at*, or what the disk has of it."""
        image = self.file
        whole = data if len(data) == image.unit else memoryview(bytes(data).ljust(image.unit, b"\0"))
        payload = self._encoder.encode(at, whole)
        if payload is None:  # it would be no smaller
            image.write(at, data)
            return
        with image.lock:
            (place,) = image.reserve_encoded([(at, len(whole), len(payload))])
        place.node.event("write_compressed")
        place.node.write(place.offset, payload)
        with image.lock:
            image.publish([place])


class CompressDriver(FilterDriver):
    """``compress``."""

    contract = 1
    name = "compress"
    title = "stores what is written compressed"

    @hookimpl
    def open(self, request: OpenRequest) -> Filter:
        """The image below."""
        file: Node = request.below()
        if not isinstance(file, Image) or "compression" not in file.driver.capabilities:
            raise UnsupportedError(
                f"Compression is not supported for underlying format: {file.driver.name}", file=request.name
            )
        return Compress(self, file) if request.writable else Filter(self, file)


driver = CompressDriver()
