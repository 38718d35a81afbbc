"""What one command may cost: a limit of memory and of work for everything that it opens.

Images come from strangers. A table that fits in its file may still be named a thousand times over, and a file of some
kilobytes may claim terabytes. So limits go by the whole graph of opened images, not by one table: a :class:`Budget`
belongs to a context, each opened storage has an :class:`Account` of it, and who loads tables asks there.

Caches are no cost but a loan: where all together get too large, those that were filled longest ago are emptied.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Protocol

from ..errors import DiskmillError, UsageError, did_you_mean
from ..records import record
from ..sizes import MiB, format_size, parse_size, whole

if TYPE_CHECKING:
    from .node import Node, Storage

READ_PER_WORK = 13
"""Reading 2**13 bytes (8 KiB) of data counts as much as looking at one more extent."""
_DECODED = 1 << 11
"""Bytes that each byte of a file may decode to, all over: a cluster of 64 KiB that is all alike takes 16 with zstd, and
deflate cannot do better than 1 in 1,030, so no disk is refused for being all 0xFF."""
_ENTRY = 8
"""Bytes of a file that make one unit of work rightful: those of a table's entry."""


class LimitError(DiskmillError):
    """What the user asked for goes beyond a limit, which the message names."""

    code = "limit"


@record(frozen=True)
class Limits:
    """What everything that a command opens may cost, all together.

    :param memory: bytes that the process may take. Half of them are for tables of images, the rest for the program
        and its buffers.
    :param work: extents that one pass over a disk may meet, beside as many as the opened files can rightly hold: one
        for each 8 bytes that are really in them. One that holds data counts twice, and each 8 KiB of it once more,
        but what is decoded by itself: 8 KiB for each of *work*, beside 2 KiB for each byte that is in the files.
    :param chain: images that may stand on one another.
    :param files: files that one image may need.
    """

    memory: int = 256 * MiB
    work: int = 1 << 18
    chain: int = 1000
    files: int = 4096

    def __post_init__(self) -> None:
        for name in self.__match_args__:
            object.__setattr__(self, name, whole(getattr(self, name), f"limit {name}", 1))

    @classmethod
    def parse(cls, text: str) -> Limits:
        """The limits in ``memory=1G,work=10M``; those that it does not name have their defaults.

        :raises UsageError: one is unknown, or no number.
        """
        from .options import split

        known = cls.__match_args__
        given = {}
        for name, value in split(text):
            if name not in known:
                raise UsageError(
                    f"unknown limit '{name}': there are {', '.join(known)}", hint=did_you_mean(name, known)
                )
            given[name] = parse_size(value, what=f"limit {name}")
            if not given[name]:
                raise UsageError(f"limit '{name}' cannot be 0")
        return cls(**given)


_DEFAULT = Limits()


class Cache(Protocol):
    """Something that keeps parts of tables and can do without them."""

    def shrink(self) -> None:
        """Drop what need not be kept, if nobody is about to use it, and tell the account with :meth:`Account.hold`."""
        ...


