"""The check of a small image in which nothing is wrong, without numpy: importing that takes longer than the check.

Whatever is out of the ordinary, be it wrong or only rare, is left to :mod:`diskmill_qcow2.check`, which alone judges
and tells. So nothing is ever found here, and a rule that is missing would be a fault: each is the counterpart of one
there.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from diskmill.contract.results import CheckResult
from diskmill.errors import DiskmillError
from diskmill.sizes import KiB

from . import c_qcow2 as c
from .bounds import misplaced

if TYPE_CHECKING:
    from .image import Qcow2Image

_MOST_TABLES = 256 * KiB
"""Bytes of L2 tables, and of all other tables together, up to which arrays gain less than importing numpy costs."""
_MOST_CLUSTERS = 1 << 15
"""Clusters of the file, likewise."""
_CODES = {8: "B", 16: "H", 32: "I", 64: "Q"}
"""Width of a refcount in bits → its type in an array."""


class _Odd(Exception):
    """This is not a small image in which nothing is wrong."""


def check(image: Qcow2Image) -> CheckResult:
    """Look through all of *image*'s metadata."""
    with image.lock:
        if image.writable:
            image.flush()
        try:
            return _Reader(image).result()
        except (_Odd, DiskmillError):
            pass  # what is the matter is told by who looks at all
        from .check import check as check_all

        return check_all(image)


def _expect(sound: bool) -> None:
    if not sound:
        raise _Odd


class _Reader:
    """One run of the check."""

    def __init__(self, image: Qcow2Image) -> None:
        self.image, self.file, self.header = image, image.file, image.header
        self.size = image.unit
        self.clusters = -(-self.file.size // self.size)
        self.left = {"tables": _MOST_TABLES, "L2 tables": _MOST_TABLES}
        header = self.header
        _expect(self.clusters <= _MOST_CLUSTERS and header.refcount_bits in _CODES)
        _expect(not (image.external or header.extended_l2 or header.crypt_method))
        _expect(all(header.extension(kind) is None for kind in (c.EXT_BITMAPS, c.EXT_CRYPTO_HEADER)))
        self.l2_reserved = c.L2_RESERVED_MASK | (c.ZERO if header.version < 3 else 0)
        self.stored = [0] * self.clusters
        self.counts = [0] * self.clusters
        self.named: dict[int, list[int]] = {}  # offset of an L2 table → how many L1 entries name it, and active ones

    def result(self) -> CheckResult:
        """What the check tells.

        :raises _Odd: there may be more to tell.
        """
        header = self.header
        blocks = self._refcounts()
        self._count(0, self.size)
        self._l1(header.l1_table_offset, header.l1_size, active=True)
        if header.nb_snapshots:
            self._snapshots()
        found = CheckResult(filename=self.image.name, format="qcow2", total_clusters=-(-header.size // self.size))
        found.allocated_clusters = found.fragmented_clusters = found.compressed_clusters = 0
        for offset, (times, active) in sorted(self.named.items()):
            self.counts[offset // self.size] += times
            used, apart = self._l2(offset, times, active > 0)
            found.allocated_clusters += used * active
            found.fragmented_clusters += apart * active
        self._count(header.refcount_table_offset, header.refcount_table_clusters * self.size)
        for block in blocks:
            self.counts[block // self.size] += 1
            _expect(self.counts[block // self.size] == 1)
        _expect(self.counts == self.stored)
        found.image_end_offset = max(at + 1 for at, count in enumerate(self.counts) if count) * self.size
        return found

    def _table(self, offset: int, length: int, code: str = "Q", kind: str = "tables") -> array[int]:
        """The big-endian numbers in *length* bytes at *offset*, which are in the file."""
        self.left[kind] -= length
        _expect(self.left[kind] >= 0 and not misplaced(offset, self.size, self.file.size))
        _expect(offset + length <= self.clusters * self.size)
        numbers = array(code, self.file.read(offset, length))
        if sys.byteorder == "little":
            numbers.byteswap()
        return numbers

    def _count(self, offset: int, length: int) -> None:
        """A reference to each cluster that the bytes *offset* to *offset + length* are in."""
        if length:
            last = (offset + length - 1) // self.size
            _expect(last < self.clusters)
            for cluster in range(offset // self.size, last + 1):
                self.counts[cluster] += 1

    def _refcounts(self) -> list[int]:
        """Fill ``stored``; gives the places of the blocks."""
        header, blocks = self.header, []
        per_block = self.size * 8 // header.refcount_bits
        table = self._table(header.refcount_table_offset, header.refcount_table_clusters * self.size)
        for index, offset in enumerate(table):
            if offset:
                _expect(index * per_block < self.clusters)
                block = self._table(offset, self.size, _CODES[header.refcount_bits])
                first = index * per_block
                self.stored[first : first + per_block] = block[: self.clusters - first]
                blocks.append(offset)
        return blocks

    def _l1(self, offset: int, entries: int, *, active: bool) -> None:
        if not entries:
            return
        self._count(offset, entries * 8)
        for entry in self._table(offset, entries * 8):
            if entry:
                host = self._host(entry, c.L1_RESERVED_MASK)
                _expect(bool(host))
                if active:
                    self._expect_flag(entry, host)
                times = self.named.setdefault(host, [0, 0])
                times[0] += 1
                times[1] += active

    def _snapshots(self) -> None:
        from .snapshots import read_table

        entries, length = read_table(self.file, self.header, self.image.name)
        self._count(self.header.snapshots_offset, length)
        for entry in entries:
            self._l1(entry.l1_table_offset, entry.l1_size, active=False)

    def _host(self, entry: int, reserved: int) -> int:
        """Where *entry* points to; 0: nowhere."""
        _expect(not entry & reserved)
        host = entry & c.OFFSET_MASK
        _expect(not misplaced(host, self.size, self.file.size))
        return host

    def _expect_flag(self, entry: int, host: int) -> None:
        """The COPIED flag tells that the refcount is 1."""
        _expect((self.stored[host // self.size] == 1) == bool(entry & c.COPIED))

    def _l2(self, offset: int, times: int, active: bool) -> tuple[int, int]:
        """How many clusters the L2 table at *offset* names, and how many do not stand behind the one before."""
        used = apart = before = 0
        for entry, host in self._hosts(offset):
            self.counts[host // self.size] += times
            if active:
                self._expect_flag(entry, host)
            apart += bool(used) and host != before + self.size
            used, before = used + 1, host
        return used, apart

    def _hosts(self, offset: int) -> Iterator[tuple[int, int]]:
        for entry in self._table(offset, self.size, kind="L2 tables"):
            if entry:
                host = self._host(entry, self.l2_reserved | c.COMPRESSED)
                if host:
                    yield entry, host
