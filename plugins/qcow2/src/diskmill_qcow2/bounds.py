"""Where an entry of a table, or a field of the header, may point: the one answer for all who read and write.

Clusters and tables begin at cluster boundaries inside the file. Compressed data begins inside the file, and may, since
its length is counted in whole sectors, end behind it, by less than a cluster. Functions take single numbers as well as
arrays of them.

Source: the specification's sections "Cluster mapping" and "Host cluster management"; the one cluster is QEMU's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import c_qcow2 as c

if TYPE_CHECKING:
    from diskmill.contract.node import Node

    from .header import Header


def unaligned(host: Any, cluster_size: int) -> Any:
    """Whether offset *host* is not at a cluster boundary."""
    return host & (cluster_size - 1) != 0  # of an array, a tenth of what a division takes


def misplaced(host: Any, cluster_size: int, file_size: int) -> Any:
    """Whether there can be no cluster, or table, at offset *host*."""
    return unaligned(host, cluster_size) | (host >= file_size)


def outside(offset: int, length: int, cluster_size: int, file_size: int) -> bool:
    """Whether there can be no table of *length* bytes at *offset*. Of no bytes it can be anywhere."""
    return bool(unaligned(offset, cluster_size) or offset + length > file_size or length and not offset)


def compressed_misplaced(host: Any, end: Any, cluster_size: int, file_size: int) -> Any:
    """Whether there can be no compressed data from *host* to *end*."""
    return (host >= file_size) | (end >= file_size + cluster_size)


def counted(file: Node, header: Header, offset: int) -> bool:
    """Whether refcounts count the cluster at *offset*, which lies behind the end of the file.

    If so, or if the refcounts themselves lie there, the file was longer once, and what it had there is lost. If not,
    nothing ever was there.
    """
    size, bits = header.cluster_size, header.refcount_bits
    block, index = divmod(offset // size, size * 8 // bits)
    place = header.refcount_table_offset + block * 8
    if header.refcount_table_offset >= file.size:
        return True
    if block * 8 >= header.refcount_table_clusters * size:
        return False
    if place + 8 > file.size:
        return True
    start = int.from_bytes(file.read(place, 8), "big") & c.REFTABLE_OFFSET_MASK
    if not start:
        return False
    at = start + index * bits // 8
    width = max(bits // 8, 1)
    if at + width > file.size:
        return True
    value = int.from_bytes(file.read(at, width), "big")
    return bool(value if bits >= 8 else value >> index * bits % 8 & ((1 << bits) - 1))
