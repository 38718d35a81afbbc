"""The filter ``watch`` notes what is written."""

from __future__ import annotations

from diskmill.contract.drivers import FilterDriver, hookimpl
from diskmill.contract.node import Node, ReadBuffer
from diskmill.contract.requests import OpenRequest
from diskmill.kit.filter import Filter


class Watched(Filter):
    def __init__(self, driver: WatchDriver, file: Node) -> None:
        super().__init__(driver, file)
        self.seen = driver.seen

    def write(self, offset: int, data: ReadBuffer) -> None:
        self.seen.append((offset, len(data)))
        super().write(offset, data)


class WatchDriver(FilterDriver):
    contract, name, title = 1, "watch", "notes every write"

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    @hookimpl
    def open(self, request: OpenRequest) -> Watched:
        return Watched(self, request.below())


driver = WatchDriver()
