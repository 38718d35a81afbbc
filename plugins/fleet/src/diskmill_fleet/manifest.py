"""What is to be done: a job a line, as JSON objects or as rows of CSV with a heading."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import IO, Any

from diskmill.contract.options import split
from diskmill.errors import StorageError, UsageError, did_you_mean, shown

JOBS = ("convert", "check", "digest", "info", "measure", "compare", "verify")
_LONGEST = 1 << 20
"""Characters of a line that are read at most."""


@dataclass(frozen=True, slots=True)
class Line:
    """A job.

    :param id: its name in the journal; by default where its output goes, or else its source.
    :param job: one of :data:`JOBS`.
    :param format: the source's format; None: probe.
    :param to: where ``convert`` writes.
    :param output_format: of what it writes, or of what ``measure`` is about.
    :param options: ``create`` options of that format.
    :param backing: the backing image that the output gets; what the source leaves to its own is left to that.
    :param verify: read the output back and compare it.
    :param needs: ids of jobs that must be done before.
    :param other: the second image of ``compare``.
    :param digest: what ``verify`` holds the source's digest against.
    :param size: bytes that it is about, for the order; 0: the source is asked.
    """

    id: str
    source: str
    job: str = "convert"
    format: str | None = None
    to: str | None = None
    output_format: str = "raw"
    options: Mapping[str, Any] = field(default_factory=dict)
    compress: bool = False
    backing: str | None = None
    backing_format: str | None = None
    verify: bool = False
    needs: tuple[str, ...] = ()
    other: str | None = None
    other_format: str | None = None
    digest: str | None = None
    size: int = 0

    @property
    def key(self) -> str:
        """Other lines of the same id have another: what was done is only what was asked for."""
        known = {name: getattr(self, name) for name in _MEANT}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode(errors="surrogateescape")).hexdigest()[:16]

    def as_dict(self) -> dict[str, Any]:
        """Its fields, without those that are as they are anyway."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        plain = {"job": "convert", "output_format": "raw", "size": 0, "compress": False, "verify": False}
        return {
            name: list(value) if name == "needs" else value
            for name, value in found.items()
            if value not in (None, {}, ()) and plain.get(name) != value
        }


_FIELDS = {one.name: one for one in fields(Line)}
_MEANT = tuple(name for name in _FIELDS if name not in ("id", "needs", "size"))
_BOOLS = ("compress", "verify")
_STREAMS = ("-", "pipe:-")


def is_url(name: str) -> bool:
    """Whether *name* is no path."""
    return "://" in name


