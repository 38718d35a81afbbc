"""The first bytes of an image whose format was guessed to be raw: they must not become those of another format.

They are a guest's to write. Were they the header of a qcow2, say, the image would be taken for one the next time, and
could name files of this machine as its backing image. (QEMU restricts such writes, too, in the first 512 bytes.)
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..contract.drivers import PROBE_BYTES
from ..contract.extents import Extent
from ..contract.node import Buffer, Node, ReadBuffer
from ..errors import UsageError

if TYPE_CHECKING:
    from ..opening.context import Context
from ..errors import said_raw


class Head(Node):
    """*file*, for writes that touch its first *length* bytes."""

    length = PROBE_BYTES

    def __init__(self, file: Node, context: Context) -> None:
        self.driver = file.driver
        self.file = file
        self.name = file.name
        self.size = file.size
        self.writable = file.writable
        self._context = context
        self._lock = threading.Lock()  # two writes that are harmless each may not be together

    def write(self, offset: int, data: ReadBuffer) -> None:
        """Put *data* at *offset*.

        :raises UsageError: a driver would take the image for one of its own then.
        """
        view = memoryview(data).cast("B")
        with self._lock:
            self._judge(offset, view[: max(self.length - offset, 0)], max(self.file.size, offset + len(view)))
            self.file.write(offset, data)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        with self._lock:
            self._judge(offset, bytes(max(min(length, self.length - offset), 0)), max(self.file.size, offset + length))
            self.file.zero(offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        with self._lock:
            self._judge(offset, bytes(max(min(length, self.length - offset), 0)), self.file.size)
            self.file.discard(offset, length)

    def judge_size(self, size: int) -> None:
        """See that the file may get *size* bytes: a header that was cut off, or is completed by zeros, is one, too.

        :raises UsageError: it may not.
        """
        if min(size, self.file.size) < self.length:
            self._judge(0, b"", size)

    def _judge(self, offset: int, data: ReadBuffer, size: int) -> None:
        """See that the file is still nobody's with *data* at *offset*, and *size* bytes long."""
        head = bytearray(self.file.read(0, min(self.length, size)))
        head[offset : offset + len(data)] = data
        del head[size:]
        format = self._context.registry.looks_like(bytes(head), self.name)
        if format not in (None, "raw"):
            raise UsageError(
                "that it is raw was guessed, and with what is to be written at its start it would be taken for "
                f"{format}: say that it is raw ({said_raw()}, or driver=raw in an option string) to write it",
                file=self.name,
            )

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        return self.file.extents(offset, length)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        self.file.read_into(offset, buffer)

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        """The file is closed by the image that stands on it."""
