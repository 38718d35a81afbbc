"""Nodes of the image graph: storage at the leaves (a file), images above it (qcow2 on a file).

:class:`Node` is what every holder of bytes can do; protocol drivers give :class:`Storage`, format drivers give
:class:`Image`. All offsets and lengths are bytes. All of it may be called from several threads, with two rules:
the engine never writes one allocation unit from two threads at once, and it holds ``image.lock`` around
:meth:`Image.reserve` and :meth:`Image.publish`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from .errors import DiskmillError, StorageError, UnsupportedError
from .extents import Encoder, Extent, Placement

if TYPE_CHECKING:
    import io
    from types import TracebackType

    from .drivers import Driver
    from .references import Reference

Buffer = bytearray | memoryview
ReadBuffer = bytes | bytearray | memoryview


class Node(ABC):
    """Something that holds bytes: a file, or a disk image."""

    name: str
    """As the user knows it: a file name, or what they typed."""
    size: int
    """Bytes: of an image, the guest disk's size; of storage, the file's."""
    writable: bool = False
    blank: bool = True
    """Of a newly made node: whether what was never written to it reads as zeros."""
    driver: Driver

    @abstractmethod
    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What the guest bytes *offset* to *offset + length* are, in order and without gaps.

        The range lies inside the node and the extents are clipped to it. Neighbouring bytes of one kind that also
        are neighbours in their node come as one extent.
        """

    @abstractmethod
    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill *buffer* with the bytes from *offset* on. What lies beyond the end reads as zeros.

        :raises StorageError: the storage failed.
        :raises ImageError: the image is damaged there.
        """

    @abstractmethod
    def write(self, offset: int, data: ReadBuffer) -> None:
        """Put *data* at *offset*."""

    @abstractmethod
    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make the range read as zeros, giving its space back where *unmap* is set and that is possible."""

    @abstractmethod
    def flush(self) -> None:
        """Everything written so far reaches the disk (as far as the cache mode asks)."""

    def barrier(self) -> None:
        """What was written before reaches the disk before what is written after. The default flushes."""
        self.flush()

    @abstractmethod
    def close(self) -> None:
        """Flush and release. Calling it twice is harmless."""

    def abandon(self) -> None:
        """Release without writing anything more: the output is about to be removed."""
        self.close()

    def discard(self, offset: int, length: int) -> None:
        """The range's contents no longer matter. Doing nothing is a fair answer."""

    def read(self, offset: int, length: int) -> bytes:
        """*length* bytes from *offset*, as a new ``bytes``."""
        buffer = bytearray(length)
        self.read_into(offset, buffer)
        return bytes(buffer)

    def close_after_failure(self) -> None:
        """Close, as well as it can be: an error is on its way to the user already, and it is the one that tells why."""
        with suppress(DiskmillError):
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.close_after_failure()


