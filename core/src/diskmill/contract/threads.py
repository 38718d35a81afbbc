"""What threads go by that use one image at once: an epoch for those who read, ranges for those who write.

*Readers.* Who reads looks a range up first, and reads what the tables say then. Meanwhile another thread may have given
that place up, and a third may have been given it. So whoever reads is *inside* from before the look-up until the bytes
are there, and a driver lets space go in two steps: it is *retired* when the tables in memory no longer name it, and may
be used again, or punched out of the file, when all have left who were inside at that moment. Nobody waits: a reader
pays for two dictionary operations, and who frees space looks for it again later.

*Writers.* A write of part of an allocation unit reads the rest of it, and two of them at once would undo one another.
So each has the units that it touches to itself; writes of different units go on at once. What changes an image as a
whole (a snapshot, a resize) has all of it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Generic, TypeVar

Space = TypeVar("Space")
_END = 1 << 64
"""Behind the last byte of any disk."""


class Readers:
    """Who is reading. Moments are numbers: readers get theirs when they enter, those who enter later a larger one."""

    def __init__(self) -> None:
        self._numbers = count()
        self._inside: dict[int, None] = {}

    def enter(self) -> int:
        """Called before the look-up; gives what :meth:`leave` is to be told when the bytes are there."""
        # Between the two steps this reader is not seen to be inside, and it has not looked anything up either.
        number = next(self._numbers)
        self._inside[number] = None
        return number

    def leave(self, number: int) -> None:
        """What was looked up is no longer needed."""
        del self._inside[number]

    def now(self) -> int:
        """This moment: who enters from now on finds the tables as they are now."""
        return next(self._numbers)

    def left(self, moment: int) -> bool:
        """Whether all have left who were inside at *moment*."""
        return min(tuple(self._inside), default=moment) >= moment

    def join(self, other: Readers) -> None:
        """Be one with *other*, before anybody reads: who is inside the one is inside the other."""
        self._numbers, self._inside = other._numbers, other._inside

    def __bool__(self) -> bool:
        """Whether anybody is inside."""
        return bool(self._inside)


class Retired(Generic[Space]):
    """Space that nothing names any more, and that some of the *readers* of its image may still be reading.

    Not thread-safe: callers hold the image's lock.
    """

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._waiting: deque[tuple[int, Space]] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, space: Space) -> None:
        """No table in memory names *space* from now on."""
        self._waiting.append((self._readers.now(), space))

    def take(self, *, last: bool = False) -> list[Space]:
        """What nobody can be reading any more, to be used again: in the order in which it was retired.

        :param last: all of it: nothing will be written any more.
        """
        free = []
        while self._waiting and (last or self._readers.left(self._waiting[0][0])):
            free.append(self._waiting.popleft()[1])
        return free


class Ranges:
    """The ranges of bytes that threads have to themselves. Who comes first is served first."""

    def __init__(self) -> None:
        self._turn = threading.Condition(threading.Lock())
        self._asked: list[tuple[int, int, int]] = []
        """(start, end, thread), as they came: each holds its range once nobody before it has part of that."""

    @contextmanager
    def hold(self, start: int, end: int) -> Iterator[None]:
        """Wait until no other thread has any of bytes *start* to *end*, and have them meanwhile.

        A thread may ask again for what it has. More than it has it shall not ask for: another may do the same.
        """
        mine = (start, end, threading.get_ident())
        if any(one[2] == mine[2] and one[0] <= start and end <= one[1] for one in tuple(self._asked)):
            yield
            return
        try:
            with self._turn:
                self._asked.append(mine)
                while not self._first(mine):
                    self._turn.wait()
            yield
        finally:
            with self._turn:
                self._asked.remove(mine)
                if self._asked:
                    self._turn.notify_all()

    def _first(self, mine: tuple[int, int, int]) -> bool:
        """Whether nobody who asked before has any of it."""
        start, end, thread = mine
        for one in self._asked:
            if one is mine:
                break
            if one[0] < end and start < one[1] and one[2] != thread:
                return False
        return True

    @contextmanager
    def hold_all(self) -> Iterator[None]:
        """As :meth:`hold`, of everything."""
        with self.hold(0, _END):
            yield
