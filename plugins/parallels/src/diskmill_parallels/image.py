"""Parallels expandable images: a header, a block allocation table right behind it, clusters.

While an image is written its header says ``in_use``; whoever finds that in an image that nobody has open knows that it
was not closed. For the source see :mod:`diskmill_parallels.c_parallels`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from diskmill.contract.extents import Extent, Kind, Placement
from diskmill.contract.node import Node
from diskmill.contract.results import CheckResult, Finding, Measurement
from diskmill.errors import ImageError, UnsupportedError, UsageError
from diskmill.kit.blocks import BlockImage, BlockTable
from diskmill.sizes import MAX_SIZE, SECTOR, MiB, round_up

from .c_parallels import CLOSED, CLOSED_OLD, EMPTY_FLAG, HEADER, IN_USE, MAGIC, MAGIC_EXT, VERSION

if TYPE_CHECKING:
    from diskmill.contract.requests import CreateRequest, MeasureRequest, OpenRequest

    from . import ParallelsDriver
    from .c_parallels import Header
    from .extension import Extension

_MAX_TRACKS = 0x7FFFFFFF // 513
"""Sectors in a cluster at most: what QEMU opens."""
_MAX_ENTRIES = 0x7FFFFFFF // 4
"""Entries of the table at most: what QEMU opens."""


class ParallelsImage(BlockImage):
    """An expandable image."""

    def __init__(
        self, driver: ParallelsDriver, file: Node, header: Header, *, name: str, data_start: int, writable: bool
    ) -> None:
        self.header = header
        self.old = header.magic == MAGIC
        self.scale: int = SECTOR if self.old else header.tracks * SECTOR
        super().__init__(
            driver,
            file,
            name=name,
            size=(header.nb_sectors & 0xFFFFFFFF if self.old else header.nb_sectors) * SECTOR,
            writable=writable,
            table=BlockTable(file, HEADER.size, header.nb_bat_entries, 4, "little", self.flush),
            block_size=header.tracks * SECTOR,
            empty={0: Kind.HOLE},
            step=header.tracks if self.old else 1,
            data_start=data_start,
        )
        self.preallocated = False
        self.new = False
        self._opened = False
        self._unclean: bool = header.in_use == IN_USE
        # Parallels Desktop has marks of its own, which stay.
        self._closed: int = CLOSED if header.in_use in (IN_USE, CLOSED_OLD) else header.in_use
        self._extension: Extension | None = None

    @property
    def cluster_size(self) -> int | None:
        """QEMU tells none."""
        return None

    @property
    def dirty(self) -> bool:
        return self._unclean

    def details(self) -> dict[str, Any] | None:
        """QAPI has none for the format; the dirty bitmaps of the format extension are told like those of qcow2."""
        bitmaps = () if self.cut_short else self.extension().bitmaps
        if not bitmaps:
            return None
        return {
            "bitmaps": [{"flags": [], "name": one.name, "granularity": one.granularity * SECTOR} for one in bitmaps]
        }

    def extension(self) -> Extension:
        """The format extension: empty where the image has none.

        :raises ImageError: it is damaged.
        """
        from .extension import Extension

        if self._extension is None:
            self._extension = Extension.read(self) if self.header.ext_off else Extension()
        return self._extension

    def position(self, entry: int) -> int:
        return entry * self.scale

    # -- writing ------------------------------------------------------------------------------------------------

    def reserve(self, offset: int, length: int) -> list[Placement]:
        self.begin()
        if offset + length > self.covered:
            # Not lengthened here: a header may tell of any size, and a table for it may take gigabytes.
            raise UnsupportedError(
                f"its table ends at byte {self.covered} of the disk: resize it before writing behind that",
                file=self.name,
            )
        return super().reserve(offset, length)

    def discard_units(self, offset: int, length: int) -> None:
        self.begin()
        super().discard_units(offset, length)

    def begin(self) -> None:
        """Before the first change: let the header say that the image is in use.

        :raises ImageError: it says so already, so that its table cannot be trusted.
        :raises UnsupportedError: its extension forbids changes to who does not know all of it.
        """
        if self._opened:
            return
        if self.cut_short:
            raise ImageError("the file is cut short", file=self.name)
        if self._unclean:
            raise ImageError("it was not closed properly: repair it with 'check -r all' first", file=self.name)
        if any(feature.necessary for feature in self.extension().features):
            raise UnsupportedError("its format extension forbids changing it", file=self.name)
        self._opened = True
        if not self.new:
            self.header.in_use = IN_USE
            self.header.flags &= ~EMPTY_FLAG
            self.write_header()
            self.order_files()

    @property
    def covered(self) -> int:
        """Guest bytes for which the table has entries; those behind are not there."""
        return len(self.table) * self.block_size

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        covered, end = self.covered, offset + length
        if end <= covered:
            return super().extents(offset, length)
        return self._beyond(offset, end, max(offset, covered))

    def _beyond(self, offset: int, end: int, start: int) -> Iterator[Extent]:
        """Guest bytes *offset* to *end*, those from *start* on without entries in the table."""
        if offset < start:
            yield from super().extents(offset, start - offset)
        yield Extent(start, end - start, Kind.HOLE)

    def write_header(self) -> None:
        """Write the header, which is part of the first sector."""
        self.file.write(0, HEADER.pack(self.header))

    def close(self) -> None:
        try:
            if not self.closed and self._opened and not self.new:
                self._declare_closed()
        finally:
            super().close()

    def _declare_closed(self) -> None:
        try:
            self.flush()
        finally:  # even if that fails: what the table on disk names is there
            # The bitmaps of the extension were not kept up to date: this value says that they do not count.
            self.header.in_use = CLOSED_OLD if self.header.ext_off else self._closed
            self.write_header()

    def used_end(self) -> int:
        return max(self.data_start, self.extension().end)

    def entry_at(self, end: int, count: int) -> int:
        # Clusters lie at multiples of their size from the start of the data on.
        at = self.data_start + round_up(end - self.data_start, self.block_size)
        entry = -(-at // self.scale)
        if entry + (count - 1) * self.step > 0xFFFFFFFF:
            raise ImageError("the block allocation table cannot name places that far", file=self.name)
        return entry

    # -- resize -------------------------------------------------------------------------------------------------

    def grow(self, size: int, preallocation: str) -> None:
        """Make the guest disk *size* bytes.

        The table can only grow where it is: clusters in its way go to the end of the file first. One write of the
        header switches over.
        """
        if size < self.size:
            raise UnsupportedError("a Parallels image cannot be made smaller", file=self.name)
        if preallocation != "off":
            raise UnsupportedError(f"preallocation={preallocation} is not supported", file=self.name)
        sectors = size // SECTOR
        entries = max(-(-size // self.block_size), len(self.table))
        if self.old and sectors > 0xFFFFFFFF or entries > _MAX_ENTRIES:
            raise UnsupportedError("the image is too large for this cluster size", file=self.name)
        with self.lock:
            self.begin()
            self.find_end()
            before = HEADER.size + len(self.table) * 4
            after = HEADER.size + entries * 4
            start = self.data_start + round_up(max(after - self.data_start, 0), self.block_size)
            self._clear(start)
            for at in range(before, after, MiB):
                self.file.write(at, bytes(min(MiB, after - at)))
            self.lengthen()  # where there are no clusters, the file would end before the data begins
            self.order_files()
            self.header.nb_bat_entries, self.header.nb_sectors = entries, sectors
            self.header.data_off = start // SECTOR
            self.write_header()
            self.table = BlockTable(self.file, HEADER.size, entries, 4, "little", self.flush)
            self.size, self.data_start = sectors * SECTOR, start
        self.flush()

    def _clear(self, start: int) -> None:
        """Let no cluster lie before file offset *start*."""
        if start == self.data_start:
            return
        if self.header.ext_off:
            raise UnsupportedError("an image with a format extension cannot get a larger table", file=self.name)
        moved = [
            block + index
            for block, count, entry, step, kind in self._told_apart(0, len(self.table))
            if kind is Kind.DATA and self.position(entry) < start
            for index in range(count)
            if self.position(entry + index * step) < start
        ]
        self.end = max(self.find_end(), start)
        for block in moved:
            self._part(block)
        self.write_tables()
        self.order_files()

    # -- check --------------------------------------------------------------------------------------------------

    def check(self, repair: str) -> CheckResult:
        """See :func:`diskmill.contract.hookspecs.check`."""
        result = CheckResult()
        every = repair == "all"
        if self._unclean:
            result.findings.append(Finding("corruption", "the image was not closed properly", fixed=every))
            result.corruptions += 1
            result.corruptions_fixed += every
        if repair:
            unclean, self._unclean = self._unclean, False
            try:
                self.begin()  # what is repaired is in use; closing it says that it is whole
            finally:
                self._unclean = unclean and not every
        end = max(self.check_blocks(result, drop=0 if every else None, repair=every), self.used_end())
        spare = self.file.size - end
        if spare > 0:
            count = -(-spare // self.block_size)
            result.findings.append(Finding("leak", f"{spare} bytes behind the last cluster", count, bool(repair)))
            result.leaks += count
            if repair and self.file.resizable:
                result.leaks_fixed += count
                self.file.truncate(end)
        result.image_end_offset = end
        result.total_clusters = len(self.table)
        return result


def open_parallels(driver: ParallelsDriver, request: OpenRequest) -> ParallelsImage:
    """The image in ``request.file``, every field of its header checked."""
    file, name = request.below(), request.name
    header = HEADER.unpack(file.read(0, min(HEADER.size, file.size)), file=name)
    if header.magic not in (MAGIC, MAGIC_EXT) or header.version != VERSION:
        raise ImageError("not a Parallels image (bad magic or version)", file=name)
    if not 0 < header.tracks <= _MAX_TRACKS:
        raise ImageError(f"a cluster of {header.tracks} sectors is not possible", file=name, place="header")
    entries = header.nb_bat_entries
    table_end = HEADER.size + entries * 4
    cut = False
    if entries <= _MAX_ENTRIES and table_end > file.size:
        cut = request.excuses("block allocation table")
    if entries > _MAX_ENTRIES or table_end > file.size and not cut:
        raise ImageError(f"a table of {entries} entries does not fit in the file", file=name, place="header")
    old = header.magic == MAGIC
    sectors = header.nb_sectors & 0xFFFFFFFF if old else header.nb_sectors
    if sectors * SECTOR > MAX_SIZE or -(-sectors // header.tracks) > _MAX_ENTRIES:
        raise ImageError(f"a disk of {sectors} sectors is not possible", file=name, place="header")
    start = header.data_off * SECTOR
    if old and not start:
        start = round_up(table_end, SECTOR)
    if start > max(file.size, round_up(table_end, SECTOR)):
        cut = cut or request.excuses("data")
    if start < table_end or start > max(file.size, round_up(table_end, SECTOR)) and not cut:
        raise ImageError(f"the data cannot begin at byte {start}", file=name, place="header")
    image = ParallelsImage(driver, file, header, name=name, data_start=start, writable=request.writable)
    image.cut_short = cut
    return image


def create_parallels(driver: ParallelsDriver, request: CreateRequest) -> ParallelsImage:
    """An empty image in ``request.file``."""
    file, size = request.output(), request.size
    cluster = _cluster(request.options.get("cluster_size"))
    entries = -(-size // cluster)
    if entries > _MAX_ENTRIES:
        raise UnsupportedError(f"{size} bytes are too many for clusters of {cluster} bytes", file=request.name)
    start = round_up(HEADER.size + entries * 4, cluster)
    header = HEADER.new(
        magic=MAGIC_EXT,
        version=VERSION,
        heads=16,
        cylinders=size // SECTOR // 16 // 32 & 0xFFFFFFFF,
        tracks=cluster // SECTOR,
        nb_bat_entries=entries,
        nb_sectors=size // SECTOR,
        data_off=start // SECTOR,
    )
    file.truncate(start)
    file.write(0, HEADER.pack(header))
    if not file.blank:
        file.zero(HEADER.size, start - HEADER.size)
    image = ParallelsImage(driver, file, header, name=request.name, data_start=start, writable=True)
    image.new = True
    image.end = start
    return image


def measure_parallels(request: MeasureRequest) -> Measurement:
    """See :func:`diskmill.contract.hookspecs.measure`."""
    cluster = _cluster(request.options.get("cluster_size"))
    clusters = -(-request.size // cluster)
    start = round_up(HEADER.size + clusters * 4, cluster)
    return Measurement(start + round_up(request.data_bytes(cluster), cluster), start + clusters * cluster)


def _cluster(value: object) -> int:
    size = round_up(value if isinstance(value, int) else MiB, SECTOR)
    if not 0 < size <= _MAX_TRACKS * SECTOR:
        raise UsageError(f"the cluster_size must be {SECTOR} to {_MAX_TRACKS * SECTOR} bytes")
    return size
