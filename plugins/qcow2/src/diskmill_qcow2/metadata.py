"""Where the metadata is, so that no guest data is put over it: a damaged image may offer those clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import c_qcow2 as c

if TYPE_CHECKING:
    from .image import Qcow2Image
    from .refcounts import Refcounts


def metadata_clusters(image: Qcow2Image, refcounts: Refcounts) -> set[int]:
    """The host clusters that hold metadata, as far as header, L1 and refcount table say."""
    header, size = image.header, image.unit
    places = [(0, size), (header.l1_table_offset, header.l1_size * 8)]
    places.append((header.refcount_table_offset, header.refcount_table_clusters * size))
    if header.nb_snapshots:
        places.append((header.snapshots_offset, header.nb_snapshots * c.SNAPSHOT.size))
    if image.encrypted:
        from .encryption import place

        places.append(place(header, image.file, image.name))
    clusters = {
        cluster for offset, length in places for cluster in range(offset // size, -(-(offset + length) // size))
    }
    clusters.update((entry & c.REFTABLE_OFFSET_MASK) // size for entry in refcounts.table if entry)
    for run in image.mapping.l1.runs(0, len(image.mapping.l1), size):
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
        clusters.update(bitmap_clusters(image.bitmaps.all, size))
    return clusters
