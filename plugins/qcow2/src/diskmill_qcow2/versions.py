"""Other versions of the format and other refcount widths: a new revision of the metadata.

Version 2 has no mark for zeros, so a downgrade makes ordinary clusters of zero clusters; version 3 demands more of the
snapshot table. Source: the specification's sections "Header", "Standard Cluster Descriptor" and "Snapshots".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from diskmill.errors import UnsupportedError

from . import c_qcow2 as c
from . import snapshots
from .header import Header
from .revision import Revision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .image import Qcow2Image


def refuse_downgrade(image: Qcow2Image, size: int) -> None:
    """Refuse what version 2 cannot say.

    :param size: of the guest disk, when it is done.
    :raises UnsupportedError: the image has it.
    """
    header = image.header
    if image.external:
        raise UnsupportedError("version 2 has no external data files", file=image.name)
    if header.extended_l2:
        raise UnsupportedError("version 2 has no extended L2 entries", file=image.name)
    if header.autoclear_features & c.BITMAPS:
        raise UnsupportedError("version 2 has no persistent bitmaps: remove them first", file=image.name)
    for entry in snapshots.read_table(image.file, header, image.name)[0]:
        if entry.vm_state_size >= 1 << 32 or entry.disk_size not in (None, size):
            raise UnsupportedError(
                f"version 2 cannot hold snapshot {entry.id}, whose disk or VM state has another size", file=image.name
            )


def rewrite(image: Qcow2Image, version: int, refcount_order: int, change: Callable[[Header], None]) -> None:
    """Let *image* have *version* and *refcount_order*, with one switch.

    :param change: makes the other changes of the header.
    :raises UnsupportedError: a refcount does not fit, or a compressed cluster has a type that version 2 lacks.
    """
    revision = Revision(image, refcount_order)
    header = revision.header
    entries, length = snapshots.read_table(image.file, header, image.name)
    if version < header.version:
        header.compatible_features = header.autoclear_features = 0
        header.rest = b""
        header.set_extension(c.EXT_FEATURE_TABLE, None)
        header.set_extension(c.EXT_BITMAPS, None)
        _expand_zeros(revision, entries)
        header.incompatible_features = header.compression_type = 0
    if entries and version != header.version:
        snapshots.put_table(revision, entries, length)
    upgrade = version > header.version
    header.version = version
    change(header)
    if upgrade:
        header.name_features()
    revision.verify()
    revision.commit()


def _expand_zeros(revision: Revision, entries: list[snapshots.Entry]) -> None:
    """Zero clusters become unallocated; over a backing image, clusters of zeros."""
    l1s = [revision.l1] + [revision.read_l1(*snapshots.checked(revision.image, entry)) for entry in entries]
    offsets = np.concatenate(l1s) & np.uint64(c.OFFSET_MASK)
    tables, weights = np.unique(offsets[offsets > 0], return_counts=True)
    moved = tables.copy()
    for indexes, words in revision.l2_tables(tables):
        for weight in np.unique(weights[indexes]).tolist():
            rows = weights[indexes] == weight
            _expand(revision, indexes[rows], words[rows], moved, weight)
    for number, l1 in enumerate(l1s):
        used = np.flatnonzero(l1 & np.uint64(c.OFFSET_MASK))
        places = moved[np.searchsorted(tables, l1[used] & np.uint64(c.OFFSET_MASK))]
        new = l1.copy()
        new[used] = l1[used] & np.uint64(c.COPIED) | places & np.uint64(c.OFFSET_MASK)
        if not number:
            revision.set_l1(new)
        elif (new != l1).any():
            entry = entries[number - 1]
            revision.free(entry.l1_table_offset, entry.l1_size * 8)
            entry.l1_table_offset = revision.put(new.astype(">u8").tobytes())


def _expand(revision: Revision, indexes: NDArray[Any], words: NDArray[Any], moved: NDArray[Any], weight: int) -> None:
    """The same for some L2 tables, *indexes* of *moved*, each of which *weight* L1 entries name."""
    compressed = words & np.uint64(c.COMPRESSED) != 0
    if revision.header.compression_type and compressed.any():
        raise UnsupportedError("version 2 has no clusters that are compressed with zstd", file=revision.image.name)
    zero = (words & np.uint64(c.ZERO) != 0) & ~compressed
    rows = zero.any(axis=1)
    if not rows.any():
        return
    indexes, words, zero = indexes[rows], words[rows], zero[rows]
    kept = words[zero] & np.uint64(c.OFFSET_MASK)
    revision.lost.add(np.sort(revision.clusters(kept[kept > 0])), weight)
    words[zero] = 0
    if revision.header.backing_file is not None:
        places = revision.allocate(int(np.count_nonzero(zero)))
        if weight > 1:
            revision.gained.add(np.sort(places), weight - 1)
        revision.blank(places)
        flag = np.uint64(c.COPIED if weight == 1 else 0)
        words[zero] = places << np.uint64(revision.bits) | flag
    revision.replace_tables(indexes, words, moved, weight)
