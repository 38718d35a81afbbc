"""Progress, rate limit and cancellation of operations that move data."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

Report = Callable[[int, int], None]
"""Called with (bytes of the disk dealt with so far, bytes in all), from any thread, now and then. One that has a method
``phase`` is told by it, in a word, that another part of the work begins, of which nobody knows how long it takes."""


def tell_phase(report: Report | None, name: str) -> None:
    """Tell *report* that the part of the work called *name* begins."""
    told = getattr(report, "phase", None)
    if told is not None:
        told(name)


class Progress:
    """Counts what is done, over the phases of one operation.

    :param report: whom to tell; None: nobody.
    """

    def __init__(self, report: Report | None = None) -> None:
        self.total = 0
        self.done = 0
        self._report = report
        self._lock = threading.Lock()
        self._shown = -1

    def phase(self, name: str) -> None:
        """Another part of the work begins."""
        tell_phase(self._report, name)

    def expect(self, count: int) -> None:
        """*count* more bytes are to be dealt with. The first time, that it begins is told: images are open."""
        self.total += count
        if self._report is not None and self._shown < 0:
            self._shown = 0
            self._report(0, self.total)

    def advance(self, count: int) -> None:
        """*count* bytes have been."""
        if self._report is None:
            return
        with self._lock:
            self.done += count
            # Bars and percent lines show no more than this; telling them of each chunk would cost more than the copy.
            shown = self.done * 1000 // self.total if self.total else 1000
            if shown != self._shown:
                self._shown = shown
                self._report(self.done, self.total)

    def complete(self) -> None:
        """All has been dealt with, whatever was not counted."""
        self.advance(max(self.total - self.done, 0))


class RateLimit:
    """Lets no more than *rate* bytes pass a second, over all threads.

    :param rate: bytes a second; 0: no limit.
    """

    def __init__(self, rate: int = 0) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    def take(self, count: int) -> None:
        """Wait until *count* bytes may pass."""
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            begin = max(self._free_at, now)
            self._free_at = begin + count / self._rate
        if begin > now:
            time.sleep(begin - now)
