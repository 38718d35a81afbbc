"""A qcow2 image: what it is, and who does what for it.

Its guest bytes are told by :mod:`.extents` and placed by :mod:`.placing`, over the tables of :mod:`.l2` and the
refcounts of :mod:`.refcounts`; :mod:`.order` sends all of that to disk. Opening it is :mod:`.opening`.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from diskmill.contract.extents import Encoder, Extent, Placement
from diskmill.contract.node import Node
from diskmill.contract.references import Reference
from diskmill.errors import ImageError, UnsupportedError
from diskmill.kit.image import FormatImage

from . import c_qcow2 as c
from .extents import Extents
from .header import Header, check_refcount_table
from .l2 import Mapping
from .order import WriteOrder
from .placing import Placing

if TYPE_CHECKING:
    from diskmill import Context
    from diskmill.contract.crypto import Volume
    from diskmill.contract.drivers import FormatDriver
    from diskmill.contract.options import Value
    from diskmill.kit.deflate import DeflateCodec

    from .compression import ZstdCodec
    from .dirty import Bitmaps
    from .refcounts import Refcounts


class Qcow2Image(FormatImage):
    """A qcow2 image.

    :ivar guest: tells what its guest bytes are; *placing* gives them places, *order* sends tables to disk.
    :ivar mapping_read: its L1 and L2 tables, once somebody asked for them; *refcounts_read*, the same of refcounts.
    :ivar header: as it is on disk, or will be after the next :meth:`.WriteOrder.write_header`.
    :ivar data: the node with guest data: ``file``, or the external data file.
    :ivar volume: the cipher of an encrypted image.
    :ivar encryption: the crypto driver's name, where there is a volume.
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
        self.mapping_read: Mapping | None = None
        self.refcounts_read: Refcounts | None = None
        self._codec: DeflateCodec | ZstdCodec | None = None
        self.compression_level: int | None = None
        self.volume: Volume | None = None
        self.encryption = ""
        self.unlocking: tuple[Context, abc.Mapping[str, Value]] | None = None
        self.begun = fresh
        self._bitmaps: Bitmaps | None = None
        self.repairing = ""
        self.warn: abc.Callable[[str], None] = lambda text: None
        self._searched = False
        self.l1_behind = False
        self.guest = Extents(self)
        self.placing = Placing(self)
        self.order = WriteOrder(self)

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
            result["encrypt"] = {"format": self.encryption, **self.volume.details()}
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

    # -- guest data --------------------------------------------------------------------------------------------

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        return self.guest.of(offset, length)

    def vacant(self, offset: int, length: int) -> bool:
        return self.guest.vacant(offset, length)

    def reserve(self, offset: int, length: int) -> list[Placement]:
        return self.placing.reserve(offset, length)

    def reserve_encoded(self, units: Sequence[tuple[int, int, int]]) -> list[Placement]:
        return self.placing.reserve_encoded(units)

    def publish(self, placements: Sequence[Placement]) -> None:
        self.placing.publish(placements)

    def zero_units(self, offset: int, length: int, *, unmap: bool) -> None:
        self.placing.zero_units(offset, length, unmap=unmap)

    def discard_units(self, offset: int, length: int) -> None:
        self.placing.discard_units(offset, length)

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
        return encoder(self.header.compression_type, self.compression_level)

    def require_data(self) -> Node:
        """The node with guest data.

        :raises ImageError: it is an external data file, and the user left it out.
        """
        if self.data is None:
            raise ImageError("its external data file is not named and was not given", file=self.name)
        return self.data

    # -- tables -------------------------------------------------------------------------------------------------

    @property
    def mapping(self) -> Mapping:
        """The L1 and L2 tables, read when first asked for."""
        if self.mapping_read is None:
            with self.lock:  # two threads must not have one each
                if self.mapping_read is None:
                    if self.l1_behind:
                        self.absent_behind("the L1 table")
                    self.mapping_read = self._mapping_of(None, None)
        return self.mapping_read

    def _mapping_of(self, l1_offset: int | None, l1_size: int | None) -> Mapping:
        return Mapping(
            self.file, self.header, self.name, self.lock, l1_offset, l1_size, absent_behind=self.absent_behind
        )

    def absent_behind(self, what: str) -> None:
        """*what*, a table, lies behind the end of the file, and was never there: its clusters are unallocated.

        :raises ImageError: there are tables that nothing names, so that it is the one that named *what* that is wrong.
        """
        if not self._searched:
            from .check import Checker
            from .salvage import find_tables, refuse_lost

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
        if self.writable:
            raise RuntimeError("a snapshot is loaded for reading only")
        self.mapping_read = self._mapping_of(l1_offset, l1_size)
        self.size = size

    @property
    def refcounts(self) -> Refcounts:
        """Host cluster management, read when first asked for."""
        if self.refcounts_read is None:
            check_refcount_table(self.header, self.file.size, self.name)
            self.refcounts_read = self.new_allocator()
        return self.refcounts_read

    def new_allocator(self) -> Refcounts:
        """Host cluster management as the disk has it, with nothing allocated yet."""
        from .refcounts import Refcounts

        refcounts = Refcounts(self.file, self.header, self.name)
        from .metadata import metadata_clusters

        refcounts.protect(metadata_clusters(self, refcounts))
        refcounts.damaged = self.order.mark_corrupt
        return refcounts

    def reload(self) -> None:
        """The tables on disk are others now, those that the header names."""
        self.size = self.header.size
        self.mapping_read = self.refcounts_read = self._bitmaps = None
        self.l1_behind = False

    def begin(self, refcounts: Refcounts) -> None:
        """Called by ``create``: the image is new, and *refcounts* is its allocator."""
        self.refcounts_read = refcounts

    # -- changes ------------------------------------------------------------------------------------------------

    def begin_change(self) -> None:
        """Before guest data changes: features that this driver does not keep up are cleared, bitmaps are in use."""
        if self.begun:
            return
        self.begun = True
        header = self.header
        kept = header.autoclear_features & c.KNOWN_AUTOCLEAR
        if kept != header.autoclear_features:
            header.autoclear_features = kept
            self.order.write_header()
            self.order_files()
        if header.autoclear_features & c.BITMAPS:
            self.bitmaps.begin()

    def changing(self, offset: int, length: int) -> None:
        """Guest bytes *offset* to *offset + length* are about to change."""
        self.begin_change()
        if self._bitmaps is not None and self.recording:
            self._bitmaps.mark(offset, length)

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

    def order_files(self) -> None:
        """See :meth:`WriteOrder.order_files`."""
        self.order.order_files()

    def flush(self) -> None:
        """Everything published so far reaches the disk."""
        if self.writable:
            self.order.flush_tables()
        self.file.flush()
        if self.data is not None and self.data is not self.file:
            self.data.flush()

    def settle(self) -> None:
        """The new image is whole."""
        self.store_bitmaps()
        super().settle()
        self.fresh = False
