"""Ids and times of new images: random, and now; or, where the same disk shall always make the same file, derived."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class _Derived:
    """Bytes that follow from *seed*, one piece after the other; and the time *seconds*."""

    def __init__(self, seed: bytes, seconds: int) -> None:
        self.seconds = seconds
        self._seed = seed
        self._taken = 0
        self._lock = threading.Lock()

    def take(self, count: int) -> bytes:
        with self._lock:
            self._taken += 1
            number = self._taken.to_bytes(8, "little")
        from hashlib import shake_256  # OpenSSL comes with it, and nearly every id is random

        return shake_256(self._seed + number).digest(count)


_current: ContextVar[_Derived | None] = ContextVar("diskmill.ids", default=None)


@contextmanager
def derived(seed: bytes, seconds: int) -> Iterator[None]:
    """Within, ids follow from *seed*, in the order in which they are asked for, and it is *seconds* after 1970.

    Threads that were started with this context share it.
    """
    token = _current.set(_Derived(seed, seconds))
    try:
        yield
    finally:
        _current.reset(token)


def is_derived() -> bool:
    """Whether the same ids come again: no key may be made of them."""
    return _current.get() is not None


def fresh(count: int) -> bytes:
    """*count* bytes for an id. Never for keys or salts: they may be derived."""
    current = _current.get()
    return os.urandom(count) if current is None else current.take(count)


def now() -> int:
    """The time for a time stamp: seconds after 1970."""
    current = _current.get()
    return int(time.time()) if current is None else current.seconds