def read(path: str) -> list[Line]:
    """The jobs of the manifest at *path*.

    :raises StorageError: it cannot be read.
    :raises UsageError: a line is no job, two have the same id or output, or one needs what is not there.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            lines = [_line(given, path, number) for number, given in _given(file, path)]
    except OSError as error:
        raise StorageError.from_os(error, path) from None
    _agree(lines, path)
    return lines


def write(lines: Iterator[Line], file: IO[str]) -> int:
    """Put *lines* into *file*, as JSON; gives how many."""
    count = 0
    for line in lines:
        file.write(json.dumps(line.as_dict()) + "\n")
        count += 1
    return count


def _given(file: IO[str], path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    first = file.readline(_LONGEST)
    file.seek(0)
    if first.lstrip().startswith("{"):
        number = 0
        while text := file.readline(_LONGEST):
            number += 1
            if not text.strip():
                continue
            try:
                given = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"line {number} is not JSON: {error}", file=path) from None
            if not isinstance(given, dict):
                raise UsageError(f"line {number} is no JSON object", file=path)
            yield number, given
        return
    try:
        for row in (rows := csv.DictReader(file, strict=True)):
            if None in row:
                raise UsageError(f"line {rows.line_num} has more columns than the heading", file=path)
            yield rows.line_num, {name: value for name, value in row.items() if value}
    except csv.Error as error:
        raise UsageError(f"it is neither JSON lines nor CSV: {error}", file=path) from None


def _line(given: dict[str, Any], path: str, number: int) -> Line:
    def wrong(text: str, hint: str | None = None) -> UsageError:
        return UsageError(f"line {number}: {text}", file=path, hint=hint)

    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in _FIELDS:
            raise wrong(f"there is no field '{name}'", did_you_mean(name, _FIELDS))
        try:
            values[name] = _value(name, value)
        except ValueError:
            raise wrong(f"the field '{name}' cannot be {json.dumps(value)}") from None
    job = values.get("job", "convert")
    if job not in JOBS:
        raise wrong(f"there is no job '{job}': it is one of {', '.join(JOBS)}", did_you_mean(job, JOBS))
    for name, of in (("source", JOBS), ("to", ("convert",)), ("other", ("compare",)), ("digest", ("verify",))):
        if job in of and not values.get(name):
            raise wrong(f"job '{job}' has no field '{name}'")
        if job not in of and name in values:
            raise wrong(f"job '{job}' takes no field '{name}'")
    for name in ("source", "to", "other"):
        if values.get(name) in _STREAMS:
            raise wrong(f"the field '{name}' names a standard stream, and workers have none of yours")
    values.setdefault("id", values.get("to") or f"{job} {_told(values['source'])}")
    return Line(**values)


def _told(name: str) -> str:
    """*name* without credentials; names that differ differ all the same."""
    told = shown(name)
    return name if told == name else f"{told} ({hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:8]})"


def _value(name: str, value: Any) -> Any:
    """*value* as the field *name* has it; in CSV all is text.

    :raises ValueError: it is none.
    """
    if isinstance(value, str) and name in _BY_TEXT:
        value = _BY_TEXT[name](value)
    kind: type[Any] = {"options": dict, "needs": list, "size": int}.get(name, bool if name in _BOOLS else str)
    if type(value) is not kind:
        raise ValueError(name)
    if name == "size" and value < 0:
        raise ValueError(name)
    return tuple(map(str, value)) if name == "needs" else value


def _switch(text: str) -> bool | None:
    return {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}.get(text.lower())


_BY_TEXT: dict[str, Callable[[str], Any]] = {
    "compress": _switch,
    "verify": _switch,
    "options": lambda text: dict(split(text)),
    "needs": str.split,
    "size": int,
}


def _agree(lines: list[Line], path: str) -> None:
    ids = {line.id for line in lines}
    if len(ids) < len(lines):
        seen: set[str] = set()
        twice = next(line.id for line in lines if line.id in seen or seen.add(line.id))  # type: ignore[func-returns-value]
        raise UsageError(f"two lines have the id '{twice}'", file=path)
    for line in lines:
        for one in line.needs:
            if one not in ids:
                raise UsageError(f"'{line.id}' needs '{one}', which is no line", file=path)
    # What waits for itself in the end would never begin.
    left = {line.id: set(line.needs) for line in lines if line.needs}
    while free := [id for id, needs in left.items() if not any(one in left for one in needs)]:
        for id in free:
            del left[id]
    if left:
        raise UsageError(f"'{next(iter(left))}' waits for itself, by what it needs", file=path)
    _expect_apart(lines, path)


def _expect_apart(lines: list[Line], path: str) -> None:
    """Refuse two lines that write the same file, and one that reads what another writes, unless ``needs`` say which of
    them comes first: else chance would decide which disk is read."""
    located = Located()
    writers: dict[str, Line] = {}
    for line in lines:
        if line.to is not None:
            other = writers.setdefault(located(line.to), line)
            if other is not line:
                raise UsageError(f"'{line.id}' and '{other.id}' write the same file", file=path)
    needs = {line.id: line.needs for line in lines if line.needs}
    for line in lines:
        for name in _inputs(line):
            writer = writers.get(located(name))
            if writer is None or writer is line:  # its own output the job itself refuses to read
                continue
            if not (comes_after(line.id, writer.id, needs) or comes_after(writer.id, line.id, needs)):
                text = f"'{line.id}' reads '{name}', which '{writer.id}' writes: one of them must need the other"
                raise UsageError(text, file=path)


def _inputs(line: Line) -> Iterator[str]:
    yield line.source
    if line.other is not None:
        yield line.other
    if line.backing is not None and line.to is not None:  # it lies where the output says that it does
        there = is_url(line.backing) or is_url(line.to)
        yield line.backing if there else os.path.join(os.path.dirname(line.to), line.backing)


def comes_after(late: str, early: str, needs: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether the job *late* waits for *early*, by way of others or not."""
    seen, left = {late}, [late]
    while left:
        for one in needs.get(left.pop(), ()):
            if one == early:
                return True
            if one not in seen:
                seen.add(one)
                left.append(one)
    return False


class Located:
    """Where names really lead, each folder looked up once."""

    def __init__(self) -> None:
        self._folders: dict[str, str] = {}

    def __call__(self, name: str) -> str:
        if is_url(name):
            return name
        folder, base = os.path.split(name.removeprefix("file:"))
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        found = os.path.join(self._folders[folder], base)
        return os.path.realpath(found) if base in ("", ".", "..") or os.path.islink(found) else found
