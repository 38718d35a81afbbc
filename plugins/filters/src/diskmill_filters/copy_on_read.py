"""The filter ``copy-on-read``: what an image reads from its backing chain, it keeps.

See the QEMU manual, "copy-on-read". It stands on an image that is open for writing, as QEMU's does.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from diskmill.contract.drivers import FilterDriver, hookimpl
from diskmill.contract.extents import Kind
from diskmill.contract.node import Image
from diskmill.errors import UsageError
from diskmill.kit.filter import Filter

if TYPE_CHECKING:
    from diskmill.contract.node import Buffer, ReadBuffer
    from diskmill.contract.requests import OpenRequest


class CopyOnRead(Filter):
    """*file*, an image that is written while it is read."""

    file: Image

    def __init__(self, driver: CopyOnReadDriver, file: Image) -> None:
        super().__init__(driver, file)
        self._lock = threading.Lock()  # a copy of what was read must not overtake a write

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        image = self.file
        with self._lock:
            image.read_into(offset, view)
            inside = max(min(len(view), image.size - offset), 0)
            holes = [one for one in image.extents(offset, inside) if one.kind is Kind.HOLE]
            recording, image.recording = image.recording, False  # the guest reads the same as before
            try:
                for hole in holes:
                    image.file.event("cor_write")
                    image.write(hole.start, view[hole.start - offset : hole.end - offset])
            finally:
                image.recording = recording

    def write(self, offset: int, data: ReadBuffer) -> None:
        with self._lock:
            super().write(offset, data)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        with self._lock:
            super().zero(offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        with self._lock:
            super().discard(offset, length)


class CopyOnReadDriver(FilterDriver):
    """``copy-on-read``."""

    contract = 1
    name = "copy-on-read"
    title = "lets an image keep what it reads from its backing chain"

    @hookimpl
    def open(self, request: OpenRequest) -> Filter:
        """The image below."""
        file = request.below()
        if not request.writable:
            raise UsageError("Block node is read-only: copy-on-read would write it", file=request.name)
        return CopyOnRead(self, file) if isinstance(file, Image) else Filter(self, file)


driver = CopyOnReadDriver()
