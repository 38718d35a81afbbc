"""Resizing: more room at the end. The last extent grows; a disk in pieces also gets more of them.

What takes space comes first, where nobody looks: new extents in files that have no names yet, tables behind the end of
the last one. Then the descriptor says in comments what its extents are about to be; the new files get their names; the
last extent's header turns to its new tables; and a descriptor with the new extents takes the place of the old one. So a
crash leaves the old disk or the new one. Files that it leaves besides are known by those comments: the next resize
takes them away, if they hold nothing.

What a longer parent has behind the disk's end is hidden by grains of zeros, among what comes first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from diskmill.contract.extents import Kind
from diskmill.contract.node import Node, Storage
from diskmill.errors import DiskmillError, StorageError, UnsupportedError
from diskmill.kit import tables
from diskmill.kit.zeros import ZEROS, is_zero
from diskmill.sizes import SECTOR, GiB, round_up

from .creating import SPLIT, make_part, piece_name
from .descriptor import MAX_EXTENTS, ExtentLine, parse, plan, resized, without_plan
from .grains import MAX_DIRECTORY
from .hosted import GRAIN, HostedPart, read_header
from .image import new_cid
from .parts import FlatPart, Part
from .structures import SPARSE_MAGIC

if TYPE_CHECKING:
    from .image import VmdkImage

_SPLIT_TYPES = {"twogbmaxextentsparse": False, "twogbmaxextentflat": True}
"""Create types of disks in pieces, and whether those are flat."""
_NO_NEW_FILES = (errno.EACCES, errno.EPERM, errno.EROFS)


def resize_vmdk(image: VmdkImage, size: int, preallocation: str) -> bool:
    """Make the guest disk *size* bytes long; it is not shorter than before.

    :raises UnsupportedError: its last extent cannot grow, or it would need more extents than there can be.
    :raises StorageError: a file bears the name of a new extent already; or there is no space. The disk is as before.
    """
    size = round_up(size, SECTOR)
    if size == image.size:
        return True
    _clear_unfinished(image)
    length, lines = _extents_for(image, size)
    last = image.parts[-1] if image.parts else None
    if last is None and not lines:
        raise UnsupportedError("it has no extent that can grow", file=image.name)
    undo = _Undo()
    try:
        growth = None
        if last is not None and length > last.end - last.start:
            growth = _growth_of(image, last, length, size, preallocation)
        if last is not None and growth is not None and last.node is image.file:
            _grow_whole(image, last, growth, size, undo)
        else:
            _grow_pieces(image, growth, size, lines, preallocation, undo)
    except BaseException:
        undo.run()
        raise
    return True


class _Undo:
    """Steps back, for a resize that fails: the last one first, up to the first that fails as well."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], None]] = []
        self.files: list[Storage] = []
        """New files, which are given up afterwards."""

    def run(self) -> None:
        with contextlib.suppress(DiskmillError):
            while self.steps:
                self.steps.pop()()
        for file in self.files:
            with contextlib.suppress(DiskmillError):
                file.abandon()

    def forget(self) -> None:
        """There is no way back from here."""
        self.steps.clear()
        self.files.clear()


# -- what there is to do ----------------------------------------------------------------------------------------------


