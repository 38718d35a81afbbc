"""New images.

The layout is the one that QEMU gives a new image, since tools know it: header, refcount table and first refcount block
of a cluster each, the L1 table, then whatever is allocated. Further refcount blocks and L2 tables come where they are
first needed. Nothing but the size of the file says so before the image is flushed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diskmill.errors import UsageError
from diskmill.sizes import KiB, MiB, format_size

from . import c_qcow2 as c
from .encryption import install, prepare
from .header import Header
from .image import Qcow2Image
from .refcounts import FIRST_FREE, Refcounts

if TYPE_CHECKING:
    from diskmill.contract.drivers import FormatDriver
    from diskmill.contract.options import Value
    from diskmill.contract.requests import CreateRequest


@dataclass
class Parameters:
    """The ``create`` options, in the format's terms."""

    version: int
    cluster_size: int
    refcount_bits: int
    compression_type: int
    preallocation: str
    lazy_refcounts: bool
    extended_l2: bool
    data_file: str | None
    data_file_raw: bool
    backing_file: str | None
    backing_format: str | None
    size: int | None

    @property
    def l2_entries(self) -> int:
        """Entries of an L2 table."""
        return self.cluster_size // (16 if self.extended_l2 else 8)

    def l1_entries(self, size: int) -> int:
        """Entries of the L1 table of a disk of *size* bytes."""
        return -(-size // (self.cluster_size * self.l2_entries))

    def check_size(self, size: int) -> None:
        """Refuse a guest disk that the L1 table cannot hold.

        :raises UsageError: *size* is too large for the cluster size.
        """
        most = c.MAX_L1_BYTES // 8 * self.l2_entries * self.cluster_size
        if size > most:
            raise UsageError(
                f"a disk of {size} bytes is too large: "
                f"with cluster_size={self.cluster_size} the limit is {format_size(most)}"
            )


def parameters(options: Mapping[str, Value]) -> Parameters:
    """The *options*, checked against one another.

    :raises UsageError: they do not go together.
    """

    def text(name: str) -> str | None:
        value = options.get(name)
        return None if value is None or value == "" else str(value)

    size, raw = options.get("size"), bool(options.get("data_file_raw"))
    # The disk is to read the same with the tables and without them, also after it was written without them.
    least = "metadata" if raw else "off"
    preallocation = str(options.get("preallocation", least))
    chosen = Parameters(
        version=2 if options.get("compat") in ("0.10", "v2") else 3,
        cluster_size=int(options.get("cluster_size", 64 * KiB)),
        refcount_bits=int(options.get("refcount_bits", 16)),
        compression_type=c.COMPRESSION_TYPES.index(str(options.get("compression_type", "zlib"))),
        preallocation=least if preallocation == "off" else preallocation,
        lazy_refcounts=bool(options.get("lazy_refcounts")),
        extended_l2=bool(options.get("extended_l2")),
        data_file=text("data_file"),
        data_file_raw=raw,
        backing_file=text("backing_file"),
        backing_format=text("backing_fmt"),
        size=None if size is None else int(size),
    )
    cluster, bits = chosen.cluster_size, chosen.refcount_bits
    if cluster & (cluster - 1) or not 512 <= cluster <= 2 * MiB:
        raise UsageError(f"cluster_size must be a power of two from 512 to 2M, not {cluster}")
    if bits & (bits - 1) or not 1 <= bits <= 64:
        raise UsageError(f"refcount_bits must be a power of two from 1 to 64, not {bits}")
    if chosen.version == 2:
        for wrong, what in (
            (bits != 16, "refcount_bits other than 16"),
            (chosen.lazy_refcounts, "lazy_refcounts"),
            (chosen.extended_l2, "extended_l2"),
            (chosen.data_file is not None, "data_file"),
            (chosen.compression_type != 0, "compression_type other than zlib"),
        ):
            if wrong:
                raise UsageError(f"{what} needs compat=1.1 or later")
    if chosen.extended_l2 and cluster < 16 * KiB:
        raise UsageError("extended_l2 needs a cluster_size of at least 16k")
    if chosen.data_file_raw and chosen.data_file is None:
        raise UsageError("data_file_raw needs data_file")
    if chosen.backing_file is not None:
        if chosen.data_file_raw:
            raise UsageError("a backing file and data_file_raw cannot be used together")
        if chosen.preallocation != "off" and not chosen.extended_l2:
            raise UsageError("a backing file and preallocation can be used together only with extended_l2")
    elif chosen.backing_format is not None:
        raise UsageError("backing_fmt needs backing_file")
    return chosen


def create(driver: FormatDriver, request: CreateRequest) -> Qcow2Image:
    """The image that *request* asks for, with its header written and nothing allocated but what is preallocated."""
    file = request.file
    assert file is not None
    options = dict(request.options)
    if request.backing is not None:
        options["backing_file"] = request.backing.name
        if request.backing.format is not None:
            options["backing_fmt"] = request.backing.format
    chosen = parameters(options)
    size = request.size if chosen.size is None else -(-chosen.size // 512) * 512
    chosen.check_size(size)
    method, volume = prepare(options, request.context, request.name)
    if method and request.compressed:
        raise UsageError("an encrypted image has no compressed clusters", file=request.name)
    header = _header(chosen, size)
    header.crypt_method = method
    first = start = _lay_out(header, chosen, size)
    if volume is not None and volume.header:
        pointer = c.CRYPTO_HEADER.new(offset=start * header.cluster_size, length=len(volume.header))
        header.set_extension(c.EXT_CRYPTO_HEADER, c.CRYPTO_HEADER.pack(pointer))
        first += -(-len(volume.header) // header.cluster_size)
    data = None
    if chosen.data_file is not None:  # before anything is written: what is there may be that very file
        assert request.sibling is not None
        data = request.sibling(chosen.data_file)
    if file.size:
        file.truncate(0)
    # Up to the last L1 entry: what fills a table's last cluster need not be there.
    end = (header.l1_table_offset or start * header.cluster_size) + header.l1_size * 8
    file.truncate(end if first == start else first * header.cluster_size)
    image = Qcow2Image(driver, file, header, name=request.name, writable=True, fresh=True)
    image.begin(Refcounts(file, header, request.name, first=first, expected=_reftable_entries(chosen, size)))
    if volume is not None:
        image.volume = volume
        image.unlocking = request.context, options
        image.blank = chosen.preallocation == "off"  # space that nobody wrote decrypts to noise
        install(image, start * header.cluster_size)
    image.write_header()
    if data is not None:
        data.truncate(size)
        image.data = data
    if chosen.preallocation != "off":
        from .resize import preallocate

        preallocate(image, 0, size, chosen.preallocation)
    return image


def _header(chosen: Parameters, size: int) -> Header:
    header = Header(
        version=chosen.version,
        cluster_bits=chosen.cluster_size.bit_length() - 1,
        size=size,
        refcount_order=chosen.refcount_bits.bit_length() - 1,
        compression_type=chosen.compression_type,
        backing_file=chosen.backing_file,
    )
    if chosen.lazy_refcounts:
        header.compatible_features |= c.LAZY_REFCOUNTS
    if chosen.compression_type:
        header.incompatible_features |= c.COMPRESSION_TYPE
    if chosen.extended_l2:
        header.incompatible_features |= c.EXTENDED_L2
    if chosen.backing_format is not None:
        header.set_extension(c.EXT_BACKING_FORMAT, chosen.backing_format.encode())
    if chosen.data_file is not None:
        header.incompatible_features |= c.EXTERNAL_DATA_FILE
        header.set_extension(c.EXT_DATA_FILE, os.fsencode(chosen.data_file))
        if chosen.data_file_raw:
            header.autoclear_features |= c.RAW_EXTERNAL_DATA
    header.name_features()
    if header.backing_file is not None and len(os.fsencode(header.backing_file)) > c.MAX_BACKING_NAME:
        raise UsageError(f"the backing file name is longer than {c.MAX_BACKING_NAME} bytes")
    return header


def _lay_out(header: Header, chosen: Parameters, size: int) -> int:
    """Give the refcount table and the L1 table their places; the first free cluster."""
    cluster = header.cluster_size
    header.refcount_table_offset = cluster
    header.refcount_table_clusters = 1
    header.l1_size = chosen.l1_entries(size)
    header.l1_table_offset = FIRST_FREE * cluster if header.l1_size else 0
    return FIRST_FREE + -(-header.l1_size * 8 // cluster)


def _reftable_entries(chosen: Parameters, size: int) -> int:
    """Entries of a refcount table that counts the image when it is full: one that grows becomes as large at once."""
    from .measure import fully_allocated

    per_block = chosen.cluster_size * 8 // chosen.refcount_bits
    return -(-fully_allocated(0 if chosen.data_file else size, chosen) // chosen.cluster_size // per_block) + 1
