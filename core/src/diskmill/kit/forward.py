"""What storage is built from whose bytes come once, in order: a pipe, a server that only sends whole files."""

from __future__ import annotations

from abc import abstractmethod

from ..contract.drivers import ProtocolDriver
from ..contract.node import Buffer, Storage
from ..errors import StorageError
from ..sizes import MAX_SIZE, KiB, MiB

HEAD = 64 * KiB
"""Bytes at the start that can be read again: headers are looked at more than once."""


class ForwardStorage(Storage):
    """Bytes that come once; ``size`` is the largest there is where it is not known. A driver answers :meth:`more`."""

    forward = True

    def __init__(self, driver: ProtocolDriver, name: str) -> None:
        self.driver = driver
        self.name = name
        self.size = MAX_SIZE
        self.position = 0
        """Where the next byte that comes belongs."""
        self._head = b""

    @abstractmethod
    def more(self, length: int) -> bytes:
        """The next bytes, up to *length*; none only at the end. They begin at ``position``.

        :raises StorageError: they cannot be had.
        """

    def read_some(self, offset: int, length: int) -> bytes:
        if offset < HEAD:
            self._fill_head(min(offset + length, HEAD))
            if offset + length <= HEAD or len(self._head) < HEAD:
                return self._head[offset : offset + length]
        result = bytearray(self._head[offset:])
        if offset + len(result) < self.position:
            raise StorageError(
                f"{self.one_pass} cannot be read backwards", file=self.name, place=f"read at offset {offset}"
            )
        while self.position < offset:  # skip
            if not self._next(min(offset - self.position, MiB)):
                return b""
        while len(result) < length:
            data = self._next(length - len(result))
            if not data:
                break
            result += data
        return bytes(result)

    def _fill_head(self, upto: int) -> None:
        while len(self._head) < upto:
            data = self._next(upto - len(self._head))
            if not data:
                return
            self._head += data

    def _next(self, length: int) -> bytes:
        data = self.more(length)
        self.position += len(data)
        return data

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer)
        data = self.read_some(offset, len(view))
        view[: len(data)] = data
        view[len(data) :] = bytes(len(view) - len(data))
