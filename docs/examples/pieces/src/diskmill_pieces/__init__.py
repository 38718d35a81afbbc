"""Files in pieces, ``disk.000``, ``disk.001`` and so on, as one, named ``pieces:disk``."""

from __future__ import annotations

import os

from diskmill.contract.drivers import ProtocolDriver, hookimpl
from diskmill.contract.node import Buffer, Storage
from diskmill.contract.requests import OpenRequest
from diskmill.errors import StorageError


class Pieces(Storage):
    def __init__(self, driver: ProtocolDriver, name: str) -> None:
        self.driver, self.name, self.size = driver, name, 0
        self.parts: list[tuple[int, int]] = []
        while os.path.isfile(path := f"{name.removeprefix('pieces:')}.{len(self.parts):03}"):
            self.parts.append((self.size, os.open(path, os.O_RDONLY)))
            self.size += os.path.getsize(path)
        if not self.parts:
            raise StorageError("No such file or directory", file=f"{name}.000")

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        view[:] = bytes(len(view))  # what lies behind the end reads as zeros
        for start, file in self.parts:  # each gives what it has, and the next one goes on from its own start
            os.preadv(file, [view[max(start - offset, 0) :]], max(offset - start, 0))

    def identity(self) -> object:
        return os.fstat(self.parts[0][1]).st_dev, os.fstat(self.parts[0][1]).st_ino

    def close(self) -> None:
        while self.parts:  # twice is harmless
            os.close(self.parts.pop()[1])


class PiecesDriver(ProtocolDriver):
    contract, name, prefixes = 1, "pieces", ("pieces",)

    @hookimpl
    def open(self, request: OpenRequest) -> Pieces:
        return Pieces(self, request.name)


driver = PiecesDriver()
