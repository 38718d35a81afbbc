"""The log: updates of metadata that a crash may have kept from their places.

It is a ring of sectors that holds entries. An entry is a header with descriptors, then a data sector for each of those
that bring data. The last entry of a sequence says where the sequence begins; the newest whole one is what counts
([MS-VHDX] 2.3). Entries are told from older ones by the ``LogGuid``, which is zero where the log is empty.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from diskmill.contract.extents import Extent, Kind
from diskmill.contract.ids import fresh
from diskmill.contract.node import Buffer, Node, ReadBuffer
from diskmill.errors import ImageError, UnsupportedError
from diskmill.sizes import MiB, TiB, round_down, round_up

from .c_vhdx import (
    ALIGN,
    DATA_SECTOR,
    DESCRIPTOR,
    DESCRIPTORS,
    LOG_ENTRY,
    LOG_SECTOR,
    NO_GUID,
    REGION_TABLE_OFFSETS,
    checksum,
    sealed,
)

if TYPE_CHECKING:
    from .headers import Headers

_LONGEST_ENTRY = 16 * MiB
_MOST_DATA = 64 * MiB
"""Bytes that all entries of a sequence bring together: they are kept in memory until they are in place. Hyper-V's logs
have 1 MiB, QEMU never leaves more than one sector in one."""
_MOST_STRETCHES = 1 << 15
"""Stretches of zeros that lie apart: as many as a log of 1 MiB has descriptors for."""
_FURTHEST = 128 * TiB
"""No file that holds 64 TiB needs to be longer."""
_BATCH = 126
"""Sectors in an entry that is written here, at most: their descriptors stand in the entry's first sector. QEMU 7.2
replays no others."""


class Entry(NamedTuple):
    """An entry that is whole, ``at`` bytes from the log's start."""

    at: int
    length: int
    tail: int
    sequence: int
    descriptors: int
    flushed: int
    last: int


class Updates:
    """What the entries of a sequence change: the newest data for each sector, and stretches of zeros."""

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        """Bytes that the file has once they are in place."""
        self.name = name
        self._sectors: dict[int, bytes] = {}
        # Zeros, ascending and apart, where no sector has data.
        self._starts: list[int] = []
        self._ends: list[int] = []

    def older(self, offset: int, data: bytes | int) -> None:
        """Add an update, of what those that are here already do not change: data, or so many bytes of zeros."""
        end = offset + (data if isinstance(data, int) else len(data))
        if offset < REGION_TABLE_OFFSETS[0] or end > _FURTHEST:
            raise ImageError(f"it updates bytes {offset} to {end} of the file", file=self.name, place="log")
        self.size = max(self.size, end)
        if isinstance(data, int):
            low, high = bisect_left(self._ends, offset), bisect_right(self._starts, end)
            if low < high:
                offset, end = min(offset, self._starts[low]), max(end, self._ends[high - 1])
            elif len(self._starts) >= _MOST_STRETCHES:
                raise UnsupportedError(f"its log zeros more than {_MOST_STRETCHES} stretches", file=self.name)
            self._starts[low:high], self._ends[low:high] = [offset], [end]
        elif offset not in self._sectors and not self._zeroed(offset):
            if len(self._sectors) * LOG_SECTOR >= _MOST_DATA:
                raise UnsupportedError(f"its log holds updates of more than {_MOST_DATA} bytes", file=self.name)
            self._sectors[offset] = data

    def _zeroed(self, offset: int) -> bool:
        index = bisect_right(self._starts, offset) - 1
        return index >= 0 and self._ends[index] > offset

    def lay_over(self, offset: int, view: memoryview) -> None:
        """Bring what was read from *offset* of the file into *view* up to date."""
        end = offset + len(view)
        for index in range(bisect_right(self._ends, offset), bisect_left(self._starts, end)):
            low, high = max(self._starts[index], offset), min(self._ends[index], end)
            view[low - offset : high - offset] = bytes(high - low)
        for sector in range(round_down(offset, LOG_SECTOR), end, LOG_SECTOR):
            data = self._sectors.get(sector)
            if data is not None:
                low, high = max(sector, offset), min(sector + LOG_SECTOR, end)
                view[low - offset : high - offset] = data[low - sector : high - sector]

    def ranges(self) -> Iterator[tuple[int, int]]:
        """(start, end) of what they change."""
        yield from zip(self._starts, self._ends, strict=True)
        yield from ((sector, sector + LOG_SECTOR) for sector in self._sectors)

    def apply(self, file: Node) -> None:
        """Write them to their places."""
        if file.size < self.size and file.resizable:
            file.truncate(self.size)
        for start, end in zip(self._starts, self._ends, strict=True):
            file.zero(start, end - start)
        for sector, data in sorted(self._sectors.items()):
            file.write(sector, data)


