"""Failures that may pass: how often and how long one waits for that."""

from __future__ import annotations

import random
import threading

from diskmill.errors import StorageError
from diskmill.sizes import KiB

FIRST_WAIT = 0.25
"""Seconds before the second retry in a row, at most; each further one waits up to twice as long."""
LONGEST_WAIT = 60.0
"""Seconds that are waited at most, also where the server asks for more."""
PROGRESS = 64 * KiB
"""Bytes that must have come for the failures before not to count any more."""


class PassingError(Exception):
    """A failure that the next try may not meet.

    :param cause: a phrase, without secrets.
    :param received: bytes of what was asked for that had come, and are good.
    :param wait: seconds that the server asks to wait.
    :param stale: a connection that had been idle was closed: nothing is wrong.
    """

    def __init__(self, cause: str, *, received: int = 0, wait: float = 0, stale: bool = False) -> None:
        super().__init__(cause)
        self.cause = cause
        self.received = received
        self.wait = wait
        self.stale = stale


class Patience:
    """Of one request, with whatever it takes to have it answered.

    :param retries: failures in a row, with next to nothing received, that are borne.
    :param stopped: set to end all waiting.
    """

    def __init__(self, retries: int, stopped: threading.Event, name: str) -> None:
        self._retries = retries
        self._stopped = stopped
        self._name = name
        self._failures = 0
        self._received = 0

    def progress(self, count: int) -> None:
        """*count* more bytes have come."""
        self._received += count
        if self._received >= PROGRESS:
            self._failures = self._received = 0

    def bear(self, error: PassingError, place: str) -> None:
        """Wait until the next try, after *error*, may be made.

        :param place: which bytes are wanted, for the message.
        :raises StorageError: there will be none.
        """
        if self._stopped.is_set():
            raise StorageError("interrupted", file=self._name, place=place)
        self.progress(error.received)
        if error.stale:
            return
        if self._failures >= self._retries:
            tries = f", after {self._retries + 1} tries" if self._retries else ""
            raise StorageError(f"{error.cause}{tries}", file=self._name, place=place, transient=True)
        longest = FIRST_WAIT * 2**self._failures if self._failures else 0
        self._failures += 1
        wait = min(max(error.wait, longest * random.uniform(0.5, 1)), LONGEST_WAIT)
        if self._stopped.wait(wait):
            raise StorageError("interrupted", file=self._name, place=place)
