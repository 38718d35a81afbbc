"""The filter ``delay``: lets requests wait, as those of a slow disk do. Options as those of nbdkit-delay-filter(1)."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from diskmill.contract.drivers import FilterDriver, hookimpl
from diskmill.contract.options import Option
from diskmill.errors import StorageError, UsageError
from diskmill.kit.filter import Filter

if TYPE_CHECKING:
    from diskmill.contract.extents import Extent
    from diskmill.contract.node import Buffer, Node, ReadBuffer
    from diskmill.contract.requests import OpenRequest

_REQUESTS = {"r": "a read", "w": "a write", "z": "zeroing", "t": "a discard", "e": "a look for holes", "f": "a flush"}
_DURATION = re.compile(r"(\d{1,9})(ms)?|(\d{1,6}\.\d{1,9})", re.ASCII)


class Delay(Filter):
    """*file*, each of whose requests takes some *seconds* more."""

    def __init__(self, driver: DelayDriver, file: Node, seconds: dict[str, float]) -> None:
        super().__init__(driver, file)
        self._seconds = seconds
        self._stopped = threading.Event()

    def _wait(self, what: str) -> None:
        if self._seconds[what] and self._stopped.wait(self._seconds[what]):
            raise StorageError("the operation was cancelled", file=self.name)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        self._wait("e")
        yield from super().extents(offset, length)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        self._wait("r")
        super().read_into(offset, buffer)

    def write(self, offset: int, data: ReadBuffer) -> None:
        self._wait("w")
        super().write(offset, data)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._wait("z")
        super().zero(offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        self._wait("t")
        super().discard(offset, length)

    def flush(self) -> None:
        self._wait("f")
        super().flush()

    def interrupt(self) -> None:
        self._stopped.set()
        super().interrupt()


class DelayDriver(FilterDriver):
    """``delay``."""

    contract = 1
    name = "delay"
    title = "lets requests wait"
    options = tuple(
        Option(f"{letter}delay", "str", f"what {what} waits: 2, 0.5 (seconds) or 30ms", default="0", when=("open",))
        for letter, what in _REQUESTS.items()
    )

    @hookimpl
    def open(self, request: OpenRequest) -> Delay:
        """The node below, slowed down."""
        seconds = {}
        for letter in _REQUESTS:
            text = str(request.options[f"{letter}delay"])
            match = _DURATION.fullmatch(text)
            if match is None:
                raise UsageError(f"'{text[:80]}' is no duration: give seconds, or 30ms", file=request.name)
            seconds[letter] = float(match[3] or match[1]) / (1000 if match[2] else 1)
        return Delay(self, request.below(), seconds)


driver = DelayDriver()
