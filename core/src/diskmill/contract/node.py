"""Nodes of the image graph: storage at the leaves (a file), images above it (qcow2 on a file).

:class:`Node` is what every holder of bytes can do; protocol and filter drivers give :class:`Storage`, format drivers
give :class:`Image`. All offsets and lengths are bytes. All of it may be called from several threads; what a driver
need not look after itself is this. Nobody writes an allocation unit (or 4 KiB, where that is more) from two threads
at once, and ``image.lock`` is held around :meth:`Image.reserve`, :meth:`Image.publish`, :meth:`Image.zero_units` and
:meth:`Image.discard_units`. Who reads is inside ``image.readers`` from the look-up to the last byte, and a driver that
uses space again goes by that: see :mod:`diskmill.contract.threads`.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, NoReturn, Self, cast

from ..errors import ClosedError, DiskmillError, StorageError, UnsupportedError, UsageError
from ..sizes import new_buffer
from .extents import Encoder, Extent, Kind, Placement
from .limits import FREE, Account
from .threads import Ranges, Readers

if TYPE_CHECKING:
    import io
    from types import TracebackType

    from .drivers import Driver
    from .place import Place
    from .references import Reference
    from .results import Bitmap

Buffer = bytearray | memoryview
ReadBuffer = bytes | bytearray | memoryview


class Requests(NamedTuple):
    """How a storage wants to be asked. The engine goes by it; whoever asks otherwise pays, but is answered.

    :param align: bytes; offsets, lengths and (of files) memory addresses are best multiples of it.
    :param best: bytes that a request had better have at least, because each costs a round trip; 0: any.
    :param largest: the most bytes that one request may have; 0: no limit. The core cuts what is larger.
    :param at_once: how many requests pay at the same time; 0: as many as there are processors.
    """

    align: int = 1
    best: int = 0
    largest: int = 0
    at_once: int = 0


class Node(ABC):
    """Something that holds bytes: a file, or a disk image. A node that can only be read need not say more than
    :meth:`read_into` and its ``size``: all else refuses in one line, or has nothing to do."""

    name: str
    """As the user knows it: a file name, or what they typed."""
    size: int
    """Bytes: of an image, the guest disk's size; of storage, the file's."""
    writable: bool = False
    blank: bool = True
    """Of a newly made node: whether what was never written to it reads as zeros."""
    discards: bool = True
    """Whether space that is not needed goes back to where it came from (the run-time option ``discard``)."""
    resizable: bool = False
    """Whether its end can be moved with :meth:`truncate`, as that of storage can."""
    forward: bool = False
    """Whether its bytes come once, in order (a pipe), mostly as many as nobody knows (:attr:`unsized`), and what was
    read is gone, except for the first 64 KiB. Only formats with the capability ``pipe`` are opened on it. Of a
    new output: they are taken once, in order."""
    unsized: bool = False
    """Whether nobody knows its size before its end has come: ``size`` then is no more than a bound."""
    ended: int | None = None
    """How many bytes it has, where it is :attr:`unsized` and its end has come."""
    is_device: bool = False
    """Whether it is a block device, which is as large as it is."""
    one_pass: str = "a pipe"
    """What storage that is read forward is, in messages."""
    requests: Requests = Requests()
    """How it wants to be asked."""
    conflict: StorageError | None = None
    """Set where only metadata is to be looked at, and another process writes the file. A format that has metadata may
    read nonsense then, so the core raises it; a plain window (raw) is looked at all the same."""
    driver: Driver

    @property
    def account(self) -> Account:
        """What its tables are charged to: see :mod:`diskmill.contract.limits`."""
        return FREE

    @abstractmethod
    def read_into(self, offset: int, buffer: Buffer) -> None:
        """Fill *buffer* with the bytes from *offset* on. What lies beyond the end reads as zeros.

        :raises StorageError: the storage failed.
        :raises ImageError: the image is damaged there.
        """

    def read_pieces(self, pieces: Sequence[tuple[int, Buffer]]) -> None:
        """Fill each buffer of *pieces* with the bytes from its offset on, as :meth:`read_into` does. One that waits for
        a network asks for all of them at once. Where it fails, nobody knows which were filled.
        """
        for offset, buffer in pieces:
            self.read_into(offset, buffer)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What the guest bytes *offset* to *offset + length* are, in order and without gaps.

        The range lies inside the node and the extents are clipped to it. Neighbouring bytes of one kind that also
        are neighbours in their node come as one extent. The default knows of no holes: all is data of its own.
        """
        if length:
            yield Extent(offset, length, Kind.DATA, self, offset)

    def write(self, offset: int, data: ReadBuffer) -> None:
        """Put *data* at *offset*."""
        self._refuse("be written")

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make the range read as zeros, giving its space back where *unmap* is set and that is possible.

        The default writes them.
        """
        zeros = memoryview(bytes(min(length, 1 << 18)))
        for at in range(offset, offset + length, len(zeros) or 1):
            self.write(at, zeros[: offset + length - at])

    def discard(self, offset: int, length: int) -> None:
        """The range's contents no longer matter. Doing nothing is a fair answer."""

    def truncate(self, size: int) -> None:
        """Set the size; what is new reads as zeros."""
        self._refuse("be made longer or shorter")

    def allocate(self, offset: int, length: int, mode: str) -> None:
        """Claim space for the range, which may lie beyond the end: *mode* is ``falloc`` or ``full`` (write zeros)."""
        self._refuse("allocate space")

    def flush(self) -> None:
        """Everything written so far reaches the disk (as far as the cache mode asks)."""

    def barrier(self) -> None:
        """What was written before reaches the disk before what is written after. The default flushes."""
        self.flush()

    def take_from(self, source: Node, start: int, offset: int, length: int) -> bool:
        """Copy *length* bytes of *source*, from *start* on, to *offset*, in some way that moves no bytes through this
        process. False: there is none for these two, and nothing was changed that a plain copy would not make good."""
        return False

    def clones(self, source: Node) -> int:
        """Bytes of a block, if whole blocks of *source* can be shared (:meth:`clone_from`); 0: they cannot."""
        return 0

    def clone_from(self, source: Node, start: int, offset: int, length: int) -> None:
        """Let *length* bytes at *offset* be the very blocks of *source* from *start* on (a reflink), until one of the
        two is written to. All three are multiples of a block.

        :raises DiskmillError: they cannot be, and nothing was changed that a plain copy would not make good.
        """
        self._refuse("share blocks with other files")

    def write_vector(self, offset: int, buffers: Sequence[ReadBuffer]) -> None:
        """Put *buffers* one after the other at *offset*."""
        for buffer in buffers:
            self.write(offset, buffer)
            offset += len(buffer)

    def write_pieces(self, pieces: Sequence[tuple[int, ReadBuffer]]) -> None:
        """Put each buffer of *pieces* at its offset. One that waits for a network sends them all at once. Where it
        fails, nobody knows which were written.
        """
        for offset, data in pieces:
            self.write(offset, data)

    def fileno(self) -> int | None:
        """A descriptor that the kernel can read its bytes from, at the same offsets (sendfile); None: there is none."""
        return None

    def marks(self, offset: int, length: int) -> Iterator[tuple[int, bool, bool]] | None:
        """What ``map`` shows of the range, inside the storage, instead of its extents: length, whether it counts as
        data, and whether as zeros, in order and without gaps. None: its extents. A user may ask a storage for other
        marks than those of what it holds (``x-dirty-bitmap`` of NBD); reading never goes by them.
        """
        return None

    def interrupt(self) -> None:
        """Called from another thread when an operation is cancelled: whoever waits for a network in a call of this
        storage shall leave it, with an error, within a second. The default never waits long."""

    def identity(self) -> object | None:
        """Equal for two nodes of the same file, whatever their names; None where nobody knows: of images, say."""
        return None

    def state(self) -> str | None:
        """Another text whenever its bytes may have changed, or it is another file: for who comes back later, in another
        process. None: nobody knows that without reading them."""
        return None

    def event(self, name: str) -> None:
        """The format above is about to do what QEMU calls *name* (``l2_update``, say; see ``BlkdebugEvent`` in QEMU's
        ``qapi/block-core.json``). Nobody listens but filters that are there to disturb it, and their neighbours, which
        pass it on."""

    def close(self) -> None:
        """Flush and release. Calling it twice is harmless."""

    def abandon(self) -> None:
        """Release without writing anything more: the output is about to be removed."""
        self.close()

    def settle(self) -> None:
        """Give a new output its name: it is whole. Before, closing it removes it. Harmless for what has its name."""

    @property
    def settled(self) -> bool:
        """Whether it has its name: all has but a new output that was not settled."""
        return True

    def remove(self) -> None:
        """Take its name away, so that nothing is left once it is closed."""
        self._refuse("remove files")

    def allocated(self) -> int | None:
        """Bytes of disk space it takes; None where nobody can tell."""
        return None

    def read(self, offset: int, length: int) -> bytes:
        """*length* bytes from *offset*, as a new ``bytes``."""
        data = new_buffer(length)
        self.read_into(offset, data)
        return bytes(data)

    def read_some(self, offset: int, length: int) -> bytes:
        """Up to *length* bytes from *offset* on; fewer only at the end."""
        return self.read(offset, max(min(length, self.size - offset), 0))

    def stream(self) -> io.RawIOBase:
        """Its bytes as a seekable file object; it lives as long as the node."""
        from .stream import DiskStream

        return DiskStream(self)

    def open_stream(self, buffering: int = -1) -> BinaryIO:
        """Its bytes as a seekable binary file, as :func:`open` gives one.

        :param buffering: bytes of the buffer; 0: none, each call goes to the node; -1: 128 KiB. Many small
            reads are ten times faster with it.
        """
        import io

        raw = self.stream()
        if buffering == 0:
            return cast("BinaryIO", raw)
        size = 1 << 17 if buffering < 0 else buffering
        return io.BufferedRandom(raw, size) if self.writable else io.BufferedReader(raw, size)

    def children(self) -> Iterator[Node]:
        """The nodes right below. The default has none."""
        return iter(())

    def files(self) -> Iterator[Storage]:
        """Its own files, those of a backing image not counted: the one without which nobody opens it first."""
        return iter(())

    @property
    def swift(self) -> bool:
        """Whether what is written is there as soon as the kernel has copied it: no device, network or filter is to be
        waited for."""
        return False

    def leaves(self) -> list[Storage]:
        """Every storage at the bottom of what it stands on, itself included, once."""
        found: list[Storage] = []
        seen: set[int] = set()
        stack: list[Node] = [self]
        while stack:
            one = stack.pop()
            if id(one) in seen:
                continue
            seen.add(id(one))
            below = list(one.children())
            if isinstance(one, Storage) and not below:
                found.append(one)
            stack += below
        return found

    def close_after_failure(self) -> None:
        """Close, as well as it can be: an error is on its way to the user already, and it is the one that tells why."""
        with suppress(DiskmillError):
            self.close()

    def _refuse(self, what: str) -> NoReturn:
        raise UnsupportedError(f"{self.driver.kind} '{self.driver.name}' cannot {what}", file=self.name)

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
    """What a protocol driver opens: bytes without a format. See :class:`Node` for what it must answer."""

    resizable = True
    place: Place | None = None
    """Where its bytes are; None where that has no name (a window, something in memory)."""

    in_place: bool = False
    """Of a new output: whether it is written where it will stay, so that the first write ends what was there."""
    charged: Account = FREE
    """What tables that are read from it are charged to; the core sets it where a command opens it."""

    @property
    def account(self) -> Account:
        return self.charged

    def bitmaps(self) -> list[Bitmap]:
        """Dirty bitmaps that the storage keeps of itself (an NBD export may)."""
        return []

    def settle(self, others: Sequence[Storage] = ()) -> None:
        """Give a new output its name: it is whole. Before, closing it removes it. Harmless for what has its name.

        :param others: the other new files of the image, which nobody opens without this one. They get their names with
            it, all of them or none, and in such an order that what bears this one's name never stands on files that
            are not its own.
        """
        for other in others:
            other.settle()

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

    def go_on(self, size: int) -> None:
        """Of an output that was left unfinished (``CreateRequest.unfinished``): it is what its first *size* bytes are,
        and zeros behind them; 0: it begins anew. Nothing was written to it since it was opened."""
        self.truncate(size)

    def forget(self) -> None:
        """Drop what is remembered of its bytes (a page cache, a buffer), where that can be: the next reads shall come
        from where they are kept."""

    def write_behind(self) -> None:
        """Begin to put where it lasts what was written, and wait for nothing: a flush comes soon."""

    def identity(self) -> object | None:
        return None if self.place is None else self.place.identity()

    def files(self) -> Iterator[Storage]:
        yield self

    @property
    def swift(self) -> bool:
        return self.requests == Requests() and not any(self.children())


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
    gate, and hands each to :meth:`attach`. Where one file tells of the next, ``attach`` appends to it."""

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
    recording: bool = True
    """Whether dirty bitmaps record what is written. The core unsets it where the guest reads the same afterwards."""
    sector_size: int = 512
    """Bytes in a sector of the guest disk, by which its partition tables count."""
    cut_short: bool = False
    """Whether the file ends before the tables that its header names, so that nothing but the header can be told; only
    of images that were opened so (:meth:`OpenRequest.excuses`)."""
    detect_zeroes: str = "off"
    """``on``: zeros that are written are stored as zeros; ``unmap``: and their space is given back."""
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
        # Who reads an image looks through it at the one that it stands on, and so is inside both.
        self.readers: Readers = file.readers if isinstance(file, Image) else Readers()
        self.ranges = Ranges(self.lock)
        self.closed = False
        self.lent = 0

    def __repr__(self) -> str:
        from ..sizes import format_size

        state = ", closed" if self.closed else ", writable" if self.writable else ""
        return f"<{self.driver.name} image {self.name!r}, {format_size(self.size)}{state}>"

    def write_vector(self, offset: int, buffers: Sequence[ReadBuffer]) -> None:
        self.write(offset, b"".join(buffers))

    def attach(self, reference: Reference, node: Node) -> None:
        """*node* is what *reference* names, opened. The default takes a backing image.

        :raises UsageError: the format has nothing of that role (a user may give any).
        """
        if not isinstance(node, Image) or reference.role != "backing":
            raise UsageError(f"an image of format '{self.driver.name}' has no {reference.role} file", file=self.name)
        self.backing = node

    @property
    def account(self) -> Account:
        return self.file.account

    # -- several threads ----------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[None]:
        """For whoever looks extents up and reads them by itself: meanwhile their space gets no other use."""
        number = self.readers.enter()
        try:
            yield
        finally:
            self.readers.leave(number)

    def writing(self, offset: int, length: int) -> AbstractContextManager[None]:
        """Have the units that guest bytes *offset* to *offset + length* touch to oneself, to change them."""
        return self.ranges.hold(*self.units_of(offset, length))

    def units_of(self, offset: int, length: int) -> tuple[int, int]:
        """Where the units that the range touches begin and end."""
        unit = self.unit
        start, end = offset // unit * unit, -(-(offset + length) // unit) * unit
        return start // _LEAST * _LEAST, -(-end // _LEAST) * _LEAST

    def alone(self) -> AbstractContextManager[None]:
        """Change the image as a whole: no guest byte is being written meanwhile. It is read all the same."""
        return self.ranges.hold(0)

    def remap(self) -> None:
        """Guest bytes may lie elsewhere than they did, without a write: what was remembered of that is to be forgotten.
        The core says so when it attached a node, and around whatever changes the image as a whole."""

    @cached_property
    def swift(self) -> bool:
        return all(child.swift for child in self.children() if child is not self.backing)

    def vacant(self, offset: int, length: int) -> bool:
        """Whether it shows at once that the range, which is not empty, is one ``HOLE``: in a long chain that is what
        most images are asked. False is always a fair answer, and the default."""
        return False

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
        sizes = [child.allocated() for child in self.children() if child is not self.backing]
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

    # -- given by the core --------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write the cached tables out in dependency order, then flush the storage."""
        self.file.flush()

    def lend(self) -> Self:
        """The image, for one more user: of all who close it, the last one does."""
        with self.lock:
            self.lent += 1
            vars(self).update(close=self._give_back, abandon=self._give_back)
        return self

    def _give_back(self) -> None:
        with self.lock:
            self.lent -= 1
            if not self.lent:
                del vars(self)["close"], vars(self)["abandon"]

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        try:
            if self.writable:
                self.flush()
        finally:
            self._end(abandon=False)

    def abandon(self) -> None:
        self.closed = True
        self._end(abandon=True)

    def _end(self, *, abandon: bool) -> None:
        """Release all; from then on its bytes cannot be had. Methods are exchanged, so that no read pays for a test."""
        try:
            self.release(abandon=abandon)
        finally:
            vars(self).update(dict.fromkeys(_USES, self._refuse_closed))

    def _refuse_closed(self, *_: Any, **__: Any) -> NoReturn:
        raise ClosedError("the image was closed", file=self.name)

    def release(self, *, abandon: bool = False) -> None:
        """Close the children. A driver with more of them than ``file`` and ``backing`` overrides :meth:`children`."""
        _Releasing.run(list(self.children()), abandon=abandon)

    def settle(self) -> None:
        """The image, made by ``create``, is whole: flush it, and let its files have their names, the main one last."""
        self.flush()
        main, *others = self.files()
        if others:
            main.settle(others)
        else:
            main.settle()

    def files(self) -> Iterator[Storage]:
        for child in self.children():
            if child is not self.backing:
                yield from child.files()

    def children(self) -> Iterator[Node]:
        """The nodes right below: ``file`` first."""
        yield self.file
        if self.backing is not None:
            yield self.backing


_LEAST = 4096
"""Bytes that no two threads write at once, however small units are: no cipher's sectors are larger."""
_USES = ("discard", "extents", "flush", "read_into", "truncate", "write", "zero")
"""What nobody can do with an image that was closed."""


class _Releasing(threading.local):
    """Closes children without recursion: a chain of images may be longer than a stack is deep.

    What is released while something else is, on the same thread, waits until that is done. The first error is raised in
    the end: whatever else can be closed, is.
    """

    def __init__(self) -> None:
        self.waiting: list[tuple[Node, bool]] | None = None

    @classmethod
    def run(cls, children: list[Node], *, abandon: bool) -> None:
        """Close the *children*, or leave that to the call of this that is at work already."""
        state = _releasing
        jobs = [(child, abandon) for child in children]
        if state.waiting is not None:
            state.waiting += jobs
            return
        state.waiting = jobs
        error: BaseException | None = None
        try:
            while state.waiting:
                child, given_up = state.waiting.pop(0)
                try:
                    if given_up:
                        child.abandon()
                    else:
                        child.close()
                except BaseException as caught:
                    error = error or caught
                finally:
                    child.account.close()
        finally:
            state.waiting = None
        if error is not None:
            raise error


_releasing = _Releasing()
