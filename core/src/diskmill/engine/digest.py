"""Digests of guest disks, which are the same for the same bytes in every format.

The disk is cut into blocks of *B* bytes (65536 unless told otherwise; the last may be shorter). Its digest is
``H(H(block 0) ‖ H(block 1) ‖ … ‖ length as 8 bytes, little-endian)``: the definition of blkhash and ``blksum``
(https://gitlab.com/nirs/blkhash). So blocks are hashed in parallel, and a block of zeros costs nothing.
"""

from __future__ import annotations

import hashlib
import importlib
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

from ..contract.extents import Extent
from ..contract.limits import READ_PER_WORK, Meter
from ..contract.node import Node
from ..errors import UsageError
from . import leaves
from .copy.gauge import CHUNK
from .copy.plan import CopyPlan, Watcher
from .copy.reading import Buffers, read
from .copy.stretches import Stretch
from .copy.tasks import Task, in_a_row, tasks_of
from .progress import Progress, RateLimit
from .workers import Workers

BLOCK = 65536
"""Bytes in a block unless another size is asked for."""
_RUN = 1 << 14
"""Digests of zero blocks that are fed at once."""

Hash = Callable[[bytes | bytearray | memoryview], Any]
"""Starts a hash with some bytes: what it gives has ``update``, ``digest`` and ``hexdigest``."""
Sink = Callable[[int, int, bytes | None], None]
"""Told, in order: the first block, how many, and their digests, one after the other; None: they are zeros."""


