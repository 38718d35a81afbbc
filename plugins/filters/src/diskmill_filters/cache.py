"""The filter ``cache``: blocks that were read once are kept in an unnamed temporary file. Writes go through.

Options as those of nbdkit-cache-filter(1).
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from diskmill.contract.drivers import FilterDriver, hookimpl
from diskmill.contract.options import Option
from diskmill.errors import StorageError, UsageError
from diskmill.kit.filter import Filter
from diskmill.sizes import KiB, MiB

if TYPE_CHECKING:
    from diskmill.contract.node import Buffer, Node, ReadBuffer
    from diskmill.contract.requests import OpenRequest


class Cache(Filter):
    """*file*, of which up to *room* blocks of *block* bytes are kept; those unused for longest go first."""

    def __init__(self, driver: CacheDriver, file: Node, block: int, room: int) -> None:
        super().__init__(driver, file)
        self._block, self._room = block, room
        self._slots: OrderedDict[int, int] = OrderedDict()  # number of a block → its place in the temporary file
        self._free: list[int] = []
        self._kept = tempfile.TemporaryFile(prefix="diskmill-")  # noqa: SIM115 - it lives as long as this object
        self._lock = threading.Lock()

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        at, end = offset, offset + len(view)
        with self._lock:
            while at < end:
                number, skip = divmod(at, self._block)
                part = view[at - offset : min((number + 1) * self._block, end) - offset]
                part[:] = memoryview(self._content(number))[skip : skip + len(part)]
                at += len(part)

    def _content(self, number: int) -> bytes:
        """The block *number*, out of the temporary file or into it."""
        slot = self._slots.get(number)
        try:
            if slot is not None:
                self._slots.move_to_end(number)
                data = os.pread(self._kept.fileno(), self._block, slot * self._block)
                if len(data) == self._block:
                    return data
                self._free.append(self._slots.pop(number))
            data = self.file.read(number * self._block, self._block)
            if len(self._slots) == self._room:
                self._free.append(self._slots.popitem(last=False)[1])
            slot = self._free[-1] if self._free else len(self._slots)
            os.pwrite(self._kept.fileno(), data, slot * self._block)
            if self._free:
                self._free.pop()
        except OSError as error:
            raise StorageError.from_os(error, "the cache's temporary file") from None
        self._slots[number] = slot
        return data

    def write(self, offset: int, data: ReadBuffer) -> None:
        with self._lock:
            self._drop(offset, offset + len(data))
            super().write(offset, data)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        with self._lock:
            self._drop(offset, offset + length)
            super().zero(offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        with self._lock:
            self._drop(offset, offset + length)
            super().discard(offset, length)

    def truncate(self, size: int) -> None:
        with self._lock:
            self._drop(min(size, self.size), max(size, self.size))
            super().truncate(size)

    def _drop(self, start: int, end: int) -> None:
        """What is kept of bytes *start* to *end* is about to change."""
        first, last = start // self._block, -(-end // self._block)
        numbers = range(first, last) if last - first < len(self._slots) else list(self._slots)
        for number in numbers:
            if first <= number < last and number in self._slots:
                self._free.append(self._slots.pop(number))

    def close(self) -> None:
        self._kept.close()
        super().close()

    def abandon(self) -> None:
        self._kept.close()
        super().abandon()


class CacheDriver(FilterDriver):
    """``cache``."""

    contract = 1
    name = "cache"
    title = "keeps what was read in a temporary file"
    options = (
        Option("cache-min-block-size", "size", "bytes that are read and kept together", 64 * KiB, when=("open",)),
        Option("cache-max-size", "size", "bytes that are kept at most", 256 * MiB, when=("open",)),
    )

    @hookimpl
    def open(self, request: OpenRequest) -> Cache:
        """The node below."""
        block, most = int(request.options["cache-min-block-size"]), int(request.options["cache-max-size"])
        if not 4 * KiB <= block <= 2 * MiB or block & (block - 1):
            raise UsageError("the option 'cache-min-block-size' is a power of two, 4k to 2M", file=request.name)
        if most < block:
            raise UsageError("the option 'cache-max-size' is at least a block", file=request.name)
        return Cache(self, request.below(), block, most // block)


driver = CacheDriver()
