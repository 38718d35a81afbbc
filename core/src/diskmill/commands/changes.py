"""What of a disk has changed since something is known of it: a bitmap, a snapshot, digests of its blocks, or a copy."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from ..contract import calls
from ..contract.extents import Extent
from ..contract.limits import Meter
from ..contract.node import Image
from ..engine.compare import pairs
from ..engine.digest import BLOCK, Digester, scan
from ..engine.progress import Progress
from ..errors import UsageError
from ..opening.context import Context
from ..opening.graph import open_image
from .bitmap import bitmaps_of
from .conversion import Source
from .digest import ALGORITHM, BlockFile
from .known_digests import blocks_of
from .snapshot import load_snapshot

Ranges = Callable[[], Iterator[tuple[int, int]]]
"""Gives guest ranges (offset, length), ascending and apart, as often as it is called."""
KINDS = ("bitmap", "snapshot", "digests")


class Marked:
    """Blocks of *image*, a bit for each.

    :raises LimitError: it has more blocks than bits fit in memory.
    """

    def __init__(self, image: Image, block: int = BLOCK) -> None:
        self.size = image.size
        self.block = block
        self.count = 0
        """How many are marked."""
        length = -(-self.size // block) // 8 + 1
        image.account.charge(length, f"a bit for each block of {block} bytes", image.name)
        self._bits = bytearray(length)

    def mark(self, number: int) -> None:
        """Mark block *number*, which is not yet."""
        self._bits[number >> 3] |= 1 << (number & 7)
        self.count += 1

    def ranges(self) -> Iterator[tuple[int, int]]:
        """The guest ranges of the marked blocks, neighbours together."""
        start = end = -1
        for at in range(len(self._bits)):
            bits = self._bits[at]
            number = at * 8
            while bits:
                if bits & 1:
                    if number != end:
                        if end >= 0:
                            yield self._range(start, end)
                        start = number
                    end = number + 1
                bits >>= 1
                number += 1
        if end >= 0:
            yield self._range(start, end)

    def _range(self, first: int, end: int) -> tuple[int, int]:
        return first * self.block, min(end * self.block, self.size) - first * self.block


def unlike(
    source: Image,
    copy: Image,
    *,
    algorithm: str = ALGORITHM,
    block: int = BLOCK,
    threads: int | None = None,
    progress: Progress,
    cancel: threading.Event | None = None,
) -> Marked:
    """The blocks of *source* whose digests differ from those of *copy*, a disk of the same size."""
    found = Marked(source, block)
    with tempfile.TemporaryFile(prefix="diskmill-") as recorded:
        zero = Digester(0, algorithm, block).zero
        meter = Meter(source, copy)  # one for both: they cost what they cost together
        first = Digester(source.size, algorithm, block, BlockFile(recorded, zero).put, meter=meter)
        scan(copy, [first], length=source.size, granule=block, threads=threads, progress=progress, cancel=cancel)
        recorded.seek(0)
        return _marked(found, source, BlockFile(recorded, zero), algorithm, meter, threads, progress, cancel)


def _marked(
    found: Marked,
    source: Image,
    known: BlockFile,
    algorithm: str,
    meter: Meter,
    threads: int | None,
    progress: Progress,
    cancel: threading.Event | None,
) -> Marked:
    """*found*, with the blocks of *source* marked that have other digests than those that are *known*."""

    def look(first: int, count: int, digests: bytes | None) -> None:
        for number in known.unlike(first, count, digests):
            found.mark(number)

    digester = Digester(source.size, algorithm, found.block, look, meter=meter)
    scan(source, [digester], granule=found.block, threads=threads, progress=progress, cancel=cancel)
    return found


def changed_since(
    word: str, image: Image, source: Source, context: Context, stack: ExitStack, progress: Progress
) -> Ranges:
    """What of *image*, opened as *source*, has changed since *word*: the name of a bitmap or snapshot of the image, or
    of a file with the digests of its blocks (``digest --block-digests``). ``bitmap:``, ``snapshot:`` or ``digests:``
    before it says which.

    :param stack: holds what stays open for that.
    :raises UsageError: there is nothing of the name, or more than one thing.
    """
    kind, _, name = word.partition(":")
    kinds: tuple[str, ...] = (kind,)
    if kind not in KINDS or not name:
        kinds, name = KINDS, word
    found: list[tuple[str, Ranges | None]] = []
    if "bitmap" in kinds:
        for bitmap in bitmaps_of(image, context):
            if bitmap.name == name:
                if bitmap.inconsistent:
                    raise UsageError(f"bitmap '{name}' is inconsistent", file=image.name)
                found.append(("bitmap", _within(bitmap.ranges, image.size)))
    snapshots = calls.snapshots(context.registry, image) if "snapshots" in image.driver.capabilities else []
    if "snapshot" in kinds and any(name in (one.id, one.name) for one in snapshots):
        found.append(("snapshot", _since_snapshot(image, source, name, context, stack)))
    if "digests" in kinds and os.path.isfile(name):
        found.append(("digests", None))
    if not found:
        raise UsageError(f"there is no bitmap, snapshot or file of digests '{name}'", file=image.name)
    if len(found) > 1:
        ways = " or ".join(f"{one}:{name}" for one, _ in found)
        raise UsageError(f"'{name}' may be more than one thing: say {ways}", file=image.name)
    ranges = found[0][1]
    return _since_digests(image, name, progress).ranges if ranges is None else ranges


def _within(ranges: Ranges, size: int) -> Ranges:
    """*ranges*, as far as the disk has them: a bitmap's last bit may stand for more."""

    def inside() -> Iterator[tuple[int, int]]:
        for start, length in ranges():
            if start < size:
                yield start, min(length, size - start)

    return inside


def _since_snapshot(image: Image, source: Source, name: str, context: Context, stack: ExitStack) -> Ranges:
    before = stack.enter_context(open_image(source.name, source.format, context=context, image_opts=source.image_opts))
    load_snapshot(before, name, context)

    def unlike() -> Iterator[tuple[int, int]]:
        common = min(image.size, before.size)
        for now, then in pairs(image, before, common):
            if not _same(now, then):
                yield now.start, now.length
        if image.size > common:
            yield common, image.size - common

    def ranges() -> Iterator[tuple[int, int]]:
        start = end = 0
        for at, length in unlike():
            if at != end:
                if end > start:
                    yield start, end - start
                start = at
            end = at + length
        if end > start:
            yield start, end - start

    return ranges


def _same(now: Extent, then: Extent) -> bool:
    """Whether both are the same bytes, as far as that shows without reading them."""
    if now.reads_as_zeros or then.reads_as_zeros:
        return now.reads_as_zeros and then.reads_as_zeros
    if now.node is None or then.node is None or now.kind is not then.kind:
        return False
    identity = now.node.identity()
    if identity is None or identity != then.node.identity():
        return False
    return (now.offset, now.stored, now.unit, now.skip) == (then.offset, then.stored, then.unit, then.skip)


def _since_digests(image: Image, name: str, progress: Progress) -> Marked:
    with blocks_of(name, image.size, ALGORITHM, BLOCK) as known:
        progress.expect(image.size)
        return _marked(Marked(image), image, known, ALGORITHM, Meter(image), None, progress, None)
