"""The filter ``throttle``: lets no more than so many bytes a second, or so many requests, pass to the node below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..contract.drivers import FilterDriver, hookimpl
from ..contract.options import Option
from ..engine.progress import RateLimit
from ..kit.filter import Filter

if TYPE_CHECKING:
    from ..contract.node import Buffer, Node, ReadBuffer
    from ..contract.requests import OpenRequest


class Throttle(Filter):
    """*file*, at no more than *bytes_a_second* and *requests_a_second*; 0: as fast as it goes."""

    def __init__(self, driver: ThrottleDriver, file: Node, bytes_a_second: int, requests_a_second: int) -> None:
        super().__init__(driver, file)
        self._bytes, self._requests = RateLimit(bytes_a_second), RateLimit(requests_a_second)

    def _wait(self, count: int) -> None:
        self._bytes.take(count)
        self._requests.take(1)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        self._wait(len(buffer))
        super().read_into(offset, buffer)

    def write(self, offset: int, data: ReadBuffer) -> None:
        self._wait(len(data))
        super().write(offset, data)


class ThrottleDriver(FilterDriver):
    """``throttle``, shipped with the core, found like any other driver."""

    contract = 1
    name = "throttle"
    title = "limits how fast the node below is read and written"
    options = (
        Option("limits.bps-total", "size", "bytes a second; 0: no limit", default=0, when=("open",)),
        Option("limits.iops-total", "int", "requests a second; 0: no limit", default=0, when=("open",)),
    )

    @hookimpl
    def open(self, request: OpenRequest) -> Throttle:
        """The node below, slowed down."""
        limits = request.options
        return Throttle(self, request.below(), int(limits["limits.bps-total"]), int(limits["limits.iops-total"]))


driver = ThrottleDriver()
