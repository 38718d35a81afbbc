"""Bochs redologs: a header, a catalog, extents of sectors with a bitmap before each.

Source: the Bochs developers' guide, "Harddisk Images based on redologs"
(https://bochs.sourceforge.io/doc/docbook/development/harddisk-redologs.html). All values are little-endian. The catalog
has an entry for each extent of the guest disk, the number of its place in the file or 0xffffffff; a place is a bitmap,
in whole sectors, and the extent's sectors. A sector whose bit is clear was never written: of a growing disk it reads as
zeros, of other redologs as the base image has it.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from diskmill.contract.extents import Extent, Kind, joined
from diskmill.contract.node import Node
from diskmill.contract.results import CheckResult
from diskmill.errors import ImageError, UnsupportedError, UsageError
from diskmill.kit import tables
from diskmill.kit.chunks import unreadable
from diskmill.kit.image import ReadOnlyImage
from diskmill.kit.structs import Record, Structure, raw, u32, u64
from diskmill.sizes import MAX_SIZE, SECTOR, MiB, round_up

from . import MAGIC

if TYPE_CHECKING:
    from diskmill.contract.references import Reference
    from diskmill.contract.requests import OpenRequest
    from diskmill.kit.structs import Record

    from . import BochsDriver

V1, V2 = 0x00010000, 0x00020000


class Header(Record):
    magic = raw(32)
    type = raw(16)
    subtype = raw(16)
    version = u32
    header = u32


HEADER = Structure("header", "<", Header)
"""The generic part. ``header`` is the size of both parts: the catalog follows."""


class Redolog(Record):
    catalog = u32
    bitmap = u32
    extent = u32
    timestamp = u32
    disk = u64


REDOLOG = Structure("redolog header", "<", Redolog)
"""The specific part: entries of the catalog; bytes in a bitmap, in an extent and of the guest disk."""


class RedologV1(Record):
    catalog = u32
    bitmap = u32
    extent = u32
    disk = u64


REDOLOG_V1 = Structure("redolog header", "<", RedologV1)

NOT_ALLOCATED = 0xFFFFFFFF
MAX_CATALOG = 1 << 20
"""Entries: what bximage needs for its largest disk, 8 TiB, and as many as QEMU opens."""
MAX_EXTENT = 8 * MiB

_RUNS = re.compile("0+|1+")


class BochsImage(ReadOnlyImage):
    """A redolog."""

    def __init__(
        self,
        driver: BochsDriver,
        file: Node,
        header: Header,
        redolog: Redolog | RedologV1,
        catalog: array[int],
        *,
        name: str,
    ) -> None:
        super().__init__(driver, file, name=name, size=redolog.disk // SECTOR * SECTOR)
        self.growing = _text(header.subtype) == "Growing"
        self.subtype = _text(header.subtype)
        self.catalog = catalog
        self.extent_size: int = redolog.extent
        self.bitmap_size = round_up(redolog.bitmap, SECTOR)
        self.data_start: int = header.header + len(catalog) * 4

    def attach(self, reference: Reference, node: Node) -> None:
        if self.growing:
            raise UsageError("a growing disk stands on no other image", file=self.name)
        super().attach(reference, node)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        if not self.growing and self.backing is None:
            raise UnsupportedError(
                f"it is a redolog ({self.subtype}) and holds only what differs from its base image: name that with "
                "backing.file.filename=…",
                file=self.name,
            )
        return joined(self._extents(offset, offset + length))

    def _extents(self, offset: int, end: int) -> Iterator[Extent]:
        """The same, each stretch of an extent of the format by itself."""
        first = offset // self.extent_size
        for run in tables.runs(self.catalog[first : -(-end // self.extent_size)], 1):
            start = (first + run.at) * self.extent_size
            if run.value == NOT_ALLOCATED:
                yield Extent(start, run.length * self.extent_size, Kind.HOLE).clip(offset, end)
                continue
            for index in range(run.length):
                place = self.place(run.value + index * run.step)
                at = start + index * self.extent_size
                for part in self._allocated(at, place):
                    if part.end > offset and part.start < end:
                        yield part.clip(offset, end)

    def place(self, entry: int) -> int:
        """The file offset of the bitmap that *entry* of the catalog names."""
        return self.data_start + entry * (self.bitmap_size + self.extent_size)

    def _allocated(self, start: int, place: int) -> Iterator[Extent]:
        """The extent at guest offset *start*, whose bitmap is at file offset *place*."""
        sectors = min(self.extent_size, self.size - start) // SECTOR
        data = place + self.bitmap_size
        if data > self.file.size:
            yield unreadable(self.file, start, sectors * SECTOR, self._outside(start))
            return
        bits = int.from_bytes(self.file.read(place, -(-sectors // 8)), "little")
        text = format(bits & (1 << sectors) - 1, f"0{sectors}b")[::-1]
        for match in _RUNS.finditer(text):
            at, length = match.start() * SECTOR, len(match[0]) * SECTOR
            if match[0][0] == "0":
                yield Extent(start + at, length, Kind.HOLE)
            elif data + at + length > self.file.size:
                yield unreadable(self.file, start + at, length, self._outside(start + at))
            else:
                yield Extent(start + at, length, Kind.DATA, self.file, data + at)

    def _outside(self, at: int) -> ImageError:
        return ImageError(f"the sectors of guest offset {at} are not inside the file", file=self.name, place="catalog")

    def check(self) -> CheckResult:
        """Entries of the catalog that point outside the file, or where another one does."""
        result = CheckResult()
        seen: set[int] = set()
        for index, entry in enumerate(self.catalog):
            if entry == NOT_ALLOCATED:
                continue
            if self.place(entry) + self.bitmap_size > self.file.size:
                result.found("corruption", f"extent {index} lies outside the file")
            elif entry in seen:
                result.found("corruption", f"extent {index} lies at a place that another extent has")
            seen.add(entry)
        return result


def open_bochs(driver: BochsDriver, request: OpenRequest) -> BochsImage:
    """The image in ``request.file``, every field of its header checked."""
    file, name = request.below(), request.name
    data = file.read(0, min(HEADER.size + REDOLOG.size, file.size))
    if not data.startswith(MAGIC):
        raise ImageError("not a Bochs image (bad magic)", file=name)
    header = HEADER.unpack(data, file=name)
    if _text(header.type) != "Redolog":
        raise UnsupportedError(f"Bochs images of type '{_text(header.type)}' are not supported", file=name)
    if _text(header.subtype) not in ("Growing", "Undoable", "Volatile"):
        raise UnsupportedError(f"redologs of type '{_text(header.subtype)}' are not supported", file=name)
    if header.version not in (V1, V2):
        raise UnsupportedError(f"version {header.version:#x} of the Bochs format is not supported", file=name)
    redolog = (REDOLOG_V1 if header.version == V1 else REDOLOG).unpack(data, HEADER.size, file=name)

    def wrong(why: str) -> ImageError:
        return ImageError(why, file=name, place="header")

    if redolog.disk > MAX_SIZE:
        raise wrong(f"impossible disk size {redolog.disk}")
    size = redolog.extent
    if not SECTOR <= size <= MAX_EXTENT or size & size - 1:
        raise wrong(f"the extent size {size} is not a power of two from {SECTOR} to {MAX_EXTENT}")
    if redolog.bitmap * 8 * SECTOR < size:
        raise wrong(f"a bitmap of {redolog.bitmap} bytes is too small for extents of {size} bytes")
    if redolog.catalog > MAX_CATALOG or header.header + redolog.catalog * 4 > file.size:
        raise wrong(f"a catalog of {redolog.catalog} entries is too large, or not inside the file")
    if redolog.catalog * size < redolog.disk // SECTOR * SECTOR:
        raise wrong(f"a catalog of {redolog.catalog} entries is too small for a disk of {redolog.disk} bytes")
    catalog = tables.read(file, header.header, redolog.catalog, 4, "little")
    return BochsImage(driver, file, header, redolog, catalog, name=name)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("ascii", "replace")
