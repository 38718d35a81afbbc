"""New images.

The layout is the one that QEMU gives a new image, since tools know it: header, refcount table and first refcount block
of a cluster each, the L1 table, then whatever is allocated. Further refcount blocks and L2 tables come where they are
first needed. Nothing but the size of the file says so before the image is flushed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from diskmill.errors import UsageError

from . import c_qcow2 as c
from .encryption import install, prepare
from .header import Header
from .image import Qcow2Image
from .parameters import Parameters, fully_allocated, parameters
from .refcounts import FIRST_FREE, Refcounts

if TYPE_CHECKING:
    from diskmill.contract.drivers import FormatDriver
    from diskmill.contract.node import Image
    from diskmill.contract.requests import CreateRequest


def create(driver: FormatDriver, request: CreateRequest) -> Image:
    """The image that *request* asks for, with its header written and nothing allocated but what is preallocated."""
    file = request.output()
    options = dict(request.options)
    if request.backing is not None:
        options["backing_file"] = request.backing.name
        if request.backing.format is not None:
            options["backing_fmt"] = request.backing.format
    chosen = parameters(options)
    size = request.size if chosen.size is None else -(-chosen.size // 512) * 512
    chosen.check_size(size)
    method, encryption, volume = prepare(options, request.context, request.name, chosen.cluster_size)
    if method and request.compressed:
        raise UsageError("an encrypted image has no compressed clusters", file=request.name)
    header = _header(chosen, size)
    if file.forward:
        from .forward import create_forward

        header.l1_size = chosen.l1_entries(size)
        return create_forward(driver, request, header)
    header.crypt_method = method
    first = start = _lay_out(header, chosen, size)
    if volume is not None and volume.header:
        pointer = c.CRYPTO_HEADER.new(offset=start * header.cluster_size, length=len(volume.header))
        header.set_extension(c.EXT_CRYPTO_HEADER, c.CRYPTO_HEADER.pack(pointer))
        first += -(-len(volume.header) // header.cluster_size)
    data = None
    if chosen.data_file is not None:  # before anything is written: what is there may be that very file
        data = request.sibling(chosen.data_file)
    if file.size:
        file.truncate(0)
    # Up to the last L1 entry: what fills a table's last cluster need not be there.
    end = (header.l1_table_offset or start * header.cluster_size) + header.l1_size * 8
    file.truncate(end if first == start else first * header.cluster_size)
    image = Qcow2Image(driver, file, header, name=request.name, writable=True, fresh=True)
    image.compression_level = chosen.compression_level
    image.begin(Refcounts(file, header, request.name, first=first, expected=_reftable_entries(chosen, size)))
    if volume is not None:
        image.volume, image.encryption = volume, encryption
        image.unlocking = request.context, options
        image.blank = chosen.preallocation == "off"  # space that nobody wrote decrypts to noise
        install(image, start * header.cluster_size)
    image.order.write_header()
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
    per_block = chosen.cluster_size * 8 // chosen.refcount_bits
    return -(-fully_allocated(0 if chosen.data_file else size, chosen) // chosen.cluster_size // per_block) + 1
