"""The filter ``preallocate``: claims space ahead of what is written at the end of the node below, in large pieces.

What was claimed is given back when it is closed. See the QEMU documentation, "preallocate", and
``BlockdevOptionsPreallocate`` in its ``qapi/block-core.json``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from diskmill.contract.drivers import FilterDriver, hookimpl
from diskmill.contract.extents import Extent, Kind
from diskmill.contract.options import Option
from diskmill.errors import DiskmillError, StorageError, UnsupportedError, UsageError
from diskmill.kit.filter import Filter
from diskmill.sizes import MiB, round_up

if TYPE_CHECKING:
    from diskmill.contract.node import Node, ReadBuffer, Storage
    from diskmill.contract.requests import OpenRequest


class Preallocate(Filter):
    """*file*, which is made longer by *ahead* bytes more than is written, up to a multiple of *align*."""

    def __init__(self, driver: PreallocateDriver, file: Node, ahead: int, align: int) -> None:
        super().__init__(driver, file)
        self._ahead, self._align = ahead, align
        self._end = file.size
        self._claims = ahead > 0
        self._closed = False
        self._lock = threading.Lock()

    @property
    def size(self) -> int:  # type: ignore[override]
        """Where what was written ends: what was claimed beyond is nobody's."""
        return self._end

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        inside = max(min(length, self._end - offset), 0)
        yield from super().extents(offset, inside)
        if inside < length:
            yield Extent(offset + inside, length - inside, Kind.ZERO, self, offset + inside)

    def _reach(self, end: int) -> None:
        """Something is about to be written up to *end*."""
        with self._lock:
            claimed = self.file.size
            if end > claimed and self._claims:
                try:
                    self.file.allocate(claimed, round_up(end + self._ahead, self._align) - claimed, "falloc")
                except (UnsupportedError, StorageError):
                    self._claims = False  # the write itself tells whether there is space
            self._end = max(self._end, end)

    def write(self, offset: int, data: ReadBuffer) -> None:
        if len(data):
            self._reach(offset + len(data))
        super().write(offset, data)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        if length:
            self._reach(offset + length)
        super().zero(offset, length, unmap=unmap)

    def truncate(self, size: int) -> None:
        with self._lock:
            self.file.truncate(size)
            self._end = size

    def allocate(self, offset: int, length: int, mode: str) -> None:
        with self._lock:
            if self.file.size > self._end:
                self.file.truncate(self._end)  # else what was claimed is taken for what was there
            super().allocate(offset, length, mode)
            self._end = self.file.size

    def _give_back(self) -> None:
        with self._lock:
            if self.writable and self.file.size > self._end:
                self.file.truncate(self._end)

    def settle(self, others: Sequence[Storage] = ()) -> None:
        self._give_back()
        super().settle(others)

    def close(self) -> None:
        try:
            if not self._closed:
                self._give_back()
        finally:
            self._closed = True
            super().close()

    def abandon(self) -> None:
        if self.settled and not self._closed:  # it stays, and some formats go by where it ends
            with suppress(DiskmillError):
                self._give_back()
        self._closed = True
        super().abandon()


class PreallocateDriver(FilterDriver):
    """``preallocate``."""

    contract = 1
    name = "preallocate"
    title = "claims space ahead of what is written at the end"
    options = (
        Option("prealloc-align", "size", "what is claimed ends at a multiple of this", default=MiB, when=("open",)),
        Option("prealloc-size", "size", "bytes to claim ahead", default=128 * MiB, when=("open",)),
    )

    @hookimpl
    def open(self, request: OpenRequest) -> Preallocate:
        """The node below, which grows in large steps."""
        ahead, align = int(request.options["prealloc-size"]), int(request.options["prealloc-align"])
        if align < 512 or align % 512:
            raise UsageError(f"prealloc-align {align} is not a multiple of 512", file=request.name)
        return Preallocate(self, request.below(), ahead, align)


driver = PreallocateDriver()