class Replayed(Node):
    """A file as if *updates* were in it: for its metadata, where it is opened for reading only."""

    def __init__(self, file: Node, updates: Updates) -> None:
        self.driver, self.name, self.size = file.driver, file.name, updates.size
        self.file = file
        self.updates = updates

    def read_into(self, offset: int, buffer: Buffer) -> None:
        self.file.read_into(offset, buffer)
        self.updates.lay_over(offset, memoryview(buffer))

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, Kind.DATA, self, offset)

    def write(self, offset: int, data: ReadBuffer) -> None:
        raise UnsupportedError("the image is open for reading only", file=self.name)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        raise UnsupportedError("the image is open for reading only", file=self.name)

    def flush(self) -> None:
        """Nothing was written."""

    def close(self) -> None:
        """The file is closed by the image."""


class Log:
    """The log that *headers* tell of."""

    capacity = _BATCH
    """Sectors that can be committed together."""

    def __init__(self, file: Node, headers: Headers, name: str) -> None:
        self.file = file
        self.headers = headers
        self.name = name
        self.offset: int = headers.current.LogOffset
        self.length: int = headers.current.LogLength
        self._announced: Sequence[tuple[int, bytes]] = ()
        """What the log on disk holds."""

    # -- replay -------------------------------------------------------------------------------------------------

    def pending(self) -> Updates | None:
        """What has to be put in place before anything else of the file means something; None: nothing.

        Where no entry at all is whole, none was ever completed, so nothing of one was put in place: QEMU, which
        announces a log before it writes to it, leaves that.

        :raises ImageError: there are entries, but not all of those that belong together; or the file was truncated.
        """
        if self.headers.current.LogGuid == NO_GUID:
            return None
        sequence = self._active()
        if not sequence:
            return None
        if sequence[-1].flushed > self.file.size:
            size = sequence[-1].flushed
            raise ImageError(f"truncated: by its log the file has {size} bytes, not {self.file.size}", file=self.name)
        if sequence[-1].last > _FURTHEST:
            raise ImageError(f"it lets the file have {sequence[-1].last} bytes", file=self.name, place="log")
        updates = Updates(max(sequence[-1].last, self.file.size), self.name)
        for entry in reversed(sequence):
            self._gather(entry, updates)
        return updates

    def _active(self) -> list[Entry]:
        """The active sequence: the whole one whose last entry is the newest."""
        active: list[Entry] = []
        at, found = 0, False
        while at < self.length:
            run, head = self._run(at)
            if not run:
                at += LOG_SECTOR
                continue
            found = True
            starts = [entry.at for entry in run]
            if run[-1].tail in starts and (not active or run[-1].sequence > active[-1].sequence):
                active = run[starts.index(run[-1].tail) :]
            # No sequence begins inside a run that does not reach as far back as its last entry says.
            if head <= at:
                break
            at = head
        if found and not active:
            raise ImageError("entries are missing, so that it cannot be replayed", file=self.name, place="log")
        return active

    def _run(self, at: int) -> tuple[list[Entry], int]:
        """The entries from *at* on that follow one another, and where they end."""
        run: list[Entry] = []
        while (entry := self._entry(at)) is not None and (not run or entry.sequence == run[-1].sequence + 1):
            run.append(entry)
            at = (at + entry.length) % self.length
        return run, at

    def _sector(self, at: int) -> bytes:
        return self.file.read(self.offset + at % self.length, LOG_SECTOR)

    def _entry(self, at: int) -> Entry | None:
        """The entry at *at*; None: there is none, or it is torn."""
        data = self._sector(at)
        if not data.startswith(b"loge"):
            return None
        header = LOG_ENTRY.unpack(data)
        if header.LogGuid != self.headers.current.LogGuid:
            return None
        length, tail, sequence, count = header.EntryLength, header.Tail, header.SequenceNumber, header.DescriptorCount
        ahead = _descriptor_sectors(count)
        if not 0 < length <= self.length or length % LOG_SECTOR or ahead * LOG_SECTOR > length:
            return None
        if tail >= self.length or tail % LOG_SECTOR or not sequence:
            return None
        if length > _LONGEST_ENTRY:
            raise UnsupportedError(f"its log has an entry of {length} bytes", file=self.name)
        crc, brought = checksum(data[:4] + bytes(4) + data[8:]), 0
        for index in range(length // LOG_SECTOR):
            if index:
                data = self._sector(at + index * LOG_SECTOR)
                crc = checksum(data, crc)
            if index < ahead:
                first = LOG_ENTRY.size if index == 0 else 0
                upto = min(first + count * DESCRIPTOR.size, LOG_SECTOR)
                for descriptor in DESCRIPTORS.iter_unpack(memoryview(data)[first:upto]):
                    if not _valid(descriptor, sequence):
                        return None
                    brought += descriptor[0] == b"desc"
                count -= (upto - first) // DESCRIPTOR.size
            elif not data.startswith(b"data") or _data_sequence(data) != sequence:
                return None
        if crc != header.Checksum or brought != length // LOG_SECTOR - ahead:
            return None
        return Entry(
            at, length, tail, sequence, header.DescriptorCount, header.FlushedFileOffset, header.LastFileOffset
        )

    def _gather(self, entry: Entry, updates: Updates) -> None:
        """Add what *entry* changes to *updates*, which hold what newer entries do. The last descriptor wins."""
        place = entry.at + entry.length
        low = high = 0  # zeros that are still to be added: those side by side together, of which there may be a million
        for index in reversed(range(_descriptor_sectors(entry.descriptors))):
            start = LOG_ENTRY.size if index == 0 else 0
            upto = min(LOG_ENTRY.size + entry.descriptors * DESCRIPTORS.size - index * LOG_SECTOR, LOG_SECTOR)
            table = memoryview(self._sector(entry.at + index * LOG_SECTOR))[start:upto]
            for signature, trailing, leading, offset, _ in reversed(list(DESCRIPTORS.iter_unpack(table))):
                if signature == b"zero":
                    end = offset + int.from_bytes(leading, "little")
                    if offset <= high and low <= end:
                        low, high = min(low, offset), max(high, end)
                        continue
                    if low < high:
                        updates.older(low, high - low)
                    low, high = offset, end
                else:
                    if low < high:
                        updates.older(low, high - low)
                    low = high = 0
                    place -= LOG_SECTOR
                    data = DATA_SECTOR.unpack(self._sector(place)).Data
                    updates.older(offset, leading + data + trailing)
        if low < high:
            updates.older(low, high - low)

    def finish(self, updates: Updates) -> None:
        """Put *updates* in place for good: the log is empty afterwards."""
        self.headers.update_both()
        updates.apply(self.file)
        self.file.barrier()
        self.headers.update_both(LogGuid=NO_GUID)

    # -- writing ------------------------------------------------------------------------------------------------

    def commit(self, changes: Sequence[tuple[int, bytes]], last: int) -> None:
        """Write *changes*, (file offset, sector) each, so that a crash leaves all of them or none.

        :param last: bytes of the file that everything lies in.
        """
        self.announce(changes, last)
        self.settle()

    def announce(self, changes: Sequence[tuple[int, bytes]], last: int) -> None:
        """Let *changes* hold from now on, by the log alone.

        Its entry is on disk before a header tells of it, and so is all that was written before.
        """
        self.settle()
        name = fresh(16)
        self.file.write(self.offset, self._packed(changes, name, last))
        self.file.barrier()
        self.headers.update(LogGuid=name)
        self._announced = changes

    def settle(self) -> None:
        """Put in place what was announced: what a write that failed has kept from there, too. Then the log is empty."""
        if self._announced:
            for offset, data in self._announced:
                self.file.write(offset, data)
            self.file.barrier()
            self.headers.update_both(LogGuid=NO_GUID)
            self._announced = ()

    def require(self) -> None:
        """:raises UnsupportedError: there is no room for a log in the file."""
        if not self.length:
            raise UnsupportedError("it has no log, so it can only be read", file=self.name)

    def _packed(self, changes: Sequence[tuple[int, bytes]], name: bytes, last: int) -> bytes:
        sequence = 1
        header = LOG_ENTRY.new(
            Signature=b"loge",
            EntryLength=(1 + len(changes)) * LOG_SECTOR,
            SequenceNumber=sequence,
            DescriptorCount=len(changes),
            LogGuid=name,
            FlushedFileOffset=round_down(self.file.size, ALIGN),
            LastFileOffset=round_up(last, ALIGN),
        )
        table, sectors = [LOG_ENTRY.pack(header)], []
        for offset, data in changes:
            fields = {"LeadingBytes": data[:8], "TrailingBytes": data[-4:]}
            descriptor = DESCRIPTOR.new(Signature=b"desc", FileOffset=offset, SequenceNumber=sequence, **fields)
            table.append(DESCRIPTOR.pack(descriptor))
            sectors.append(DATA_SECTOR.pack(DATA_SECTOR.new(Signature=b"data", Data=data[8:-4], SequenceLow=sequence)))
        return sealed(b"".join(table).ljust(LOG_SECTOR, b"\0") + b"".join(sectors))


def _descriptor_sectors(count: int) -> int:
    """Sectors that an entry's header and *count* descriptors take."""
    return -(-(LOG_ENTRY.size + count * DESCRIPTOR.size) // LOG_SECTOR)


def _valid(descriptor: tuple[bytes, bytes, bytes, int, int], sequence: int) -> bool:
    """Whether these are the fields of a valid descriptor of the entry *sequence*."""
    signature, _, leading, offset, number = descriptor
    if number != sequence or offset % LOG_SECTOR:
        return False
    return signature == b"desc" or (signature == b"zero" and int.from_bytes(leading, "little") % LOG_SECTOR == 0)


def _data_sequence(data: bytes) -> int:
    return int.from_bytes(data[4:8], "little") << 32 | int.from_bytes(data[-4:], "little")