class Checks:
    """CRC-32 and Adler-32 as a hash of 8 bytes: against damage, not forgery. With isal's they take a tenth of the
    time of SHA-256, with zlib's about as long."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        library = _checksums()
        self._crc, self._adler = library.crc32(data), library.adler32(data)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        library = _checksums()
        self._crc, self._adler = library.crc32(data, self._crc), library.adler32(data, self._adler)

    def digest(self) -> bytes:
        return int(self._crc << 32 | self._adler).to_bytes(8, "big")

    def hexdigest(self) -> str:
        return self.digest().hex()


@cache
def _checksums() -> Any:
    try:
        return importlib.import_module("isal.isal_zlib")
    except ImportError:
        return zlib


def hash_of(algorithm: str) -> Hash:
    """What starts a hash called *algorithm*, as hashlib or OpenSSL name it (``sha512-256`` and ``blake2b512`` too).

    :raises UsageError: there is none.
    """
    names = {"blake2b512": "blake2b", "blake2s256": "blake2s"}
    name = names.get(algorithm, algorithm.replace("-", "_") if algorithm.startswith("sha512-") else algorithm)
    if name == "blake3":
        try:
            from blake3 import blake3  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            raise UsageError("blake3 is not installed: pip install blake3") from None
        return blake3  # type: ignore[no-any-return,unused-ignore]
    try:
        hashlib.new(name, b"").digest()  # what is shaken has no length of its own
    except (ValueError, TypeError):
        known = ", ".join(sorted(one for one in hashlib.algorithms_available if not one.startswith("shake")))
        raise UsageError(f"unknown digest '{algorithm}': choose from {known}, blake3") from None
    return partial(hashlib.new, name)


class Digester:
    """A watcher that makes the digest of *size* bytes, shown in any order.

    Out of order it holds no more than what is being read at once: a block's bytes until they are all there, and the
    digests of blocks before whose turn it is.

    :param algorithm: its name, or the hash itself.
    :param sink: told of the digests of blocks as they come in order.
    :param meter: counts what is hashed: a block whole, however little of it is data, and twice where it comes in
        parts; and the digests of zeros. A disk may claim to be larger than anybody can hash.
    """

    def __init__(
        self,
        size: int,
        algorithm: str | Hash = "sha256",
        block: int = BLOCK,
        sink: Sink | None = None,
        *,
        meter: Meter | None = None,
    ) -> None:
        self._hash = hash_of(algorithm) if isinstance(algorithm, str) else algorithm
        self._size = size
        self._block = block
        self._sink = sink
        self._meter = meter
        self._hashed = 0  # bytes that were not counted yet
        self._outer = self._hash(b"")
        self._zero: bytes = self._hash(bytes(block)).digest()
        self._at = 0  # the first block that was not fed yet
        self._done: dict[int, tuple[int, bytes | None]] = {}  # first block → how many, their digests
        self._parts: dict[int, tuple[bytearray, list[int]]] = {}  # block → its bytes, and how many are there
        self._lock = threading.Lock()

    def data(self, start: int, view: memoryview) -> None:
        new, block, length, at = self._hash, self._block, len(view), 0
        while at < length:
            number, skip = divmod(start + at, block)
            upto = length if start + length == self._size else at + (length - at) // block * block
            if not skip and upto > at:  # whole blocks, in one go; the disk's last one may be short
                digests = b"".join([new(view[one : one + block]).digest() for one in range(at, upto, block)])
                self._finished(number, -(-(upto - at) // block), digests)
                at = upto
            else:
                piece = view[at : at + min(block - skip, length - at)]
                self._partly(number, skip, len(piece), piece)
                at += len(piece)

    def zeros(self, start: int, length: int) -> None:
        end, block = start + length, self._block
        first = -(-start // block)
        last = end // block
        if first >= last:  # inside of one block, or parts of two
            self._zero_parts(start, end)
            return
        self._zero_parts(start, first * block)
        self._finished(first, last - first, None)
        self._zero_parts(last * block, end)

    def shared(self, start: int, length: int) -> None:
        raise UsageError("no digest can be made of a copy that leaves data to a backing image")

    def _zero_parts(self, start: int, end: int) -> None:
        while start < end:
            number, skip = divmod(start, self._block)
            length = min(self._block - skip, end - start)
            self._partly(number, skip, length, None)
            start += length

    def _length(self, number: int) -> int:
        return min(self._block, self._size - number * self._block)

    def _partly(self, number: int, skip: int, length: int, piece: memoryview | None) -> None:
        """*length* bytes of a block are there; without *piece* they are zeros."""
        with self._lock:
            part = self._parts.get(number)
            if part is None:
                part = self._parts[number] = bytearray(self._length(number)), [0]
            whole, have = part
            if piece is not None:
                whole[skip : skip + length] = piece
            have[0] += length
            if have[0] < len(whole):
                return
            del self._parts[number]
            self._count(len(whole))  # it was put together, and is going to be hashed
        self._finished(number, 1, self._hash(whole).digest())

    def _finished(self, number: int, count: int, digests: bytes | None) -> None:
        with self._lock:
            self._done[number] = count, digests
            while self._at in self._done:
                first = self._at
                count, digests = self._done.pop(first)
                self._at += count
                if digests is not None:
                    self._count(count * self._block)
                    self._outer.update(digests)
                else:
                    self._count(count * len(self._zero))
                    for at in range(0, count, _RUN):
                        self._outer.update(self._zero * min(_RUN, count - at))
                if self._sink is not None:
                    self._sink(first, count, digests)

    def _count(self, size: int) -> None:
        if self._meter is not None:
            work, self._hashed = divmod(self._hashed + size, 1 << READ_PER_WORK)
            self._meter.add(work)

    @property
    def zero(self) -> bytes:
        """The digest of a block of zeros."""
        return self._zero

    def hexdigest(self) -> str:
        """The digest, once everything was shown.

        :raises RuntimeError: something was not.
        """
        if self._at != -(-self._size // self._block) or self._parts:
            raise RuntimeError(f"the digest has seen {self._at} blocks of {self._size} bytes")
        self._outer.update(self._size.to_bytes(8, "little"))
        return str(self._outer.hexdigest())


def scan(
    source: Node | Sequence[Node],
    watchers: Sequence[Watcher],
    *,
    offset: int = 0,
    length: int | None = None,
    granule: int = BLOCK,
    threads: int | None = None,
    progress: Progress | None = None,
    limit: RateLimit | None = None,
    cancel: threading.Event | None = None,
) -> None:
    """Read *source*, one node or several one after the other, and show all of it to *watchers*.

    :param offset: where to begin, in all of them; watchers are told that.
    :param length: how many bytes; None: all.
    :param granule: bytes; tasks end at multiples of it where they can.
    :raises CancelledError: *cancel* was set.
    """
    counter, pace = progress or Progress(), limit or RateLimit()
    plan = CopyPlan(zeroed=True)
    sources = [source] if isinstance(source, Node) else source
    order = leaves.order(sources)
    chunk = -(-CHUNK // granule) * granule

    def left_out(extent: Extent) -> None:
        for watcher in watchers:
            watcher.zeros(extent.start, extent.length)
        counter.advance(extent.length)

    def worker(workers: Workers[Task]) -> Callable[[Task, int], None]:
        buffers = Buffers(chunk)

        def work(task: Task, turn: int) -> None:
            pace.take(task.end - task.start)
            view = memoryview(buffers.for_guest(task.end - task.start))
            with order.reading(turn, workers.check):
                read(task.extents, list(_runs(task.extents)), view, task.start, buffers, None)
            for extent in task.extents:
                for watcher in watchers:
                    watcher.data(extent.start, view[extent.start - task.start : extent.end - task.start])
            counter.advance(task.length)

        return work

    tasks = tasks_of(in_a_row(sources, offset, offset, length, plan), chunk, granule, 1, plan, left_out)
    count, interrupt = threads or leaves.threads(sources), partial(leaves.interrupt, sources)
    Workers(tasks, worker, threads=count, cancel=cancel, interrupt=interrupt).run()


def _runs(extents: Sequence[Extent]) -> Iterator[Stretch]:
    """The stretches that *extents* cover without gaps."""
    start = end = -1
    for extent in extents:
        if extent.start != end:
            if end >= 0:
                yield start, end
            start = extent.start
        end = extent.end
    if end >= 0:
        yield start, end
