"""The mapper: where guest bytes live in a qcow2 image, where they may be put, in which order tables are written.

Source: the specification's sections "Cluster mapping", "Extended L2 Entries" and "Host cluster management".
"""

from __future__ import annotations

from array import array
from collections import abc
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from diskmill.contract.extents import Encoder, Extent, Kind, Placement
from diskmill.contract.node import Node
from diskmill.contract.references import Reference
from diskmill.errors import ImageError, UnsupportedError
from diskmill.kit import tables
from diskmill.kit.image import FormatImage
from diskmill.sizes import round_down, round_up

from . import c_qcow2 as c
from .header import Header, check_refcount_table, read_header, write_header
from .l2 import Mapping
from .places import compressed_misplaced, counted, misplaced

if TYPE_CHECKING:
    from diskmill import Context
    from diskmill.contract.crypto import Volume
    from diskmill.contract.drivers import FormatDriver
    from diskmill.contract.options import Value
    from diskmill.contract.requests import OpenRequest
    from diskmill.kit.deflate import DeflateCodec

    from .compression import ZstdCodec
    from .dirty import Bitmaps
    from .refcounts import Refcounts

_ALL = 0xFFFFFFFF


def open_image(driver: FormatDriver, request: OpenRequest) -> Qcow2Image:
    """The image in ``request.file``."""
    assert request.file is not None
    header = read_header(request.file, request.name)
    image = Qcow2Image(driver, request.file, header, name=request.name, writable=request.writable)
    image.warn = request.context.warn
    _require_tables(image, request)
    if image.cut_short:
        return image
    if image.encrypted or "encrypt.format" in request.options:
        from .encryption import unlock

        unlock(image, request.context, request.options, shallow=request.shallow)
    image.repairing = request.repair
    if request.writable and not request.repair:
        image.prepare_writing()
    return image


def _require_tables(image: Qcow2Image, request: OpenRequest) -> None:
    """See that the tables that the header names lie inside the file.

    Of an image of which only the beginning is there, the header can be told all the same. An L1 table behind the end
    that no refcount counts never was there, and stands for zeros.

    :raises ImageError: they do not, and more is asked for than what the header says.
    """
    file, header = image.file, image.header
    missing = header.beyond(file.size)
    if not missing:
        return
    what, offset, length = missing[0]
    if what == "L1 table" and len(missing) == 1 and offset and not counted(file, header, offset):
        if request.writable and not request.repair:
            cause = f"it lies behind the end of the file at offset {offset}: check -r all mends it"
            raise ImageError(cause, file=image.name, place=what)
        image.l1_behind = True
    elif request.excuses(what):
        image.cut_short = True
    else:
        cause = f"its {length} bytes at offset {offset} are not inside the file of {file.size} bytes"
        raise ImageError(cause, file=image.name, place=what)


