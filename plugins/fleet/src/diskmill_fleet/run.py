"""What ``diskmill batch`` does."""

from __future__ import annotations

import sys
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from diskmill.errors import StorageError, UsageError, did_you_mean
from diskmill.jobs import Settings
from diskmill.sizes import format_size
from diskmill_cli import common
from diskmill_cli.arguments import Arguments

from . import journal as journals
from . import manifest as manifests
from . import running, show
from .journal import Journal, Record
from .manifest import Line
from .planning import Wish, plan
from .processes import Processes
from .schedule import Limit

if TYPE_CHECKING:
    from diskmill_cli.session import Session

ACTIONS = ("plan", "run", "status", "report")


def run(arguments: Arguments, session: Session) -> int:
    """Run the command; gives the exit status."""
    action, *operands = arguments.operands or [""]
    if action not in ACTIONS:
        raise UsageError(f"batch does one of {', '.join(ACTIONS)}, not '{action}'", hint=did_you_mean(action, ACTIONS))
    if action == "plan":
        return _plan(arguments, session, operands)
    if len(operands) != 1:
        raise UsageError(f"batch {action} takes one file, the {'manifest' if action == 'run' else 'journal'}")
    if action == "run":
        return _run(arguments, session, operands[0])
    records = journals.read(operands[0])
    if action == "status":
        found = show.summary(records)
        if arguments.one("output") == "json":
            session.json(found)
        else:
            session.print(*show.told(found))
        return 1 if found["failed"] else 0
    from .report import page

    out = arguments.one("out") or f"{operands[0]}.html"
    try:
        with open(out, "w", encoding="utf-8") as file:
            file.write(page(records, f"diskmill batch: {operands[0]}"))
    except OSError as error:
        raise StorageError.from_os(error, out) from None
    return 0


def _plan(arguments: Arguments, session: Session, names: list[str]) -> int:
    if not names:
        raise UsageError("name at least one folder, pattern or image")
    wish = Wish(
        arguments.one("job") or "convert",
        arguments.one("to"),
        common.format_of(arguments, "output_format"),
        common.driver_options(arguments),
        arguments.has("compress"),
        arguments.has("verify"),
        arguments.has("chains"),
    )
    if wish.job not in manifests.JOBS or wish.job in ("compare", "verify"):
        raise UsageError(f"no plan can be made for the job '{wish.job}'")
    lines = plan(names, wish, common.settings_of(arguments, session), lambda name, why: session.note(f"{name}: {why}"))
    path = arguments.one("manifest")
    try:
        with nullcontext(sys.stdout) if path is None else open(path, "w", encoding="utf-8") as file:
            count = manifests.write(lines, file)
    except OSError as error:
        raise error if isinstance(error, StorageError) else StorageError.from_os(error, path or "stdout") from None
    session.note(f"{count} jobs")
    return 0


def _run(arguments: Arguments, session: Session, path: str) -> int:
    settings = common.settings_of(arguments, session)
    plan = running.Plan(
        retries=arguments.number("retries", "number of retries", 2, 0, 100),
        threads=arguments.number("threads", "number of threads", 1, 1, 16),
        seconds=arguments.number("deadline", "deadline", 0, 1, 1 << 31) if arguments.has("deadline") else None,
        keep_free=arguments.size("keep_free", "size"),
        limits=tuple(Limit.parse(text) for text in arguments.all("limit")),
    )
    lines = manifests.read(path)
    if arguments.has("dry_run"):
        return _dry_run(arguments, session, lines, settings, path)
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(arguments.one("journal") or f"{path}.journal"))
        executor = stack.enter_context(closing(_executor(arguments, settings)))
        live = not session.quiet and sys.stderr.isatty() and arguments.one("output") != "json"
        watcher = stack.enter_context(show.Show(len(lines), session, live=live))
        outcome = running.run(lines, journal, executor, plan, watcher)
        stack.close()
    counts = {"done": outcome.done, "done-before": outcome.before, "failed": outcome.failed, "not-begun": outcome.left}
    if arguments.one("output") == "json":
        session.json(counts)
    else:
        if live:
            session.print(
                *(f"failed: {one['id']}: {one['error']}" for one in outcome.records if one["status"] != "done")
            )
        session.print(", ".join(f"{name.replace('-', ' ')}: {count}" for name, count in counts.items()))
    return outcome.status


def _executor(arguments: Arguments, settings: Settings) -> running.Executor:
    where = arguments.one("on") or "processes"
    if where.startswith("dask://"):
        from .cluster import Cluster

        return Cluster(settings, "tcp://" + where.removeprefix("dask://"))
    if where != "processes":
        raise UsageError(f"jobs run on processes or dask://HOST:PORT, not on '{where}'")
    return Processes(settings, arguments.number("jobs", "number of jobs", 0, 1, 1024) or running.workers_here())


class _Silent:
    """Looks on, and keeps what was measured."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def began(self, line: Line) -> None: ...
    def progress(self, id: str, done: int, total: int) -> None: ...
    def tick(self) -> None: ...

    def ended(self, line: Line, record: Record, *, final: bool) -> None:
        if final:
            self.records.append(record)


def _dry_run(arguments: Arguments, session: Session, lines: list[Line], settings: Settings, path: str) -> int:
    """Measure what is left; nothing is written."""
    import os
    import tempfile

    known: dict[str, Record] = {}
    at = arguments.one("journal") or f"{path}.journal"
    records = journals.read(at) if os.path.exists(at) else []
    for record in records:
        known[str(record["id"])] = record
    left = [line for line in lines if line.job == "convert" and not running.is_done(line, known.get(line.id))]
    measured = [
        replace(line, job="measure", to=None, needs=(), backing=None, backing_format=None, verify=False)
        for line in left
    ]
    watcher = _Silent()
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(stack.enter_context(tempfile.NamedTemporaryFile()).name))
        executor = stack.enter_context(closing(_executor(arguments, settings)))
        outcome = running.run(measured, journal, executor, running.Plan(), watcher)
    required = sum(record.get("required", 0) for record in watcher.records)
    past = show.summary(records)
    rate = past["bytes-in"] / past["seconds"] if past["seconds"] else 0
    size = sum(line.size for line in left)
    found = {
        "jobs": len(left),
        "required": required,
        "failed": outcome.failed,
        "seconds": round(size / rate) if rate and size else None,
    }
    if arguments.one("output") == "json":
        session.json(found)
        return outcome.status
    for record in watcher.records:
        if record["status"] != "done":
            session.print(f"cannot be measured: {record['id']}: {record['error']}")
    time = "unknown, until jobs were done" if found["seconds"] is None else f"about {found['seconds']} s"
    session.print(
        f"jobs: {len(left)}, space: {format_size(required)} at most where nothing is compressed, time: {time}"
    )
    return outcome.status
