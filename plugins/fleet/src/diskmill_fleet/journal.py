"""What was done: a JSON object a line, on disk before the next job counts on it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from diskmill.errors import StorageError, UsageError, shown

Record = dict[str, Any]
BEGUN = "begun"
"""The status of a job of which no end is recorded; the others are ``done`` and ``failed``."""


class Journal:
    """The file at *path*, which one run at a time writes. A last line that was torn off is taken away.

    :raises StorageError: it cannot be opened, or another run has it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.last: dict[str, Record] = {}
        """By id, what was recorded last."""
        try:
            self._fd = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
            )  # names may hold passwords
        except OSError as error:
            raise StorageError.from_os(error, path) from None
        try:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StorageError("another run writes this journal", file=path) from None
            whole = 0
            for record, end in _records(path):
                self.last[str(record["id"])] = record
                whole = end
            if os.fstat(self._fd).st_size > whole:
                os.ftruncate(self._fd, whole)
        except BaseException:
            os.close(self._fd)
            raise

    def add(self, record: Record) -> None:
        """Record what became of a job, with names as they are shown: without credentials.

        :raises StorageError: it cannot be kept.
        """
        record = {key: shown(value) if key in ("source", "to") else value for key, value in record.items()}
        data = json.dumps(record).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._fd, data) :]
            os.fdatasync(self._fd)
        except OSError as error:
            raise StorageError.from_os(error, self.path, "record what was done") from None
        self.last[str(record["id"])] = record

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._fd)


def read(path: str) -> list[Record]:
    """All that the journal at *path* has, in order.

    :raises StorageError: it cannot be read. UsageError: it is no journal.
    """
    return [record for record, _ in _records(path)]


def _records(path: str) -> Iterator[tuple[Record, int]]:
    """Each record, and where its line ends. What follows the last line end is no record yet."""
    end = 0
    try:
        with open(path, "rb") as file:
            for number, text in enumerate(file, 1):
                if not text.endswith(b"\n"):
                    return
                end += len(text)
                try:
                    record = json.loads(text)
                except (ValueError, RecursionError):
                    record = None
                if not isinstance(record, dict) or "id" not in record or "status" not in record:
                    raise UsageError(f"line {number} is no record: it is no journal, or was damaged", file=path)
                yield record, end
    except OSError as error:
        raise StorageError.from_os(error, path) from None
