"""Jobs: commands as values, which run here or are sent to another process.

All that a job is made of is a name or a number: nothing is open, so that it pickles. Secrets stand in it by how they
are come by (:class:`~diskmill.opening.secrets.Secret`), and are read where it runs; drivers are those that are
installed there.

>>> job = Convert((Source("disk.vmdk"),), Target("disk.qcow2", "qcow2"), digest="sha256")
>>> with ProcessPoolExecutor() as pool:                                          # doctest: +SKIP
...     pool.submit(job.run).result().digest
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .commands.check import check
from .commands.compare import compare
from .commands.conversion import Conversion, Converted, Source, Target
from .commands.convert import perform
from .commands.digest import ALGORITHM, digest
from .commands.info import info_chain
from .commands.measure import measure
from .contract.calls import Repair, expect_word
from .contract.node import Image
from .contract.results import CheckResult, Comparison, ImageInfo, Measurement
from .engine.digest import BLOCK
from .engine.progress import Report
from .errors import UsageError
from .opening.context import Context
from .opening.secrets import Secret
from .opening.settings import Settings
from .records import replace

__all__ = [
    "Check",
    "Compare",
    "Convert",
    "Digest",
    "Info",
    "Job",
    "Measure",
    "Secret",
    "Settings",
    "Source",
    "Target",
]

Warn = Callable[[str], None]
Opened = Callable[[Image], None]


@dataclass(frozen=True)
class Job(ABC):
    """One piece of work. What contradicts itself raises :class:`~diskmill.errors.UsageError` when it is made.

    :param settings: policy and secrets.
    """

    settings: Settings = field(default=Settings(), kw_only=True)

    @abstractmethod
    def run(
        self,
        *,
        progress: Report | None = None,
        cancel: threading.Event | None = None,
        warn: Warn | None = None,
        opened: Opened | None = None,
    ) -> Any:
        """Do it.

        :param progress: called with (bytes dealt with, bytes in all), now and then.
        :param cancel: set it to stop, where the job moves data.
        :param warn: takes a warning, one line.
        :param opened: takes each image that is read, when it is open.
        :raises DiskmillError: whatever went wrong.
        """

    def _context(self, source: Source, warn: Warn | None, opened: Opened | None) -> Context:
        return replace(self.settings.context(cache=source.cache, warn=warn), opened=opened)


@dataclass(frozen=True)
class Convert(Conversion, Job):
    """Copy guest disks into one image: see :class:`~diskmill.commands.conversion.Conversion`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target.existing and self.settings.overwrite == "refuse":
            raise UsageError("a file that is there is refused, and one that exists is to be written")
        if len({one.cache for one in self.sources}) > 1:
            raise UsageError("all sources have the same cache mode")

    def run(
        self,
        *,
        progress: Report | None = None,
        cancel: threading.Event | None = None,
        warn: Warn | None = None,
        opened: Opened | None = None,
    ) -> Converted:
        """Make the image; see :func:`diskmill.convert`."""
        context = self._context(self.sources[0], warn, opened)
        target = replace(context, cache=self.target.cache, share=False, opened=None)
        return perform(self, context, target, progress=progress, cancel=cancel)


@dataclass(frozen=True)
class Check(Job):
    """Check an image's metadata, and repair them: see :func:`diskmill.check`."""

    source: Source
    repair: Repair | Literal["lost"] = ""
    dry_run: bool = False

    def __post_init__(self) -> None:
        expect_word(self.repair, Literal["", "leaks", "all", "lost"], "repair")
        _no_snapshot(self.source, "check")

    def run(
        self,
        *,
        progress: Report | None = None,
        cancel: threading.Event | None = None,
        warn: Warn | None = None,
        opened: Opened | None = None,
    ) -> CheckResult:
        """What is inconsistent, and what was repaired."""
        return check(
            self.source.name,
            format=self.source.format,
            repair=self.repair,
            dry_run=self.dry_run,
            image_opts=self.source.image_opts,
            context=self._context(self.source, warn, opened),
            progress=progress,
        )


@dataclass(frozen=True)
class Digest(Job):
    """The digest of a guest disk: see :func:`diskmill.digest`."""

    source: Source
    algorithm: str = ALGORITHM
    block_size: int = BLOCK

    def __post_init__(self) -> None:
        _no_snapshot(self.source, "digest")

    def run(
        self,
        *,
        progress: Report | None = None,
        cancel: threading.Event | None = None,
        warn: Warn | None = None,
        opened: Opened | None = None,
    ) -> str:
        """The digest, in hexadecimal."""
        return digest(
            self.source.name,
            format=self.source.format,
            algorithm=self.algorithm,
            block_size=self.block_size,
            image_opts=self.source.image_opts,
            context=self._context(self.source, warn, opened),
            progress=progress,
            cancel=cancel,
        )


@dataclass(frozen=True)
class Info(Job):
    """What an image is, and each in its backing chain: see :func:`diskmill.info_chain`."""

    source: Source

    def __post_init__(self) -> None:
        _no_snapshot(self.source, "info")

    def run(
        self,
        *,
        progress: Report | None = None,
        cancel: threading.Event | None = None,
        warn: Warn | None = None,
        opened: Opened | None = None,
    ) -> list[ImageInfo]:
        """The images of the chain, from the top."""
        return info_chain(
            self.source.name,
            format=self.source.format,
            image_opts=self.source.image_opts,
            context=self._context(self.source, warn, opened),
        )


@dataclass(frozen=True)
class Measure(Job):
    """How much a new image takes: see :func:`diskmill.measure`."""

    source: Source
    output_format: str = "raw"
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(
        self,
        *,
        progress: Report | None = None,
        cancel: threading.Event | None = None,
        warn: Warn | None = None,
        opened: Opened | None = None,
    ) -> Measurement:
        """Bytes that it needs now, and when it is full."""
        return measure(
            self.source.name,
            output_format=self.output_format,
            options=self.options,
            format=self.source.format,
            snapshot=self.source.snapshot,
            image_opts=self.source.image_opts,
            context=self._context(self.source, warn, opened),
            progress=progress,
        )


@dataclass(frozen=True)
class Compare(Job):
    """Whether two guest disks are the same: see :func:`diskmill.compare`."""

    one: Source
    other: Source
    strict: bool = False

    def __post_init__(self) -> None:
        _no_snapshot(self.one, "compare")
        _no_snapshot(self.other, "compare")
        if self.one.image_opts != self.other.image_opts:
            raise UsageError("either both images are named by option strings, or none")

    def run(
        self,
        *,
        progress: Report | None = None,
        cancel: threading.Event | None = None,
        warn: Warn | None = None,
        opened: Opened | None = None,
    ) -> Comparison:
        """Whether they are, and where they first differ."""
        return compare(
            self.one.name,
            self.other.name,
            format_a=self.one.format,
            format_b=self.other.format,
            strict=self.strict,
            image_opts=self.one.image_opts,
            context=self._context(self.one, warn, opened),
            progress=progress,
            cancel=cancel,
        )


def _no_snapshot(source: Source, command: str) -> None:
    if source.snapshot is not None:
        raise UsageError(f"{command} reads no snapshots", file=source.name)
