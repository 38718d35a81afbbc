"""A VMDK disk: its descriptor, and the parts that the guest disk is put together from."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from diskmill.contract.extents import Encoder, Extent, Kind, Placement, joined
from diskmill.contract.ids import fresh
from diskmill.contract.limits import Meter
from diskmill.contract.node import Node, Storage
from diskmill.contract.references import Reference
from diskmill.errors import ImageError, UnsupportedError
from diskmill.kit.image import FormatImage
from diskmill.sizes import SECTOR

from .descriptor import NO_PARENT, Descriptor
from .grains import GrainPart
from .hosted import HostedPart
from .parts import FlatPart, MissingPart, Part

if TYPE_CHECKING:
    from diskmill.contract.drivers import FormatDriver
    from diskmill.opening.siblings import Siblings


class VmdkImage(FormatImage):
    """The guest disk.

    :param descriptor: None where the file is an extent without one.
    :param room: how many bytes an embedded descriptor may take; 0: it is a file of its own.
    :param at: where it begins in ``file``.
    :param siblings: the files beside it, where it may get more of them.
    """

    def __init__(
        self,
        driver: FormatDriver,
        file: Node,
        *,
        name: str,
        size: int,
        writable: bool,
        descriptor: Descriptor | None,
        create_type: str,
        at: int = 0,
        room: int = 0,
        siblings: Siblings | None = None,
    ) -> None:
        super().__init__(driver, file, name=name, size=size, writable=writable)
        self.descriptor = descriptor
        self.create_type = create_type
        self.compression_level: int | None = None
        self.descriptor_at = at
        self.descriptor_room = room
        self.siblings = siblings
        self.cid = NO_PARENT if descriptor is None or descriptor.cid is None else descriptor.cid
        self.parent_cid = NO_PARENT if descriptor is None else descriptor.parent_cid
        self.parts: list[Part] = []
        self._starts: list[int] = []
        self.changed = False
        self._parent_matches = True
        self._overlay: VmdkImage | None = None
        self._attached: dict[int, Node] = {}
        self._sparse: dict[object, GrainPart] = {}
        """The first sparse part in each file: a descriptor may name one file a thousand times."""

    # -- putting it together ------------------------------------------------------------------------------------

    def set_parts(self, parts: Sequence[Part]) -> None:
        """The parts, in order; those that the core will attach are :class:`MissingPart` until then."""
        self.parts = list(parts)
        self._starts = [part.start for part in parts]
        self._set_unit()

    def _set_unit(self) -> None:
        units = {part.unit for part in self.parts} - {1}
        self.unit = max(units) if units else 1
        # Flat files have holes of their own; in sparse extents a grain is data, or is not there.
        self.preallocated = any(isinstance(part, FlatPart) for part in self.parts)

    def _add_unit(self, part: Part) -> None:
        """As :meth:`_set_unit`, when nothing but *part* is new."""
        if part.unit != 1:
            self.unit = max(self.unit, part.unit)
        self.preallocated = self.preallocated or isinstance(part, FlatPart)

    def attach(self, reference: Reference, node: Node) -> None:
        if reference.role != "extent":
            super().attach(reference, node)
            self._parent_matches = isinstance(node, VmdkImage) and node.cid == self.parent_cid
            if isinstance(node, VmdkImage):
                node._overlay = self
            return
        from .extents import open_extent

        assert self.descriptor is not None
        line = self.descriptor.extents[reference.key]
        placeholder = self.parts[reference.key]
        # A resize that did not end may have made it longer already.
        longer = {one.sectors for one in self.descriptor.planned if one.name == line.name}
        part = open_extent(line, node, placeholder.start, writable=self.writable, longer=longer)
        self.parts[reference.key] = part
        self._attached[reference.key] = node  # not before: what does not fit is closed, and nobody's
        if isinstance(part, GrainPart) and not self.writable:
            first = self._sparse.setdefault(node.identity(), part)
            if first is not part and node.identity() is not None and part.same_as(first):
                part.twin = first
        self._add_unit(part)
        if self.writable:
            self.check_writable()

    def check_writable(self) -> None:
        """Grains of the parts must be units of the disk, for the engine to write whole ones."""
        for part in self.parts:
            if part.start % self.unit or part.unit not in (1, self.unit):
                raise UnsupportedError("an image whose extents begin inside grains can only be read", file=self.name)

    def children(self) -> Iterator[Node]:
        yield self.file
        yield from self._attached.values()
        if self.backing is not None:
            yield self.backing

    def adopt(self, index: int, node: Node) -> None:
        """*node*, made by ``create``, holds the extent *index*."""
        self._attached[index] = node

    # -- the map ------------------------------------------------------------------------------------------------

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        return joined(self._extents(offset, length))

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        checked = self.backing is None or self._parent_matches
        overlay = self.backing is not None or self.parent_cid not in (NO_PARENT, 0)
        meter = Meter(self)
        for part in self._touched(offset, end):
            at, upto = max(offset, part.start), min(end, part.end)
            before = part.work if isinstance(part, GrainPart) else 0
            for extent in part.extents(at, upto - at):
                if not checked and extent.kind is Kind.HOLE:
                    raise ImageError(
                        f"its parent '{self.backing.name if self.backing else ''}' has changed since "
                        f"(parentCID {self.parent_cid:08x}): what it holds no longer fits",
                        file=self.name,
                    )
                if part.blind and overlay and extent.kind is Kind.HOLE:
                    raise UnsupportedError(
                        "only its tables tell zeros from what its parent holds, and they are not read here",
                        file=self.name,
                        place=f"guest byte {extent.start}",
                    )
                yield extent
            # A thousand parts may be one extent, and what they hold be told in one go.
            meter.add(1 + (part.work - before if isinstance(part, GrainPart) else 0))

    def _touched(self, offset: int, end: int) -> Iterator[Part]:
        index = max(bisect_right(self._starts, offset) - 1, 0)
        while index < len(self.parts) and self.parts[index].start < end:
            if self.parts[index].end > offset:
                yield self.parts[index]
            index += 1

    # -- writing ------------------------------------------------------------------------------------------------

    def reserve(self, offset: int, length: int) -> list[Placement]:
        self.begin()
        result: list[Placement] = []
        end = offset + length
        for part in self._touched(offset, end):
            at, upto = max(offset, part.start), min(end, part.end)
            result += part.reserve(at, upto - at)
        return result

    def reserve_encoded(self, units: Sequence[tuple[int, int, int]]) -> list[Placement]:
        from .stream import StreamWriter

        part = self.parts[0]
        if not isinstance(part, StreamWriter):
            return super().reserve_encoded(units)
        return part.reserve_encoded(units)

    def publish(self, placements: Sequence[Placement]) -> None:
        parts, starts = self.parts, self._starts
        for placement in placements:
            if placement.fresh:
                parts[bisect_right(starts, placement.start) - 1].publish(placement)

    def zero_units(self, offset: int, length: int, *, unmap: bool) -> None:
        self.begin()
        end = offset + length
        for part in self._touched(offset, end):
            at, upto = max(offset, part.start), min(end, part.end)
            part.zero_units(at, upto - at, unmap=unmap, backing=self.backing is not None)

    def encoder(self) -> Encoder:
        from .stream import StreamEncoder

        if not self.sequential:
            raise UnsupportedError(
                f"subformat {self.create_type} cannot be compressed: streamOptimized is", file=self.name
            )
        return StreamEncoder(self.compression_level)

    def begin(self) -> None:
        """The first write since the image was opened: images that stand on this one no longer fit."""
        if self.changed:
            return
        self.changed = True
        if self.descriptor is not None and self.descriptor.cid is not None:
            cid = new_cid(self.descriptor.cid_digits)
            self.write_descriptor(self.descriptor.with_cid(cid))
            self._set_cid(cid)

    def _set_cid(self, cid: int) -> None:
        self.cid = cid
        if self._overlay is not None:
            self._overlay.follow(cid)

    def follow(self, cid: int) -> None:
        """The parent is written through this very graph, with what is here (commit): the two still fit, from now on."""
        if self.writable and self._parent_matches and self._overlay is None and self.descriptor is not None:
            self.write_descriptor(self.descriptor.with_parent_cid(cid))
            self.parent_cid = cid

    def write_descriptor(self, raw: bytes) -> None:
        """Put *raw* in the descriptor's place.

        :raises UnsupportedError: there is no room for it.
        """
        from .descriptor import parse

        assert self.descriptor is not None
        old = self.descriptor.raw
        if len(raw) == len(old):
            # Only the sectors that change: each of them is written whole or not at all.
            for at in range(0, len(raw), SECTOR):
                if raw[at : at + SECTOR] != old[at : at + SECTOR]:
                    self.file.write(self.descriptor_at + at, raw[at : at + SECTOR])
        elif self.descriptor_room:
            if len(raw) > self.descriptor_room:
                raise UnsupportedError("the embedded descriptor has no room to grow", file=self.name)
            self.file.write(self.descriptor_at, raw.ljust(self.descriptor_room, b"\0"))
        else:
            # Filled up with line ends where it was longer: no reader minds them.
            self.file.write(0, raw.ljust(len(old), b"\n"))
        self.descriptor = parse(raw, file=self.name, extents=bool(self.descriptor.extents))

    def replace_descriptor(self, file: Storage, descriptor: Descriptor, parts: Sequence[Part]) -> None:
        """*file*, which has taken the place of the one with the descriptor, says that *parts* are the disk."""
        old, self.file = self.file, file
        for index, part in enumerate(parts):
            if index not in self._attached and part.node is not None:
                self._attached[index] = part.node
        self.became(descriptor, parts)
        old.close()

    def became(self, descriptor: Descriptor | None, parts: Sequence[Part]) -> None:
        """*descriptor*, which is on disk now, says that *parts* are the disk."""
        self.descriptor = descriptor
        self.set_parts(parts)
        self.size = parts[-1].end
        self.changed = True
        if descriptor is not None and descriptor.cid not in (None, self.cid):
            self._set_cid(descriptor.cid)

    def flush(self) -> None:
        with self.lock:
            if self.changed:
                for part in self.parts:
                    part.flush()
        for node in (*self._attached.values(), self.file):
            node.flush()

    def _finish(self) -> None:
        """The last thing before the image is closed."""
        if self.changed:
            for part in self.parts:
                part.flush()
                part.finish()

    def refuse_emptying(self) -> None:
        """Refuse what :meth:`empty` cannot do.

        :raises UnsupportedError: an extent cannot be emptied.
        """
        if not all(isinstance(part, HostedPart) for part in self.parts):
            raise UnsupportedError("only sparse extents can be emptied", file=self.name)

    def refuse_reading(self) -> None:
        """Find out whether all of it can be read.

        :raises ImageError: a hole would show a parent that has changed since.
        :raises UnsupportedError: only tables that are not read here tell zeros from what the parent holds.
        """
        if self.backing is not None and not self._parent_matches or any(part.blind for part in self.parts):
            for _ in self._extents(0, self.size):
                pass

    def empty(self) -> bool:
        """Give up all that the image holds itself: it then reads as its backing image.

        :raises UnsupportedError: an extent cannot.
        """
        self.refuse_emptying()
        self.begin()
        for part in self.parts:
            assert isinstance(part, HostedPart)
            part.empty()
        return True

    def settle(self) -> None:
        self._finish()
        super().settle()

    def close(self) -> None:
        if not self.closed and self.writable:
            try:
                self._finish()
            except BaseException:
                self.abandon()
                raise
        super().close()

    # -- what a user may ask ------------------------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        return any(getattr(getattr(part, "header", None), "uncleanShutdown", 0) for part in self.parts)

    def details(self) -> dict[str, Any]:
        return {
            "cid": self.cid,
            "parent-cid": self.parent_cid,
            "create-type": self.create_type,
            "extents": [self._describe(index, part) for index, part in enumerate(self.parts)],
        }

    def _describe(self, index: int, part: Part) -> dict[str, Any]:
        lines = self.descriptor.extents if self.descriptor is not None else []
        own = index not in self._attached and not isinstance(part, MissingPart) and part.node is self.file
        line = lines[index] if not own and index < len(lines) else None
        name = self.name if line is None else os.path.join(os.path.dirname(self.name), line.name)
        # QEMU gives no type for the extent that the descriptor is embedded in.
        told = {"filename": name, "format": "" if line is None else line.type, "virtual-size": part.end - part.start}
        return told | part.details()


def new_cid(digits: int = 8) -> int:
    """A content id that is not taken for "no parent", of no more than *digits* digits where that is room enough."""
    return int.from_bytes(fresh(4), "little") % min(1 << 4 * max(digits, 6), 0xFFFFFFFE)
