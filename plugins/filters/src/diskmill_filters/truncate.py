"""The filter ``truncate``: the node below with another size, cut off or padded with zeros.

Options as those of nbdkit-truncate-filter(1). Padding is in no file: zeros can be written there, and nothing else.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

from diskmill.contract.drivers import FilterDriver, hookimpl
from diskmill.contract.extents import Extent, Kind
from diskmill.contract.options import Option
from diskmill.errors import StorageError, UnsupportedError, UsageError
from diskmill.kit.filter import Filter
from diskmill.sizes import MAX_SIZE, round_down, round_up

if TYPE_CHECKING:
    from diskmill.contract.node import Buffer, Node, ReadBuffer
    from diskmill.contract.requests import OpenRequest


class Truncate(Filter):
    """*file* as if it had *size* bytes."""

    def __init__(self, driver: TruncateDriver, file: Node, size: int) -> None:
        super().__init__(driver, file)
        self._size = size

    @property
    def size(self) -> int:  # type: ignore[override]
        """Bytes, the padding included."""
        return self._size

    def _inside(self, offset: int, length: int) -> int:
        """How many bytes of the range the node below has."""
        return max(min(length, self.file.size - offset, self._size - offset), 0)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        inside = self._inside(offset, length)
        yield from super().extents(offset, inside)
        if inside < length:
            yield Extent(offset + inside, length - inside, Kind.ZERO, self, offset + inside)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        inside = self._inside(offset, len(view))
        if inside:
            super().read_into(offset, view[:inside])
        view[inside:] = bytes(len(view) - inside)

    def write(self, offset: int, data: ReadBuffer) -> None:
        view = memoryview(data).cast("B")
        inside = self._inside(offset, len(view))
        if any(view[inside:]):
            raise StorageError("what is written lies in the padding, which is in no file", errno=errno.ENOSPC)
        if inside:
            super().write(offset, view[:inside])

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        inside = self._inside(offset, length)
        if inside:
            super().zero(offset, inside, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        inside = self._inside(offset, length)
        if inside:
            super().discard(offset, inside)

    def truncate(self, size: int) -> None:
        if size != self._size:
            raise UnsupportedError("filter 'truncate' has the size that it was given", file=self.name)

    def allocate(self, offset: int, length: int, mode: str) -> None:
        raise UnsupportedError("filter 'truncate' cannot allocate space", file=self.name)


class TruncateDriver(FilterDriver):
    """``truncate``."""

    contract = 1
    name = "truncate"
    title = "another size: cut off, or padded with zeros"
    options = (
        Option("truncate", "size", "the size, whatever the node below has", when=("open",)),
        Option("round-up", "size", "make the size a multiple of this, by padding", when=("open",)),
        Option("round-down", "size", "make the size a multiple of this, by cutting off", when=("open",)),
    )

    @hookimpl
    def open(self, request: OpenRequest) -> Truncate:
        """The node below, with its new size."""
        options, file = request.options, request.below()
        size = int(options.get("truncate", file.size))
        for name, rounded in (("round-up", round_up), ("round-down", round_down)):
            if name in options:
                if not int(options[name]):
                    raise UsageError(f"the option '{name}' is at least 1", file=request.name)
                size = rounded(size, int(options[name]))
        if size > MAX_SIZE:
            raise UsageError(f"the size is at most {MAX_SIZE} bytes", file=request.name)
        return Truncate(self, file, size)


driver = TruncateDriver()
