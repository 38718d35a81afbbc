"""What storage is built from whose bytes come, or go, once, in order: a pipe, a server that only sends whole files, an
upload."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections import deque

from ..contract.drivers import Driver
from ..contract.node import Buffer, Image, Node, ReadBuffer, Requests, Storage
from ..errors import StorageError, said
from ..sizes import MAX_SIZE, KiB, MiB

HEAD = 64 * KiB
"""Bytes at the start that can be read again: headers are looked at more than once."""
WINDOW = 32 * MiB
"""Bytes before ``position`` that can be read again: what 16 workers have taken and not read yet, and clusters that a
writer put down out of order."""


def needs_copy() -> str:
    """What helps where one pass is not enough, for messages."""
    return f"let a temporary copy be made ({said('Context(spool=…)', '--spool')}), or save it to a file first"


class ForwardStorage(Storage):
    """Bytes that come once. A driver answers :meth:`more`.

    :param size: how many will come; None: nobody knows.
    """

    forward = True

    def __init__(self, driver: Driver, name: str, size: int | None = None) -> None:
        self.driver = driver
        self.name = name
        self.size = MAX_SIZE if size is None else size
        self.unsized = size is None
        self.position = 0
        """Where the next byte that comes belongs."""
        self.end: int | None = None
        """Where the bytes ended, once that was seen."""
        self.drained = False
        """Whether only its end tells that all that was read is right."""
        self._head = bytearray()
        self._window: deque[tuple[int, bytes]] = deque()
        self._lock = threading.Lock()

    @abstractmethod
    def more(self, length: int) -> bytes:
        """The next bytes, up to *length*; none only at the end. They begin at ``position``.

        :raises StorageError: they cannot be had.
        """

    def read_some(self, offset: int, length: int) -> bytes:
        result = bytearray()
        with self._lock:
            if offset < HEAD:
                while len(self._head) < min(offset + length, HEAD) and self._next(HEAD - len(self._head)):
                    pass
                result += self._head[offset : offset + length]
                offset, length = offset + len(result), length - len(result)
            if length and offset < self.position:
                result += self._kept(offset, min(length, self.position - offset))
                length -= min(length, self.position - offset)
                offset = self.position
            while length and self.position < offset:  # skip
                if not self._next(min(offset - self.position, MiB)):
                    return bytes(result)
            while length:
                data = self._next(min(length, MiB))
                if not data:
                    break
                result += data
                length -= len(data)
        return bytes(result)

    def _kept(self, offset: int, length: int) -> bytearray:
        """What was read before, as far as it is kept.

        :raises StorageError: it is not.
        """
        if not self._window or offset < self._window[0][0]:
            raise StorageError(
                f"{self.one_pass} cannot be read backwards: {needs_copy()}",
                file=self.name,
                place=f"read at offset {offset}",
            )
        result = bytearray()
        for start, data in self._window:
            low, high = max(offset - start, 0), min(offset + length - start, len(data))
            if low < high:
                result += memoryview(data)[low:high]
        return result

    def _next(self, length: int) -> bytes:
        data = b"" if self.end is not None else self.more(length)
        if not data:
            self.end = self.position
            return data
        if len(self._head) < HEAD:
            self._head += data[: HEAD - len(self._head)]
        self._window.append((self.position, data))
        self.position += len(data)
        while self._window[0][0] + len(self._window[0][1]) < self.position - WINDOW:
            self._window.popleft()
        return data

    def drain(self) -> None:
        """Read what is left and let it go. A driver whose bytes can be checked only at their end asks for that by
        ``drained``.

        :raises DiskmillError: what came was damaged, all of it included that was read before.
        """
        with self._lock:
            while self._next(MiB):
                pass

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer)
        data = self.read_some(offset, len(view))
        view[: len(data)] = data
        view[len(data) :] = bytes(len(view) - len(data))


def drain(image: Image) -> None:
    """See that what was read of *image* is right, where its files tell that at their end only, behind all that an image
    needs of them: the checksum of a compressed file.

    :raises DiskmillError: it is not.
    """
    for storage in image.leaves():
        if isinstance(storage, ForwardStorage) and storage.drained:
            storage.drain()


def foretell(file: Node, size: int) -> None:
    """Tell *file*, where it goes forward, before its first byte, that it will have *size* bytes in the end.

    Some services want to know that first. A format driver whose request has a ``layout`` can tell.
    """
    if isinstance(file, ForwardOutput):
        file.total = size


_HELD = 4096
"""Zeros at the end of what was written that are not sent before something comes behind them."""


class ForwardOutput(Storage):
    """A new output whose bytes are taken once, in order: an upload. A driver answers :meth:`append`, and settles it
    after :meth:`finish`.

    What is skipped reads as zeros, and is sent as such when something comes behind it.
    """

    forward = True
    writable = True
    requests = Requests(best=MiB, at_once=1)

    def __init__(self, driver: Driver, name: str) -> None:
        self.driver = driver
        self.name = name
        self.size = 0
        self.position = 0
        """Where the next byte that is taken belongs."""
        self.total: int | None = None
        """Bytes that it will have in the end, where that was foretold."""

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
        self.size = max(self.size, offset + len(view))
        tail = bytes(view[-_HELD:])  # zeros at its end wait: a copy rounds up, and the disk's end takes that back
        view = view[: len(view) - len(tail) + len(tail.rstrip(b"\0"))]
        if len(view):
            self.append(view)
            self.position = offset + len(view)

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