class Qcow2Image(FormatImage):
    """A qcow2 image.

    :ivar header: as it is on disk, or will be after the next :meth:`write_header`.
    :ivar data: the node with guest data: ``file``, or the external data file.
    :ivar volume: the cipher of an encrypted image.
    :ivar unlocking: what it was opened with, to change its keys.
    :ivar begun: whether the disk says that it is being changed: autoclear features, bitmaps in use.
    :ivar repairing: the ``repair`` of the request that opened it.
    :ivar l1_behind: whether its L1 table lies behind the end of the file, where it never was.
    :ivar fresh: made by ``create`` and not settled: nobody has seen it, so the order of writes does not matter.
    """

    def __init__(
        self, driver: FormatDriver, file: Node, header: Header, *, name: str, writable: bool, fresh: bool = False
    ) -> None:
        super().__init__(driver, file, name=name, size=header.size, writable=writable)
        self.header = header
        self.unit = header.cluster_size
        self.subunit = self.unit // c.SUBCLUSTERS if header.extended_l2 else 0
        self.fresh = fresh
        self.external = bool(header.incompatible_features & c.EXTERNAL_DATA_FILE)
        self.data: Node | None = None if self.external else file
        self.references = self._references()
        self._mapping: Mapping | None = None
        self._refcounts: Refcounts | None = None
        self._codec: DeflateCodec | ZstdCodec | None = None
        self.volume: Volume | None = None
        self.unlocking: tuple[Context, abc.Mapping[str, Value]] | None = None
        self.begun = fresh
        self._bitmaps: Bitmaps | None = None
        self.repairing = ""
        self.warn: abc.Callable[[str], None] = lambda text: None
        self._searched = False
        self.l1_behind = False

    def _references(self) -> list[Reference]:
        header, result = self.header, []
        if header.backing_file is not None:
            result.append(Reference("backing", header.backing_file, header.backing_format))
        if self.external:
            result.append(Reference("data-file", header.data_file or "", writable=True, storage=True))
        return result

    def attach(self, reference: Reference, node: Node) -> None:
        """A backing image, or the external data file."""
        if reference.role == "data-file":
            self.data = node
        else:
            super().attach(reference, node)

    def children(self) -> Iterator[Node]:
        """``file``, the external data file, the backing image."""
        yield self.file
        if self.data is not None and self.data is not self.file:
            yield self.data
        if self.backing is not None:
            yield self.backing

    def close(self) -> None:
        """Store the bitmaps, flush, and close the children."""
        try:
            if self.writable and not self.closed:
                self.store_bitmaps()
        finally:
            super().close()

    def release(self, *, abandon: bool = False) -> None:
        """Forget the key, and close the children."""
        if self.volume is not None:
            self.volume.close()
        super().release(abandon=abandon)

    # -- what a user may ask ------------------------------------------------------------------------------------

    @property
    def encrypted(self) -> bool:
        """Whether guest data is stored encrypted."""
        return self.header.crypt_method != c.CRYPT_NONE

    @property
    def raw_data(self) -> bool:
        """Whether it has an external data file that is to read as the guest disk does."""
        return self.external and bool(self.header.autoclear_features & c.RAW_EXTERNAL_DATA)

    @property
    def dirty(self) -> bool:
        """Whether refcounts may be behind."""
        return bool(self.header.incompatible_features & c.DIRTY)

    def details(self) -> dict[str, Any]:
        """QAPI ``ImageInfoSpecificQCow2``."""
        header = self.header
        result: dict[str, Any] = {"compat": "0.10" if header.version == 2 else "1.1"}
        if header.version == 3 and self.external:
            result["data-file"] = header.data_file or ""
        result["compression-type"] = c.COMPRESSION_TYPES[header.compression_type]
        if header.version == 3:
            result["lazy-refcounts"] = bool(header.compatible_features & c.LAZY_REFCOUNTS)
            if header.autoclear_features & c.BITMAPS and not self.cut_short:
                result["bitmaps"] = self._bitmap_details()
        result["refcount-bits"] = header.refcount_bits
        if header.version == 3:
            result["corrupt"] = bool(header.incompatible_features & c.CORRUPT)
            result["extended-l2"] = header.extended_l2
            if self.external:
                result["data-file-raw"] = self.raw_data
        if self.volume is not None:
            result["encrypt"] = {"format": "luks" if header.crypt_method == c.CRYPT_LUKS else "aes"}
            result["encrypt"].update(self.volume.details())
        return result

    def _bitmap_details(self) -> list[dict[str, Any]]:
        from .bitmaps import directory, scan_directory

        try:
            where = directory(self.file, self.header, self.name)
        except ImageError:  # a check tells it; the disk is not concerned
            return []
        return (
            []
            if where is None
            else [one.details() for one in scan_directory(self.file, self.header, where, self.name)[0]]
        )

    # -- mapping ------------------------------------------------------------------------------------------------

    @property
    def mapping(self) -> Mapping:
        """The L1 and L2 tables, read when first asked for."""
        if self._mapping is None:
            if self.l1_behind:
                self.absent_behind("the L1 table")
            self._mapping = Mapping(self.file, self.header, self.name, self.lock, absent_behind=self.absent_behind)
        return self._mapping

    def absent_behind(self, what: str) -> None:
        """*what*, a table, lies behind the end of the file, and was never there: its clusters are unallocated.

        :raises ImageError: there are tables that nothing names, so that it is the one that named *what* that is wrong.
        """
        if not self._searched:
            from .check import Checker
            from .repair import find_tables, refuse_lost

            checker = Checker(self)
            checker.run()
            refuse_lost(checker, find_tables(checker))
            self._searched = True
        self.warn(
            f"'{self.name}': {what} lies behind the end of the file: its clusters are taken for unallocated; "
            "check -r all mends it"
        )

    def load(self, l1_offset: int, l1_size: int, size: int) -> None:
        """Read as another L1 table has it, that of a snapshot, with a guest disk of *size* bytes."""
        assert not self.writable
        self._mapping = Mapping(
            self.file, self.header, self.name, self.lock, l1_offset, l1_size, absent_behind=self.absent_behind
        )
        self.size = size

    @property
    def codec(self) -> DeflateCodec | ZstdCodec:
        """What decodes compressed clusters."""
        if self._codec is None:
            from .compression import codec

            self._codec = codec(self.header.compression_type, self.name)
        return self._codec

    def encoder(self) -> Encoder:
        """What compresses clusters, with the image's compression type."""
        from .compression import encoder

        if self.external:
            raise UnsupportedError("an image with an external data file has no compressed clusters", file=self.name)
        if self.encrypted:
            raise UnsupportedError("an encrypted image has no compressed clusters", file=self.name)
        return encoder(self.header.compression_type)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """As :meth:`Node.extents`; neighbouring clusters that are neighbours in the file come as one."""
        end = offset + length
        last: Extent | None = None
        for extent in self._extents(offset, end):
            if extent.start < offset or extent.end > end:
                if extent.end <= offset or extent.start >= end:
                    continue  # other subclusters of the first or last cluster
                extent = extent.clip(offset, end)
            if last is None:
                last = extent
            elif not extent.unit and _joins(last, extent):
                last = last._replace(length=last.length + extent.length)
            else:
                yield last
                last = extent
        if last is not None:
            yield last

    def _extents(self, offset: int, end: int) -> Iterator[Extent]:
        size = self.unit
        first, last = offset // size, -(-end // size)
        with self.lock:
            single = self.mapping.within(first, last)
            batches = self.mapping.batches(first, last)
        if single is not None:
            yield from self._told(first, last - first, single[0])
            return
        while True:
            with self.lock:
                batch = next(batches, None)
            if batch is None:
                return
            cluster, count, words, times = batch
            told = self._told(cluster, count, words)
            if times == 1:
                yield from told
            else:
                yield from _repeated(list(told), count * size, times)

    def _told(self, cluster: int, count: int, words: array[int] | None) -> Iterable[Extent]:
        """The extents of *count* guest clusters from *cluster* on, whose entries are *words*."""
        if words is None:
            return (Extent(cluster * self.unit, count * self.unit, Kind.HOLE),)
        return self._standard(cluster, words) if self.mapping.words == 1 else self._extended(cluster, words)

    def _standard(self, cluster: int, words: array[int]) -> Iterator[Extent]:
        size = self.unit
        zeros = self.header.version > 2
        for run in tables.runs(words, size):
            value, start = run.value, (cluster + run.at) * size
            if not value:
                yield Extent(start, run.length * size, Kind.HOLE)
            elif value & c.COMPRESSED:
                for index in range(run.length):
                    yield self._compressed(start + index * size, value + index * run.step)
            elif value & c.ZERO and zeros:
                host = value & c.OFFSET_MASK
                if host % size:  # a damaged entry: it need not have meant zeros
                    raise self._misplaced(host, start)
                if host and (run.step or run.length == 1):
                    yield Extent(start, run.length * size, Kind.ZERO, self.data, host)
                else:
                    yield Extent(start, run.length * size, Kind.ZERO)
            else:
                yield from self._data(start, run.length, value, run.step)

    def _extended(self, cluster: int, words: array[int]) -> Iterator[Extent]:
        size = self.unit
        bitmaps = words[1::2]
        for run in tables.runs(words[0::2], size):
            if run.value & c.COMPRESSED:
                for index in range(run.length):
                    yield self._compressed((cluster + run.at + index) * size, run.value + index * run.step)
                continue
            for part in tables.runs(bitmaps[run.at : run.at + run.length], 0):
                start = (cluster + run.at + part.at) * size
                value = run.value + part.at * run.step
                if part.value == c.ALL_ALLOCATED:
                    yield from self._data(start, part.length, value, run.step)
                elif part.value == c.ALL_ZEROS:
                    yield Extent(start, part.length * size, Kind.ZERO)
                elif not part.value:
                    yield Extent(start, part.length * size, Kind.HOLE)
                else:
                    for index in range(part.length):
                        yield from self._subclusters(start + index * size, value + index * run.step, part.value)

    def _subclusters(self, start: int, value: int, bitmap: int) -> Iterator[Extent]:
        size = self.unit // c.SUBCLUSTERS
        allocated, zero = bitmap & _ALL, bitmap >> 32
        if allocated & zero:
            raise ImageError("subclusters are both allocated and zero", file=self.name, place=f"guest offset {start}")
        if allocated:
            whole = next(iter(self._data(start, 1, value, 0)))
        index = 0
        while index < c.SUBCLUSTERS:
            kind = allocated >> index & 1, zero >> index & 1
            upto = index + 1
            while upto < c.SUBCLUSTERS and (allocated >> upto & 1, zero >> upto & 1) == kind:
                upto += 1
            if kind[0]:
                yield whole.clip(start + index * size, start + upto * size)
            else:
                yield Extent(start + index * size, (upto - index) * size, Kind.ZERO if kind[1] else Kind.HOLE)
            index = upto

    def _data(self, start: int, count: int, value: int, step: int) -> Iterator[Extent]:
        """Verbatim clusters, checked against the file."""
        size, host = self.unit, value & c.OFFSET_MASK
        if not host and not (self.external and value & c.COPIED):
            raise self._misplaced(host, start)
        self._require_place(host, count, step, start)
        data = self.require_data()
        kind = Kind.DATA if self.volume is None else Kind.ENCODED
        if step or count == 1:
            yield Extent(start, count * size, kind, data, host, codec=self.volume)
        else:  # several guest clusters share one
            for index in range(count):
                yield Extent(start + index * size, size, kind, data, host, codec=self.volume)

    def require_data(self) -> Node:
        """The node with guest data.

        :raises ImageError: it is an external data file, and the user left it out.
        """
        if self.data is None:
            raise ImageError("its external data file is not named and was not given", file=self.name)
        return self.data

    def _require_place(self, host: int, count: int, step: int, start: int) -> None:
        """See that *count* clusters from *host* on, of guest offset *start*, can be there.

        :raises ImageError: they cannot.
        """
        last = host + (count - 1) * step
        if host % self.unit or not self.external and misplaced(last, self.unit, self.file.size):
            raise self._misplaced(host, start)

    def _misplaced(self, host: int, start: int) -> ImageError:
        return ImageError(
            f"it says that the data is at offset {host} of {self.file.size}",
            file=self.name,
            place=f"L2 entry of guest offset {start}",
        )

    def _compressed(self, start: int, value: int) -> Extent:
        host, stored = self.compressed_place(value)
        outside = compressed_misplaced(host, host + stored, self.unit, self.file.size)
        # The number of sectors is rounded up, so the last cluster's may end after the file does.
        if host + stored > self.file.size:
            stored = self.file.size - host
        if outside or self.external:
            raise ImageError(
                f"it says that compressed data is at offset {host} of {self.file.size}",
                file=self.name,
                place=f"L2 entry of guest offset {start}",
            )
        return Extent(start, self.unit, Kind.ENCODED, self.file, host, stored, self.codec, self.unit)

    def compressed_place(self, value: int) -> tuple[int, int]:
        """Byte offset and bytes, to the end of the last sector, that a compressed cluster descriptor names."""
        shift = 62 - (self.header.cluster_bits - 8)
        host = value & ((1 << shift) - 1) & ((1 << 56) - 1)
        sectors = (value >> shift & ((1 << (62 - shift)) - 1)) + 1
        return host, sectors * 512 - (host & 511)

    def _descriptor(self, placement: Placement) -> int:
        """The compressed cluster descriptor for *placement*."""
        shift = 62 - (self.header.cluster_bits - 8)
        sectors = (placement.offset + placement.stored - 1) // 512 - placement.offset // 512
        return c.COMPRESSED | sectors << shift | placement.offset

    # -- writing ------------------------------------------------------------------------------------------------

    @property
    def refcounts(self) -> Refcounts:
        """Host cluster management, read when first asked for."""
        if self._refcounts is None:
            check_refcount_table(self.header, self.file.size, self.name)
            self._refcounts = self.new_allocator()
        return self._refcounts

    def new_allocator(self) -> Refcounts:
        """Host cluster management as the disk has it, with nothing allocated yet."""
        from .refcounts import Refcounts

        refcounts = Refcounts(self.file, self.header, self.name)
        refcounts.protect(self._metadata(refcounts))
        refcounts.damaged = self._mark_corrupt
        return refcounts

    def _mark_corrupt(self) -> None:
        """Nobody shall write to the image before it is repaired."""
        header = self.header
        if header.version > 2 and not header.incompatible_features & c.CORRUPT:
            header.incompatible_features |= c.CORRUPT
            self.write_header()
            self.barrier()

    def reload(self) -> None:
        """The tables on disk are others now, those that the header names."""
        self.size = self.header.size
        self._mapping = self._refcounts = self._bitmaps = None
        self.l1_behind = False

    def begin(self, refcounts: Refcounts) -> None:
        """Called by ``create``: the image is new, and *refcounts* is its allocator."""
        self._refcounts = refcounts

    def prepare_writing(self) -> None:
        """Refuse what must not be written; repair first what was not closed properly.

        :raises ImageError: the image is marked as corrupt, or cannot be repaired.
        """
        if self.header.incompatible_features & c.CORRUPT:
            raise ImageError("it is marked as corrupt: repair it with check -r all before writing", file=self.name)
        if self.dirty:
            from .repair import repair

            repair(self, "all", give_up=False)
        check_refcount_table(self.header, self.file.size, self.name)
        if self.header.autoclear_features & c.BITMAPS:
            _ = self.bitmaps  # a directory that cannot be kept up is refused before anything changes

    def _metadata(self, refcounts: Refcounts) -> set[int]:
        """The host clusters that hold metadata, as far as header, L1 and refcount table say."""
        header, size = self.header, self.unit
        places = [(0, size), (header.l1_table_offset, header.l1_size * 8)]
        places.append((header.refcount_table_offset, header.refcount_table_clusters * size))
        if header.nb_snapshots:
            places.append((header.snapshots_offset, header.nb_snapshots * c.SNAPSHOT.size))
        if self.encrypted:
            from .encryption import place

            places.append(place(header, self.file, self.name))
        clusters = {
            cluster for offset, length in places for cluster in range(offset // size, -(-(offset + length) // size))
        }
        clusters.update((entry & c.REFTABLE_OFFSET_MASK) // size for entry in refcounts.table if entry)
        for run in self.mapping.l1.runs(0, len(self.mapping.l1), size):
            clusters.update(
                ((run.value + index * run.step) & c.OFFSET_MASK) // size
                for index in range(run.length if run.step else 1)
                if run.value
            )
        if header.autoclear_features & c.BITMAPS:
            from .dirty import clusters as bitmap_clusters

            record = c.BITMAPS_EXTENSION.unpack(header.extension(c.EXT_BITMAPS) or b"")
            start = record.bitmap_directory_offset // size
            clusters.update(range(start, start + -(-record.bitmap_directory_size // size)))
            clusters.update(bitmap_clusters(self.bitmaps.all, size))
        return clusters

    def begin_change(self) -> None:
        """Before guest data changes: features that this driver does not keep up are cleared, bitmaps are in use."""
        if self.begun:
            return
        self.begun = True
        header = self.header
        kept = header.autoclear_features & c.KNOWN_AUTOCLEAR
        if kept != header.autoclear_features:
            header.autoclear_features = kept
            self.write_header()
            self.barrier()
        if header.autoclear_features & c.BITMAPS:
            self.bitmaps.begin()

    @property
    def bitmaps(self) -> Bitmaps:
        """The persistent bitmaps, read when first asked for."""
        if self._bitmaps is None:
            from .dirty import Bitmaps

            self._bitmaps = Bitmaps(self)
        return self._bitmaps

    def store_bitmaps(self) -> None:
        """Bitmaps that changed reach the disk, and are no longer in use."""
        if self._bitmaps is not None:
            with self.lock:
                self._bitmaps.store()

    def bitmaps_stored(self) -> None:
        """The next change begins anew: bitmaps are in use again."""
        self.begun = False

    def _changing(self, offset: int, length: int) -> None:
        """Guest bytes *offset* to *offset + length* are about to change."""
        self.begin_change()
        if self._bitmaps is not None and self.recording:
            self._bitmaps.mark(offset, length)

    def reserve(self, offset: int, length: int) -> list[Placement]:
        """As :meth:`Image.reserve`. What this image alone uses is overwritten in place; all else gets new clusters.

        With extended L2 entries only the subclusters that the range touches are fresh, save in a cluster that moves
        with what it holds.
        """
        self._changing(offset, length)
        if self.volume is not None:  # whole sectors
            end = round_up(offset + length, self.volume.granularity)
            offset = round_down(offset, self.volume.granularity)
            length = end - offset
        size, mapping = self.unit, self.mapping
        at, last = offset // size, -(-(offset + length) // size)
        result: list[Placement] = []
        while at < last:
            index, entry = divmod(at, mapping.count)
            count = min(last - at, mapping.count - entry)
            table = mapping.get(index)
            if table is None:
                self._new(result, at, count, *self._around(offset, offset + length), part=self.subunit)
            else:
                self._reserve_in(result, table.entries, entry, at, count, offset, offset + length)
            at += count
        if self.volume is not None:
            return [placement._replace(cipher=self.volume) for placement in result]
        return result

    def _reserve_in(
        self, result: list[Placement], words: array[int], entry: int, at: int, count: int, low: int, high: int
    ) -> None:
        size, extended = self.unit, self.mapping.words == 2
        if extended:
            bitmaps = words[2 * entry + 1 : 2 * (entry + count) : 2]
            words = words[2 * entry : 2 * (entry + count) : 2]
        else:
            words = words[entry : entry + count]
        for run in tables.runs(words, size):
            value = run.value
            if not value & c.COPIED or value & c.COMPRESSED or not (value & c.OFFSET_MASK or self.external):
                begin, end = self._around(low, high)
                if extended and (value & c.COMPRESSED or bitmaps[run.at] & _ALL):
                    begin = 0
                if extended and (value & c.COMPRESSED or bitmaps[run.at + run.length - 1] & _ALL):
                    end = round_up(end, size)
                part = self.subunit
                if extended:  # what has something to bring along moves as a whole
                    moving = (bits & _ALL for bits in bitmaps[run.at : run.at + run.length])
                    part = 0 if value & c.COMPRESSED or any(moving) else part
                self._new(result, at + run.at, run.length, begin, end, part=part)
                continue
            host = value & c.OFFSET_MASK
            self._require_place(host, run.length, run.step, (at + run.at) * size)
            if not self.external:
                first = host // size
                self.refcounts.refuse_metadata(first, first + (run.length if run.step else 1), "a guest cluster")
            if extended:
                parts = [
                    (part.at, part.length, part.value & _ALL)
                    for part in tables.runs(bitmaps[run.at : run.at + run.length], 0)
                ]
            else:
                parts = [(0, run.length, 0 if value & c.ZERO and self.header.version > 2 else _ALL)]
            for begin, number, allocated in parts:
                together = run.step and allocated in (0, _ALL)
                for single in (begin,) if together else range(begin, begin + number):
                    start = (at + run.at + single) * size
                    place = host + single * run.step
                    end = start + (number if together else 1) * size
                    for first, upto, own in _by_allocation(allocated, start, end, self.subunit):
                        if first < high and upto > low:
                            self._inside(result, first, upto, place + first - start, low, high, own=own)

    def _inside(
        self, result: list[Placement], start: int, end: int, place: int, low: int, high: int, *, own: bool
    ) -> None:
        """Guest bytes *start* to *end* have their place; their part of *low* to *high* goes there.

        Not *own*: space is kept for them, and nothing reads it yet.
        """
        data = self.require_data()
        if not own:
            low, high = self._around(low, high)
        begin = max(start, low)
        length, place = min(end, high) - begin, place + begin - start
        result.append(Placement(begin, length, data, place, fresh=not own, part=0 if own else self.subunit))

    def _around(self, low: int, high: int) -> tuple[int, int]:
        """The clusters, or subclusters, that bytes *low* to *high* touch: where they begin and end."""
        size = self.subunit or self.unit
        return round_down(low, size), round_up(high, size)

    def _new(self, result: list[Placement], at: int, count: int, low: int, high: int, *, part: int) -> None:
        """New clusters for *count* guest clusters from *at* on, of which bytes *low* to *high* are to be filled.

        :param part: what can be published by itself: a subcluster, where there is nothing in any yet.
        """
        size, data = self.unit, self.require_data()
        for first, number in [(at, count)] if self.external else self.refcounts.allocate(count):
            begin, end = max(at * size, low), min((at + number) * size, high)
            place = first * size + begin - at * size
            result.append(Placement(begin, end - begin, data, place, fresh=True, part=part))
            at += number

    def reserve_encoded(self, units: Sequence[tuple[int, int, int]]) -> list[Placement]:
        """Places for compressed clusters, packed one behind the other."""
        for start, length, _ in units:
            self._changing(start, length)
        offsets = self.refcounts.allocate_bytes([stored for _, _, stored in units])
        return [
            Placement(start, self.unit, self.file, offset, fresh=True, stored=stored)
            for (start, _, stored), offset in zip(units, offsets, strict=True)
        ]

    def publish_places(self, placements: Sequence[Placement]) -> None:
        """As :meth:`publish` for clusters without contents; with extended L2 entries no subcluster is allocated yet."""
        for placement in placements:
            if placement.fresh:
                at, count = placement.start // self.unit, -(-placement.length // self.unit)
                self._set(at, count, placement.offset | c.COPIED, self.unit, 0)
        self._relieve()

    def publish(self, placements: Sequence[Placement]) -> None:
        """Let the L2 tables, in memory, point to *placements*."""
        clusters: list[tuple[int, int, int, int]] = []  # the first, how many, its place, the bits of their subclusters
        for placement in placements:
            if placement.stored:
                self._set(placement.start // self.unit, 1, self._descriptor(placement), 0, 0)
            elif placement.fresh:
                ahead = placement.offset - placement.start
                for at, count, bits in self._by_cluster(placement.start, placement.end):
                    if clusters and clusters[-1][0] == at:  # another part of the same one
                        bits |= clusters.pop()[3]
                    clusters.append((at, count, ahead + at * self.unit, bits))
        for at, count, place, bits in clusters:
            bitmap = bits if bits == _ALL else self._entry(at)[1] & ~(bits << 32) | bits
            self._set(at, count, place | c.COPIED, self.unit, bitmap)
        self._relieve()

    def _by_cluster(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """Guest bytes *start* to *end* as (cluster, count, bits of their subclusters): whole clusters are together."""
        size = self.unit
        if not self.subunit:
            return [(start // size, (end - start) // size, _ALL)]
        result = []
        while start < end:
            at, skip = divmod(start, size)
            count = 1 if skip else max((end - start) // size, 1)
            upto = min((at + count) * size, end)
            first, last = 0, c.SUBCLUSTERS
            if upto - start < size:
                first, last = skip // self.subunit, -(-(upto - at * size) // self.subunit)
            result.append((at, count, (1 << last) - (1 << first)))
            start = upto
        return result

    def _entry(self, at: int) -> tuple[int, int]:
        """The extended L2 entry of guest cluster *at*, and its bitmap."""
        index, entry = divmod(at, self.mapping.count)
        table = self.mapping.get(index)
        return (0, 0) if table is None else (table.entries[2 * entry], table.entries[2 * entry + 1])

    def _set(self, at: int, count: int, value: int, step: int, bitmap: int) -> None:
        """Entries of *count* guest clusters from *at* on become value, value + step, …; what they had is dropped."""
        mapping = self.mapping
        while count:
            index, entry = divmod(at, mapping.count)
            number = min(count, mapping.count - entry)
            table = mapping.update(index, self._drop_table)
            words = table.entries
            if mapping.words == 1:
                low, high = entry, entry + number
                old = words[low:high]
                tables.fill_run(words, low, number, value, step)
                new = words[low:high]
            else:
                low, high = entry * 2, (entry + number) * 2
                old = words[low:high:2]
                new = tables.filled(number, 8)
                tables.fill_run(new, 0, number, value, step)
                words[low:high:2] = new
                words[low + 1 : high : 2] = tables.filled(number, 8, bitmap)
            table.mark(low, high)
            self._drop(old, new)
            at += number
            count -= number
            value += number * step

    def _drop_table(self, offset: int) -> None:
        self.refcounts.drop_metadata(offset // self.unit)

    def _drop(self, old: array[int], new: array[int]) -> None:
        """What entries *old* pointed to loses a reference, save where *new* points to the same."""
        if old == array("Q", bytes(len(old) * 8)):
            return
        for run in tables.runs(old, self.unit):
            for part in tables.runs(new[run.at : run.at + run.length], self.unit):
                value = run.value + part.at * run.step
                if not value or not (value ^ part.value) & c.OFFSET_MASK and not value & c.COMPRESSED:
                    continue
                for index in range(1 if run.step and not value & c.COMPRESSED else part.length):
                    self._drop_entry(value + index * run.step, part.length if run.step else 1)

    def _drop_entry(self, value: int, count: int) -> None:
        size = self.unit
        if value & c.COMPRESSED:
            host, stored = self.compressed_place(value)
            first = host // size
            count = (host + stored - 1) // size - first + 1
        elif value & c.OFFSET_MASK and not self.external:
            first = (value & c.OFFSET_MASK) // size
        else:
            return
        self.refcounts.refuse_metadata(first, first + count, "a guest cluster")
        self.refcounts.drop(first, count)

    def zero_units(self, offset: int, length: int, *, unmap: bool) -> None:
        """Clusters read as zeros from now on; *unmap* gives their space back, and may leave them unallocated.

        Subclusters of a cluster too, where the image has such.

        :raises UnsupportedError: version 2, where they must say so themselves, and raw external data files have no such
            mark; nor have parts of a compressed cluster.
        """
        version2 = self.header.version < 3
        if self.raw_data:
            raise UnsupportedError("a raw external data file has no zero clusters", file=self.name)
        if version2 and (self.header.backing_file is not None or not unmap):
            raise UnsupportedError("version 2 has no zero clusters", file=self.name)
        whole = not offset % self.unit and (not length % self.unit or offset + length == self.size)
        if whole:
            self._clear(offset, length, zero=not version2, keep=not unmap)
        else:
            self._zero_subclusters(offset, length, keep=not unmap)

    def _zero_subclusters(self, offset: int, length: int, *, keep: bool) -> None:
        """Subclusters of one cluster (or its tail up to the guest disk's end) read as zeros."""
        ((at, _, bits),) = self._by_cluster(offset, offset + length)
        value, bitmap = self._entry(at)
        if value & c.COMPRESSED:
            raise UnsupportedError("a compressed cluster has no zero subclusters", file=self.name)
        self._changing(offset, length)
        bitmap = bitmap & ~bits | bits << 32
        if not bitmap & _ALL and not (keep and value & c.COPIED):
            value = 0
        self._set(at, 1, value, 0, bitmap)
        self._relieve()

    def discard_units(self, offset: int, length: int) -> None:
        """Clusters read as zeros from now on, where the version can say so; their space is given back."""
        version2 = self.header.version < 3
        if version2 and self.header.backing_file is not None or self.external:
            return
        self._clear(offset, length, zero=not version2, keep=False)

    def unmap(self, offset: int, length: int) -> None:
        """Clusters are unallocated from now on: they read as the backing image does."""
        self._clear(offset, length, zero=False, keep=False)

    def _clear(self, offset: int, length: int, *, zero: bool, keep: bool) -> None:
        """Make clusters zero, or (without *zero*) unallocated; *keep* the space that is theirs alone.

        What is unallocated may stay so where it reads as zeros anyway, if not *keep*.
        """
        self._changing(offset, length)
        size, mapping = self.unit, self.mapping
        at, last = offset // size, -(-(offset + length) // size)
        extended = mapping.words == 2
        plain, bitmap = (0, c.ALL_ZEROS if zero else 0) if extended else (c.ZERO if zero else 0, 0)
        # Zeros that are to stay are said in so many words also where nothing shows through: a backing image may come.
        covered = self.backing is not None or self.header.backing_file is not None or keep
        while at < last:
            index, entry = divmod(at, mapping.count)
            count = min(last - at, mapping.count - entry)
            table = mapping.get(index)
            if table is None:
                if covered and zero:
                    self._set(at, count, plain, 0, bitmap)
            else:
                words = table.entries[entry * mapping.words : (entry + count) * mapping.words : mapping.words]
                for run in tables.runs(words, size):
                    value = run.value
                    if not value and not covered and not extended:
                        continue
                    if keep and value & c.COPIED and not value & c.COMPRESSED:
                        kept = value if extended else value | c.ZERO
                        self._set(at + run.at, run.length, kept, run.step, bitmap)
                    else:
                        self._set(at + run.at, run.length, plain, 0, bitmap)
            at += count
            self._relieve()

    def drop_beyond(self, offset: int) -> None:
        """Nothing is allocated any more in clusters that begin at or after guest *offset*."""
        mapping = self.mapping
        first, entry = divmod(-(-offset // self.unit), mapping.count)
        if entry:
            if first < len(mapping.l1) and mapping.get(first) is not None:
                self._set(first * mapping.count + entry, mapping.count - entry, 0, 0, 0)
            first += 1
        # Empty tables go, not full ones: an L2 table that nothing names and that says where data is would be the mark
        # of a damaged L1 table.
        for index in range(first, len(mapping.l1)):
            if mapping.l1[index] & c.COPIED:
                self._set(index * mapping.count, mapping.count, 0, 0, 0)
                self._relieve()
        self.flush_tables()
        for index in range(first, len(mapping.l1)):
            table = mapping.get(index) if mapping.has(index) else None
            if table is not None:
                words = table.entries[:: mapping.words]
                self._drop(words, array("Q", bytes(len(words) * 8)))
                if table.offset:
                    self._drop_table(table.offset)
                mapping.remove(index)
                self._relieve()

    def _relieve(self) -> None:
        """Write tables out before they fill the memory."""
        if self.mapping.crowded or self._refcounts is not None and self._refcounts.crowded:
            self.flush_tables()

    # -- the order of writes ------------------------------------------------------------------------------------

    def barrier(self) -> None:
        """What was written before reaches the disk before what is written after."""
        if self.fresh:
            return
        self.file.barrier()
        if self.data is not None and self.data is not self.file:
            self.data.barrier()

    def flush_tables(self) -> None:
        """Write the cached tables out, so that a crash between any two writes loses nothing but free space.

        1. refcount blocks, then what points to them; new L2 tables, as yet without their changes; 2. the L1 table;
        3. changes of the L2 tables, which now point to counted clusters whose data is there; 4. references that are
        gone are no longer counted.
        """
        with self.lock:
            mapping, refcounts = self._mapping, self._refcounts
            if not (mapping is not None and mapping.changed or refcounts is not None and refcounts.changed):
                return
            mapping, refcounts = self.mapping, self.refcounts
            homeless = mapping.homeless()
            self._house(homeless)
            if not self.fresh:
                mapping.write_origins(homeless)
            self.write_refcounts()
            mapping.link()
            if mapping.l1_dirty:
                mapping.write_l1()
                self.barrier()
            mapping.write_tables()
            self.give_back()

    def write_refcounts(self) -> None:
        """What was allocated is counted on disk: now it may be pointed to."""
        refcounts, header = self.refcounts, self.header
        refcounts.apply()
        refcounts.write_blocks()
        if refcounts.table_dirty or refcounts.table_moved:
            self.barrier()
            refcounts.write_table()
        if refcounts.table_moved:
            self.barrier()
            header.refcount_table_offset = refcounts.offset
            header.refcount_table_clusters = len(refcounts.table) * 8 // self.unit
            self.write_header()
            refcounts.table_moved = False
        self.barrier()

    def _house(self, homeless: Sequence[Any]) -> None:
        """Give new L2 tables clusters, neighbouring ones where there are such."""
        if not homeless:
            return
        runs = self.refcounts.allocate(len(homeless))
        places = (first + index for first, count in runs for index in range(count))
        for table, cluster in zip(homeless, places, strict=True):
            table.offset = cluster * self.unit

    def place_table(self, at: int) -> None:
        """In a new image, give the L2 table of guest cluster *at* its place now, ahead of the clusters that it names:
        so QEMU lays out what is preallocated."""
        if self.fresh:
            index = at // self.mapping.count
            table = self.mapping.update(index, lambda offset: None)
            if not table.offset:
                self._house([table])
                self.mapping.link([index])

    def give_back(self) -> None:
        """Give back the clusters to which nothing points any more. The last step of a change."""
        refcounts = self.refcounts
        if not refcounts.dropping:
            return
        self.barrier()
        freed = refcounts.release()
        refcounts.write_blocks()
        self.barrier()
        for first, count in freed:
            if self.discards:
                self.file.discard(first * self.unit, count * self.unit)
        refcounts.offer(freed)

    def write_header(self) -> None:
        """Write the header area; features that this driver does not know, and so does not keep up, are cleared."""
        self.header.autoclear_features &= c.KNOWN_AUTOCLEAR
        if self.fresh:
            self.file.write(0, self.header.pack())
        else:
            write_header(self.file, self.header, self.barrier)

    def replace_header(self, header: Header) -> None:
        """Let *header* be the image's, on disk too.

        :raises UsageError: it does not fit in the first cluster; nothing is changed then.
        """
        header.pack()
        vars(self.header).update(vars(header))
        self.write_header()
        self.barrier()

    def flush(self) -> None:
        """Everything published so far reaches the disk."""
        if self.writable:
            self.flush_tables()
        self.file.flush()
        if self.data is not None and self.data is not self.file:
            self.data.flush()

    def settle(self) -> None:
        """The new image is whole."""
        self.store_bitmaps()
        super().settle()
        self.fresh = False


def _by_allocation(allocated: int, start: int, end: int, size: int) -> list[tuple[int, int, bool]]:
    """Guest bytes *start* to *end* by whether they are allocated; where that differs they are a cluster.

    :param allocated: the bits of subclusters of *size* bytes.
    """
    if allocated in (0, _ALL):
        return [(start, end, allocated == _ALL)]
    result = []
    index = 0
    while index < c.SUBCLUSTERS:
        first, kind = index, allocated >> index & 1
        while index < c.SUBCLUSTERS and allocated >> index & 1 == kind:
            index += 1
        result.append((start + first * size, start + index * size, kind == 1))
    return result


def _repeated(extents: list[Extent], length: int, times: int) -> Iterator[Extent]:
    """*extents*, which cover *length* bytes, so many *times* one after the other."""
    only = extents[0]
    if len(extents) == 1 and only.node is None:
        yield only._replace(length=length * times)
        return
    for ahead in range(0, length * times, length):
        for extent in extents:
            yield extent._replace(start=extent.start + ahead)


def _joins(first: Extent, second: Extent) -> bool:
    """Whether *second*, which follows *first* in the guest, follows it in the file too."""
    if first.kind is not second.kind or first.unit or second.unit:
        return False
    return first.node is second.node and (first.node is None or first.offset + first.length == second.offset)
