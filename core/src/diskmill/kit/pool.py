"""Connections of which each serves one thread at a time: as many as ask at once, up to a bound."""

from __future__ import annotations

import contextlib
import errno
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from ..errors import StorageError


class Connection(Protocol):
    """What a pool holds."""

    def interrupt(self) -> None:
        """Let a call that waits end with an error. Called from another thread."""

    def close(self) -> None:
        """End it."""


_Connection = TypeVar("_Connection", bound=Connection)


class Pool(ABC, Generic[_Connection]):
    """Connections from *first* on, *most* of them. A driver answers :meth:`another`."""

    def __init__(self, first: _Connection, most: int) -> None:
        self._all = [first]
        self._free = [first]
        self._most = most
        self._state = threading.Condition()
        self._making = 0
        self._given_up = False

    @abstractmethod
    def another(self) -> _Connection:
        """One more connection.

        :raises StorageError: there can be none; so does who asked for one.
        """

    @contextlib.contextmanager
    def one(self) -> Iterator[_Connection]:
        """A connection to oneself."""
        connection = self._take()
        try:
            yield connection
        finally:
            with self._state:
                self._free.append(connection)
                self._state.notify()

    def _take(self) -> _Connection:
        with self._state:
            while not self._free and len(self._all) + self._making >= self._most:
                self._state.wait()
            if self._given_up:
                raise StorageError("the connection was given up", errno=errno.ECANCELED)
            if self._free:
                return self._free.pop()
            self._making += 1
        connection = None
        try:
            connection = self.another()
            return connection
        finally:
            with self._state:
                self._making -= 1
                if connection is not None:
                    self._all.append(connection)
                self._state.notify()

    def interrupt(self) -> None:
        """Let everyone who waits leave with an error."""
        with self._state:
            self._given_up = True
            connections = list(self._all)
            self._state.notify_all()
        for connection in connections:
            connection.interrupt()

    def close(self) -> None:
        """End all of them. Nobody asks anything any more."""
        for connection in self._all:
            connection.close()
