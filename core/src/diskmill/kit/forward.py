"""What storage is built from whose bytes come, or go, once, in order: a pipe, a server that only sends whole files, an
upload."""

from __future__ import annotations

from abc import abstractmethod

from ..contract.drivers import ProtocolDriver
from ..contract.node import Buffer, ReadBuffer, Requests, Storage
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


class ForwardOutput(Storage):
    """A new output whose bytes are taken once, in order: an upload. A driver answers :meth:`append`, and settles it
    after :meth:`finish`.

    What is skipped reads as zeros, and is sent as such when something comes behind it.
    """

    forward = True
    writable = True
    requests = Requests(best=MiB, at_once=1)

    def __init__(self, driver: ProtocolDriver, name: str) -> None:
        self.driver = driver
        self.name = name
        self.size = 0
        self.position = 0
        """Where the next byte that is taken belongs."""

    @abstractmethod
    def append(self, data: ReadBuffer) -> None:
        """Take *data*, which belongs at ``position``; the buffer is the caller's again afterwards.

        :raises StorageError: it cannot be taken.
        """

    def write(self, offset: int, data: ReadBuffer) -> None:
        view = memoryview(data).cast("B")
        if not len(view):
            return
        if offset < self.position:
            raise StorageError(
                f"{self.one_pass} cannot be written backwards", file=self.name, place=f"write at offset {offset}"
            )
        self._fill(offset)
        self.append(view)
        self.position = offset + len(view)
        self.size = max(self.size, self.position)

    def _fill(self, upto: int) -> None:
        """Send zeros up to the offset *upto*."""
        zeros = memoryview(bytes(min(upto - self.position, MiB)))
        while self.position < upto:
            part = zeros[: upto - self.position]
            self.append(part)
            self.position += len(part)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Nothing need be done for what is still to come."""
        end = offset + length
        if offset < self.position and length:
            raise StorageError(
                f"{self.one_pass} cannot be written backwards", file=self.name, place=f"zero at offset {offset}"
            )
        self.size = max(self.size, end)

    def truncate(self, size: int) -> None:
        if size < self.position:
            raise StorageError(
                f"{self.one_pass} cannot be made shorter", file=self.name, place=f"set the size to {size} bytes"
            )
        self.size = size

    def allocate(self, offset: int, length: int, mode: str) -> None:
        """All of it takes space anyway."""
        self.size = max(self.size, offset + length)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        raise StorageError(f"{self.one_pass} cannot be read back", file=self.name, place=f"read at offset {offset}")

    def flush(self) -> None:
        """What was sent is on its way. That it has arrived is known once the output is settled."""

    def finish(self) -> None:
        """Send what is missing up to the size."""
        self._fill(self.size)
