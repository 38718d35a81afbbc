"""What storage is built from whose bytes come, or go, once, in order: a pipe, a server that only sends whole files, an
upload."""

from __future__ import annotations

import threading
from abc import abstractmethod

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


NEAR = 4 * MiB
"""The same where two threads take what comes in turn."""


def _ring(length: int) -> memoryview:
    """Memory that is taken as it is filled."""
    import mmap

    return memoryview(mmap.mmap(-1, length))


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
        self.ended = None
        self.drained = False
        """Whether only its end tells that all that was read is right."""
        self._head = bytearray()
        self._window = _ring(WINDOW)
        self._passed = bytearray()
        self._lock = threading.Lock()

    @abstractmethod
    def more(self, length: int) -> bytes:
        """The next bytes, up to *length*; none only at the end. They begin at ``position``.

        :raises StorageError: they cannot be had.
        """

    def more_into(self, view: memoryview) -> int:
        """The next bytes, put into *view*, which has room for one at least: how many; 0 only at the end.

        A driver that has no bytes of its own to give answers this too, and saves a copy.
        """
        data = self.more(len(view))
        view[: len(data)] = data
        return len(data)

    def read_some(self, offset: int, length: int) -> bytes:
        result = bytearray()
        with self._lock:
            while length:
                part = bytearray(min(length, 4 * MiB))
                count = self._fill(offset, memoryview(part))
                result += memoryview(part)[:count]
                if count < len(part):
                    break
                offset, length = offset + count, length - count
        return bytes(result)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        with self._lock:
            count = self._fill(offset, view)
        if count < len(view):
            view[count:] = bytes(len(view) - count)

    def _fill(self, offset: int, view: memoryview) -> int:
        """Put the bytes from *offset* on into *view*: how many there are of them."""
        at, end = offset, offset + len(view)
        if at < HEAD:
            while len(self._head) < min(end, HEAD) and self._skip(HEAD - len(self._head)):
                pass
            part = memoryview(self._head)[at:end]
            view[: len(part)] = part
            at += len(part)
            if len(self._head) < min(end, HEAD):
                return len(part)
        if at < min(end, self.position):
            upto = min(end, self.position)
            self._recall(at, view[at - offset : upto - offset])
            at = upto
        while at < end and self.position < at:
            if not self._skip(at - self.position):
                return at - offset
        while at < end:
            count = self._take(view[at - offset :])
            if not count:
                break
            at += count
        return at - offset

    def _take(self, view: memoryview) -> int:
        """Let the next bytes come into *view*, and keep them for a while: how many they are; 0: there are no more."""
        count = 0 if self.ended is not None else self.more_into(view)
        if not count:
            self.ended = self.position
            return 0
        view = view[:count]
        if len(self._head) < HEAD:
            self._head += view[: HEAD - len(self._head)]
        self._remember(self.position, view)
        self.position += count
        return count

    def _remember(self, offset: int, view: memoryview) -> None:
        """Keep *view*, the bytes from *offset* on, behind which nothing is kept yet."""
        window = self._window
        length = min(len(view), len(window))
        offset, view = offset + len(view) - length, view[len(view) - length :]
        at = offset % len(window)
        first = min(length, len(window) - at)
        window[at : at + first] = view[:first]
        window[: length - first] = view[first:]

    def _skip(self, length: int) -> int:
        """Let the next bytes come, up to *length* and a MiB, for nobody yet."""
        if not self._passed:
            self._passed = bytearray(MiB)
        return self._take(memoryview(self._passed)[:length])

    def _recall(self, offset: int, view: memoryview) -> None:
        """Put what was read before into *view*.

        :raises StorageError: it is not kept any more.
        """
        window = self._window
        if offset < self.position - len(window):
            raise StorageError(
                f"{self.one_pass} cannot be read backwards: {needs_copy()}",
                file=self.name,
                place=f"read at offset {offset}",
            )
        at = offset % len(window)
        first = min(len(view), len(window) - at)
        view[:first] = window[at : at + first]
        view[first:] = window[: len(view) - first]

    def keep(self, length: int) -> None:
        """Keep but the last *length* bytes from now on: who reads in order needs no more, and a small ring stays in the
        processor's cache."""
        with self._lock:
            kept = bytearray(min(self.position, length, len(self._window)))
            self._recall(self.position - len(kept), memoryview(kept))
            self._window = _ring(length)
            self._remember(self.position - len(kept), memoryview(kept))

    def drain(self) -> None:
        """Read what is left and let it go. A driver whose bytes can be checked only at their end asks for that by
        ``drained``.

        :raises DiskmillError: what came was damaged, all of it included that was read before.
        """
        with self._lock:
            while self._skip(MiB):
                pass


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