class Budget:
    """The memory that the tables of all opened images take, held against the limits.

    :ivar limits: what may be taken.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or _DEFAULT
        self._charged = 0
        self._held = 0
        self._caches: dict[Cache, int] = {}  # those filled last come last
        self._lock = threading.Lock()

    def charge(self, size: int, what: str, file: str) -> None:
        """Take *size* bytes for good.

        :raises LimitError: there are not as many left.
        """
        with self._lock:
            if self._charged + size > self.limits.memory // 2:
                raise LimitError(
                    f"{what} of {format_size(size)} and the tables opened before take more than half of the limit "
                    f"memory={format_size(self.limits.memory).replace(' ', '').removesuffix('iB')} "
                    "(--limits memory=… raises it)",
                    file=file,
                )
            self._charged += size
        self._make_room(None)

    def give_back(self, size: int) -> None:
        """*size* bytes that were charged are free."""
        with self._lock:
            self._charged -= size

    def hold(self, cache: Cache, size: int) -> None:
        """*cache* now holds *size* bytes; others are asked to shrink where all together hold too much."""
        with self._lock:
            before = self._caches.pop(cache, 0)
            if size:
                self._caches[cache] = size
            self._held += size - before
        if size > before:
            self._make_room(cache)

    def _make_room(self, last: Cache | None) -> None:
        room = self.limits.memory // 2 - self._charged
        if self._held <= room:
            return
        with self._lock:
            others = [cache for cache in self._caches if cache is not last]
        for cache in others:
            if self._held <= room // 2:  # not one for each page from now on
                break
            cache.shrink()


class Account:
    """The part of a budget that one opened storage, and the images in it, take. Closing it gives all back."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self._charged = 0
        self._caches: set[Cache] = set()

    @property
    def limits(self) -> Limits:
        """What may be taken."""
        return self.budget.limits

    def charge(self, size: int, what: str, file: str) -> None:
        """Take *size* bytes, until this is closed, for *what* of the image *file*.

        :raises LimitError: there are not as many left.
        """
        self.budget.charge(size, what, file)
        self._charged += size

    def give_back(self, size: int) -> None:
        """*size* bytes that were charged are free, before this is closed."""
        size = min(size, self._charged)  # closing gave back the rest
        self._charged -= size
        self.budget.give_back(size)

    def hold(self, cache: Cache, size: int) -> None:
        """*cache* now holds *size* bytes."""
        self._caches.add(cache)
        self.budget.hold(cache, size)

    def close(self) -> None:
        """Give everything back."""
        self.budget.give_back(self._charged)
        self._charged = 0
        for cache in self._caches:
            self.budget.hold(cache, 0)
        self._caches.clear()


class _Unlimited(Account):
    """An account that keeps no books."""

    def charge(self, size: int, what: str, file: str) -> None:
        pass

    def give_back(self, size: int) -> None:
        pass

    def hold(self, cache: Cache, size: int) -> None:
        pass


FREE: Account = _Unlimited(Budget(Limits(memory=1 << 60, work=1 << 60)))
"""For storage that no command opened: what a program made itself, a test say, it may look at as long as it likes."""


class Meter:
    """Counts the work of one pass over *node*, and over *more* after it."""

    def __init__(self, node: Node, *more: Node) -> None:
        self._nodes = node, *more
        self._work, self._most = 0, node.account.limits.work

    def add(self, work: int) -> None:
        """So many extents more were looked at, or 8 KiB pieces read.

        :raises LimitError: it is more than there can be reason for.
        """
        self._work += work
        if self._work > self._most:
            self._most = allowed_work(*self._nodes, work=self._work)


def allowed_work(node: Node, *more: Node, work: int) -> int:
    """How much work a pass over *node*, and *more*, may be, asked when *work* was done already.

    What the files really hold counts: no more extents than entries of tables fit there can be rightful.

    :raises LimitError: it was more.
    """
    limits = node.account.limits
    entries = sum(contents(one) for one in (node, *more)) // _ENTRY
    most = limits.work + entries
    if work > most:
        raise LimitError(
            f"it takes more work than a file of its size can need: {most} extents, or 8 KiB pieces of data, "
            f"were looked at, {limits.work} of them by the limit work={limits.work} (--limits work=… raises it)",
            file=node.name,
        )
    return most


def allowed_decoding(node: Node, length: int, held: int | None = None) -> int:
    """How many bytes a pass over *node* may decode, asked when it comes to *length* of them.

    :param held: bytes of its files that they are decoded from; None: all that is in them.
    :raises LimitError: they are too many.
    """
    limits = node.account.limits
    most = (limits.work << READ_PER_WORK) + (contents(node) if held is None else held) * _DECODED
    if length > most:
        raise LimitError(
            f"it decodes to more than a file of its size can hold: {most} bytes were decoded, "
            f"{limits.work << READ_PER_WORK} of them by the limit work={limits.work} (--limits work=… raises it)",
            file=node.name,
        )
    return most


def contents(node: Node) -> int:
    """Bytes that the files below *node* really hold: no holes, which cost nobody anything."""
    return sum(_contents(storage) for storage in node.leaves())


def _contents(storage: Storage) -> int:
    """Bytes of *storage* that are no holes. What it tells of disk space is no measure: some file systems count late."""
    from .extents import Kind

    if storage.forward:
        return 1 << 60
    return sum(extent.length for extent in storage.extents(0, storage.size) if extent.kind is Kind.DATA)
