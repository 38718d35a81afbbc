"""A FAT file system that is made up from a folder: where in it which bytes are (Microsoft, "FAT: General Overview of
On-Disk Format", 1.03).

The folder is looked through once. Of files nothing is kept but where they lie; of what the file system has besides,
tables and folders, all is made here, so their number is bounded.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from array import array
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

from diskmill.errors import StorageError
from diskmill.sizes import SECTOR

MOST_ENTRIES = 65536
"""Files and folders that are taken in."""
MOST_DEPTH = 64
_DIRECTORY, _VOLUME, _ARCHIVE, _LONG = 0x10, 0x08, 0x20, 0x0F
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'()-@^_`{}~")
"""Characters of a short name."""
_FORBIDDEN = frozenset('"*/:<>?\\|') | {chr(code) for code in range(32)}
"""Characters that no long name may have."""
_LARGEST_FILE = 0xFFFFFFFF


class Layout(NamedTuple):
    """How large the disk and its parts are, in sectors.

    :param start: where the file system begins: behind a partition table, or at once.
    """

    bits: int
    cylinders: int
    heads: int
    per_track: int
    start: int
    per_cluster: int
    reserved: int
    root_entries: int

    @property
    def sectors(self) -> int:
        return self.cylinders * self.heads * self.per_track

    @property
    def partition(self) -> int:
        return self.sectors - self.start

    @property
    def root_sectors(self) -> int:
        return self.root_entries * 32 // SECTOR

    @property
    def fat_sectors(self) -> int:
        """Of one file allocation table, which has an entry for each cluster and two more."""
        most = (self.partition - self.reserved - self.root_sectors) // self.per_cluster + 2
        return -(-most * self.bits // (8 * SECTOR))

    @property
    def data(self) -> int:
        """Where clusters begin."""
        return self.start + self.reserved + 2 * self.fat_sectors + self.root_sectors

    @property
    def clusters(self) -> int:
        return (self.sectors - self.data) // self.per_cluster


def layout_of(bits: int, *, floppy: bool) -> Layout:
    """That of a disk of QEMU's size: 504 MiB (FAT12: 31.5 MiB), a floppy of 2.8 MiB (FAT12: 1.4 MiB)."""
    if floppy:
        return Layout(bits, 80, 2, 18 if bits == 12 else 36, 0, 1, 1, 224 if bits == 12 else 512)
    if bits == 32:
        return Layout(bits, 1024, 16, 63, 63, 8, 32, 0)
    return Layout(bits, 64 if bits == 12 else 1024, 16, 63, 63, 16, 1, 512)


class Found(NamedTuple):
    """A file as it was when the folder was looked through."""

    path: str
    size: int
    identity: tuple[int, int, int]
    """Device, inode, and the time of the last change in nanoseconds."""


class Segment(NamedTuple):
    """*length* bytes at *offset* of the disk: *content*, or what a file holds."""

    offset: int
    length: int
    content: bytes | Found


@dataclass
class _Folder:
    path: str
    info: os.stat_result | None
    """None: it is the one that was asked for, and may be reached by a link."""
    parent: _Folder | None = None
    depth: int = 0
    time: float = 0
    files: list[tuple[str, Found, float]] = field(default_factory=list)
    folders: list[tuple[str, _Folder]] = field(default_factory=list)
    cluster: int = 0


