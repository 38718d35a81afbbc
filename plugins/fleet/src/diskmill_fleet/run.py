"""What ``diskmill batch`` does."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, closing, nullcontext
from typing import TYPE_CHECKING

from diskmill.errors import StorageError, UsageError, did_you_mean
from diskmill.jobs import Settings
from diskmill.sizes import format_size
from diskmill_cli import common
from diskmill_cli.arguments import Arguments

from . import journal as journals
from . import manifest as manifests
from . import running, show
from .estimate import Estimate, estimate
from .journal import Journal
from .planning import Wish, plan
from .processes import Processes
from .schedule import Limit
from .standing import Standing, standing

if TYPE_CHECKING:
    from diskmill_cli.session import Session

ACTIONS = ("plan", "run", "status", "report")
_TOLD = 10
"""Jobs of which it is told, one by one, why they are done again."""


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
        keeps=settings.overwrite == "refuse",
    )
    lines = manifests.read(path)
    journal_path = arguments.one("journal") or f"{path}.journal"
    if arguments.has("dry_run"):
        records = journals.read(journal_path) if os.path.exists(journal_path) else []
        left = standing(lines, {str(record["id"]): record for record in records}, settings)
        return _dry_run(arguments, session, estimate(
            lines, left, records, plan, settings, lambda: _executor(arguments, settings)
        ))  # fmt: skip
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(journal_path))
        found = standing(lines, journal.last, settings)
        _tell_again(found, session)
        executor = stack.enter_context(closing(_executor(arguments, settings)))
        live = not session.quiet and sys.stderr.isatty() and arguments.one("output") != "json"
        watcher = stack.enter_context(show.Show(len(lines), session, live=live))
        outcome = running.run(lines, found, journal, executor, plan, watcher)
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


def _tell_again(found: Standing, session: Session) -> None:
    again = list(found.again.items())
    session.note(*(f"done again: {id}: {why}" for id, why in again[:_TOLD]))
    if len(again) > _TOLD:
        session.note(f"done again: {len(again) - _TOLD} more, as their records tell")


def _dry_run(arguments: Arguments, session: Session, found: Estimate) -> int:
    if arguments.one("output") == "json":
        session.json(found.as_dict())
        return 1 if found.failures else 0
    session.print(*(f"cannot be measured: {id}: {why}" for id, why in found.failures))
    session.print(
        f"jobs: {found.jobs}, space: {format_size(found.required)} at most where nothing is compressed, "
        f"time: about {show.clock(found.seconds)}"
    )
    if found.unmade:
        session.print(f"not measured: {found.unmade} that read what others are still to make")
    if found.untimed:
        session.print(f"not in the time: {found.untimed} of which nobody can tell")
    for one in found.short:
        text = f"too little room: '{one.folder}' has {format_size(one.free)} free, for {format_size(one.required)}"
        session.print(text)
    return 1 if found.failures else 0


def _executor(arguments: Arguments, settings: Settings) -> running.Executor:
    where = arguments.one("on") or "processes"
    if where.startswith("dask://"):
        from .cluster import Cluster

        return Cluster(settings, "tcp://" + where.removeprefix("dask://"))
    if where != "processes":
        raise UsageError(f"jobs run on processes or dask://HOST:PORT, not on '{where}'")
    return Processes(settings, arguments.number("jobs", "number of jobs", 0, 1, 1024) or running.workers_here())
