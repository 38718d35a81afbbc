"""Checking and repairing QED images.

Nothing but the tables says what is used: each cluster of header, tables and data may be named once, inside the file.
What nothing names is a leak. The format has no list of free clusters, so a leak goes only where it is the file's end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.extents import Kind
from diskmill.node import Storage
from diskmill.results import CheckResult, Finding
from diskmill.sizes import MiB, round_down, round_up

from . import c_qed as c

if TYPE_CHECKING:
    from .image import QedImage

_SLOTS = 1 << 26
"""How many clusters of the file are looked at in one pass: a byte of memory each."""
_MAX_PASSES = 64
_FINDINGS = 1000
"""Findings are told in words up to this many; beyond, they are only counted."""


def check(image: QedImage, repair: str) -> CheckResult:
    """See :func:`diskmill.hookspecs.check`.

    Repairing *all* empties entries that name nothing in the file, and gives clusters and tables that are named again
    copies of their own.
    """
    with image.lock:
        if repair:
            image.knock_out()
        return _Check(image, repair).run()


class _Check:
    def __init__(self, image: QedImage, repair: str) -> None:
        self.image = image
        self.file = image.file
        self.levels = image.levels
        self.cluster = image.block_size
        self.table_size: int = image.header.table_size
        self.every = repair == "all"
        self.repair = bool(repair)
        self.result = CheckResult()
        self.first = True
        """The first pass: the one that tells what is wrong with single entries."""
        self.low = 0
        self.seen = bytearray()
        self.beyond: int | None = None
        """The first cluster behind this pass that something names."""
        self.last = 0
        """The cluster behind the last one that is named."""

    def run(self) -> CheckResult:
        image, result = self.image, self.result
        if image.writable:
            image.write_tables()
        whole = round_up(self.file.size, self.cluster)
        self.torn = round_down(self.file.size, self.cluster) if self.file.size < whole else None
        if self.torn is not None and self.every and isinstance(self.file, Storage):
            self.file.truncate(whole)
        self.end = round_down(self.file.size, self.cluster)
        self.budget = self.end  # copies take no more than that: an image may name one cluster a million times
        self.new = self.end
        clusters = self.end // self.cluster
        for _ in range(_MAX_PASSES):
            self.seen = bytearray(min(_SLOTS, clusters - self.low))
            self.beyond = None
            self.walk()
            result.leaks += self.seen.count(0)
            following = clusters if self.beyond is None else self.beyond
            result.leaks += following - self.low - len(self.seen)
            self.low, self.first = following, False
            if self.beyond is None:
                break
        else:
            result.findings.append(Finding("error", "the file is too scattered to be checked"))
            result.check_errors += 1
        if result.leaks:
            result.findings.append(Finding("leak", f"{result.leaks} clusters that nothing names", result.leaks))
        self.finish(clusters)
        result.total_clusters = -(-image.size // self.cluster)
        return result

    def finish(self, clusters: int) -> None:
        """Bring repairs to disk; cut off the file's end where nothing names it; take the mark away."""
        image, result = self.image, self.result
        if not self.repair:
            return
        if self.new > self.end:
            image.end = self.new
        image.write_tables()
        image.forget_places()
        if result.corruptions > result.corruptions_fixed or result.check_errors:
            return  # what seems lost may be named by what cannot be read
        spare = clusters - self.last
        if spare and self.new == self.end and not image.header.compat_features and isinstance(self.file, Storage):
            image.barrier()
            self.file.truncate(self.last * self.cluster)
            result.leaks_fixed += spare
        if image.dirty:
            image.barrier()
            image.header.features &= ~c.QED_F_NEED_CHECK
            image.write_header()
            image.flush()

    def tell(self, text: str, count: int = 1, *, fixed: bool = False) -> None:
        result = self.result
        result.corruptions += count
        result.corruptions_fixed += count if fixed else 0
        if len(result.findings) < _FINDINGS:
            result.findings.append(Finding("corruption", text, count, fixed))

    # -- walking ------------------------------------------------------------------------------------------------

    def walk(self) -> None:
        image = self.image
        self.result.allocated_clusters = self.result.fragmented_clusters = 0
        self.claim(0, image.data_start // self.cluster)
        over = self.claim(image.l1_offset // self.cluster, self.table_size)
        if over:
            self.tell("the L1 table lies over the header", over)
        for run in self.levels.l1.runs(0, len(self.levels.l1), 0):
            if not run.value:
                continue
            self.table(run.at, run.value)
            for index in range(run.at + 1, run.at + run.length):
                if not (self.every and self.budget >= image.l2_bytes):
                    left = run.at + run.length - index
                    if self.first:
                        self.tell(f"L1 entries from {index} on name the same L2 table", left * self.table_size)
                    break
                self.table(index, run.value)

    def inside(self, offset: int, size: int) -> bool:
        """Whether *size* bytes at *offset* are whole clusters of the file, behind the header."""
        return offset % self.cluster == 0 and self.image.data_start <= offset <= self.end - size

    def table(self, index: int, offset: int) -> None:
        """An L2 table and what it names."""
        image, size = self.image, self.image.l2_bytes
        if not self.inside(offset, size):
            if self.first:
                self.tell(f"L1 entry {index} names no place for a table: offset {offset}", fixed=self.every)
                if self.every:
                    self.levels.l1.set(index, 1, 0, 0)
            return
        if self.torn is not None and offset <= self.torn < offset + size and self.first:
            self.tell(f"L2 table {index} is cut off by the end of the file", fixed=True)
        over = self.claim(offset // self.cluster, self.table_size)
        if over:
            fixed = self.every and self.budget >= size
            self.tell(f"L2 table {index} lies over what something else names", over, fixed=fixed)
            if not fixed:
                return
            self.levels.l1.set(index, 1, self.copy(offset, size), 0)
        first = index * self.levels.l2_entries
        following = None
        for block, count, entry, step, kind in image._told_apart(first, first + self.levels.l2_entries):
            if kind is Kind.DATA:
                following = self.blocks(block, count, entry, step, following)

    def blocks(self, block: int, count: int, entry: int, step: int, following: int | None) -> int | None:
        """Clusters of one stretch, which follow each other in the file; gives where they end.

        :param following: where the clusters before them ended.
        """
        if not step and count > 1:
            for index in range(count):
                following = self.blocks(block + index, 1, entry, 0, following)
            return following
        size = self.cluster
        low, high = 0, count
        if entry % size:
            high = 0
        else:
            low = min(max((self.image.data_start - entry) // size, 0), count)
            high = min(max((self.end - entry) // size, low), count)
        for start, upto in ((0, low), (max(high, low), count)):
            if start < upto and self.first:
                place = f"offset {entry + start * step}"
                self.tell(
                    f"block {block + start} lies outside the file's data: {place}", upto - start, fixed=self.every
                )
                if self.every:
                    self.levels.set(block + start, upto - start, c.UNALLOCATED, 0)
        if low >= high:
            return following
        begin, end = entry + low * step, entry + (high - 1) * step + size
        if self.first:
            assert self.result.allocated_clusters is not None and self.result.fragmented_clusters is not None
            self.result.allocated_clusters += high - low
            self.result.fragmented_clusters += following is not None and following != begin
            if self.torn is not None and begin <= self.torn < end:
                self.tell(f"block {block + high - 1} is cut off by the end of the file", fixed=True)
        self.twice(block + low, begin // size, high - low)
        return end

    def twice(self, block: int, cluster: int, count: int) -> None:
        """Claim *count* clusters from *cluster* on for guest blocks from *block* on."""
        taken = self.taken(cluster, count)
        if self.claim(cluster, count):
            for at in taken:
                fixed = self.every and self.budget >= self.cluster
                self.tell(f"block {block + at} lies at a place that something else names", fixed=fixed)
                if fixed:
                    place = self.copy((cluster + at) * self.cluster, self.cluster)
                    self.levels.set(block + at, 1, place, 0)

    def taken(self, cluster: int, count: int) -> list[int]:
        """Which of *count* clusters from *cluster* on are claimed already."""
        low, high = max(cluster - self.low, 0), min(cluster + count - self.low, len(self.seen))
        found, at = [], self.seen.find(1, low, max(high, low))
        while at >= 0:
            found.append(at + self.low - cluster)
            at = self.seen.find(1, at + 1, high)
        return found

    def claim(self, cluster: int, count: int) -> int:
        """*count* clusters from *cluster* on are used; how many of them were already. Those of this pass only."""
        self.last = max(self.last, cluster + count)
        low, high = max(cluster - self.low, 0), min(cluster + count - self.low, len(self.seen))
        if cluster + count - self.low > len(self.seen):
            after = max(cluster, self.low + len(self.seen))
            self.beyond = after if self.beyond is None else min(self.beyond, after)
        if low >= high:
            return 0
        over = self.seen.count(1, low, high)
        self.seen[low:high] = b"\1" * (high - low)
        return over

    def copy(self, offset: int, size: int) -> int:
        """A copy of *size* bytes at the file's end, for what names them a second time; gives its place."""
        place = self.new
        for at in range(0, size, MiB):
            self.file.write(place + at, self.file.read(offset + at, min(MiB, size - at)))
        self.new = self.image.end = place + round_up(size, self.cluster)
        self.budget -= size
        return place
