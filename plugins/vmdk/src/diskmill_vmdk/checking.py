"""Checking: whether grain tables point to grains of their own, and whether both sets of tables agree."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from diskmill.contract.extents import Kind
from diskmill.contract.limits import Meter
from diskmill.contract.results import CheckResult, Finding
from diskmill.errors import ImageError
from diskmill.kit import tables
from diskmill.sizes import SECTOR

from .grains import TABLE_WORK, CompressedPart, GrainPart
from .hosted import HostedPart
from .structures import GRAIN_MARKER

if TYPE_CHECKING:
    from .image import VmdkImage

_TOLD = 100
"""Findings told in words; the rest only count."""
_SLOTS = 1 << 26
"""Grains in a file, up to which it is looked whether one is used twice: it takes a byte for each."""


def check_vmdk(image: VmdkImage, repair: str) -> CheckResult:
    """Check every extent.

    :param repair: ``"all"`` lets a sound set of grain tables replace a damaged one. Nothing is lost space in a way
        that could be given back.
    """
    result = CheckResult(image.name, "vmdk")
    for part in image.parts:
        if isinstance(part, GrainPart) and part.twin is None:
            _Checker(part, result).run(repair == "all" and isinstance(part, HostedPart))
    return result


class _Checker:
    def __init__(self, part: GrainPart, result: CheckResult) -> None:
        self.part = part
        self.result = result
        self.grain = part.unit // SECTOR
        slots = part.node.size // part.unit + 1
        self.used = bytearray(slots) if slots <= _SLOTS else None

    def run(self, repair: bool) -> None:
        part = self.part
        if repair:
            assert isinstance(part, HostedPart)
            self.repair(part)
        try:
            directory = part.directory
        except ImageError as error:
            self.found(str(error.cause))
            return
        meter, held = Meter(part.node), self.held(directory)
        for index, sector in enumerate(directory):
            if part.special(sector) is not None or not held[index] and index not in part.changed:
                continue
            meter.add(TABLE_WORK)
            try:
                self.table(index, part.entries(index, sector, 1))
            except ImageError as error:
                self.found(f"grain table {index}: {error.cause}")
        if isinstance(part, HostedPart):
            self.redundant(part)
            if repair and not self.result.corruptions:
                part.declare_clean()
        if isinstance(part, CompressedPart):
            self.markers(part)

    def held(self, directory: array[int]) -> bytearray:
        """A flag for each table of *directory*: whether the file holds it, or has a hole there, which is no grain.

        A new image of 9 TiB names 294,912 tables, and has none of them.

        :raises LimitError: the directory is in more pieces than there can be reason for.
        """
        part, pitch = self.part, self.part.table_sectors * SECTOR
        flags, meter = bytearray(len(directory)), Meter(part.node)
        for run in tables.runs(directory, part.table_sectors):
            meter.add(1)  # each may ask the file system
            begin, size = run.value * SECTOR, run.length * pitch
            if not run.step or not run.value or begin + size > part.node.size:
                flags[run.at : run.at + run.length] = b"\1" * run.length
                continue
            for extent in part.node.extents(begin, size):
                if not extent.reads_as_zeros:
                    low, high = (extent.start - begin) // pitch, -(-(extent.end - begin) // pitch)
                    flags[run.at + low : run.at + high] = b"\1" * (high - low)
        return flags

    def found(self, text: str, count: int = 1) -> None:
        self.result.corruptions += count
        if len(self.result.findings) < _TOLD:
            self.result.findings.append(Finding("corruption", f"{self.part.name}: {text}", count))

    # -- one table ----------------------------------------------------------------------------------------------

    def table(self, index: int, entries: array[int]) -> None:
        part, base = self.part, index * self.part.per_table
        for run in tables.runs(entries, self.grain):
            at, length, value = run.at, run.length, run.value
            while length and part.special(value) is not None:
                count = length if not run.step else 1
                at, length, value = at + count, length - count, value + run.step
            if not length:
                continue
            last = value + (length - 1) * run.step
            which = f"grains {base + at} to {base + at + length - 1}"
            if last * SECTOR + (1 if part.compressed else part.used(base + at + length - 1)) > part.node.size:
                self.found(f"{which} are not all inside the file", length)
            elif isinstance(part, HostedPart) and value < part.header.overHead:
                self.found(f"{which} lie where the metadata is", length)
            elif length > 1 and not run.step:
                self.found(f"{which} are one and the same", length - 1)
            elif self.used is not None and not part.compressed:
                self.mark(base + at, value // self.grain, length)

    def mark(self, first: int, slot: int, count: int) -> None:
        assert self.used is not None
        twice = sum(self.used[slot : slot + count])
        if twice:
            self.found(f"{twice} of the grains {first} to {first + count - 1} are also used elsewhere", twice)
        self.used[slot : slot + count] = b"\1" * count

    # -- the redundant tables -----------------------------------------------------------------------------------

    def redundant(self, part: HostedPart) -> None:
        try:
            redundant = part.redundant
        except ImageError as error:
            self.found(str(error.cause) if error.place is None else f"{error.place}: {error.cause}")
            return
        if redundant is None:
            return
        first, second = self.held(part.directory), self.held(redundant)
        for index, (sector, other) in enumerate(zip(part.directory, redundant, strict=True)):
            if part.special(sector) is not None or part.special(other) is not None:
                if sector != other:
                    self.found(f"only one of the grain directories has grain table {index}")
                continue
            if not first[index] and not second[index] and index not in part.changed:
                continue
            try:
                if part.entries(index, sector, 1) != part.read_tables(index, other, 1):
                    self.found(f"grain table {index} and its redundant copy differ")
            except ImageError:
                self.found(f"the redundant copy of grain table {index} lies beyond the end of the file")

    def repair(self, part: HostedPart) -> None:
        """Where two tables differ and one is damaged, the other one holds. Where both could be, no grain of either is
        given up, and the primary one decides.
        """
        try:
            directory, redundant = part.directory, part.redundant
        except ImageError:
            return
        if redundant is None:
            return
        for index, (sector, other) in enumerate(zip(directory, redundant, strict=True)):
            one, two = self.sound(part, index, sector), self.sound(part, index, other)
            if one == two:
                continue
            good = one or two
            if one is not None and two is not None:
                good = array("I", [entry or copy for entry, copy in zip(one, two, strict=True)])
            assert good is not None
            for which, entries, table in (("", directory, one), (" redundant", redundant, two)):
                if table != good:
                    part.place_copy(entries, index, good)
                    self.result.corruptions_fixed += 1
                    if len(self.result.findings) < _TOLD:
                        text = f"{part.name}: the{which} grain table {index} was restored"
                        self.result.findings.append(Finding("corruption", text))
        part.turn_to_copies()

    def sound(self, part: HostedPart, index: int, sector: int) -> array[int] | None:
        """The table at *sector*; None where there is none, or it is damaged."""
        if part.special(sector) is not None:
            return None
        try:
            entries = part.read_tables(index, sector, 1)
        except ImageError:
            return None
        places = [entry for entry in entries if part.special(entry) is None]
        low, high = part.header.overHead, -(-part.node.size // SECTOR)
        return entries if all(low <= place < high for place in places) else None

    # -- compressed grains --------------------------------------------------------------------------------------

    def markers(self, part: CompressedPart) -> None:
        if not part.markers:
            return
        head = bytearray(GRAIN_MARKER.size)
        try:
            for extent in part.extents(part.start, part.end - part.start):
                if extent.kind is not Kind.ENCODED:
                    continue
                part.node.read_into(extent.offset, head)
                marker = GRAIN_MARKER.unpack(head)
                if marker.lba * SECTOR != extent.start - part.start:
                    self.found(f"the grain at byte {extent.start} is marked as that of sector {marker.lba}")
                elif marker.size + GRAIN_MARKER.size > extent.stored:
                    self.found(f"the grain at byte {extent.start} is cut short, or overlaps another one")
        except ImageError as error:
            if not self.result.corruptions:
                self.found(f"{error.place}: {error.cause}")
