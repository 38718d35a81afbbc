"""Extents: the one currency between format drivers and the engine.

A driver says where the bytes of a guest range live, as :class:`Extent`; and, for writing, where a guest range may be
put, as :class:`Placement`. It never touches the bytes. Everything is in bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from .node import Node


class Kind(Enum):
    """How a guest range reads."""

    DATA = "data"
    """Verbatim, at an offset of a child node."""
    ZERO = "zero"
    """As zeros; where the driver keeps space for the range, the extent names it."""
    HOLE = "hole"
    """Whatever the backing image reads as there; zeros where there is none."""
    ENCODED = "encoded"
    """Compressed or encrypted: the extent's codec makes guest bytes of the stored ones."""
    SPARSE = "sparse"
    """Allocated here, but a hole in the storage below, so it reads as zeros. Only the engine's walk gives this."""


# Looking a member up in an enum takes several times as long as a name, and the engine asks for every extent.
_ZERO, _SPARSE, _HOLE = Kind.ZERO, Kind.SPARSE, Kind.HOLE


class Codec(Protocol):
    """Makes guest bytes of stored ones, for :attr:`Kind.ENCODED` extents. Called from several threads at once."""

    granularity: int
    """0 where a unit can only be decoded whole (a compressed cluster). Else stored and guest lengths are the same and
    any run of whole sectors of this many bytes can be decoded alone (an encrypted disk)."""

    def decode(self, extent: Extent, payload: memoryview, into: memoryview) -> bytes | bytearray | memoryview:
        """The guest bytes whose stored bytes are *payload*.

        With granularity 0: the ``extent.unit`` bytes of the whole unit. Else: ``extent.length`` bytes; the extent
        begins and ends at whole sectors.

        :param into: as many bytes of memory, which the codec may fill and return, rather than make its own. With a
            granularity it is *payload* itself.

        :raises ImageError: the payload is damaged.
        """
        ...


class Encoder(Protocol):
    """Makes stored bytes of guest ones. Called from several threads at once."""

    def encode(self, start: int, data: memoryview) -> bytes | bytearray | memoryview | None:
        """The payload for the unit of guest bytes *data* at guest offset *start*.

        None: it does not get smaller, store it verbatim. The payload may be put anywhere.
        """
        ...


class Extent(NamedTuple):
    """Where ``length`` guest bytes from guest offset ``start`` live.

    ``node`` and ``offset`` say where for ``DATA`` and ``ENCODED`` (and for ``ZERO`` that has space kept for it).
    An extent that can only be decoded whole also has ``stored``, the bytes that its unit takes there; ``unit``, the
    bytes that it decodes to; and ``skip``, how many of those come before ``start``.
    ``depth`` and ``shift`` are filled in by the engine: how far down the backing chain the extent was found, and by how
    much it was moved (:meth:`moved`).
    """

    start: int
    length: int
    kind: Kind
    node: Node | None = None
    offset: int = 0
    stored: int = 0
    codec: Codec | None = None
    unit: int = 0
    skip: int = 0
    depth: int = 0
    shift: int = 0

    @property
    def end(self) -> int:
        """The guest offset just after the extent."""
        return self.start + self.length

    @property
    def reads_as_zeros(self) -> bool:
        """Whether it is known to, without reading; a hole does where there is no backing image left to ask."""
        kind = self.kind
        return kind is _ZERO or kind is _SPARSE or kind is _HOLE

    def moved(self, by: int) -> Extent:
        """The same bytes at another guest offset: of an image that looks at this one through a window, say."""
        return self._replace(start=self.start + by, shift=self.shift + by)

    @property
    def original(self) -> Extent:
        """The extent where its own driver gave it: what its codec is asked with, for ciphers go by the offset."""
        return self._replace(start=self.start - self.shift, shift=0) if self.shift else self

    def clip(self, start: int, end: int) -> Extent:
        """The part that lies in guest bytes *start* to *end*."""
        start, end = max(start, self.start), min(end, self.end)
        ahead = start - self.start
        if self.unit:
            return self._replace(start=start, length=end - start, skip=self.skip + ahead)
        if self.node is not None:
            return self._replace(start=start, length=end - start, offset=self.offset + ahead)
        return self._replace(start=start, length=end - start)


def joins(first: Extent, second: Extent) -> bool:
    """Whether *second*, which follows *first* in the guest, is alike, and follows it where they lie anywhere, too."""
    if first.kind is not second.kind or first.unit or second.unit:
        return False
    return first.node is second.node and (first.node is None or first.offset + first.length == second.offset)


def joined(extents: Iterable[Extent]) -> Iterator[Extent]:
    """The extents that a driver gives, with neighbours that :func:`joins` made one."""
    held: Extent | None = None
    for extent in extents:
        if held is not None and joins(held, extent):
            held = held._replace(length=held.length + extent.length)
            continue
        if held is not None:
            yield held
        held = extent
    if held is not None:
        yield held


class Placement(NamedTuple):
    """Where ``length`` guest bytes from ``start`` may be put: at ``offset`` of ``node``.

    ``fresh``: the space is new, covers whole allocation units, and nothing points to it until it is published; the
    engine fills the parts of it that the write does not cover with what the guest reads there now. Not fresh: the
    bytes are overwritten in place.
    ``part``: of a fresh one, the bytes that can be published by themselves (see :meth:`clip`), at least one such part
    of each allocation unit: what is left out reads on as it did. 0: it is published whole.
    ``stored``: bytes that an encoded payload takes; 0: verbatim.
    ``cipher``: what encrypts the guest bytes just before they are written; such a placement is whole cipher sectors, so
    it too may begin before the range that was asked for, and end after it.
    """

    start: int
    length: int
    node: Node
    offset: int
    fresh: bool = False
    stored: int = 0
    cipher: Cipher | None = None
    part: int = 0

    @property
    def end(self) -> int:
        """The guest offset just after the placement."""
        return self.start + self.length

    def clip(self, start: int, end: int) -> Placement:
        """The place of guest bytes *start* to *end*, which lie inside."""
        return self._replace(start=start, length=end - start, offset=self.offset + start - self.start)


class Cipher(Protocol):
    """Encrypts what is written to a placement, length for length. Called from several threads at once."""

    granularity: int
    """Bytes in a cipher sector: what is given to :meth:`encrypt` starts and ends at multiples of it."""

    def encrypt(self, start: int, offset: int, data: memoryview) -> bytes | bytearray | memoryview:
        """The stored bytes for guest bytes *data*, which have guest offset *start* and go to *offset* of the node.

        *data* stays as it is. What is returned holds until the same thread's next call.
        """
        ...
