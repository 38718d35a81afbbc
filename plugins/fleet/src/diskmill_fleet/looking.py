"""What images are, of which there may be very many: processes look at them, as most of it is Python's work."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import NamedTuple

import diskmill.jobs as jobs
from diskmill.contract.results import ChildInfo, ImageInfo
from diskmill.errors import DiskmillError, StorageError
from diskmill.jobs import Settings, Source

from .manifest import is_url

_FEW = 1000
"""Images that are looked at sooner than processes have started."""
_AT_ONCE = 64
"""Images that a process is told of at a time."""


class Seen(NamedTuple):
    """What matters of an image.

    :param size: bytes that its file takes.
    :param base: the real name of its backing image.
    :param parts: the real names of other files that it consists of.
    """

    format: str
    size: int
    base: str | None
    parts: tuple[str, ...]


def real_name(name: str) -> str:
    """The one name of the file called *name*, whatever links lead there."""
    return name if is_url(name) else os.path.realpath(name)


def look(paths: Sequence[str], settings: Settings) -> Iterator[Seen | None]:
    """What each of *paths* is, in order; None: it cannot be opened.

    :raises StorageError: a process was killed over it.
    """
    one = partial(_seen, settings=settings)
    processors = len(os.sched_getaffinity(0))
    if len(paths) < _FEW or processors == 1:
        yield from map(one, paths)
        return
    pool = ProcessPoolExecutor(processors, get_context("spawn"), _prepare, (os.getpid(),))
    try:
        yield from pool.map(one, paths, chunksize=_AT_ONCE)
    except BrokenProcessPool:
        raise StorageError("a process that looked at images was killed", transient=True) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare(leader: int) -> None:
    """Begin a process: what a terminal tells is for its *leader*, and it does not outlive that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == leader:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _seen(path: str, settings: Settings) -> Seen | None:
    try:
        info = jobs.Info(Source(path), settings=settings).run(warn=lambda text: None)[0]
    except DiskmillError:
        return None
    base = info.full_backing_filename
    files = list(_files(info))
    if files == [path]:
        parts = []
    else:
        own = real_name(path)
        parts = [real for real in dict.fromkeys(map(real_name, files)) if real != own]
    return Seen(info.format, info.actual_size or 0, None if base is None else real_name(base), tuple(parts))


def _files(info: ImageInfo | ChildInfo) -> Iterator[str]:
    """The files below an image, but for its backing image."""
    for child in info.children:
        if child.name != "backing":
            yield child.filename
            yield from _files(child)
    for extent in (getattr(info, "specific", None) or {}).get("extents", ()):
        yield extent["filename"]
