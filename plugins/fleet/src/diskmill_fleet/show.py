"""What a person sees of a run: a live table on a terminal, else a line for each job that failed; and a summary."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from diskmill.errors import printable
from diskmill.sizes import format_size

from .journal import Record
from .manifest import Line

if TYPE_CHECKING:
    from diskmill_cli.session import Session
    from rich.table import Table

_ROWS = 12
_FAILURES = 5


class Show:
    """Looks on at *total* jobs.

    :param live: on a terminal, a table that changes.
    """

    def __init__(self, total: int, session: Session, *, live: bool) -> None:
        self._total = total
        self._session = session
        self._began = time.monotonic()
        self._done = self._failed = self._bytes = 0
        self._running: dict[str, list[float]] = {}
        self._failures: list[tuple[str, str]] = []
        self._live: Any = None
        if live:
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def began(self, line: Line) -> None:
        self._running[line.id] = [time.monotonic(), 0.0]

    def progress(self, id: str, done: int, total: int) -> None:
        if id in self._running and total:
            self._running[id][1] = done / total

    def ended(self, line: Line, record: Record, *, final: bool) -> None:
        self._running.pop(line.id, None)
        if not final:
            return
        if record["status"] == "done":
            self._done += 1
            self._bytes += record.get("bytes_in") or 0
            return
        self._failed += 1
        self._failures.append((line.id, str(record["error"])))
        if self._live is None:
            self._session.error(f"'{line.id}': {record['error']}")

    def tick(self) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        seconds = max(time.monotonic() - self._began, 1e-3)
        ended = self._done + self._failed
        left = "" if not ended else f", {clock(seconds / ended * (self._total - ended))} left"
        title = (
            f"{ended} of {self._total} jobs, {self._failed} failed, {format_size(int(self._bytes / seconds))}/s{left}"
        )
        table = Table(title=title, title_justify="left", expand=True)
        table.add_column("running", overflow="ellipsis", no_wrap=True, ratio=1)
        table.add_column("done", justify="right", width=6)
        table.add_column("since", justify="right", width=8)
        for id, (began, part) in list(self._running.items())[:_ROWS]:
            table.add_row(Text(printable(id)), f"{part:.0%}", clock(time.monotonic() - began))
        for id, cause in self._failures[-_FAILURES:]:
            table.add_row(Text(f"failed: {printable(id)}: {printable(cause)}", style="red"), "", "")
        return table


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """What a journal says, in numbers: of each job, what was recorded last."""
    last = {str(record["id"]): record for record in records}
    done = [one for one in last.values() if one["status"] == "done"]
    failed = [one for one in last.values() if one["status"] == "failed"]
    began = [one["began"] for one in (*done, *failed) if "began" in one]
    ended = [one["at"] for one in (*done, *failed) if "at" in one]
    return {
        "done": len(done),
        "failed": len(failed),
        "bytes-in": sum(one.get("bytes_in") or 0 for one in done),
        "bytes-out": sum(one.get("bytes") or 0 for one in done),
        "busy-seconds": round(sum(one.get("seconds", 0) for one in last.values()), 3),
        "seconds": round(max(ended) - min(began), 3) if began and ended else 0,
        "failures": [{"id": one["id"], "error": one.get("error"), "tries": one.get("tries", 0)} for one in failed],
    }


def told(found: dict[str, Any]) -> list[str]:
    """A summary in lines."""
    rate = found["bytes-in"] / found["seconds"] if found["seconds"] else 0
    lines = [
        f"done: {found['done']}, failed: {found['failed']}",
        f"read {format_size(found['bytes-in'])}, wrote {format_size(found['bytes-out'])}, "
        f"{format_size(int(rate))}/s in {clock(found['seconds'])}",
    ]
    lines += [f"failed: {one['id']}: {one['error']}" for one in found["failures"]]
    return lines
