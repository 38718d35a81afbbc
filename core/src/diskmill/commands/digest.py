"""``digest``: one digest for the same guest bytes in every format."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

from ..contract.limits import Meter
from ..contract.node import Image
from ..engine.digest import BLOCK, Checks, Digester, hash_of, scan
from ..engine.progress import Progress, Report
from ..errors import CancelledError, ImageError
from ..kit.forward import drain
from ..opening.context import Context
from ..opening.graph import open_image
from ..opening.names import Name, given_name
from ..sizes import SECTOR, new_buffer, round_up, whole
from .conversion import thread_count
from .unsized import piped

ALGORITHM = "sha256"


def digest(
    name: Name,
    *,
    format: str | None = None,
    algorithm: str = ALGORITHM,
    block_size: int = BLOCK,
    block_digests: BinaryIO | None = None,
    threads: int | None = None,
    image_opts: bool = False,
    context: Context | None = None,
    progress: Report | None = None,
    cancel: threading.Event | None = None,
) -> str:
    """The digest of the guest disk of *name*, in hexadecimal: that of ``blksum``, whatever the image's format.

    :param name: ``-`` is standard input, also for a raw disk of which nobody knows the size.
    :param algorithm: as hashlib or OpenSSL name it, or ``blake3`` where that is installed.
    :param block_size: bytes of the blocks that are hashed by themselves; another size is another digest.
    :param block_digests: a binary file that gets the digest of each block, one after the other.
    :raises DiskmillError: the image cannot be opened or read.
    """
    context = context or Context()
    name = piped(given_name(name), context, image_opts=image_opts)
    block_size, threads = whole(block_size, "block_size", 1), thread_count(threads)
    counter = Progress(progress)
    with open_image(name, format, context=context, image_opts=image_opts, unsized=True) as image:
        if image.unsized:
            return _as_it_comes(image, algorithm, block_size, block_digests, cancel)
        counter.expect(image.size)
        put = None
        if block_digests is not None:
            put = BlockFile(block_digests, Digester(0, algorithm, block_size).zero).put
        digester = Digester(image.size, algorithm, block_size, put, meter=Meter(image))
        scan(image, [digester], granule=block_size, threads=threads, progress=counter, cancel=cancel)
        drain(image)
        return digester.hexdigest()


def _as_it_comes(
    image: Image, algorithm: str, block: int, blocks: BinaryIO | None, cancel: threading.Event | None
) -> str:
    """The digest of a disk that ends somewhere, and is filled up to whole sectors there."""
    new = hash_of(algorithm)
    outer, at = new(b""), 0
    buffer = new_buffer(block)
    while image.ended is None or at < image.ended:
        image.read_into(at, buffer)
        length = block if image.ended is None else min(round_up(image.ended, SECTOR) - at, block)
        if not length:
            break
        at += length
        piece = new(memoryview(buffer)[:length]).digest()
        outer.update(piece)
        if blocks is not None:
            blocks.write(piece)
        if cancel is not None and cancel.is_set():
            raise CancelledError("cancelled")
    outer.update(at.to_bytes(8, "little"))
    return str(outer.hexdigest())


class BlockFile:
    """The digests of blocks in a file, one after the other, all of one length.

    :param zero: the digest of a block of zeros.
    """

    def __init__(self, file: BinaryIO, zero: bytes) -> None:
        self.file = file
        self.zero = zero

    def put(self, first: int, count: int, digests: bytes | None) -> None:
        """Write the *digests* of *count* blocks from block *first* on; None: they are zeros."""
        for wanted in self._runs(count, digests):
            self.file.write(wanted)

    def unlike(self, first: int, count: int, digests: bytes | None) -> Iterator[int]:
        """Those of *count* blocks from block *first* on that the file has other *digests* for."""
        length = len(self.zero)
        for wanted in self._runs(count, digests):
            there = self.file.read(len(wanted))
            if there != wanted:
                for at in range(0, len(wanted), length):
                    if there[at : at + length] != wanted[at : at + length]:
                        yield first + at // length
            first += len(wanted) // length

    def _runs(self, count: int, digests: bytes | None) -> Iterator[bytes]:
        """The digests of *count* blocks, so many at once as fit in memory."""
        if digests is not None:
            yield digests
            return
        for at in range(0, count, 1 << 14):
            yield self.zero * min(1 << 14, count - at)


def verify(
    image: Image,
    size: int,
    recorded: BinaryIO,
    *,
    progress: Progress,
    cancel: threading.Event | None = None,
) -> None:
    """Read the first *size* bytes of *image* back, and hold them against the checks of blocks that were *recorded*.

    :raises ImageError: they differ; the first block that does is named.
    """
    wrong: list[int] = []

    def look(first: int, count: int, digests: bytes | None) -> None:
        wrong.extend(islice(blocks.unlike(first, count, digests), 1 - len(wrong)))

    digester = Digester(size, Checks, BLOCK, look, meter=Meter(image))
    blocks = BlockFile(recorded, digester.zero)
    recorded.seek(0)
    scan(image, [digester], length=size, progress=progress, cancel=cancel)
    if wrong:
        place = f"guest offset {wrong[0] * BLOCK}"
        raise ImageError("what was written reads back differently", file=image.name, place=place)
