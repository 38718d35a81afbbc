"""What a job does, where it runs. Whatever becomes of it is told as a record."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import diskmill.jobs as jobs
from diskmill.errors import DiskmillError, ImageError, StorageError
from diskmill.jobs import Settings, Source, Target

from .journal import Record
from .manifest import Line
from .standing import States, states

if TYPE_CHECKING:
    from diskmill.contract.node import Image, Storage
    from diskmill.contract.results import CheckResult

Report = Callable[[int, int], None]


class Terms(NamedTuple):
    """On which a job is done.

    :param threads: that a copy may have.
    :param rate: bytes a second that it may read; 0: as many as it can.
    :param begun: it was begun before, and nobody knows what came of it: what bears its output's name may be its own.
    """

    threads: int = 1
    rate: int = 0
    begun: bool = False


PLAIN = Terms()


def perform(
    line: Line,
    settings: Settings,
    terms: Terms = PLAIN,
    *,
    progress: Report | None = None,
    cancel: threading.Event | None = None,
) -> Record:
    """Do the job of *line*; gives its record.

    What was read is recorded by its state (see :mod:`.standing`) as ``sources``.
    """
    warnings: list[str] = []
    began = time.time()
    record: Record = {"id": line.id, "key": line.key, "job": line.job, "source": line.source}
    if line.to is not None:
        record["to"] = line.to
    try:
        doing = _Doing(line, settings, terms, progress, cancel, warnings)
        record |= {"status": "done", **getattr(doing, line.job)(), "sources": doing.read}
    except DiskmillError as error:
        transient = isinstance(error, StorageError) and error.transient
        record |= {"status": "failed", "error": str(error), "transient": transient}
    except MemoryError:
        record |= {"status": "failed", "error": "there is not enough memory", "transient": True}
    except Exception as error:  # a mistake in a driver costs its own job, and no other
        record |= {"status": "failed", "error": f"internal error: {type(error).__name__}: {error}", "transient": False}
    record |= {"began": round(began, 3), "seconds": round(time.time() - began, 3)}
    if warnings:
        record["warnings"] = warnings[:20]
    return record


class _Doing:
    def __init__(
        self,
        line: Line,
        settings: Settings,
        terms: Terms,
        progress: Report | None,
        cancel: threading.Event | None,
        warnings: list[str],
    ) -> None:
        self.line = line
        self.settings = settings
        self.terms = terms
        self.source = Source(line.source, line.format)
        self.read: States = {}
        self.bytes_in = 0
        self.how: dict[str, Any] = {"progress": progress, "cancel": cancel, "warn": warnings.append}
        self.reading: dict[str, Any] = {**self.how, "opened": self._note}

    def _note(self, image: Image) -> None:
        self.read |= states(image)
        self.bytes_in += sum(map(_taken, image.leaves()))

    def convert(self) -> Record:
        line = self.line
        assert line.to is not None
        found = self._made_before() if self.terms.begun else None
        if found is not None:
            return found
        job = jobs.Convert(
            (self.source,),
            # What the journal says was done is on disk, whatever happens to the machine.
            Target(line.to, line.output_format, line.options, line.backing, line.backing_format, cache="writeback"),
            compress=line.compress,
            threads=self.terms.threads,
            rate=self.terms.rate,
            verify=line.verify and line.backing is None,
            digest="sha256" if line.backing is None else None,
            settings=self.settings,
        )
        _make_folder(line.to)
        made = job.run(**self.reading)
        digest = made.digest
        if line.backing is not None:  # the copy has seen a part of the disk only
            digest = self._digest(Source(line.to, line.output_format), self.how)
            if line.verify and digest != self._digest(self.source, self.how):
                raise ImageError("it does not read as its source does", file=line.to)
        return self._converted(line.to, digest, made.size)

    def _made_before(self) -> Record | None:
        """The record of an output that has its name, but of which nobody was left to record that; None: what bears the
        name, if anything, is no such."""
        line = self.line
        assert line.to is not None
        output = Source(line.to, line.output_format)
        try:
            size = jobs.Info(output, settings=self.settings).run(**self.how)[0].virtual_size
            digest = self._digest(output, self.how)
        except DiskmillError:
            return None
        return self._converted(line.to, digest, size) if digest == self._digest(self.source) else None

    def _converted(self, to: str, digest: str | None, size: int) -> Record:
        line = self.line
        length = _length(to)
        return {
            "digest": digest,
            "virtual_size": size,
            "bytes_in": self.bytes_in if line.backing is None else _bytes(line.source),
            "bytes": length if line.compress else _bytes(to),
            "length": length,
        }

    def digest(self) -> Record:
        return {"digest": self._digest(self.source), "bytes_in": self.bytes_in}

    def verify(self) -> Record:
        found = self._digest(self.source)
        if found != str(self.line.digest).lower():
            raise ImageError(f"its digest is {found}, and not {self.line.digest}", file=self.line.source)
        return {"digest": found, "bytes_in": self.bytes_in}

    def _digest(self, source: Source, how: dict[str, Any] | None = None) -> str:
        return jobs.Digest(source, settings=self.settings).run(**(how or self.reading))

    def check(self) -> Record:
        result: CheckResult = jobs.Check(self.source, settings=self.settings).run(**self.reading)
        if result.check_errors or result.corruptions:
            raise ImageError(
                f"the check found {result.corruptions} errors and {result.check_errors} that kept it from looking",
                file=self.line.source,
            )
        return {"leaks": result.leaks, "bytes_in": self.bytes_in}

    def info(self) -> Record:
        chain = jobs.Info(self.source, settings=self.settings).run(**self.reading)
        return {
            "format": chain[0].format,
            "virtual_size": chain[0].virtual_size,
            "bytes_in": self.bytes_in,
            "chain": [one.filename for one in chain],
        }

    def measure(self) -> Record:
        line = self.line
        found = jobs.Measure(self.source, line.output_format, line.options, settings=self.settings).run(**self.reading)
        return {
            "required": found.required,
            "fully_allocated": found.fully_allocated,
            "bytes_in": self.bytes_in,
        }

    def compare(self) -> Record:
        other = Source(str(self.line.other), self.line.other_format)
        found = jobs.Compare(self.source, other, settings=self.settings).run(**self.reading)
        if not found.identical:
            where = "" if found.offset is None else f" at offset {found.offset}"
            raise ImageError(f"it differs from '{other.name}'{where}", file=self.line.source)
        return {"bytes_in": self.bytes_in}


def _make_folder(name: str) -> None:
    """The folder of an output on this machine."""
    folder = os.path.dirname(name)
    if folder and "://" not in name:
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise StorageError.from_os(error, folder) from None


def _taken(file: Storage) -> int:
    """Bytes that a file takes; where nobody tells that, as long as it is."""
    fd = file.fileno()
    return file.size if fd is None else min(os.fstat(fd).st_blocks * 512, file.size)


def _length(name: str) -> int | None:
    """Bytes that a file is long; None where it is none of this machine's."""
    with suppress(OSError, ValueError):
        return os.stat(name).st_size
    return None


def _bytes(name: str) -> int | None:
    """Bytes that a file takes; None where it is none of this machine's."""
    with suppress(OSError, ValueError):
        return os.stat(name).st_blocks * 512
    return None