class Storage(Node):
    """What a protocol driver opens: bytes without a format."""

    align: int = 1
    """Offsets, lengths and memory addresses of reads and writes are best multiples of this many bytes (4096 with
    direct I/O); others work, at the price of a copy."""
    conflict: StorageError | None = None
    """Set where only metadata is to be looked at, and another process writes the file. A format that has metadata may
    read nonsense then, so the core raises it; a plain window (raw) is looked at all the same."""

    forward: bool = False
    """Whether its bytes come once, in order (a pipe): ``size`` is not known then, and what was read is gone, except
    for the first 64 KiB. Only formats with the capability ``pipe`` are opened on it."""

    def read_some(self, offset: int, length: int) -> bytes:
        """Up to *length* bytes from *offset* on; fewer only at the end."""
        return self.read(offset, max(min(length, self.size - offset), 0))

    @abstractmethod
    def truncate(self, size: int) -> None:
        """Set the size; what is new reads as zeros."""

    def allocate(self, offset: int, length: int, mode: str) -> None:
        """Claim space for the range, which may lie beyond the end: *mode* is ``falloc`` or ``full`` (write zeros)."""
        raise UnsupportedError(f"protocol '{self.driver.name}' cannot allocate space", file=self.name)

    def write_vector(self, offset: int, buffers: Sequence[ReadBuffer]) -> None:
        """Put *buffers* one after the other at *offset*."""
        for buffer in buffers:
            self.write(offset, buffer)
            offset += len(buffer)

    def allocated(self) -> int | None:
        """Bytes of disk space it takes; None where nobody can tell."""
        return None

    in_place: bool = False
    """Of a new output: whether it is written where it will stay, so that the first write ends what was there."""

    def settle(self, others: Sequence[Storage] = ()) -> None:
        """Give a new output its name: it is whole. Before, closing it removes it. Harmless for what has its name.

        :param others: the other new files of the image, which nobody opens without this one. They get their names with
            it, all of them or none, and in such an order that what bears this one's name never stands on files that
            are not its own.
        """
        for other in others:
            other.settle()

    @property
    def settled(self) -> bool:
        """Whether it has its name: all has but a new output that was not settled."""
        return True

    @property
    def replaces(self) -> bool:
        """Of a new output: whether it will take the place of something that is there."""
        return False

    def places(self) -> frozenset[object]:
        """Of a new output: what it takes the place of. No two outputs may have any of that in common."""
        return frozenset()

    def follow(self, first: Storage) -> None:
        """Of a new output: it goes with *first*, another, and what is there shall not end before what is at *first*
        has: nobody would open that with what is written here.
        """

    def withhold(self, offset: int, length: int) -> None:
        """Of a new output: the range is what makes it an image, so it shall be written last.

        Where the file has no name before it is whole, that is given. The first 64 KiB need not be named.
        """

    def remove(self) -> None:
        """Take its name away, so that nothing is left once it is closed."""
        raise UnsupportedError(f"protocol '{self.driver.name}' cannot remove files", file=self.name)

    def fileno(self) -> int | None:
        """The file descriptor, for copies inside the kernel; None where there is none."""
        return None

    def identity(self) -> object | None:
        """Equal for two nodes of the same file, whatever their names; None where that cannot be known."""
        return None


