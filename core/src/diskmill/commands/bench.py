"""``bench``: how fast an image answers simple requests."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from ..contract.node import Image
from ..engine.workers import start
from ..errors import DiskmillError, UsageError
from ..opening.context import Context
from ..opening.graph import open_image
from ..opening.names import Name, given_name
from ..sizes import new_buffer, whole

MAX_THREADS = 64


@dataclass
class BenchResult:
    """What was measured.

    :param seconds: from the first request to the last answer.
    :param size: bytes of one request.
    """

    requests: int
    seconds: float
    size: int


def bench(
    name: Name,
    *,
    count: int = 75000,
    depth: int = 64,
    size: int = 4096,
    step: int = 0,
    offset: int = 0,
    write: bool = False,
    pattern: int = 0,
    flush_interval: int = 0,
    drain: bool = True,
    format: str | None = None,
    image_opts: bool = False,
    context: Context | None = None,
) -> BenchResult:
    """Read (or write) *size* bytes *count* times, *depth* requests at once, each *step* bytes after the one before.

    :param step: bytes; 0: *size*.
    :param pattern: the byte that is written.
    :param flush_interval: flush after so many writes; 0: never.
    :param drain: whether a flush waits for the requests before it.
    :raises UsageError: the numbers make no sense.
    """
    name = given_name(name)
    context = context or Context()
    count, depth, size = whole(count, "count"), whole(depth, "depth", 1), whole(size, "size")
    step, offset, pattern = whole(step, "step"), whole(offset, "offset"), whole(pattern, "pattern", 0, 255)
    if flush_interval and not write:
        raise UsageError("a flush interval goes with writing")
    if flush_interval and flush_interval < depth:
        raise UsageError("the flush interval cannot be smaller than the depth")
    with open_image(name, format, context=context, writable=write, image_opts=image_opts) as image:
        if size > image.size:
            raise UsageError(f"requests of {size} bytes do not fit in {image.size} bytes", file=name)
        if offset > image.size - size:
            raise UsageError(f"the first request, at {offset}, does not fit in {image.size} bytes", file=name)
        run = _Run(image, count, size, step or size, offset, write, pattern, flush_interval, drain)
        threads: list[threading.Thread] = []
        begin = time.perf_counter()
        if count:
            start(run.work, min(depth, MAX_THREADS, count), threads)
        for thread in threads:
            thread.join()
        if run.error is not None:
            raise run.error
        return BenchResult(count, time.perf_counter() - begin, size)


class _Run:
    def __init__(
        self,
        image: Image,
        count: int,
        size: int,
        step: int,
        offset: int,
        write: bool,
        pattern: int,
        flush_interval: int,
        drain: bool,
    ) -> None:
        self.image, self.count, self.size, self.step = image, count, size, step
        self.write, self.flush_interval, self.drain = write, flush_interval, drain
        self.data = bytes([pattern]) * size if write else b""
        self.error: DiskmillError | None = None
        self._offset = offset % image.size
        self._sent = 0
        self._busy = 0
        self._idle = threading.Condition()

    def work(self) -> None:
        buffer = new_buffer(self.size)
        try:
            while (request := self._next()) is not None:
                number, offset = request
                if self.write:
                    self.image.write(offset, memoryview(self.data)[: self.image.size - offset])
                else:
                    self.image.read_into(offset, buffer)
                self._answered(number)
        except DiskmillError as error:
            self.error = self.error or error

    def _next(self) -> tuple[int, int] | None:
        """The next request's number and offset."""
        with self._idle:
            if self._sent == self.count or self.error is not None:
                return None
            self._sent += 1
            self._busy += 1
            offset = self._offset
            self._offset = (offset + self.step) % self.image.size
            return self._sent, offset

    def _answered(self, number: int) -> None:
        with self._idle:
            self._busy -= 1
            self._idle.notify_all()
            if not self.flush_interval or number % self.flush_interval:
                return
            if self.drain:
                self._idle.wait_for(lambda: not self._busy or self.error is not None)
        self.image.flush()
