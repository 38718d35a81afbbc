"""Checking and repairing QED images.

Nothing but the tables says what is used: each cluster of header, tables and data may be named once, inside the file.
What nothing names is a leak. The format has no list of free clusters, so to give one back, what is at the file's end
moves there, and the file becomes shorter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.contract.extents import Kind
from diskmill.contract.results import CheckResult, Finding
from diskmill.errors import ImageError
from diskmill.sizes import SECTOR, MiB, round_down, round_up

from . import c_qed as c

if TYPE_CHECKING:
    from .image import QedImage

_SLOTS = 1 << 26
"""How many clusters of the file are looked at in one pass: a byte of memory each."""
_MAX_PASSES = 64
_COPIES = 64 * MiB
"""How many bytes a repair may copy at least; if the file is larger, as many as that has."""
_FINDINGS = 1000
"""Findings are told in words up to this many; beyond, they are only counted."""


def check(image: QedImage, repair: str) -> CheckResult:
    """See :func:`diskmill.contract.hookspecs.check`.

    Repairing *all* empties entries that name nothing in the file, and gives clusters and tables that are named again
    copies of their own.
    """
    with image.lock:
        if repair:
            image.knock_out()
        result = _Check(image, repair).run()
        if repair and result.corruptions == result.corruptions_fixed and not result.check_errors:
            leaks = _Leaks(image, "leaks").run()
            result.leaks, result.leaks_fixed = leaks.leaks, leaks.leaks_fixed
        return result


def mend(image: QedImage) -> CheckResult:
    """Repair what an image that was not closed cleanly needs before it is written. Lost space stays lost."""
    return _Check(image, "all").run()


class _Check:
    def __init__(self, image: QedImage, repair: str) -> None:
        self.image = image
        self.file = image.file
        self.levels = image.levels
        self.cluster = image.block_size
        self.table_size: int = image.header.table_size
        self.every = repair == "all"
        self.repair = bool(repair)
        self.result = CheckResult(allocated_clusters=0, fragmented_clusters=0)
        self.first = True
        """The first pass: the one that tells what is wrong with single entries."""
        self.low = 0
        self.seen = bytearray()
        self.beyond: int | None = None
        """The first cluster behind this pass that something names."""

    def run(self) -> CheckResult:
        image, result = self.image, self.result
        if image.writable:
            image.write_tables()
            image.order_files()
        whole = round_up(self.file.size, self.cluster)
        self.torn = round_down(self.file.size, self.cluster) if self.file.size < whole else None
        if self.torn is not None and self.every and self.file.resizable:
            self.file.truncate(whole)
        # QEMU sees whole sectors: a last cluster that lacks less than one is there, for it.
        self.end = round_down(round_up(self.file.size, SECTOR), self.cluster)
        # Copies take no more than that: an image may name one cluster a million times.
        self.budget = max(self.end, _COPIES)
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
        """Bring repairs to disk; take the mark away."""
        image, result = self.image, self.result
        if not self.repair:
            return
        image.write_tables()
        image.forget_places()
        if image.dirty and result.corruptions == result.corruptions_fixed and not result.check_errors:
            image.order_files()
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
                        each = self.table_size if self.inside(run.value, image.l2_bytes) else 1
                        self.tell(f"L1 entries from {index} on name the same L2 table", left * each)
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
        torn = self.torn is not None and offset <= self.torn < offset + size
        if torn and self.first:
            self.tell(f"L2 table {index} is cut off by the end of the file", fixed=self.every)
        over = self.claim(offset // self.cluster, self.table_size)
        if over:
            fixed = self.every and self.budget >= size
            self.tell(f"L2 table {index} lies over what something else names", over, fixed=fixed)
            if not fixed:
                return
            self.levels.l1.set(index, 1, self.copy(offset, size), 0)
        if torn and not self.every:
            return
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
                self.tell(f"block {block + high - 1} is cut off by the end of the file", fixed=self.every)
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
        self.write_copy(offset, place, size)
        self.new = self.image.end = place + round_up(size, self.cluster)
        self.budget -= size
        return place

    def write_copy(self, offset: int, place: int, size: int) -> None:
        for at in range(0, size, MiB):
            self.file.write(place + at, self.file.read(offset + at, min(MiB, size - at)))


class _Leaks(_Check):
    """Gives space back, of an image whose tables are sound."""

    def finish(self, clusters: int) -> None:
        """Move what lies behind the place where the file could end; then cut it there."""
        image, result = self.image, self.result
        compact = len(self.seen) == clusters and image.l1_end <= (clusters - result.leaks) * self.cluster
        # Features that are not known may use what the tables do not name.
        if result.corruptions or not result.leaks or not compact or image.header.compat_features:
            return
        if self.file.resizable:
            last = self.move(clusters - result.leaks)
            image.write_tables()
            image.order_files()
            self.file.truncate(last * self.cluster)
            image.forget_places()
            result.leaks_fixed = min(clusters - last, result.leaks)

    def move(self, limit: int) -> int:
        """Find places before cluster *limit* for all that lies behind it; gives where the file can end then."""
        image, size, last = self.image, self.cluster, limit
        tables = [(run.at, run.value // size) for run in self.levels.l1.runs(0, len(self.levels.l1), 0) if run.value]
        left = []
        slot = 0
        for index, cluster in tables:
            if cluster + self.table_size > limit:
                slot = self.seen.find(bytes(self.table_size), slot, limit) if slot >= 0 else slot
                if slot < 0:  # it stays, and with it the lost space before it
                    last = max(last, cluster + self.table_size)
                    continue
                self.relocate(cluster, slot, self.table_size)
                self.levels.l1.set(index, 1, slot * size, 0)
                left.append(cluster)
        image.write_tables()
        image.order_files()  # now nothing on disk names the old places: what of them lies before the limit is free
        for cluster in left:
            if cluster < limit:
                self.seen[cluster:limit] = bytes(limit - cluster)
        slot = 0
        for index, _ in tables:
            first = index * self.levels.l2_entries
            for block, count, entry, _, kind in image._told_apart(first, first + self.levels.l2_entries):
                if kind is Kind.DATA:
                    for at in range(max(limit - entry // size, 0), count):
                        slot = self.seen.find(0, slot, limit)
                        if slot < 0:  # as many are free before the limit as are used behind it, unless some are twice
                            raise ImageError("clusters are used more than once", file=image.name)
                        self.relocate(entry // size + at, slot, 1)
                        self.levels.set(block + at, 1, slot * size, 0)
        return last

    def relocate(self, cluster: int, slot: int, count: int) -> None:
        """Copy *count* clusters from *cluster* on to *slot*, which nothing names."""
        self.write_copy(cluster * self.cluster, slot * self.cluster, count * self.cluster)
        self.seen[slot : slot + count] = b"\1" * count