class Image(Node):
    """What a format driver opens.

    A driver subclasses this and answers :meth:`extents`; to be writable, it also answers :meth:`reserve`,
    :meth:`publish`, :meth:`zero_units` and :meth:`flush`. Reading, copy on write, and zeroing of partial
    units come with the class.
    """

    file: Node
    """The node with the format's metadata: almost always the storage that the user named."""
    backing: Image | None = None
    references: Sequence[Reference] = ()
    """What the image says that it stands on: backing file, data file, extents. The core opens them, through the
    gate, and hands each to :meth:`attach`."""

    unit: int = 1
    """Bytes that are allocated together, at most 2 MiB: writes of whole units need no copy. A format with larger
    blocks gives a smaller unit here, and places inside blocks that it has set aside and that read as zeros."""
    subunit: int = 0
    """Of a format whose units are filled in parts (qcow2's subclusters): the bytes of such a part, which divides the
    unit. Writes of whole parts need no copy, and :meth:`zero_units` takes them. 0: units are whole."""
    sequential: bool = False
    """Whether data must come compressed, in whole units, in guest order, each once. The engine then copies so."""
    preallocated: bool | None = None
    """Whether space was claimed ahead of being written, so that ``map`` asks the storage for its holes; None: it goes
    by how much of the file is holes."""
    window: int | None = None
    """Set by formats that are a plain window onto ``file``: the byte offset of the guest's byte 0 in it. The engine
    then goes to ``file`` directly."""

    def __init__(self, driver: Driver, file: Node, *, name: str, size: int, writable: bool) -> None:
        self.driver = driver
        self.file = file
        self.name = name
        self.size = size
        self.writable = writable
        self.lock = threading.RLock()
        self.closed = False

    def attach(self, reference: Reference, node: Node) -> None:
        """*node* is what *reference* names, opened. The default takes a backing image."""
        assert isinstance(node, Image) and reference.role == "backing"
        self.backing = node

    # -- writing: two phases ------------------------------------------------------------------------------------

    def reserve(self, offset: int, length: int) -> list[Placement]:
        """Places for guest bytes *offset* to *offset + length*, in order and without gaps.

        Fresh placements are whole units (or subunits, where the rest of the unit can stay as it is), so the first may
        begin before and the last end after the range, by less than a unit (the guest disk's end included: the engine
        pads with zeros). Nothing that the image on disk needs is touched.
        """
        raise UnsupportedError(f"format '{self.driver.name}' cannot be written", file=self.name)

    def reserve_encoded(self, units: Sequence[tuple[int, int, int]]) -> list[Placement]:
        """Places for encoded payloads: each of *units* is (guest offset, guest length, payload bytes).

        Only asked of drivers with the capability ``compression``. One placement for each, in order.
        """
        raise UnsupportedError(f"format '{self.driver.name}' does not support compression", file=self.name)

    def publish(self, placements: Sequence[Placement]) -> None:
        """The bytes are in their places: let the tables point to them (on disk by the next flush)."""
        raise UnsupportedError(f"format '{self.driver.name}' cannot be written", file=self.name)

    def zero_units(self, offset: int, length: int, *, unmap: bool) -> None:
        """Whole units or subunits (or the tail up to the guest disk's end) shall read as zeros.

        Where there are subunits, units that are zeroed in part come in a call of their own.
        Without *unmap* they do so by themselves, whatever backing image they may get, where the format can say that.
        A driver that has no cheap way raises :class:`UnsupportedError`, and the engine writes zeros.
        """
        raise UnsupportedError(f"format '{self.driver.name}' has no zero units", file=self.name)

    def discard_units(self, offset: int, length: int) -> None:
        """Whole units whose contents no longer matter."""

    def encoder(self) -> Encoder:
        """What compresses a unit, with the options that the image was created with."""
        raise UnsupportedError(f"format '{self.driver.name}' does not support compression", file=self.name)

    # -- what a user may ask ------------------------------------------------------------------------------------

    def details(self) -> dict[str, Any] | None:
        """The ``data`` of QAPI's ``ImageInfoSpecific`` for the format; None where it has none."""
        return None

    @property
    def cluster_size(self) -> int | None:
        """What QAPI's ``ImageInfo`` calls so, in bytes; None where the format has no clusters (or QEMU tells none)."""
        return self.unit if self.window is None and self.unit > 1 else None

    def allocated(self) -> int | None:
        """Bytes of disk space that the image's files take, those of its backing image not counted; None: unknown."""
        sizes = [
            child.allocated()
            for child in self.children()
            if child is not self.backing and isinstance(child, Storage | Image)
        ]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    @property
    def encrypted(self) -> bool:
        """Whether guest data is stored encrypted."""
        return False

    @property
    def dirty(self) -> bool | None:
        """Whether the image says that it was not closed properly; None where the format (or QEMU) never tells."""
        return False

    def stream(self) -> io.RawIOBase:
        """The guest disk as a seekable file object; it lives as long as the image."""
        from .library import DiskStream

        return DiskStream(self)

    # -- given by the core --------------------------------------------------------------------------------------

    def read_into(self, offset: int, buffer: Buffer) -> None:
        from .engine.access import read_into

        read_into(self, offset, buffer)

    def write(self, offset: int, data: ReadBuffer) -> None:
        from .engine.access import write

        write(self, offset, data)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        from .engine.access import zero

        zero(self, offset, length, unmap=unmap)

    def discard(self, offset: int, length: int) -> None:
        from .engine.access import discard

        discard(self, offset, length)

    def flush(self) -> None:
        """Write the cached tables out in dependency order, then flush the storage."""
        self.file.flush()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        try:
            if self.writable:
                self.flush()
        finally:
            self.release()

    def abandon(self) -> None:
        self.closed = True
        self.release(abandon=True)

    def release(self, *, abandon: bool = False) -> None:
        """Close the children. A driver with more of them than ``file`` and ``backing`` overrides :meth:`children`."""
        for child in self.children():
            if abandon:
                child.abandon()
            else:
                child.close()

    def settle(self) -> None:
        """The image, made by ``create``, is whole: flush it, and let its files have their names, the main one last."""
        self.flush()
        main, *others = self.files()
        if others:
            main.settle(others)
        else:
            main.settle()

    def files(self) -> Iterator[Storage]:
        """The image's own files, its backing image's not counted: the one without which nobody opens it first."""
        for child in self.children():
            if isinstance(child, Storage):
                yield child
            elif child is not self.backing and isinstance(child, Image):
                yield from child.files()

    def children(self) -> Iterator[Node]:
        """The nodes right below: ``file`` first."""
        yield self.file
        if self.backing is not None:
            yield self.backing
