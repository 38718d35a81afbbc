"""The ``sample`` protocol: ``sample:PATH``, a file that is read. FILL IN: where the bytes really come from."""

from __future__ import annotations

import os

from diskmill.contract.drivers import ProtocolDriver, hookimpl
from diskmill.contract.node import Buffer, Storage
from diskmill.contract.requests import OpenRequest
from diskmill.errors import StorageError


class SampleStorage(Storage):
    """Bytes by offset."""

    def __init__(self, driver: SampleDriver, name: str) -> None:
        self.driver, self.name = driver, name
        try:  # FILL IN: connect, and learn the size
            self.file = os.open(name.removeprefix("sample:"), os.O_RDONLY)
            self.size = os.lseek(self.file, 0, os.SEEK_END)
        except OSError as error:
            raise StorageError.from_os(error, name) from None

    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill *buffer*; what lies behind the end reads as zeros. Several threads call it at once."""
        view = memoryview(buffer).cast("B")
        done = 0
        try:
            while done < len(view) and (count := os.preadv(self.file, [view[done:]], offset + done)):
                done += count
        except OSError as error:
            raise StorageError.from_os(error, self.name, f"read at offset {offset}") from None
        view[done:] = bytes(len(view) - done)

    def identity(self) -> object:
        """Equal for two that are the same file."""
        found = os.fstat(self.file)
        return found.st_dev, found.st_ino

    def close(self) -> None:
        """Twice is harmless."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


class SampleDriver(ProtocolDriver):
    """``sample``: see diskmill's page "Writing a driver"."""

    contract = 1
    name = "sample"
    title = "sample storage"  # FILL IN
    prefixes = ("sample",)

    @hookimpl
    def open(self, request: OpenRequest) -> SampleStorage:
        """What the user named."""
        return SampleStorage(self, request.name)


driver = SampleDriver()
