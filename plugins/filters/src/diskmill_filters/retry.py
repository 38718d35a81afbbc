"""The filter ``retry``: tries failed requests again. Options as those of nbdkit-retry-filter(1).

A flush that failed is not tried again: a system may have forgotten what it could not write, so that the second one
says that all is well.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from diskmill.contract.drivers import FilterDriver, hookimpl
from diskmill.contract.options import Option
from diskmill.errors import StorageError
from diskmill.kit.filter import Filter

if TYPE_CHECKING:
    from diskmill.contract.node import Buffer, Node, ReadBuffer
    from diskmill.contract.requests import OpenRequest

_Answer = TypeVar("_Answer")
_LONGEST = 3600.0
"""Seconds to wait at most, however often the time was doubled."""


class Retry(Filter):
    """*file*, whose requests are tried *tries* times more, *seconds* apart, each time twice that if *doubling*."""

    def __init__(self, driver: RetryDriver, file: Node, tries: int, seconds: float, doubling: bool) -> None:
        super().__init__(driver, file)
        self._tries, self._seconds, self._doubling = tries, seconds, doubling
        self._stopped = threading.Event()

    def _again(self, do: Callable[[], _Answer]) -> _Answer:
        wait = self._seconds
        for _ in range(self._tries):
            try:
                return do()
            except StorageError as error:
                if not _may_pass(error) or self._stopped.wait(wait):
                    raise
                if self._doubling:
                    wait = min(wait * 2, _LONGEST)
        return do()

    def read_into(self, offset: int, buffer: Buffer) -> None:
        self._again(lambda: self.file.read_into(offset, buffer))

    def write(self, offset: int, data: ReadBuffer) -> None:
        self._again(lambda: self.file.write(offset, data))

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self._again(lambda: self.file.zero(offset, length, unmap=unmap))

    def interrupt(self) -> None:
        self._stopped.set()
        super().interrupt()


def _may_pass(error: StorageError) -> bool:
    """Whether to try again: also after an input/output error, which may be anything."""
    return error.transient or error.errno in (None, errno.EIO)


class RetryDriver(FilterDriver):
    """``retry``."""

    contract = 1
    name = "retry"
    title = "tries failed requests again"
    options = (
        Option("retries", "int", "how often", default=5, when=("open",)),
        Option("retry-delay", "int", "seconds before the first new try", default=2, when=("open",)),
        Option("retry-exponential", "bool", "wait twice as long each time", default=True, when=("open",)),
    )

    @hookimpl
    def open(self, request: OpenRequest) -> Retry:
        """The node below, with patience."""
        options = request.options
        return Retry(
            self,
            request.below(),
            int(options["retries"]),
            min(float(options["retry-delay"]), _LONGEST),
            bool(options["retry-exponential"]),
        )


driver = RetryDriver()
