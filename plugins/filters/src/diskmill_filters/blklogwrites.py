"""The filter ``blklogwrites``: every write to the node below also goes to a log, from which it can be replayed.

The log has the layout of Linux's target dm-log-writes (``Documentation/admin-guide/device-mapper/log-writes.rst``), so
that its replay-log program reads it: a superblock in the first sector, then for each write an entry of one sector with
the data behind it (``data_len`` only counts a mark's text, inside of the entry's own sector). The options are those
of ``BlockdevOptionsBlklogwrites`` in QEMU's ``qapi/block-core.json``.

A log knows no sizes: what is cut off is logged as discarded, and of what is added, the last sector is logged.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from diskmill.contract.drivers import FilterDriver, hookimpl
from diskmill.contract.options import Option
from diskmill.errors import ImageError, UsageError
from diskmill.kit.filter import Filter
from diskmill.kit.structs import Record, Structure, u32, u64
from diskmill.sizes import MiB, round_down, round_up

if TYPE_CHECKING:
    from diskmill.contract.node import Node, ReadBuffer
    from diskmill.contract.requests import OpenRequest

MAGIC = 0x6A736677736872
VERSION = 1
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8


class Super(Record):
    magic = u64
    version = u64
    nr_entries = u64
    sectorsize = u32


SUPER = Structure("log_write_super", "<", Super)


class Entry(Record):
    sector = u64
    nr_sectors = u64
    flags = u64
    data_len = u64


ENTRY = Structure("log_write_entry", "<", Entry)


class LogWriter:
    """The log in *node*, in sectors of *sector* bytes, going on behind *entries* entries that end at byte *end*."""

    def __init__(self, node: Node, sector: int, interval: int, entries: int, end: int) -> None:
        self.node = node
        self.sector = sector
        self._interval = interval
        self._entries = entries
        self._end = end

    def add(self, offset: int, length: int, flags: int, data: ReadBuffer = b"") -> None:
        """An entry for bytes *offset* to *offset + length*, which are whole sectors."""
        record = ENTRY.new(sector=offset // self.sector, nr_sectors=length // self.sector, flags=flags, data_len=0)
        self.node.write(self._end, ENTRY.pack(record).ljust(self.sector, b"\0") + bytes(data))
        self._end += self.sector + len(data)
        self._entries += 1
        if self._entries % self._interval == 0:
            self.tell()

    def tell(self) -> None:
        """Write how many entries there are, behind the entries."""
        self.node.barrier()
        record = SUPER.new(magic=MAGIC, version=VERSION, nr_entries=self._entries, sectorsize=self.sector)
        self.node.write(0, SUPER.pack(record).ljust(self.sector, b"\0"))


class BlkLogWrites(Filter):
    """*file*, whose writes are logged in *log*."""

    def __init__(self, driver: BlkLogWritesDriver, file: Node, log: LogWriter) -> None:
        super().__init__(driver, file, [log.node])
        self._log = log
        self._lock = threading.Lock()  # the log tells writes in the order in which they were done
        self._closed = False

    def _logged(self, offset: int, end: int) -> None:
        """Log what is in the sectors of bytes *offset* to *end* now."""
        low, high = (edge(at, self._log.sector) for edge, at in ((round_down, offset), (round_up, end)))
        for at in range(low, high, MiB):
            length = min(MiB, high - at)
            self._log.add(at, length, 0, self.file.read(at, length))

    def write(self, offset: int, data: ReadBuffer) -> None:
        with self._lock:
            self.file.write(offset, data)
            if len(data):
                self._logged(offset, offset + len(data))

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        with self._lock:
            self.file.zero(offset, length, unmap=unmap)
            if length:
                self._logged(offset, offset + length)

    def discard(self, offset: int, length: int) -> None:
        with self._lock:
            self.file.discard(offset, length)
            low, high = round_up(offset, self._log.sector), round_down(offset + length, self._log.sector)
            if low < high:
                self._log.add(low, high - low, DISCARD)

    def truncate(self, size: int) -> None:
        with self._lock:
            before = self.file.size
            self.file.truncate(size)
            whole = round_up(size, self._log.sector)
            if size < before:
                if size < whole:
                    self._logged(size, whole)
                if whole < before:
                    self._log.add(whole, round_up(before, self._log.sector) - whole, DISCARD)
            elif size > before:
                self._logged(size - 1, size)  # a file that the log is replayed into becomes as long

    def allocate(self, offset: int, length: int, mode: str) -> None:
        with self._lock:
            before = self.file.size
            self.file.allocate(offset, length, mode)
            if self.file.size > before:
                self._logged(self.file.size - 1, self.file.size)

    def flush(self) -> None:
        self._flushed(barrier=False)

    def barrier(self) -> None:
        self._flushed(barrier=True)

    def _flushed(self, *, barrier: bool) -> None:
        with self._lock:
            if barrier:
                self.file.barrier()
            else:
                self.file.flush()
            if self.writable:
                self._log.add(0, 0, FLUSH)
                self._log.tell()
                self._log.node.flush()

    def close(self) -> None:
        try:
            if self.writable and not self._closed:
                self._log.tell()
        finally:
            self._closed = True
            super().close()


class BlkLogWritesDriver(FilterDriver):
    """``blklogwrites``."""

    contract = 1
    name = "blklogwrites"
    title = "logs what is written, to be replayed (dm-log-writes)"
    children = ("file", "log")
    options = (
        Option("log-sector-size", "size", "bytes in a sector of the log", default=512, when=("open",)),
        Option("log-append", "bool", "go on with the log that is there", default=False, when=("open",)),
        Option(
            "log-super-update-interval",
            "int",
            "writes after which the log tells how many there are",
            default=4096,
            when=("open",),
        ),
    )

    @hookimpl
    def open(self, request: OpenRequest) -> BlkLogWrites:
        """The node below, watched."""
        log, options = request.children["log"], request.options
        sector, interval = int(options["log-sector-size"]), int(options["log-super-update-interval"])
        if not 512 <= sector < 1 << 23 or sector & (sector - 1):
            raise UsageError(f"invalid log sector size {sector}", file=log.name)
        if not interval:
            raise UsageError("invalid log superblock update interval 0", file=log.name)
        entries, end = _found(log, sector) if options["log-append"] else (0, sector)
        return BlkLogWrites(self, request.below(), LogWriter(log, sector, interval, entries, end))


def _found(log: Node, sector: int) -> tuple[int, int]:
    """How many entries *log* has, and the byte where they end.

    :raises ImageError: it is no log. UsageError: it has another sector size.
    """
    start = log.read(0, SUPER.size)
    if not any(start):
        return 0, sector  # nothing was logged yet
    head = SUPER.unpack(start, file=log.name)
    if (head.magic, head.version) != (MAGIC, VERSION):
        raise ImageError("it is no log of writes", file=log.name)
    if head.sectorsize != sector:
        raise UsageError(f"the log has sectors of {head.sectorsize} bytes, not {sector}", file=log.name)
    end = sector
    for number in range(head.nr_entries):
        if end + sector > log.size:
            raise ImageError(f"it ends before entry {number} of {head.nr_entries}", file=log.name)
        entry = ENTRY.unpack(log.read(end, ENTRY.size), file=log.name)
        end += sector + (0 if entry.flags & DISCARD else entry.nr_sectors * sector)
    return head.nr_entries, end


driver = BlkLogWritesDriver()
