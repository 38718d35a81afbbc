"""How to copy, and who looks on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ...contract.node import Image
from ...errors import DiskmillError
from ...records import record


@record(frozen=True)
class CopyPlan:
    """How to copy.

    :param sparse: the shortest stretch of zeros, in bytes, that is left out of the target; 0: write zeros too.
    :param zeroed: the target is known to read as zeros already, so that nothing need be done for zeros.
    :param compress: store units compressed where that makes them smaller.
    :param in_order: lay the target out in guest order, so that the same input gives the same file.
    :param shared: an image of the source's backing chain that reads as the target's backing image does: what the
        source has from there is left to that. Nothing else is: not holes with nothing behind them, which are zeros.
    :param shared_size: how many bytes the target's backing image gives, where *shared* may be larger.
    :param offload: let the kernel copy from file to file where both ends are files, without looking for zeros.
    :param reflink: whether the target's files share blocks with the source's where they can: ``auto``, ``always`` or
        ``never``.
    :param threads: how many; None: as many as the process has processors, or more where storages ask for that.
    :param one_by_one: the source comes in order: no task is read before the one before it has been.
    :param salvage: where the source cannot be read, write zeros and call this with (offset, length, error).
    """

    sparse: int = 4096
    zeroed: bool = False
    compress: bool = False
    in_order: bool = True
    shared: Image | None = None
    shared_size: int | None = None
    offload: bool = False
    reflink: str = "never"
    threads: int | None = None
    one_by_one: bool = False
    salvage: Callable[[int, int, DiskmillError], None] | None = None


class Watcher(Protocol):
    """Looks at what is copied: every guest byte of the source comes by once, in any order, from several threads.

    What a watcher is given holds only until it returns.
    """

    def data(self, start: int, view: memoryview) -> None:
        """Guest bytes from *start* on."""
        ...

    def zeros(self, start: int, length: int) -> None:
        """Guest bytes that read as zeros, which were not looked at."""
        ...

    def shared(self, start: int, length: int) -> None:
        """Guest bytes that were left to the target's backing image, which were not looked at either."""
        ...
