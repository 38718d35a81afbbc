"""Fixed images that come once, in order: the disk's bytes, and at the end the footer that says what they were."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.contract.node import ReadBuffer, Storage
from diskmill.errors import ImageError, UnsupportedError
from diskmill.kit.forward import ForwardStorage, needs_copy
from diskmill.kit.window import WindowImage
from diskmill.sizes import SECTOR

from .c_vhd import COOKIE, FIXED, FOOTER, GROWING, checksum
from .image import disk_size

if TYPE_CHECKING:
    from diskmill.contract.requests import OpenRequest

    from . import VpcDriver


class Disk(ForwardStorage):
    """*file* without the footer at its end, which is looked at when it comes."""

    one_pass = "a pipe"

    def __init__(self, file: Storage, name: str) -> None:
        super().__init__(file.driver, name, None if file.unsized else max(file.size - SECTOR, 0))
        self.one_pass = file.one_pass
        self.drained = True
        self.place, self.charged = file.place, file.charged
        self._file = file
        self._at = 0
        self._held = b""

    def more(self, length: int) -> bytes:
        """The next bytes but for the last sector of what has come."""
        while True:
            data = self._file.read_some(self._at, length)
            if not data:
                self._judge()
                return b""
            self._at += len(data)
            held = self._held + data
            self._held = held[-SECTOR:]
            if len(held) > SECTOR:
                return held[:-SECTOR]

    def _judge(self) -> None:
        """See that a footer came last, and is that of the disk which came before it.

        :raises ImageError: it is not. UnsupportedError: it says that the disk ends earlier.
        """
        place = f"offset {self.position}"
        footer = FOOTER.unpack(self._held.ljust(SECTOR, b"\0"))
        if footer.cookie != COOKIE or footer.disk_type != FIXED or footer.checksum != checksum(FOOTER, footer):
            raise ImageError("it does not end with the footer of a fixed VHD image", file=self.name, place=place)
        if bytes(footer.reserved).startswith(GROWING) or disk_size(footer)[0] != self.position:
            text = f"by its footer the disk is another than the {self.position} bytes that came: {needs_copy()}"
            raise UnsupportedError(text, file=self.name)

    def write(self, offset: int, data: ReadBuffer) -> None:
        raise UnsupportedError(f"{self.one_pass} can only be read", file=self.name)

    def interrupt(self) -> None:
        self._file.interrupt()

    def identity(self) -> object | None:
        return self._file.identity()

    def close(self) -> None:
        self._file.close()


def open_stream(driver: VpcDriver, request: OpenRequest, file: Storage) -> WindowImage:
    """The fixed image that comes in *file*, whose footer nobody has seen yet.

    :raises UnsupportedError: it is a dynamic one.
    """
    if file.read_some(0, len(COOKIE)) == COOKIE:
        text = f"a dynamic VHD image cannot be read from {file.one_pass}: {needs_copy()}"
        raise UnsupportedError(text, file=request.name)
    disk = Disk(file, request.name)
    image = WindowImage(driver, disk, name=request.name, size=disk.size // SECTOR * SECTOR, writable=False)
    image.unsized = disk.unsized
    return image
