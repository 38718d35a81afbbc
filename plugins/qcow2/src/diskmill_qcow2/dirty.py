"""Persistent dirty bitmaps at work: what they record, and how they reach the disk.

Source: the specification's section "Bitmaps". A bitmap's table has an entry for each cluster of its bits, here a chunk;
only chunks that change are held in memory. Before the first guest write, the bitmaps that record it are marked as in
use on disk; when the image is closed, they are stored: changed chunks, tables and the directory in new clusters, then
one write of the header, which points to the new directory. So a crash leaves the old bitmaps or the new ones, or
ones that are marked as in use, which everyone takes as void.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from diskmill.contract.results import Bitmap as Shown
from diskmill.errors import ImageError, UsageError
from diskmill.kit import tables
from diskmill.sizes import KiB, MiB

from . import bitmaps as disk
from . import c_qcow2 as c
from .bounds import misplaced

if TYPE_CHECKING:
    from .image import Qcow2Image

_CACHE_BYTES = 32 * MiB
"""How much of changed chunks one bitmap keeps in memory."""
_RUNS = re.compile(rb"\xff+|[^\x00\xff]")
"""In bitmap data: a run of bytes with all bits set, or one byte with some."""


class Bitmap:
    """One bitmap. Bit *n* stands for guest bytes from ``n << granularity_bits`` on.

    :ivar entry: its bitmap directory entry.
    :ivar changed: whether the disk has another state of it.
    """

    def __init__(self, image: Qcow2Image, entry: disk.Entry, table: array[int] | None = None) -> None:
        self.image = image
        self.entry = entry
        self.changed = table is not None
        self._table = table
        self._chunks: dict[int, bytearray] = {}
        self._own: set[int] = set()  # offsets of chunks that only the new state has: they are written in place
        self._left: list[int] = []  # offsets of chunks that only the old state has
        self._per_chunk = image.unit * 8
        self._shift = entry.granularity_bits

    @property
    def bits(self) -> int:
        """How many bits it has."""
        return -(-self.image.size >> self._shift)

    @property
    def table(self) -> array[int]:
        """The bitmap table, read when first asked for.

        :raises ImageError: an entry is impossible.
        """
        if self._table is None:
            entry, file = self.entry, self.image.file
            table = tables.read(file, entry.bitmap_table_offset, entry.bitmap_table_size, 8, "big")
            for index, word in enumerate(table):
                unit = self.image.unit
                if disk.bad_table_entry(word, unit) or misplaced(word & c.OFFSET_MASK, unit, file.size):
                    raise ImageError(
                        f"entry {index} ({word:#x}) is impossible",
                        file=self.image.name,
                        place=f"table of bitmap '{entry.name}'",
                    )
            self._table = table
        return self._table

    def _chunk(self, index: int) -> bytearray:
        chunk = self._chunks.get(index)
        if chunk is None:
            if len(self._chunks) * self.image.unit >= _CACHE_BYTES:
                self.spill()
            self._chunks[index] = chunk = self._read(index)
        return chunk

    def _read(self, index: int) -> bytearray:
        word = self.table[index]
        if word & c.OFFSET_MASK:
            data = bytearray(self.image.unit)
            self.image.file.read_into(word & c.OFFSET_MASK, data)
            return data
        return bytearray(b"\xff" if word else b"\0") * self.image.unit

    def mark(self, offset: int, length: int) -> None:
        """Guest bytes *offset* to *offset + length* have changed."""
        table, per = self.table, self._per_chunk
        at, end = offset >> self._shift, min((offset + length - 1 >> self._shift) + 1, self.bits)
        while at < end:
            index, low = divmod(at, per)
            high = min(end - index * per, per)
            if index in self._chunks or table[index] != c.BITMAP_ALL_ONES:  # what is in memory holds
                self.changed = True
                if low == 0 and high == min(per, self.bits - index * per):
                    self._assign(index, c.BITMAP_ALL_ONES)
                else:
                    _set_bits(self._chunk(index), low, high)
            at = (index + 1) * per

    def clear(self) -> None:
        """Nothing has changed."""
        for index in range(len(self.table)):
            self._assign(index, 0)
        self.changed = True

    def _assign(self, index: int, word: int) -> None:
        """Table entry *index* becomes *word*; what it pointed to goes."""
        self._chunks.pop(index, None)
        offset = self.table[index] & c.OFFSET_MASK
        if offset:
            self._left.append(offset)
        self.table[index] = word

    def resize(self, size: int) -> None:
        """The disk, which still has its old size, gets *size* bytes; what is new has not changed."""
        new, per = -(-size >> self._shift), self._per_chunk
        count = max(disk.table_entries(size, self._shift, self.image.unit), 1)
        last, used = divmod(min(new, self.bits), per)
        if used and (self.table[last] or last in self._chunks):  # bits beyond the shorter size's end are zero
            chunk = self._chunk(last)
            full = bytearray(self.image.unit)
            _set_bits(full, 0, used)
            masked = int.from_bytes(chunk, "little") & int.from_bytes(full, "little")
            chunk[:] = masked.to_bytes(len(chunk), "little")
        for index in range(count, len(self.table)):
            self._assign(index, 0)
        table = self.table[:count]
        table.extend(tables.filled(count - len(table), 8))
        self._table, self.changed = table, True

    def ranges(self) -> Iterator[tuple[int, int]]:
        """(offset, length) of the guest bytes that have changed, ascending."""
        first = last = 0
        for low, high in self._set_ranges():
            if low > last:
                if last > first:
                    yield self._bytes(first, last)
                first = low
            last = high
        if last > first:
            yield self._bytes(first, last)

    def _set_ranges(self) -> Iterator[tuple[int, int]]:
        bits = self.bits
        for index, word in enumerate(self.table):
            base = index * self._per_chunk
            if word == c.BITMAP_ALL_ONES and index not in self._chunks:
                yield base, min(base + self._per_chunk, bits)
            elif word or index in self._chunks:
                data = self._chunks.get(index) or self._read(index)
                for match in _RUNS.finditer(data):
                    at = base + match.start() * 8
                    if match[0][0] == 0xFF:
                        yield at, min(base + match.end() * 8, bits)
                    else:
                        yield from ((at + bit, at + bit + 1) for bit in range(8) if match[0][0] >> bit & 1)

    def _bytes(self, first: int, last: int) -> tuple[int, int]:
        start = first << self._shift
        return start, min(last << self._shift, self.image.size) - start

    # -- storing ------------------------------------------------------------------------------------------------

    def spill(self) -> None:
        """Write the chunks in memory to clusters that the state on disk does not have."""
        unit = self.image.unit
        for index, data in self._chunks.items():
            offset = self.table[index] & c.OFFSET_MASK
            if offset not in self._own:
                if offset:
                    self._left.append(offset)
                offset = self.image.refcounts.allocate(1)[0][0] * unit
                self._own.add(offset)
                self.table[index] = offset
            self.image.file.write(offset, data)
        self._chunks.clear()

    def store(self) -> list[tuple[int, int]]:
        """Write chunks and table to new clusters; the places (offset, length) that it has no use for afterwards."""
        unit, entry = self.image.unit, self.entry
        for index, data in list(self._chunks.items()):
            if not any(data):
                self._assign(index, 0)
        self.spill()
        gone = [*self._table_place(), *((offset, unit) for offset in self._left)]
        self._left.clear()
        self._own.clear()
        table = self.table
        start = self.image.refcounts.allocate_together(-(-len(table) * 8 // unit)) * unit
        self.image.file.write(start, _whole(tables.to_bytes(table, "big"), unit))
        entry.bitmap_table_offset, entry.bitmap_table_size = start, len(table)
        self.changed = False
        return gone

    def _table_place(self) -> list[tuple[int, int]]:
        offset = self.entry.bitmap_table_offset
        return [(offset, self.entry.bitmap_table_size * 8)] if offset else []

    def places(self) -> list[tuple[int, int]]:
        """Everything that it takes of the file: (offset, length)."""
        try:
            words = self.table
        except ImageError:  # what an impossible table points to, a check finds
            return self._table_place()
        offsets = [*self._left, *(word & c.OFFSET_MASK for word in words)]
        return [*self._table_place(), *((offset, self.image.unit) for offset in offsets if offset)]


class Bitmaps:
    """All bitmaps of an image that is open for writing.

    Not thread-safe: callers hold the image's lock.

    :raises ImageError: the bitmap directory is broken.
    """

    def __init__(self, image: Qcow2Image) -> None:
        self.image = image
        self.all = [Bitmap(image, entry) for entry in disk.read_directory(image.file, image.header, image.name)]
        self.tracking: list[Bitmap] = []
        """Those that record writes; they are marked as in use on disk."""
        self._in_use: list[Bitmap] = []  # marked so by us
        self._changed = False  # whether the directory has
        self._gone: list[tuple[int, int]] = []  # (offset, length): of no use once the new directory holds

    def find(self, name: str) -> Bitmap:
        """The bitmap called *name*.

        :raises UsageError: there is none.
        """
        for bitmap in self.all:
            if bitmap.entry.name == name:
                return bitmap
        raise UsageError(f"Dirty bitmap '{name}' not found", file=self.image.name)

    def sound(self, name: str) -> Bitmap:
        """The bitmap called *name*, which was stored properly.

        :raises UsageError: there is none, or it was not.
        """
        bitmap = self.find(name)
        if bitmap.entry.in_use and bitmap not in self._in_use:
            raise UsageError(
                f"Bitmap '{name}' is inconsistent and cannot be used: it can only be removed", file=self.image.name
            )
        return bitmap

    def begin(self, *, resize: bool = False) -> None:
        """Guest data is about to change: mark the bitmaps that this concerns as in use, on disk.

        :param resize: so is the disk's size, which concerns all.
        """
        wanted = [one for one in self.all if not one.entry.in_use and (resize or one.entry.auto)]
        self.tracking += [one for one in wanted if one.entry.auto and one not in self.tracking]
        for bitmap in wanted:
            _ = bitmap.table  # an impossible one is found before anything changes
        for bitmap in wanted:
            bitmap.entry.flags |= c.BITMAP_IN_USE
            self._in_use.append(bitmap)
            if bitmap.entry.flags_offset:
                self.image.file.write(bitmap.entry.flags_offset, bitmap.entry.flags.to_bytes(4, "big"))
        if wanted:
            self.image.order_files()

    def mark(self, offset: int, length: int) -> None:
        """Guest bytes *offset* to *offset + length* are about to change."""
        for bitmap in self.tracking:
            bitmap.mark(offset, length)

    def resize(self, size: int) -> None:
        """The disk is about to get *size* bytes.

        :raises UsageError: see :meth:`refuse_size`.
        """
        self.refuse_size(size)
        self.begin(resize=True)
        for bitmap in self.all:
            bitmap.resize(size)

    def refuse_size(self, size: int) -> None:
        """Refuse a size of the disk that the bitmaps do not go with.

        :raises UsageError: one of the bitmaps was not stored properly, so nobody knows what would become of it; or it
            would have more bits than may be, and nobody would open the image.
        """
        for bitmap in self.all:
            name, bits = bitmap.entry.name, bitmap.entry.granularity_bits
            self.sound(name)
            if disk.table_entries(size, bits, self.image.unit) * self.image.unit > c.MAX_BITMAP_BYTES:
                cause = f"Bitmap '{name}' with its granularity of {1 << bits} bytes is too fine for {size} bytes"
                raise UsageError(f"{cause}: remove it first", file=self.image.name)

    # -- commands -----------------------------------------------------------------------------------------------

    def act(self, action: str, name: str, options: Mapping[str, Any]) -> None:
        """Do *action*; it reaches the disk with :meth:`store`.

        :raises UsageError: it makes no sense.
        """
        if action == "add":
            self._add(name, options)
        elif action == "remove":
            bitmap = self.find(name)
            self._gone += bitmap.places()
            self.all.remove(bitmap)
            for some in (self.tracking, self._in_use):
                if bitmap in some:
                    some.remove(bitmap)
        elif action == "clear":
            self.sound(name).clear()
        elif action == "merge":
            self._merge(self.sound(name), options["source"])
        else:
            bitmap = self.sound(name)
            bitmap.entry.flags &= ~c.BITMAP_AUTO
            if action == "enable":
                bitmap.entry.flags |= c.BITMAP_AUTO
            elif bitmap in self.tracking:
                self.tracking.remove(bitmap)
        self._changed = True
        if action == "add" and not self.image.fresh:  # it is there, empty, before it gets any bits: see salvage.py
            self.store()
        if self.image.begun:  # what is enabled from now on records what is written from now on
            self.begin()

    def _add(self, name: str, options: Mapping[str, Any]) -> None:
        """A new bitmap *name*, which nothing is marked in."""
        image = self.image
        granularity = options.get("granularity") or min(max(image.unit, 4 * KiB), 64 * KiB)
        bits = granularity.bit_length() - 1
        refuse_version(image)
        if not image.size:  # a table without entries, which no reader takes
            raise UsageError("a disk of 0 bytes has nothing that a bitmap could record", file=image.name)
        if not name:
            raise UsageError("Bitmap name cannot be empty", file=image.name)
        if len(name.encode("utf-8", "surrogateescape")) > c.MAX_BITMAP_NAME:
            raise UsageError(f"Name length exceeds maximum ({c.MAX_BITMAP_NAME} characters)", file=image.name)
        if granularity != 1 << bits or not c.MIN_GRANULARITY_BITS <= bits <= c.MAX_GRANULARITY_BITS:
            raise UsageError("Granularity must be power of 2 and at least 512, at most 2G", file=image.name)
        if any(one.entry.name == name for one in self.all):
            raise UsageError(f"Bitmap already exists: {name}", file=image.name)
        if len(self.all) >= c.MAX_BITMAPS:
            raise UsageError(
                f"Maximum number of persistent bitmaps is already reached: {c.MAX_BITMAPS}", file=image.name
            )
        entries = disk.table_entries(image.size, bits, image.unit)
        if entries * image.unit > c.MAX_BITMAP_BYTES:
            raise UsageError("Too much space will be occupied by the bitmap. Use larger granularity", file=image.name)
        flags = 0 if options.get("disabled") else c.BITMAP_AUTO
        table = tables.filled(max(entries, 1), 8)
        self.all.append(Bitmap(image, disk.Entry(0, 0, flags, bits, name), table))

    def _merge(self, into: Bitmap, source: Shown) -> None:
        if source.size != self.image.size:
            raise UsageError(
                f"Bitmaps are of different sizes (destination size is {self.image.size}, "
                f"source size is {source.size}) and can't be merged",
                file=self.image.name,
            )
        for offset, length in source.ranges():
            into.mark(offset, length)

    def shown(self) -> list[Shown]:
        """As commands show them."""
        return [
            Shown(
                name=one.entry.name,
                granularity=1 << one.entry.granularity_bits,
                size=self.image.size,
                enabled=one.entry.auto,
                inconsistent=one.entry.in_use and one not in self._in_use,
                ranges=one.ranges,
            )
            for one in self.all
        ]

    # -- storing ------------------------------------------------------------------------------------------------

    def store(self) -> None:
        """Everything reaches the disk: the bitmaps, and first the guest data that they tell of."""
        if not (self._changed or self._in_use):
            return
        image = self.image
        image.order.flush_tables()
        for bitmap in self._in_use:
            bitmap.entry.flags &= ~c.BITMAP_IN_USE
        self._refuse_overflow()
        old = image.header.extension(c.EXT_BITMAPS) if image.header.autoclear_features & c.BITMAPS else None
        for bitmap in self.all:
            if bitmap.changed:
                self._gone += bitmap.store()
        self._place(disk.pack_directory([one.entry for one in self.all]))
        image.order.write_refcounts()
        image.order.write_header()
        if old is not None:
            was = c.BITMAPS_EXTENSION.unpack(old)
            self._gone.append((was.bitmap_directory_offset, was.bitmap_directory_size))
        for offset, length in self._gone:
            image.refcounts.drop_metadata(offset // image.unit, -(-length // image.unit))
        self._gone.clear()
        image.order.give_back()
        self.tracking.clear()
        self._in_use.clear()
        self._changed = False
        image.bitmaps_stored()

    def _refuse_overflow(self) -> None:
        """A header that has no room for the extension is found before anything is written."""
        header = self.image.header
        if self.all and header.extension(c.EXT_BITMAPS) is None:
            header.set_extension(c.EXT_BITMAPS, bytes(c.BITMAPS_EXTENSION.size))
            try:
                header.pack()
            finally:
                header.set_extension(c.EXT_BITMAPS, None)

    def _place(self, directory: bytes) -> None:
        """Put *directory* somewhere and let the header, in memory, point to it."""
        image, unit = self.image, self.image.unit
        if not directory:
            disk.set_directory(image.header, 0, 0, 0)
            return
        start = image.refcounts.allocate_together(-(-len(directory) // unit)) * unit
        image.file.write(start, _whole(directory, unit))
        at = start
        for bitmap in self.all:
            bitmap.entry.flags_offset = at + c.BITMAP.offsets["flags"]
            at += len(disk.pack_directory([bitmap.entry]))
        disk.set_directory(image.header, len(self.all), start, len(directory))


def refuse_version(image: Qcow2Image) -> None:
    """Refuse a version that has no bitmaps.

    :raises UsageError: it is version 2.
    """
    if image.header.version < 3:
        raise UsageError("version 2 (compat=0.10) has no persistent bitmaps", file=image.name)


def act(image: Qcow2Image, action: str, name: str, options: Mapping[str, Any]) -> list[Shown]:
    """The hook ``bitmap``: the list afterwards."""
    with image.lock:
        if action != "list":
            image.bitmaps.act(action, name, options)
        return image.bitmaps.shown()


def _set_bits(data: bytearray, low: int, high: int) -> None:
    """Set bits *low* to *high*, at least one; bit 0 is the least significant of the first byte."""
    first, last = low >> 3, (high - 1) >> 3
    head, tail = 0xFF << (low & 7) & 0xFF, 0xFF >> (7 - (high - 1 & 7))
    if first == last:
        data[first] |= head & tail
        return
    data[first] |= head
    data[last] |= tail
    data[first + 1 : last] = b"\xff" * (last - first - 1)


def _whole(data: bytes, unit: int) -> bytes:
    """*data* filled up to whole clusters."""
    return data.ljust(-(-len(data) // unit) * unit, b"\0")


def clusters(bitmaps: Iterable[Bitmap], unit: int) -> Iterator[int]:
    """The host clusters that *bitmaps* take."""
    for bitmap in bitmaps:
        for offset, length in bitmap.places():
            yield from range(offset // unit, -(-(offset + length) // unit))
