"""What small reads have looked up, of images that nobody can change: the next ones go straight to their bytes.

To walk through a graph takes some 15 µs, to read 4 KiB from the page cache two. So a stretch of the disk from which
small reads come is walked once, and what is found is kept, as far as it is zeros, or a file's data as it stands there.
What is encoded, a device's, a network's or a filter's is looked up each time, and so is everything where any node of
the graph is open for writing: nobody has to tell of changes, then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from itertools import islice

from ..contract.extents import Kind
from ..contract.node import Buffer, Image, Node, Storage
from ..errors import DiskmillError
from ..sizes import MiB
from .access import STRETCH, fill_zeros
from .walk import walk

_SMALL = MiB
"""Bytes of the largest read that lets a stretch be walked. Of larger ones the bytes take the time."""
_MOST = 256
"""Extents that are kept of a stretch; what follows is looked up each time."""
_KEPT = 1 << 14
"""Extents that are kept of an image, in some 3 MiB."""

Read = Callable[[int, Buffer], None]
Stretch = tuple[list[int], list[tuple[int, int, Read | None]]]
"""Where pieces begin, from the stretch's beginning on; and of each: its end (-1: look up), what is to be added to guest
offsets, and what reads there (None: it is zeros)."""


class Lookups:
    """What is known of *image*. Several threads may use it at once: what a stretch is never changes."""

    def __init__(self, image: Image) -> None:
        self.stretches: dict[int, Stretch] = {}
        self._seen: set[int] = set()
        self._kept = 0
        self._image = image
        graph = _graph(image)
        plain = any(isinstance(node, Storage) and _plain(node) for node in graph)
        self._learns = plain and not image.unsized and not any(node.writable for node in graph)

    def learn(self, offset: int, length: int) -> None:
        """A read came that was not known. The second one from a stretch is worth to look at all of it."""
        if not self._learns or length > _SMALL or offset < 0:
            return
        number = offset >> STRETCH
        if number not in self._seen:
            if len(self._seen) >= _KEPT:
                self._seen.clear()
            self._seen.add(number)
            return
        stretch = self._walked(number)
        self._kept += len(stretch[0])
        if self._kept > _KEPT:
            self.stretches.clear()
            self._kept = len(stretch[0])
        self.stretches[number] = stretch

    def read(self, stretch: Stretch, offset: int, buffer: Buffer) -> bool:
        """Fill *buffer* from several pieces of *stretch*; False, and nothing was done: not all of it is known."""
        starts, pieces = stretch
        first = last = bisect_right(starts, offset) - 1
        end = offset + len(buffer)
        while pieces[last][0] < end:
            if pieces[last][0] < 0:
                return False
            last += 1
        view, at = memoryview(buffer), offset
        for stop, shift, read in pieces[first : last + 1]:
            part = view[at - offset : min(stop, end) - offset]
            if read is not None:
                read(at + shift, part)
            else:
                fill_zeros(part)
            at = stop
        return True

    def _walked(self, number: int) -> Stretch:
        start = number << STRETCH
        upto = min(start + (1 << STRETCH), self._image.size)
        starts, pieces = list[int](), list[tuple[int, int, Read | None]]()
        at = start
        try:
            for extent in islice(walk(self._image, start, upto - start, sparse=False), _MOST):
                starts.append(extent.start)
                if extent.reads_as_zeros:
                    pieces.append((extent.end, 0, None))
                elif extent.kind is Kind.DATA and isinstance(extent.node, Storage) and _plain(extent.node):
                    pieces.append((extent.end, extent.offset - extent.start, extent.node.read_into))
                else:
                    pieces.append((-1, 0, None))
                at = extent.end
        except DiskmillError:
            pass  # who reads there is told
        starts.append(at)
        pieces.append((-1, 0, None))
        return starts, pieces


def _plain(storage: Storage) -> bool:
    """Whether reading from *storage* is all that there is to do: no filter listens, and its bytes do not pass by."""
    return storage.swift and not storage.forward and type(storage).event is Node.event


def _graph(image: Image) -> list[Node]:
    """All nodes that *image* stands on, and itself."""
    found: dict[int, Node] = {}
    waiting: list[Node] = [image]
    while waiting:
        node = waiting.pop()
        if id(node) not in found:
            found[id(node)] = node
            waiting += node.children()
    return list(found.values())
