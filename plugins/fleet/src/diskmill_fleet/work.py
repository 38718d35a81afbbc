"""What a job does, where it runs. Whatever becomes of it is told as a record."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import diskmill.jobs as jobs
from diskmill.errors import DiskmillError, ImageError, StorageError
from diskmill.jobs import Settings, Source, Target

from .journal import Record
from .manifest import Line

if TYPE_CHECKING:
    from diskmill.contract.results import CheckResult

Report = Callable[[int, int], None]


def perform(
    line: Line,
    settings: Settings,
    *,
    threads: int = 1,
    rate: int = 0,
    progress: Report | None = None,
    cancel: threading.Event | None = None,
) -> Record:
    """Do the job of *line*; gives its record.

    :param threads: that a copy may have.
    :param rate: bytes a second that it may read; 0: as many as it can.
    """
    warnings: list[str] = []
    began = time.time()
    record: Record = {"id": line.id, "key": line.key, "job": line.job, "source": line.source}
    if line.to is not None:
        record["to"] = line.to
    try:
        done = _Doing(line, settings, threads, rate, progress, cancel, warnings)
        record |= {"status": "done", **getattr(done, line.job)()}
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
        threads: int,
        rate: int,
        progress: Report | None,
        cancel: threading.Event | None,
        warnings: list[str],
    ) -> None:
        self.line = line
        self.settings = settings
        self.threads = threads
        self.rate = rate
        self.source = Source(line.source, line.format)
        self.how: dict[str, Any] = {"progress": progress, "cancel": cancel, "warn": warnings.append}

    def convert(self) -> Record:
        line = self.line
        assert line.to is not None
        job = jobs.Convert(
            (self.source,),
            # What the journal says was done is on disk, whatever happens to the machine.
            Target(line.to, line.output_format, line.options, line.backing, line.backing_format, cache="writeback"),
            compress=line.compress,
            threads=self.threads,
            rate=self.rate,
            verify=line.verify and line.backing is None,
            digest="sha256" if line.backing is None else None,
            settings=self.settings,
        )
        _make_folder(line.to)
        made = job.run(**self.how)
        digest = made.digest
        if line.backing is not None:  # the copy has seen a part of the disk only
            digest = self._digest(Source(line.to, line.output_format))
            if line.verify and digest != self._digest(self.source):
                raise ImageError("it does not read as its source does", file=line.to)
        length = _length(line.to)
        return {
            "digest": digest,
            "virtual_size": made.size,
            "bytes_in": _bytes(line.source),
            "bytes": length if line.compress else _bytes(line.to),
            "length": length,
        }

    def digest(self) -> Record:
        return {"digest": self._digest(self.source), "bytes_in": _bytes(self.line.source)}

    def verify(self) -> Record:
        found = self._digest(self.source)
        if found != str(self.line.digest).lower():
            raise ImageError(f"its digest is {found}, and not {self.line.digest}", file=self.line.source)
        return {"digest": found, "bytes_in": _bytes(self.line.source)}

    def _digest(self, source: Source) -> str:
        return jobs.Digest(source, settings=self.settings).run(**self.how)

    def check(self) -> Record:
        result: CheckResult = jobs.Check(self.source, settings=self.settings).run(**self.how)
        if result.check_errors or result.corruptions:
            raise ImageError(
                f"the check found {result.corruptions} errors and {result.check_errors} that kept it from looking",
                file=self.line.source,
            )
        return {"leaks": result.leaks, "bytes_in": _bytes(self.line.source)}

    def info(self) -> Record:
        chain = jobs.Info(self.source, settings=self.settings).run(**self.how)
        return {
            "format": chain[0].format,
            "virtual_size": chain[0].virtual_size,
            "bytes_in": chain[0].actual_size,
            "chain": [one.filename for one in chain],
        }

    def measure(self) -> Record:
        line = self.line
        found = jobs.Measure(self.source, line.output_format, line.options, settings=self.settings).run(**self.how)
        return {"required": found.required, "fully_allocated": found.fully_allocated}

    def compare(self) -> Record:
        other = Source(str(self.line.other), self.line.other_format)
        found = jobs.Compare(self.source, other, settings=self.settings).run(**self.how)
        if not found.identical:
            where = "" if found.offset is None else f" at offset {found.offset}"
            raise ImageError(f"it differs from '{other.name}'{where}", file=self.line.source)
        return {"bytes_in": _bytes(self.line.source)}


def _make_folder(name: str) -> None:
    """The folder of an output on this machine."""
    folder = os.path.dirname(name)
    if folder and "://" not in name:
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise StorageError.from_os(error, folder) from None


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
