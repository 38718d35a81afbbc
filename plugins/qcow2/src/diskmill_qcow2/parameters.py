"""The options of a new image, in the format's terms, checked against one another, and how much space they mean.

Source: the specification's sections "Header", "Refcounts" and "Cluster mapping".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from diskmill.errors import UsageError
from diskmill.records import record
from diskmill.sizes import KiB, MiB, format_size, round_up

from . import c_qcow2 as c

if TYPE_CHECKING:
    from diskmill.contract.options import Value


@record
class Parameters:
    """The ``create`` options, in the format's terms."""

    version: int
    cluster_size: int
    refcount_bits: int
    compression_type: int
    compression_level: int | None
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

    level = options.get("compression_level")
    size, raw = options.get("size"), bool(options.get("data_file_raw"))
    # The disk is to read the same with the tables and without them, also after it was written without them.
    least = "metadata" if raw else "off"
    preallocation = str(options.get("preallocation", least))
    chosen = Parameters(
        version=2 if options.get("compat") in ("0.10", "v2") else 3,
        cluster_size=int(options.get("cluster_size", 64 * KiB)),
        refcount_bits=int(options.get("refcount_bits", 16)),
        compression_type=c.COMPRESSION_TYPES.index(str(options.get("compression_type", "zlib"))),
        compression_level=None if level is None else int(level),
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
    most = c.COMPRESSION_LEVELS[chosen.compression_type]
    if chosen.compression_level is not None and not 1 <= chosen.compression_level <= most:
        method = c.COMPRESSION_TYPES[chosen.compression_type]
        raise UsageError(f"compression_level of {method} must be 1 to {most}, not {chosen.compression_level}")
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


def fully_allocated(size: int, chosen: Parameters) -> int:
    """Bytes in the file of an image whose guest disk of *size* bytes is all allocated."""
    cluster = chosen.cluster_size
    size = round_up(size, cluster)
    l2_bytes = round_up(size // cluster, chosen.l2_entries) * (cluster // chosen.l2_entries)
    l1_bytes = round_up(l2_bytes // cluster * 8, cluster)
    before = cluster + l2_bytes + l1_bytes
    return size + before + _refcount_bytes((size + before) // cluster, chosen)


def _refcount_bytes(clusters: int, chosen: Parameters) -> int:
    """Bytes in the refcount table and blocks that count *clusters* and themselves."""
    per_block = chosen.cluster_size * 8 // chosen.refcount_bits
    per_table = chosen.cluster_size // 8
    own = 0
    while True:
        blocks = -(-(clusters + own) // per_block)
        table = -(-blocks // per_table)
        if blocks + table == own:
            return own * chosen.cluster_size
        own = blocks + table
