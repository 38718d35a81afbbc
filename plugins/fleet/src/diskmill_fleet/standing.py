"""Which jobs a journal says are done, and whether that still holds: their outputs are there, and what they read is as
it was then."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

import diskmill.jobs as jobs
from diskmill.contract.node import Image
from diskmill.errors import DiskmillError
from diskmill.jobs import Settings, Source

from .journal import Record
from .manifest import Line, Located, comes_after, is_url

States = dict[str, "list[int] | str | None"]
"""Of files by name: a file's length, time of change (nanoseconds) and inode; what a service tells of an object; None
where nobody tells that."""

_AT_ONCE = 16
"""Sources that services are asked about at the same time."""


def states(image: Image) -> States:
    """Those of all files that *image* stands on, its backing images' too."""
    found: States = {}
    for leaf in image.leaves():
        fd = leaf.fileno()
        there = None if fd is None else _of_file(os.fstat(fd))
        found[leaf.name] = leaf.state() if there is None else there
    return found


def _of_file(info: os.stat_result) -> list[int] | None:
    """Not the device's number, which a restart may change."""
    return [info.st_size, info.st_mtime_ns, info.st_ino] if stat.S_ISREG(info.st_mode) else None


@dataclass
class Standing:
    """Of a manifest's jobs.

    :param done: ids of those that need not be done again.
    :param again: ids of those that were done, but are not any more, and why.
    """

    done: set[str] = field(default_factory=set)
    again: dict[str, str] = field(default_factory=dict)


def standing(lines: Sequence[Line], last: Mapping[str, Record], settings: Settings) -> Standing:
    """How *lines* stand by what was recorded *last* of each.

    What is gone, or cannot be reached, has not changed as far as anyone can tell, and could not be done again either.
    """
    found = Standing()
    others = _Others(lines)
    asked: list[tuple[Line, States]] = []
    for line in lines:
        record = last.get(line.id)
        if record is None or record.get("status") != "done" or record.get("key") != line.key:
            continue
        why = _lost(line, record) or _changed(line, record, others)
        if why is not None:
            found.again[line.id] = why
            continue
        found.done.add(line.id)
        told: States = {name: state for name, state in _read(record).items() if isinstance(state, str)}
        if told and not others.overwrite(line, line.source):
            asked.append((line, told))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = pool.map(lambda one: _told_changed(one[0], one[1], settings), asked)
        for (line, _), why in zip(asked, answers, strict=True):
            if why is not None:
                found.done.remove(line.id)
                found.again[line.id] = why
    left = [line.id for line in lines if line.id not in found.done]
    while left:
        id = left.pop()
        for reader in others.readers[id]:
            if reader.id in found.done:
                found.done.remove(reader.id)
                found.again[reader.id] = f"'{id}' is done again, and it reads that"
                left.append(reader.id)
    return found


def _lost(line: Line, record: Record) -> str | None:
    """Why the output is not what was made."""
    if line.to is None or is_url(line.to):
        return None
    try:
        same = os.stat(line.to).st_size == record.get("length")
    except (OSError, ValueError):
        return f"'{line.to}' is gone"
    return None if same else f"'{line.to}' has another length now"


def _read(record: Record) -> States:
    found = record.get("sources")
    return found if isinstance(found, dict) else {}


def _changed(line: Line, record: Record, others: _Others) -> str | None:
    """Which of the files on this machine that it read has changed."""
    for name, state in _read(record).items():
        if isinstance(state, list):
            with suppress(OSError, ValueError):
                if _of_file(os.stat(name)) != state and not others.overwrite(line, name):
                    return f"'{name}' has changed"
    return None


def _told_changed(line: Line, before: States, settings: Settings) -> str | None:
    """The same of what a service tells of, for which it is asked."""
    now: States = {}
    for name, format in ((line.source, line.format), (line.other, line.other_format)):
        if name is not None:
            with suppress(DiskmillError):
                jobs.Info(Source(name, format), settings=settings).run(
                    warn=lambda text: None, opened=lambda image: now.update(states(image))
                )
    for name, state in before.items():
        if now.get(name, state) != state:
            return f"'{name}' has changed"
    return None


class _Others:
    """What jobs of one manifest are to each other.

    :ivar readers: by id, the jobs that read its output after it.
    """

    def __init__(self, lines: Sequence[Line]) -> None:
        self._located = Located()
        self._writers = {self._located(line.to): line for line in lines if line.to is not None}
        self._needs = {line.id: line.needs for line in lines if line.needs}
        self.readers: defaultdict[str, list[Line]] = defaultdict(list)
        for line in lines if self._needs else ():
            for name in _inputs(line):
                writer = self._writers.get(self._located(name))
                if writer is not None and comes_after(line.id, writer.id, self._needs):
                    self.readers[writer.id].append(line)

    def overwrite(self, line: Line, name: str) -> bool:
        """Whether the file *name*, which *line* reads, is then replaced by another job: of course it changed."""
        writer = self._writers.get(self._located(name)) if self._needs else None
        return writer is not None and comes_after(writer.id, line.id, self._needs)


def _inputs(line: Line) -> Iterator[str]:
    yield line.source
    if line.other is not None:
        yield line.other
