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
from itertools import count
from types import TracebackType
from typing import Generic, TypeVar

Space = TypeVar("Space")


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
    """The ranges of bytes that threads have to themselves. Who comes first is served first.

    A write so short that threads would take longer to change places does not ask for its range: it holds the image's
    *lock* all along, where the range is :meth:`free`. So whoever gets a range waits for the lock once.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._turn = threading.Condition(threading.Lock())
        self._asked: list[Held] = []
        """As they came: each has its range once nobody before it has part of that."""
        self._waiting = 0

    def hold(self, start: int, end: int = 1 << 64) -> Held:
        """For a ``with`` block: wait until no other thread has any of bytes *start* to *end*, and have them meanwhile.

        A thread may ask again for what it has. More than it has it shall not ask for: another may do the same.
        """
        return Held(self, start, end)

    def __bool__(self) -> bool:
        """Whether anybody has, or waits for, one."""
        return bool(self._asked)

    def free(self, start: int, end: int) -> bool:
        """Whether nobody else has, or waits for, any of bytes *start* to *end*. Asked with the image's lock held."""
        thread = threading.get_ident()
        return not any(one.start < end and start < one.end and one.thread != thread for one in tuple(self._asked))


class Held:
    """A range of *ranges* in a ``with`` block. (No generator: each write pays for it.)"""

    __slots__ = ("end", "nested", "ranges", "start", "thread")

    def __init__(self, ranges: Ranges, start: int, end: int) -> None:
        self.ranges, self.start, self.end = ranges, start, end
        self.thread = threading.get_ident()
        self.nested = False

    def __enter__(self) -> None:
        ranges = self.ranges
        with ranges._turn:
            asked = ranges._asked
            if any(one.thread == self.thread and one.start <= self.start <= self.end <= one.end for one in asked):
                self.nested = True
                return
            asked.append(self)
            ranges._waiting += 1
            try:
                while not self._first():
                    ranges._turn.wait()
            except BaseException:
                self._end()
                raise
            finally:
                ranges._waiting -= 1
        with ranges._lock:
            pass

    def _first(self) -> bool:
        """Whether nobody who asked before has any of it."""
        for one in self.ranges._asked:
            if one is self:
                break
            if one.start < self.end and self.start < one.end and one.thread != self.thread:
                return False
        return True

    def _end(self) -> None:
        self.ranges._asked.remove(self)
        if self.ranges._waiting:
            self.ranges._turn.notify_all()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.nested:
            with self.ranges._turn:
                self._end()
