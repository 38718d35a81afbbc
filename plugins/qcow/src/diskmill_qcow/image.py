"""qcow images: a header, an L1 table, L2 tables, clusters, plain or compressed, at the end of the file.

For the sources see :mod:`diskmill_qcow.c_qcow`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from diskmill.contract.extents import Encoder, Extent, Kind, Placement
from diskmill.contract.node import Node
from diskmill.contract.references import Reference
from diskmill.errors import ImageError, UnsupportedError, UsageError
from diskmill.kit.levels import WIDTH, TwoLevelImage
from diskmill.sizes import SECTOR, round_down, round_up

from . import c_qcow as c

if TYPE_CHECKING:
    from diskmill.contract.crypto import Volume
    from diskmill.contract.requests import CreateRequest, MeasureRequest, OpenRequest
    from diskmill.contract.results import Measurement
    from diskmill.kit.deflate import DeflateCodec

    from . import QcowDriver


class QcowImage(TwoLevelImage):
    """A qcow file.

    :ivar volume: the cipher of an encrypted image.
    """

    def __init__(self, driver: QcowDriver, file: Node, header: c.Header, *, name: str, writable: bool) -> None:
        cluster, entries = 1 << header.cluster_bits, 1 << header.l2_bits
        super().__init__(
            driver,
            file,
            name=name,
            size=round_down(header.size, SECTOR),
            writable=writable,
            block_size=cluster,
            l1_offset=header.l1_table_offset,
            l1_entries=l1_entries(header),
            l2_entries=entries,
            order="big",
            front=c.HEADER.size,
            align=SECTOR,
            empty={0: Kind.HOLE},
            whole=True,
        )
        self.header = header
        self.volume: Volume | None = None
        self._codec: DeflateCodec | None = None

    @property
    def encrypted(self) -> bool:
        """Whether guest data is stored encrypted."""
        return bool(self.header.crypt_method != c.CRYPT_NONE)

    def release(self, *, abandon: bool = False) -> None:
        """Forget the key, and close the children."""
        if self.volume is not None:
            self.volume.close()
        super().release(abandon=abandon)

    # -- mapping ------------------------------------------------------------------------------------------------

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        found = super().extents(offset, length)
        if self.volume is None:
            return found
        return (
            extent._replace(kind=Kind.ENCODED, codec=self.volume) if extent.kind is Kind.DATA else extent
            for extent in found
        )

    def _told_apart(self, first: int, end: int) -> Iterator[tuple[int, int, int, int, Kind]]:
        for block, count, entry, step, kind in super()._told_apart(first, end):
            if entry & c.COMPRESSED:
                for index in range(count):
                    yield block + index, 1, entry + index * step, 0, Kind.ENCODED
            else:
                yield block, count, entry, step, kind

    def encoded(self, block: int, entry: int) -> Extent:
        """The compressed cluster that *entry* names."""
        from diskmill.kit.deflate import DeflateCodec

        if self._codec is None:
            self._codec = DeflateCodec(self.name)
        shift = 63 - self.header.cluster_bits
        offset, stored = entry & (1 << shift) - 1, entry >> shift & self.block_size - 1
        if not stored or offset < self.data_start or offset + stored > max(self.file.size, self.end or 0):
            cause = f"its {stored} compressed bytes cannot be at offset {offset}"
            raise ImageError(cause, file=self.name, place=f"block {block}")
        size = self.block_size
        return Extent(block * size, size, Kind.ENCODED, self.file, offset, stored, self._codec, size)

    # -- writing ------------------------------------------------------------------------------------------------

    def encoder(self) -> Encoder:
        """What compresses clusters."""
        from diskmill.kit.deflate import DeflateEncoder

        if self.encrypted:
            raise UnsupportedError("an encrypted image has no compressed clusters", file=self.name)
        return DeflateEncoder()

    def _backing_name(self) -> tuple[int, int]:
        """Where the backing file name is: the first byte, and the one after the last."""
        at = self.header.backing_file_offset
        return (at, at + self.header.backing_file_size) if at else (0, 0)

    def used_end(self) -> int:
        return max(super().used_end(), self._backing_name()[1])

    def overwritten(self, block: int, count: int, entry: int) -> None:
        super().overwritten(block, count, entry)
        start, end = self._backing_name()
        if entry < end and entry + count * self.block_size > start:
            raise ImageError("its place in the file belongs to the header", file=self.name, place=f"block {block}")

    def reserve(self, offset: int, length: int) -> list[Placement]:
        if self.volume is None:
            return super().reserve(offset, length)
        start = round_down(offset, SECTOR)  # whole sectors are encrypted
        placements = super().reserve(start, round_up(offset + length, SECTOR) - start)
        return [placement._replace(cipher=self.volume) for placement in placements]

    def reserve_encoded(self, units: Sequence[tuple[int, int, int]]) -> list[Placement]:
        """Places for compressed clusters, one right behind the other."""
        placements = []
        for start, _, stored in units:
            self.levels.prepare(start // self.block_size, 1)
            offset = self.find_end()
            self.end = offset + stored
            if self.end >= 1 << 63 - self.header.cluster_bits:
                raise ImageError("the file is too large for compressed clusters", file=self.name)
            placements.append(Placement(start, self.block_size, self.file, offset, fresh=True, stored=stored))
        return placements

    def publish(self, placements: Sequence[Placement]) -> None:
        shift = 63 - self.header.cluster_bits
        for place in placements:
            if place.stored:
                self.table.set(
                    place.start // self.block_size, 1, c.COMPRESSED | place.stored << shift | place.offset, 0
                )
            else:
                super().publish([place])

    def zero_units(self, offset: int, length: int, *, unmap: bool) -> None:
        """Without a backing image: plain clusters are emptied where they are, the others unallocated.

        :raises UnsupportedError: there is a backing image, and no mark that would hide it.
        """
        if self.backing is not None:
            raise UnsupportedError("the format has no zero clusters", file=self.name)
        self.find_end()  # by what the tables on disk name: it cuts off what is behind
        for extent in list(self.extents(offset, length)):
            if extent.kind is Kind.DATA:
                for place in self.reserve(extent.start, extent.length):
                    self.file.zero(place.offset, place.length, unmap=unmap)
            elif extent.kind is Kind.ENCODED:
                first, end = extent.start // self.block_size, -(-extent.end // self.block_size)
                self.table.set(first, end - first, 0, 0)


def l1_entries(header: c.Header) -> int:
    """Entries of the L1 table."""
    return -(-int(header.size) >> header.cluster_bits + header.l2_bits) if header.size else 0


def open_qcow(driver: QcowDriver, request: OpenRequest) -> QcowImage:
    """The image in ``request.file``, every field of its header checked."""
    file, name = request.below(), request.name
    header = c.HEADER.unpack(file.read(0, min(c.HEADER.size, file.size)), file=name)

    def bad(cause: str) -> ImageError:
        return ImageError(cause, file=name, place="header")

    if header.magic != c.QCOW_MAGIC:
        raise ImageError("not a qcow image (bad magic)", file=name)
    if header.version != c.QCOW_VERSION:
        raise UnsupportedError(f"version {header.version} of qcow is not supported, only 1", file=name)
    if not c.MIN_CLUSTER_BITS <= header.cluster_bits <= c.MAX_CLUSTER_BITS:
        raise bad(f"cluster_bits is {header.cluster_bits}, not {c.MIN_CLUSTER_BITS} to {c.MAX_CLUSTER_BITS}")
    if not c.MIN_L2_BITS <= header.l2_bits <= c.MAX_L2_BITS:
        raise bad(f"l2_bits is {header.l2_bits}, not {c.MIN_L2_BITS} to {c.MAX_L2_BITS}")
    if header.crypt_method not in (c.CRYPT_NONE, c.CRYPT_AES):
        raise UnsupportedError(f"encryption method {header.crypt_method} is not known", file=name)
    if header.size < 2:
        raise bad(f"a disk of {header.size} bytes is not possible")
    entries, offset = l1_entries(header), header.l1_table_offset
    if entries > c.MAX_L1_ENTRIES:
        raise bad(f"a disk of {header.size} bytes is too large")
    if offset < c.HEADER.size or offset + entries * WIDTH > file.size:
        raise bad(f"an L1 table of {entries} entries cannot be at offset {offset}")
    at, length = header.backing_file_offset, header.backing_file_size
    if at and (length > c.MAX_BACKING_NAME or at + length > file.size):
        raise bad(f"a backing file name of {length} bytes cannot be at offset {at}")
    image = QcowImage(driver, file, header, name=name, writable=request.writable)
    if at and length:
        image.references = [Reference("backing", os.fsdecode(file.read(at, length)))]
    _unlock(image, request)
    return image


def _unlock(image: QcowImage, request: OpenRequest) -> None:
    from .encryption import CIPHER, unlock

    if image.encrypted:
        image.volume = unlock(request.options, request.context, image.name, shallow=request.shallow)
    elif "encrypt.format" in request.options:
        raise UsageError(f"its encryption is 'none', not '{CIPHER}'", file=image.name)


def create_qcow(driver: QcowDriver, request: CreateRequest) -> QcowImage:
    """An empty image in ``request.file``."""
    from .encryption import asked, unlock

    file, backing = request.output(), request.backing
    name = os.fsencode(backing.name) if backing else b""
    if len(name) > c.MAX_BACKING_NAME:
        raise UsageError(f"the backing file name is longer than {c.MAX_BACKING_NAME} bytes", file=request.name)
    encrypted = asked(request.options, request.name)
    if encrypted and request.compressed:
        raise UsageError("an encrypted image has no compressed clusters", file=request.name)
    header = _header(request.size, backing is not None, request.name)
    header.crypt_method = c.CRYPT_AES if encrypted else c.CRYPT_NONE
    header.backing_file_offset, header.backing_file_size = (c.HEADER.size, len(name)) if name else (0, 0)
    header.l1_table_offset = round_up(c.HEADER.size + len(name), WIDTH)
    end = header.l1_table_offset + round_up(l1_entries(header) * WIDTH, SECTOR)  # QEMU writes it by sectors
    file.truncate(end)
    if not file.blank:
        file.zero(0, end)
    file.write(0, c.HEADER.pack(header) + name)
    image = QcowImage(driver, file, header, name=request.name, writable=True)
    if backing is not None:
        image.references = [Reference("backing", backing.name)]
    if encrypted:
        image.volume = unlock(request.options, request.context, request.name, new=True)
    image.start_empty(end)
    return image


def _header(size: int, overlay: bool, name: str) -> c.Header:
    """The header for a disk of *size* bytes, with the clusters that QEMU gives it: small over a backing image, because
    it writes no more of a new cluster than what the guest writes."""
    if size < 1:
        raise UsageError("a qcow image must have a size of at least 512 bytes", file=name)
    bits = {"cluster_bits": 9, "l2_bits": 12} if overlay else {"cluster_bits": 12, "l2_bits": 9}
    header = c.HEADER.new(magic=c.QCOW_MAGIC, version=c.QCOW_VERSION, size=size, **bits)
    if l1_entries(header) > c.MAX_L1_ENTRIES:
        raise UnsupportedError(f"a disk of {size} bytes is too large for a qcow image", file=name)
    return header


def measure_qcow(request: MeasureRequest) -> Measurement:
    """See :func:`diskmill.contract.hookspecs.measure`. All L2 tables are counted, as qemu-img does for qcow2."""
    from diskmill.contract.results import Measurement

    header = _header(request.size, False, "the image")
    cluster, tables = 1 << header.cluster_bits, l1_entries(header)
    front = round_up(c.HEADER.size + tables * WIDTH, cluster) + tables * (WIDTH << header.l2_bits)
    full = round_up(request.size, cluster)
    return Measurement(front + min(round_up(request.data_bytes(cluster), cluster), full), front + full)