class FileSystem:
    """The disk: ``segments``, in order; all else is zeros.

    :param label: the volume's name, up to 11 characters.
    :raises StorageError: the folder cannot be read, or does not fit.
    """

    def __init__(self, path: str, layout: Layout, label: str) -> None:
        self.layout = layout
        self.size = layout.sectors * SECTOR
        self.left_out: list[str] = []
        """Links, devices and the like, and names that FAT cannot have."""
        self.segments: list[Segment] = []
        self._entries = 0
        self._label = label.upper().encode("ascii", "replace")[:11].ljust(11)
        self._unit = layout.per_cluster * SECTOR
        self._next = 2
        self._chains: list[tuple[int, int]] = []
        root = _Folder(path, None)
        self._look(root)
        self._lay_out(root)
        self._put_tables()
        self.segments.sort()

    # -- the folder ---------------------------------------------------------------------------------------------

    def _look(self, root: _Folder) -> None:
        waiting = [root]
        while waiting:
            folder = waiting.pop()
            for name, info in self._listed(folder, root):
                path = os.path.join(folder.path, name)
                if _FORBIDDEN & set(name) or name != name.rstrip(". ") or not _encodable(name):
                    self.left_out.append(path)
                elif stat.S_ISDIR(info.st_mode) and folder.depth < MOST_DEPTH:
                    below = _Folder(path, info, folder, folder.depth + 1)
                    folder.folders.append((name, below))
                    waiting.append(below)
                elif stat.S_ISREG(info.st_mode) and info.st_size <= _LARGEST_FILE:
                    known = Found(path, info.st_size, (info.st_dev, info.st_ino, info.st_mtime_ns))
                    folder.files.append((name, known, info.st_mtime))
                else:
                    self.left_out.append(path)

    def _listed(self, folder: _Folder, root: _Folder) -> list[tuple[str, os.stat_result]]:
        """What is in *folder*, which no link has taken the place of since it was seen."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if folder is root else os.O_NOFOLLOW)
        found: list[tuple[str, os.stat_result]] = []
        try:
            fd = os.open(folder.path, flags)
            try:
                info = os.fstat(fd)
                if folder.info is not None and not os.path.samestat(info, folder.info):
                    raise StorageError("it was exchanged meanwhile", file=folder.path)
                folder.time = info.st_mtime
                with os.scandir(fd) as entries:
                    for entry in entries:
                        self._entries += 1
                        if self._entries > MOST_ENTRIES:
                            raise StorageError(f"there are more than {MOST_ENTRIES} files in it", file=root.path)
                        found.append((entry.name, entry.stat(follow_symlinks=False)))
            finally:
                os.close(fd)
        except StorageError:
            raise
        except (OSError, ValueError) as error:
            if isinstance(error, OSError):
                raise StorageError.from_os(error, folder.path) from None
            raise StorageError("it is not a possible name", file=folder.path, errno=errno.EINVAL) from None
        return sorted(found, key=itemgetter(0))

    # -- the disk -----------------------------------------------------------------------------------------------

    def _lay_out(self, root: _Folder) -> None:
        """Give each folder and file its clusters, one after the other."""
        layout = self.layout
        waiting = [root]
        order: list[_Folder] = []
        while waiting:
            folder = waiting.pop(0)
            names = [name for name, *_ in folder.files] + [name for name, _ in folder.folders]
            length = 32 * sum(map(self._slots, names)) + 64
            if folder.parent is None and layout.bits != 32:
                if length > layout.root_entries * 32:
                    raise StorageError(
                        "the folder itself has more entries than fit", file=root.path, errno=errno.ENOSPC
                    )
            else:
                folder.cluster = self._take(length, root)
            order.append(folder)
            waiting += [below for _, below in folder.folders]
        for folder in order:
            content = self._entries_of(folder, root)
            if folder.cluster:
                self._put(self._offset(folder.cluster), content)
            else:
                self._put((layout.data - layout.root_sectors) * SECTOR, content)

    def _take(self, length: int, root: _Folder) -> int:
        """The first of as many clusters as *length* bytes need."""
        first, count = self._next, -(-length // self._unit)
        if first + count > self.layout.clusters + 2:
            raise StorageError("what is in it does not fit on the disk", file=root.path, errno=errno.ENOSPC)
        self._next += count
        self._chains.append((first, count))
        return first

    def _offset(self, cluster: int) -> int:
        return self.layout.data * SECTOR + (cluster - 2) * self._unit

    def _put(self, offset: int, content: bytes) -> None:
        if content:
            self.segments.append(Segment(offset, len(content), content))

    @staticmethod
    def _slots(name: str) -> int:
        return 1 + -(-len(name.encode("utf-16-le")) // 26)

    def _entries_of(self, folder: _Folder, root: _Folder) -> bytes:
        """The entries of *folder*, whose files get their clusters."""
        parts: list[bytes] = []
        if folder.parent is None:
            parts.append(_entry(self._label, _VOLUME, 0, 0, folder.time))
        else:
            above = 0 if folder.parent.parent is None else folder.parent.cluster
            parts.append(_entry(b".".ljust(11), _DIRECTORY, folder.cluster, 0, folder.time))
            parts.append(_entry(b"..".ljust(11), _DIRECTORY, above, 0, folder.parent.time))
        taken = _Names()
        for name, below in folder.folders:
            parts.append(_named(name, taken, _DIRECTORY, below.cluster, 0, below.time))
        for name, known, changed in folder.files:
            cluster = self._take(known.size, root) if known.size else 0
            if known.size:
                self.segments.append(Segment(self._offset(cluster), known.size, known))
            parts.append(_named(name, taken, _ARCHIVE, cluster, known.size, changed))
        return b"".join(parts)

    def _put_tables(self) -> None:
        layout = self.layout
        if layout.start:
            self._put(0, self._partition_table())
        at = layout.start * SECTOR
        boot = self._boot_sector()
        self._put(at, boot)
        if layout.bits == 32:
            free = layout.clusters - (self._next - 2)
            information = struct.pack("<4s480x4sII12xI", b"RRaA", b"rrAa", free, self._next, 0xAA550000)
            self._put(at + SECTOR, information)
            self._put(at + 6 * SECTOR, boot)
            self._put(at + 7 * SECTOR, information)
        table = self._table()
        for number in range(2):
            self._put(at + (layout.reserved + number * layout.fat_sectors) * SECTOR, table)

    def _table(self) -> bytes:
        bits = self.layout.bits
        last = (1 << min(bits, 28)) - 1
        entries = array("I", bytes(4 * self._next))
        entries[0], entries[1] = last & ~0xFF | 0xF0 | (0x08 if self.layout.start else 0), last
        for first, count in self._chains:
            if count:
                entries[first : first + count] = array("I", [*range(first + 1, first + count), last])
        if bits == 32:
            return struct.pack(f"<{len(entries)}I", *entries)
        if bits == 16:
            return struct.pack(f"<{len(entries)}H", *entries)
        packed = bytearray()
        for at in range(0, len(entries), 2):
            one, two = entries[at], entries[at + 1] if at + 1 < len(entries) else 0
            packed += (one | two << 12).to_bytes(3, "little")
        return bytes(packed)

    def _boot_sector(self) -> bytes:
        layout = self.layout
        small = layout.partition < 65536
        common = struct.pack(
            "<3s8sHBHBHHBHHHII",
            b"\xeb\x58\x90" if layout.bits == 32 else b"\xeb\x3c\x90",
            b"MSWIN4.1",
            SECTOR,
            layout.per_cluster,
            layout.reserved,
            2,
            layout.root_entries,
            layout.partition if small else 0,
            0xF8 if layout.start else 0xF0,
            0 if layout.bits == 32 else layout.fat_sectors,
            layout.per_track,
            layout.heads,
            layout.start,
            0 if small else layout.partition,
        )
        drive = 0x80 if layout.start else 0
        named = struct.pack(
            "<BBBI11s8s", drive, 0, 0x29, 0x44494D4C, self._label, f"FAT{layout.bits}".encode().ljust(8)
        )
        if layout.bits == 32:
            common += struct.pack("<IHHIHH12x", layout.fat_sectors, 0, 0, 2, 1, 6)
        return (common + named).ljust(SECTOR - 2, b"\0") + b"\x55\xaa"

    def _partition_table(self) -> bytes:
        layout = self.layout
        kind = {12: 0x01, 16: 0x06, 32: 0x0C}[layout.bits]
        ends = (self._address(layout.start), self._address(layout.sectors - 1))
        entry = struct.pack("<B3sB3sII", 0x80, ends[0], kind, ends[1], layout.start, layout.partition)
        return (bytes(440) + b"LIMD" + bytes(2) + entry).ljust(SECTOR - 2, b"\0") + b"\x55\xaa"

    def _address(self, sector: int) -> bytes:
        """By cylinder, head and sector."""
        track, number = divmod(sector, self.layout.per_track)
        cylinder, head = divmod(track, self.layout.heads)
        return bytes((head, number + 1 | cylinder >> 2 & 0xC0, cylinder & 0xFF))


def _encodable(name: str) -> bool:
    try:
        return 0 < len(name.encode("utf-16-le")) <= 510
    except UnicodeEncodeError:  # it is not UTF-8
        return False


def _entry(name: bytes, kind: int, cluster: int, size: int, changed: float) -> bytes:
    moment = time.gmtime(min(max(changed, 315532800), 4354819199))  # 1980 to 2107
    day = moment.tm_year - 1980 << 9 | moment.tm_mon << 5 | moment.tm_mday
    clock = moment.tm_hour << 11 | moment.tm_min << 5 | moment.tm_sec // 2
    return struct.pack(
        "<11sBBBHHHHHHHI", name, kind, 0, 0, clock, day, day, cluster >> 16, clock, day, cluster & 0xFFFF, size
    )


def _named(name: str, taken: _Names, kind: int, cluster: int, size: int, changed: float) -> bytes:
    """The entries of a long name, and that of the short one, which is unlike those *taken*."""
    short = taken.short(name)
    check = 0
    for byte in short:
        check = ((check & 1) << 7 | check >> 1) + byte & 0xFF
    text = name.encode("utf-16-le")
    count = -(-len(text) // 26)
    if len(text) < 26 * count:
        text = (text + b"\0\0").ljust(26 * count, b"\xff")
    parts = []
    for number in range(count, 0, -1):
        piece = text[26 * (number - 1) : 26 * number]
        order = number | (0x40 if number == count else 0)
        head = struct.pack("<B10sBBB", order, piece[:10], _LONG, 0, check)
        parts.append(head + struct.pack("<12sH4s", piece[10:22], 0, piece[22:]))
    return b"".join(parts) + _entry(short, kind, cluster, size, changed)


class _Names:
    """The short names of one folder."""

    def __init__(self) -> None:
        self._taken: set[bytes] = set()
        self._numbers: dict[tuple[str, bytes], int] = {}
        """The last number that was given to names that begin and end so."""

    def short(self, name: str) -> bytes:
        """One for *name* that nobody has."""
        stem, dot, extension = name.upper().rpartition(".")
        if not dot or not stem:
            stem, extension = name.upper(), ""
        first, last = (
            "".join(one if one in _PLAIN else "_" for one in part if one not in " .") for part in (stem, extension)
        )
        end = last[:3].ljust(3).encode()
        found = first.ljust(8).encode() + end
        plain = (stem, extension) == (first, last) and 0 < len(stem) <= 8 and len(extension) <= 3
        begin = first[:2] or "_"
        while not plain or found in self._taken:
            plain = True
            number = self._numbers[begin, end] = self._numbers.get((begin, end), 0) + 1
            tail = f"~{number}"
            found = ((first or "_")[: 8 - len(tail)] + tail).ljust(8).encode() + end
        self._taken.add(found)
        return found
