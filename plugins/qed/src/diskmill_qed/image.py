"""QED images: a header, an L1 table, L2 tables, clusters.

The format has no list of what is free: new clusters go to the end of the file. QEMU marks the image with
``QED_F_NEED_CHECK`` before it allocates, because it writes data and tables in any order. Here what a table names is on
disk before the table says so, so that a crash at any moment leaves sound tables, and the mark is not needed; where it
is found, the image is checked and repaired before the first change. For the source see :mod:`diskmill_qed.c_qed`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from diskmill.contract.extents import Kind, Placement
from diskmill.contract.node import Node
from diskmill.contract.references import Reference
from diskmill.errors import ImageError, UnsupportedError, UsageError
from diskmill.kit.levels import WIDTH, TwoLevelImage
from diskmill.sizes import MAX_SIZE, SECTOR, MiB, round_up

from . import c_qed as c

if TYPE_CHECKING:
    from diskmill.contract.options import Value
    from diskmill.contract.requests import CreateRequest, MeasureRequest, OpenRequest
    from diskmill.contract.results import Measurement

    from . import QedDriver

_MAX_WHOLE = 2 * MiB
"""Larger clusters than the engine's unit can be are set aside before they are written."""


class QedImage(TwoLevelImage):
    """A QED file."""

    def __init__(
        self, driver: QedDriver, file: Node, header: c.Header, *, name: str, backing_name: str | None, writable: bool
    ) -> None:
        entries = header.cluster_size * header.table_size // WIDTH
        super().__init__(
            driver,
            file,
            name=name,
            size=header.image_size,
            writable=writable,
            block_size=header.cluster_size,
            l1_offset=header.l1_table_offset,
            l1_entries=entries,
            l2_entries=entries,
            order="little",
            front=header.header_size * header.cluster_size,
            align=header.cluster_size,
            empty={c.UNALLOCATED: Kind.HOLE, c.ZERO: Kind.ZERO},
            whole=header.cluster_size <= _MAX_WHOLE,
        )
        self.header = header
        self._set_reference(backing_name)
        self._begun = False

    def _set_reference(self, name: str | None) -> None:
        format = "raw" if self.header.features & c.QED_F_BACKING_FORMAT_NO_PROBE else None
        self.references = [] if name is None else [Reference("backing", name, format)]

    @property
    def dirty(self) -> bool:
        """Whether it was not closed cleanly."""
        return bool(self.header.features & c.QED_F_NEED_CHECK)

    def write_header(self) -> None:
        """Write the header's fields; what follows them stays."""
        self.file.write(0, c.HEADER.pack(self.header))

    # -- writing ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before the first change: a marked image is repaired, and features that nobody here keeps up are cleared.

        :raises ImageError: it is marked, and its tables cannot be repaired.
        """
        if self._begun:
            return
        if self.dirty:
            from .check import mend

            result = mend(self)
            if self.dirty:
                cause = next((one.text for one in result.findings if not one.fixed), "its tables cannot be read")
                raise ImageError(f"it was not closed cleanly and cannot be repaired: {cause}", file=self.name)
        self.knock_out()
        self._begun = True

    def knock_out(self) -> None:
        """Clear the features that whoever does not know them must clear before the image changes."""
        if self.header.autoclear_features:
            self.header.autoclear_features = 0
            self.write_header()
            self.order_files()

    def reserve(self, offset: int, length: int) -> list[Placement]:
        self.begin()
        return super().reserve(offset, length)

    def cut(self, file: Node, end: int) -> None:
        # Features that are not known may keep something behind what the tables name.
        if not self.header.compat_features:
            super().cut(file, end)

    def used_end(self) -> int:
        end = super().used_end()
        return max(end, self.file.size) if self.header.compat_features else end

    def fill(self, block: int, count: int, entry: int) -> None:
        """Clusters too large for the engine to write whole get what the backing image has, before they are named."""
        if self.backing is None or self.table.get(block) == c.ZERO:
            return
        start, end = block * self.block_size, min((block + count) * self.block_size, self.backing.size)
        for at in range(start, end, MiB):
            data = self.backing.read(at, min(MiB, end - at))
            if data.count(0) < len(data):
                self.file.write(entry + at - start, data)

    def zero_units(self, offset: int, length: int, *, unmap: bool) -> None:
        """Clusters in the file are emptied where they are, for the format cannot give them back.

        What shall read as zeros whatever backing image comes is written: QEMU fills what the guest leaves of a zero
        cluster with the backing image's data.
        """
        if not unmap:
            raise UnsupportedError("zeros that hide a backing image are written", file=self.name)
        self.begin()
        size = self.block_size
        for extent in list(self.extents(offset, length)):
            start, end = extent.start, extent.end
            if extent.kind is Kind.HOLE and self.backing is None:
                continue  # it reads as zeros and takes no space
            if extent.kind is Kind.HOLE:  # only what is zeroed whole; of large clusters a part may be asked
                low, high = -(-start // size), -(-end // size) if end == self.size else end // size
                if low < high:
                    self.table.set(low, high - low, c.ZERO, 0)
                for first, last in ((start, min(low * size, end)), (max(high * size, start), end)):
                    if first < last:
                        self._overwrite(first, last - first)
            elif extent.kind is Kind.DATA:
                self._overwrite(start, extent.length)

    def _overwrite(self, offset: int, length: int) -> None:
        for place in self.reserve(offset, length):
            self.file.zero(place.offset, place.length)

    # -- changes of the header ----------------------------------------------------------------------------------

    def grow(self, size: int) -> None:
        """Make the guest disk *size* bytes: the L1 table is as large as it can become from the start.

        :raises UnsupportedError: smaller, or larger than the tables can hold.
        """
        if size < self.size:
            raise UnsupportedError("a QED image cannot be made smaller", file=self.name)
        check_size(size, self.header.cluster_size, self.header.table_size, self.name)
        with self.lock:
            self.begin()
            old, self.size = self.size, size
            try:
                if self.backing is not None and self.backing.size > old:
                    # What the backing image has there is not what a disk grows by.
                    self.zero(old, min(size, self.backing.size) - old, unmap=False)
                self.write_tables()
                self.order_files()
                self.header.image_size = size
                self.write_header()
            except BaseException:
                self.size = self.header.image_size = old
                raise
            self.flush()

    def room_for(self, name: str) -> int:
        """Where in the header the name of another backing file goes: not where the one that it has now is.

        :raises UnsupportedError: the header has features that are not known, so nobody can tell where there is room.
        :raises UsageError: the name is too long.
        """
        header, length = self.header, len(os.fsencode(name))
        if header.compat_features:
            raise UnsupportedError("its header has features that are not known", file=self.name)
        old = header.backing_filename_offset, header.backing_filename_offset + header.backing_filename_size
        if not header.features & c.QED_F_BACKING_FILE:
            old = 0, 0
        at = next((at for at in (c.HEADER.size, old[1]) if at >= old[1] or at + length <= old[0]), old[1])
        at = max(at, c.HEADER.size)
        if length > c.MAX_BACKING_NAME or at + length > self.data_start:
            raise UsageError("the header has no room for a backing file name of that length", file=self.name)
        return at

    def change_backing(self, name: str, format: str) -> None:
        """Let the image stand on *name* (``""``: nothing) from now on.

        The new name goes where the old one is not, so that the header names a whole one at any moment.

        :raises DiskmillError: see :meth:`room_for`.
        """
        header, data, at = self.header, os.fsencode(name), self.room_for(name)
        with self.lock:
            self.begin()
            self.flush()
            features = header.features & ~(c.QED_F_BACKING_FILE | c.QED_F_BACKING_FORMAT_NO_PROBE)
            if data:
                self.file.write(at, data)
                self.order_files()
            header.features = features | backing_features(name, format)
            header.backing_filename_offset, header.backing_filename_size = (at, len(data)) if data else (0, 0)
            self.write_header()
            self.flush()
            self._set_reference(name or None)


def backing_features(name: str | None, format: str | None) -> int:
    """The bits of ``features`` that tell of a backing file *name* of *format*."""
    if not name:
        return 0
    return c.QED_F_BACKING_FILE | (c.QED_F_BACKING_FORMAT_NO_PROBE if format == "raw" else 0)


def check_size(size: int, cluster: int, table: int, name: str) -> None:
    """Refuse a guest disk of *size* bytes that tables of *table* clusters cannot hold.

    :raises UnsupportedError: it is too large.
    """
    entries = cluster * table // WIDTH
    most = min(entries * entries * cluster, MAX_SIZE)
    if size > most:
        raise UnsupportedError(f"a disk of {size} bytes is too large: these tables hold {most}", file=name)


def _power(value: int, low: int, high: int) -> bool:
    return low <= value <= high and not value & value - 1


def open_qed(driver: QedDriver, request: OpenRequest) -> QedImage:
    """The image in ``request.file``, every field of its header checked."""
    file, name = request.below(), request.name
    header = c.HEADER.unpack(file.read(0, min(c.HEADER.size, file.size)), file=name)

    def bad(cause: str) -> ImageError:
        return ImageError(cause, file=name, place="header")

    if header.magic != c.QED_MAGIC:
        raise ImageError("not a QED image (bad magic)", file=name)
    unknown = header.features & ~c.KNOWN_FEATURES
    if unknown:
        raise UnsupportedError(f"it needs features that are not known: {unknown:#x}", file=name)
    cluster, table = header.cluster_size, header.table_size
    if not _power(cluster, c.MIN_CLUSTER_SIZE, c.MAX_CLUSTER_SIZE):
        raise bad(f"a cluster_size of {cluster} is not possible")
    if not _power(table, c.MIN_TABLE_SIZE, c.MAX_TABLE_SIZE):
        raise bad(f"a table_size of {table} is not possible")
    front = header.header_size * cluster
    if not c.HEADER.size <= front <= max(file.size, cluster if request.shallow else 0):
        raise bad(f"a header of {front} bytes does not fit in the file")
    if header.image_size % SECTOR:
        raise bad(f"image_size {header.image_size} is not a multiple of {SECTOR}")
    check_size(header.image_size, cluster, table, name)
    l1 = header.l1_table_offset
    possible = not l1 % cluster and l1 >= front
    cut = possible and l1 + cluster * table > file.size and request.excuses("L1 table")
    if not possible or l1 + cluster * table > file.size and not cut:
        raise bad(f"the L1 table cannot be at offset {l1}")
    backing = None
    if header.features & c.QED_F_BACKING_FILE:
        at, length = header.backing_filename_offset, header.backing_filename_size
        if at + length > front or length > c.MAX_BACKING_NAME:
            raise bad(f"a backing file name of {length} bytes cannot be at offset {at}")
        backing = os.fsdecode(file.read(at, length)) or None
    image = QedImage(driver, file, header, name=name, backing_name=backing, writable=request.writable)
    image.cut_short = cut
    return image


def _layout(options: Mapping[str, Value]) -> tuple[int, int]:
    """``cluster_size`` and ``table_size`` of the create *options*.

    :raises UsageError: the specification does not allow them, or QEMU does not open what is made with them.
    """
    cluster, table = int(options["cluster_size"]), int(options["table_size"])
    if not _power(cluster, c.MIN_CLUSTER_SIZE, c.MAX_CLUSTER_SIZE):
        raise UsageError(f"cluster_size must be a power of two from 4k to 64M, not {cluster}")
    if not _power(table, c.MIN_TABLE_SIZE, c.MAX_TABLE_SIZE):
        raise UsageError(f"table_size must be 2, 4, 8 or 16, not {table}")
    if table == 1:
        raise UsageError("table_size must be 2, 4, 8 or 16: QEMU opens no image whose tables are of one cluster")
    if (cluster * table // WIDTH) ** 2 * cluster >= 1 << 64:
        cause = (
            f"tables of {table} clusters of {cluster} bytes hold a disk of 16 EiB and more, which QEMU does not open"
        )
        raise UsageError(f"{cause}: choose a smaller cluster_size or table_size")
    return cluster, table


def create_qed(driver: QedDriver, request: CreateRequest) -> QedImage:
    """An empty image in ``request.file``."""
    file, backing = request.output(), request.backing
    cluster, table = _layout(request.options)
    check_size(request.size, cluster, table, request.name)
    name = os.fsencode(backing.name) if backing else b""
    if len(name) > min(c.MAX_BACKING_NAME, cluster - c.HEADER.size):
        raise UsageError("the header has no room for a backing file name of that length", file=request.name)
    header = c.HEADER.new(
        magic=c.QED_MAGIC,
        cluster_size=cluster,
        table_size=table,
        header_size=1,
        features=backing_features(backing.name, backing.format) if backing else 0,
        l1_table_offset=cluster,
        image_size=request.size,
        backing_filename_offset=c.HEADER.size if name else 0,
        backing_filename_size=len(name),
    )
    end = (1 + table) * cluster
    file.truncate(end)
    if not file.blank:
        file.zero(0, end)
    file.write(0, c.HEADER.pack(header) + name)
    backing_name = backing.name if backing else None
    image = QedImage(driver, file, header, name=request.name, backing_name=backing_name, writable=True)
    image.start_empty(end)
    return image


def measure_qed(request: MeasureRequest) -> Measurement:
    """See :func:`diskmill.contract.hookspecs.measure`. All L2 tables are counted, as qemu-img does for qcow2."""
    from diskmill.contract.results import Measurement

    cluster, table = _layout(request.options)
    check_size(request.size, cluster, table, "the image")
    clusters = -(-request.size // cluster)
    tables = 1 + -(-clusters * WIDTH // (cluster * table))
    front = (1 + tables * table) * cluster
    data = min(round_up(request.data_bytes(cluster), cluster), clusters * cluster)
    return Measurement(front + data, front + clusters * cluster)