def _extents_for(image: VmdkImage, size: int) -> tuple[int, list[ExtentLine]]:
    """How many bytes long the last extent becomes, and which extents come behind it."""
    start, held = (image.parts[-1].start, image.parts[-1].end - image.parts[-1].start) if image.parts else (0, 0)
    flat = _SPLIT_TYPES.get(image.create_type.lower())
    if flat is None or (image.parts and image.parts[-1].node is image.file):
        return size - start, []
    # VMware's pieces of 2047 MiB stay as large as they are.
    largest = max((part.end - part.start for part in image.parts[:-1]), default=SPLIT)
    piece = largest if GiB <= largest <= SPLIT else SPLIT
    length = min(size - start, max(piece, round_up(held, image.unit))) if image.parts else 0
    count = -(-(size - start - length) // piece)
    if len(image.parts) + count > MAX_EXTENTS:
        raise UnsupportedError(f"more than {MAX_EXTENTS} extents", file=image.name)
    base = os.path.basename(image.file.name)
    number = max(len(image.parts), *_numbers(image, base, flat=flat), 0)
    lines = []
    for at in range(start + length, size, piece):
        number += 1
        sectors = min(piece, size - at) // SECTOR
        lines.append(ExtentLine("RW", sectors, "FLAT" if flat else "SPARSE", piece_name(base, number, flat=flat)))
    return length, lines


def _numbers(image: VmdkImage, base: str, *, flat: bool) -> list[int]:
    """The numbers of the extents that the disk *base* has, as far as their names say."""
    assert image.descriptor is not None
    found = (re.fullmatch(_pattern(base, flat=flat), line.name) for line in image.descriptor.extents)
    return [int(match.group(1)) for match in found if match is not None]


def _pattern(base: str, *, flat: bool) -> str:
    """What the names of extents of the disk *base* look like."""
    before, after = (re.escape(part) for part in os.path.splitext(base))
    return f"{before}-{'f' if flat else 's'}([0-9]{{3,9}}){after}"


def _hidden_end(image: VmdkImage, size: int) -> int:
    """Up to which guest byte a disk of *size* bytes must hide what a longer parent has; 0 where it need not."""
    if image.backing is None or image.backing.size <= image.size:
        return 0
    return min(image.backing.size, size)


def _growth_of(image: VmdkImage, part: Part, length: int, size: int, preallocation: str) -> _FlatGrowth | _SparseGrowth:
    if not part.writable or not isinstance(part, FlatPart | HostedPart) or not part.node.resizable:
        raise UnsupportedError("its last extent is not one that can grow", file=image.name)
    _check_preallocation(preallocation, flat=isinstance(part, FlatPart), name=image.name)
    if isinstance(part, HostedPart):
        if length > MAX_DIRECTORY * part.cover:
            raise UnsupportedError("a disk that a sparse extent has no room for", file=image.name)
        return _SparseGrowth(image, part, length, min(_hidden_end(image, size), part.start + length))
    end = part.offset + part.end - part.start
    shared = any(other.node is not None and _same(other, part) for other in image.parts[:-1])
    # Zeros behind it, in a file, may be what a resize left that did not end.
    if shared or not (part.node.size == end or (part.node.blank and _is_zero(part.node, end, part.node.size))):
        raise UnsupportedError("the flat extent is not all of its file", file=image.name)
    return _FlatGrowth(part, length, preallocation)


def _same(one: Part, other: Part) -> bool:
    if one.node is None or other.node is None:
        return False
    return one.node.identity() == other.node.identity() is not None


def _check_preallocation(mode: str, *, flat: bool, name: str) -> None:
    if flat and mode == "metadata":
        raise UnsupportedError("flat extents have no metadata", file=name)
    if not flat and mode not in ("off", "metadata"):
        raise UnsupportedError("sparse extents cannot be preallocated", file=name)


# -- the last extent --------------------------------------------------------------------------------------------------


class _FlatGrowth:
    """A flat extent becomes *length* bytes long: nobody looks beyond the end that the descriptor says."""

    planned = False
    """Whether the descriptor must say beforehand that it happens."""

    def __init__(self, part: FlatPart, length: int, preallocation: str) -> None:
        self.part, self.length = part, length
        self.preallocation = preallocation

    def prepare(self, undo: _Undo) -> None:
        part, node = self.part, self.part.node
        before, held = node.size, part.end - part.start
        undo.steps.append(lambda: node.truncate(before))
        node.truncate(part.offset + self.length)
        if self.preallocation != "off":
            node.allocate(part.offset + held, self.length - held, self.preallocation)
        node.flush()

    def switch(self, undo: _Undo) -> None:
        """It is as long as it is."""


class _SparseGrowth:
    """A sparse extent comes to hold *length* bytes: larger directories at the end of its file, with tables for what is
    new, to which its header turns at once.

    :param hidden_end: up to which guest byte a longer parent must be hidden; 0: there is none.
    """

    planned = True

    def __init__(self, image: VmdkImage, part: HostedPart, length: int, hidden_end: int) -> None:
        self.image, self.part, self.length, self.hidden_end = image, part, length, hidden_end
        self.kept: int | None = None
        """How long the file was; None: there is something behind that that belongs to the old disk."""
        self.old: list[tuple[int, array[int]]] = []
        """The directories that the header names, as they are on disk."""

    def prepare(self, undo: _Undo) -> None:
        part, node = self.part, self.part.node
        part.flush()
        self.kept, self.old = node.size, _places(part)
        undo.steps.append(self._cut)
        part.trim(self.image.read if self.hidden_end else None)
        self.kept = None
        part.flush()
        self.kept, self.old = node.size, _places(part)
        old = part.count
        count = max(old, -(-self.length // part.cover))
        places = []
        # The old directories never name tables that are only there to hide something.
        if count > old or self.hidden_end:
            directory_sectors = -(-count * part.width // SECTOR)
            table_sectors = part.table_sectors
            for _, present in self.old:
                at = part.take(directory_sectors + (count - old) * table_sectors)
                first = at + directory_sectors
                added = array("I", range(first, first + (count - old) * table_sectors, table_sectors))
                directory = present + added
                # The tables are zeros, as all is that lies beyond the end of the file.
                node.write(at * SECTOR, tables.to_bytes(directory, "little"))
                places.append((at, directory))
        part.lengthen()
        _move(part, places)
        if self.hidden_end:
            undo.steps.append(self._show)
            part.hide(part.start + round_up(part.end - part.start, part.unit), self.hidden_end)
            part.flush()
        node.barrier()

    def switch(self, undo: _Undo) -> None:
        """Turn to the new tables."""
        capacity = self.part.header.capacity * SECTOR

        def back() -> None:
            _move(self.part, self.old)
            self._say(capacity)

        undo.steps.append(back)
        self._say(self.length)

    def _say(self, length: int) -> None:
        self.part.set_capacity(length)
        self.part.node.barrier()

    def _show(self) -> None:
        """The old tables name no grains of zeros any more, which lie in what is cut off next."""
        self.part.give_up_changes()
        _move(self.part, self.old)
        self.part.trim()
        self.part.flush()
        self.part.node.barrier()

    def _cut(self) -> None:
        if self.kept is not None:
            self.part.give_up_changes()
            _move(self.part, self.old)
            self.part.node.truncate(self.kept)


def _places(part: HostedPart) -> list[tuple[int, array[int]]]:
    """(sector, copy) of the directories of *part*, the redundant one first."""
    places = [(part.directory_offset // SECTOR, part.directory[:])]
    if part.redundant is not None and part.redundant_offset is not None:
        places.insert(0, (part.redundant_offset // SECTOR, part.redundant[:]))
    return places


def _move(part: HostedPart, places: Sequence[tuple[int, array[int]]]) -> None:
    """Let *part* have its directories at *places*, as :func:`_places` gives them; its header does not say so yet."""
    if places:
        part.moved(places[-1], places[0] if len(places) == 2 else None)


def _grow_whole(image: VmdkImage, part: Part, growth: _FlatGrowth | _SparseGrowth, size: int, undo: _Undo) -> None:
    """The disk is one file, whose header says how large it is; the descriptor in it only repeats that."""
    if image.descriptor is not None:
        text = resized(image.descriptor, image.size, size, size // SECTOR, file=image.name)
        if len(text) > image.descriptor_room:
            raise UnsupportedError("the embedded descriptor has no room to grow", file=image.name)
    growth.prepare(undo)
    image.begin()
    growth.switch(undo)
    if image.descriptor is not None:
        image.write_descriptor(resized(image.descriptor, image.size, size, size // SECTOR, file=image.name))
    part.end = part.start + size
    image.became(image.descriptor, [part])


# -- disks with a descriptor of their own -----------------------------------------------------------------------------


def _grow_pieces(
    image: VmdkImage,
    growth: _FlatGrowth | _SparseGrowth | None,
    size: int,
    lines: Sequence[ExtentLine],
    preallocation: str,
    undo: _Undo,
) -> None:
    descriptor, file = image.descriptor, image.file
    assert descriptor is not None
    sectors = None if growth is None else growth.length // SECTOR
    text = resized(descriptor, image.size, size, sectors, lines, file=image.name)
    if not image.changed and descriptor.cid is not None:
        text = parse(text, file=image.name).with_cid(new_cid(descriptor.cid_digits))
    after = parse(text, file=image.name)
    new = _new_parts(image, lines, size, preallocation, undo)
    planned = bool(lines) or (growth is not None and growth.planned)
    if growth is not None:
        growth.prepare(undo)
    staged = _staged(image, text, undo, planned=planned)
    if planned:
        changed = after.extents[len(descriptor.extents) - (growth is not None) :]
        _write_plan(file, len(descriptor.raw), plan(descriptor, changed), undo)
    for _, node in new:
        undo.steps.append(node.remove)
        try:
            node.settle()
        except BaseException:
            if not node.settled:
                undo.steps.pop()
            raise
    if growth is not None:
        growth.switch(undo)
    parts = [*image.parts, *(part for part, _ in new)]
    if staged is None:
        undo.steps.append(lambda: image.write_descriptor(descriptor.raw))
        image.write_descriptor(text)
        file.barrier()
        _lengthen(growth)
        image.became(after, parts)
        return
    try:
        staged.settle()
    finally:
        if staged.settled:  # the disk is what bears the name, even where a folder cannot be flushed
            undo.forget()
            _lengthen(growth)
            image.replace_descriptor(staged, after, parts)


def _lengthen(growth: _FlatGrowth | _SparseGrowth | None) -> None:
    if growth is not None:
        growth.part.end = growth.part.start + growth.length


def _new_parts(
    image: VmdkImage, lines: Sequence[ExtentLine], size: int, preallocation: str, undo: _Undo
) -> list[tuple[Part, Storage]]:
    """The extents *lines*, which end the disk of *size* bytes, in new files that have no names yet."""
    if not lines:
        return []
    flat = lines[0].type == "FLAT"
    _check_preallocation(preallocation, flat=flat, name=image.name)
    like = image.parts[-1].node if image.parts else image.file
    if image.siblings is None or not isinstance(like, Storage):
        raise UnsupportedError("it cannot get more files", file=image.name)
    sparse = [part for part in image.parts if isinstance(part, HostedPart)]
    unit = image.unit if image.unit > 1 else GRAIN * SECTOR
    start, hidden_end = size - sum(line.sectors for line in lines) * SECTOR, _hidden_end(image, size)
    if not flat and any(one % unit for one in (start, *(part.start for part in image.parts))):
        raise UnsupportedError("an extent would begin inside a grain", file=image.name)
    result = []
    for line in lines:
        try:
            node = image.siblings.make(line.name, like=like)
        except StorageError as error:
            if error.errno != errno.EEXIST:
                raise
            raise StorageError(
                f"it exists, but is no part of '{image.name}', whose next extent would be called so",
                file=error.file,
                errno=error.errno,
            ) from None
        undo.files.append(node)
        part = make_part(node, line, start, zeroed=bool(sparse) and sparse[-1].zeroed, grain=unit // SECTOR)
        if flat and preallocation != "off":
            node.allocate(0, part.end - part.start, preallocation)
        if isinstance(part, HostedPart):
            part.hide(start, min(hidden_end, part.end))
            part.flush()
        node.flush()
        result.append((part, node))
        start = part.end
    return result


def _staged(image: VmdkImage, text: bytes, undo: _Undo, *, planned: bool) -> Storage | None:
    """The descriptor *text* in a file that can take the old one's place; None: it can only be written over that.

    :param planned: it must take its place: written over the old one, it could be seen half written.
    """
    assert image.descriptor is not None
    # A sector is written whole or not at all.
    if not planned and max(len(text), len(image.descriptor.raw)) <= SECTOR:
        return None
    if image.siblings is None or not isinstance(image.file, Storage):
        if planned:
            raise UnsupportedError("its descriptor cannot be replaced", file=image.name)
        return None
    try:
        node = image.siblings.make(os.path.basename(image.file.name), like=image.file)
    except DiskmillError as error:
        impossible = isinstance(error, UnsupportedError) or (
            isinstance(error, StorageError) and error.errno in _NO_NEW_FILES
        )
        if planned or not impossible:
            raise
        return None
    undo.files.append(node)
    node.write(0, text)
    node.flush()
    return node


# -- what a resize leaves that does not end ---------------------------------------------------------------------------


def _write_plan(file: Node, at: int, text: bytes, undo: _Undo) -> None:
    """Put *text* behind the descriptor, which ends at *at*. What a crash leaves of it is a comment, or nothing."""
    size = file.size
    before = file.read(at, min(len(text), max(size - at, 0)))

    def back() -> None:
        if before:
            file.write(at, before)
        file.truncate(size)
        file.barrier()

    undo.steps.append(back)
    file.write(at, text)
    file.barrier()


def _clear_unfinished(image: VmdkImage) -> None:
    """Take back what a resize that did not end has done."""
    descriptor, file, siblings = image.descriptor, image.file, image.siblings
    if descriptor is None or not descriptor.planned or siblings is None or not isinstance(file, Storage):
        return
    part = image.parts[-1] if image.parts else None
    if isinstance(part, HostedPart) and part.header.capacity * SECTOR > part.end - part.start:
        if not _ends(part):
            raise UnsupportedError(
                "a resize of it did not end, and its last extent holds data beyond the end of the disk", file=image.name
            )
        part.set_capacity(part.end - part.start)
        part.node.barrier()
    own = {line.name for line in descriptor.extents}
    base = os.path.basename(file.name)
    names = {line.name for line in descriptor.planned} - own
    for name in sorted(names):
        # The name stands in the descriptor, so only one that this very disk would give is believed.
        if not any(re.fullmatch(_pattern(base, flat=flat), name) for flat in (False, True)):
            continue
        left = siblings.open(name)
        if left is None:
            continue
        try:
            if not _holds_nothing(left):
                raise StorageError(
                    f"a resize of '{image.name}' that did not end left it, but it holds data", file=left.name
                )
            left.remove()
        finally:
            left.abandon()
    raw = without_plan(descriptor)
    file.truncate(len(raw))
    file.barrier()
    image.descriptor = parse(raw, file=image.name)


def _ends(part: HostedPart) -> bool:
    """Whether *part* has nothing but zeros behind its end, in tables that its header counts too."""
    end, part.end = part.end, part.start + part.header.capacity * SECTOR
    try:
        return all(
            one.node is None or _is_zero(part.node, one.offset, one.offset + one.length)
            for one in part.extents(end, part.end - end)
        )
    finally:
        part.end = end


def _holds_nothing(node: Storage) -> bool:
    """Whether *node* is zeros, or a sparse extent with no grains but of zeros."""
    if node.read(0, min(node.size, len(SPARSE_MAGIC))) != SPARSE_MAGIC:
        return _is_zero(node, 0, node.size)
    try:
        header = read_header(node, name=node.name)
        part = HostedPart(node, header, 0, name=node.name)
        held = [one for one in part.extents(0, part.end) if one.node is not None] if part.end else []
        overhead = header.overHead * SECTOR
        return (
            node.size - overhead == sum(round_up(one.length, part.unit) for one in held)
            and all(one.offset >= overhead for one in held)
            and _is_zero(node, overhead, node.size)
        )
    except DiskmillError:
        return False


def _is_zero(node: Node, start: int, end: int) -> bool:
    """Whether bytes *start* to *end* of *node* are zeros."""
    for extent in node.extents(start, end - start) if start < end else ():
        if extent.kind is Kind.ZERO:
            continue
        for at in range(extent.start, extent.end, len(ZEROS)):
            if not is_zero(node.read(at, min(len(ZEROS), extent.end - at))):
                return False
    return True
