"""Where jobs run: the workers of a Dask cluster, by its own scheduler (``pip install diskmill-fleet[dask]``)."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from diskmill.errors import StorageError, UsageError
from diskmill.jobs import Settings

from .journal import Record
from .manifest import Line
from .processes import Event
from .work import Terms, perform

_LOST = 20.0
"""Seconds after which a scheduler that does not answer is taken for gone."""


class Cluster:
    """The cluster whose scheduler is at *address* (``tcp://host:port``).

    :raises UsageError: Dask is not installed. StorageError: nobody answers.
    """

    def __init__(self, settings: Settings, address: str) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise UsageError("Dask is not installed: pip install 'diskmill-fleet[dask]'") from None
        _hush()
        self._address = address
        self._settings = settings
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._futures: dict[str, Any] = {}
        self._begun = 0
        self._unanswered: float | None = None
        try:
            self._client: Any = Client(  # type: ignore[no-untyped-call]
                address, timeout=10, set_as_default=False
            )
        except (OSError, TimeoutError) as error:
            raise StorageError(f"no scheduler answers: {error}", file=address, transient=True) from None

    @property
    def slots(self) -> int:
        """Two jobs for each thread, so that none waits for the next."""
        with suppress(Exception):  # it comes and goes, and is asked again
            threads: dict[str, int] = self._client.nthreads()
            return max(sum(threads.values()) * 2, 1)
        return 1

    def begin(self, line: Line, terms: Terms) -> None:
        """Have the cluster do *line*. A worker that dies is made good by the scheduler, three times."""
        self._begun += 1
        future = self._client.submit(
            _perform, line, self._settings, terms, key=f"diskmill-{self._begun}-{line.key}", pure=False
        )
        self._futures[line.id] = future
        future.add_done_callback(lambda done, id=line.id: self._events.put(_ended(id, done)))

    def wait(self, seconds: float) -> Iterator[Event]:
        """What happens, if anything does within *seconds*.

        :raises StorageError: the scheduler is gone.
        """
        with suppress(queue.Empty):
            while True:
                event = self._events.get(timeout=seconds)
                seconds = 0
                future = self._futures.pop(event[1], None)
                if future is not None:
                    future.release()
                if event[0] == "cancelled":  # the client lost its scheduler; whether it comes back is seen below
                    event = ("lost", event[1], event[2])
                yield event
        self._expect_scheduler()

    def _expect_scheduler(self) -> None:
        if self._client.status == "running":
            self._unanswered = None
            return
        self._unanswered = self._unanswered or time.monotonic()
        if self._client.status == "closed" or time.monotonic() - self._unanswered > _LOST:
            raise StorageError("the scheduler is gone", file=self._address, transient=True)

    def close(self) -> None:
        """Leave it. What it still does it ends, and no output has its name before it is whole."""
        for future in self._futures.values():
            with suppress(Exception):
                future.cancel()
        with suppress(Exception):
            self._client.close(timeout=5)


def _hush() -> None:
    """Keep Dask's log off stderr: of a lost connection it prints tracebacks, and what a user must know of that is
    said by an error of ours, or by the job's record."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.startswith("distributed.") and isinstance(logger, logging.Logger) and logger.level != logging.NOTSET:
            logger.setLevel(logging.CRITICAL)  # its configuration gives some a level of their own


def _perform(line: Line, settings: Settings, terms: Terms) -> Record:
    return perform(line, settings, terms)


def _ended(id: str, future: Any) -> Event:
    if future.status == "finished":
        try:
            return "done", id, future.result(timeout=30)
        except Exception as error:
            return "lost", id, f"its result was lost: {error}"
    if future.status == "cancelled":
        return "cancelled", id, "the scheduler forgot it"
    with suppress(Exception):
        return "lost", id, f"the cluster gave it up: {future.exception(timeout=30)}"
    return "lost", id, "the cluster gave it up"
