"""The protocols ``null-co`` and ``null-aio``: as many zeros as one likes, and a place for what nobody needs.

See ``BlockdevOptionsNull`` in QEMU's ``qapi/block-core.json``. QEMU leaves what is read undefined unless
``read-zeroes`` is set; here it is zeros always.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from diskmill.contract.drivers import ProtocolDriver, hookimpl
from diskmill.contract.extents import Extent, Kind
from diskmill.contract.node import Storage
from diskmill.contract.options import Option
from diskmill.contract.place import NamedPlace, Place
from diskmill.errors import UsageError
from diskmill.sizes import GiB

if TYPE_CHECKING:
    from diskmill.contract.node import Buffer, ReadBuffer
    from diskmill.contract.requests import OpenRequest


class NullPlace(NamedPlace):
    """Nowhere."""

    def identity(self) -> None:
        """Two of them have nothing in common."""


class NullStorage(Storage):
    """*size* bytes of zeros; each request takes *latency* seconds."""

    def __init__(self, driver: NullDriver, name: str, size: int, latency: float, writable: bool) -> None:
        self.driver = driver
        self.name = name
        self.size = size
        self.writable = writable
        self._latency = latency

    def _wait(self) -> None:
        if self._latency:
            time.sleep(self._latency)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        if length:
            yield Extent(offset, length, Kind.ZERO, self, offset)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        self._wait()
        view = memoryview(buffer).cast("B")
        view[:] = bytes(len(view))

    def write(self, offset: int, data: ReadBuffer) -> None:
        """It is forgotten."""
        self._wait()

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """It is, anyhow."""
        self._wait()

    def flush(self) -> None:
        """There is nothing to keep."""
        self._wait()

    def allocated(self) -> int:
        return 0


class NullDriver(ProtocolDriver):
    """``null-co`` or ``null-aio``; in QEMU they differ in how they work inside."""

    contract = 1
    title = "zeros; what is written is forgotten"
    capabilities = frozenset({"write"})
    options = (
        Option("size", "size", "bytes", default=GiB, when=("open",)),
        Option("latency-ns", "int", "nanoseconds that each request takes", default=0, when=("open",)),
        Option("read-zeroes", "bool", "without effect: zeros are read always", default=False, when=("open",)),
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.prefixes = (name,)

    def place(self, options: Mapping[str, Any]) -> Place:
        """``null-co://``, and no other name."""
        name = options.get("filename", f"{self.name}://")
        if name != f"{self.name}://":
            raise UsageError(f"the only allowed filename for this driver is '{self.name}://'", file=str(name))
        return NullPlace(self, str(name))

    @hookimpl
    def open(self, request: OpenRequest) -> NullStorage:
        """Zeros."""
        options = request.options
        latency = int(options["latency-ns"]) / 1e9
        return NullStorage(self, request.name, int(options["size"]), latency, request.writable)


co = NullDriver("null-co")
aio = NullDriver("null-aio")
