"""The order of writes: a crash between any two of them loses nothing but free space.

Clusters are counted before anything points to them, what they hold is on disk before tables point there, and what
nothing points to any more is given back last. Of a new image that nobody has seen, the order does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diskmill.contract.threads import Retired

from . import c_qcow2 as c
from .header import Header, write_header

if TYPE_CHECKING:
    from .image import Qcow2Image
    from .l2 import Table


class WriteOrder:
    """Sends the tables of *image* to disk."""

    def __init__(self, image: Qcow2Image) -> None:
        self.image = image
        self.file, self.header, self.unit = image.file, image.header, image.unit
        self._retired: Retired[list[tuple[int, int]]] = Retired(image.readers)

    def order_files(self) -> None:
        """What was written to its files before reaches the disk before what is written after; tables in memory stay."""
        if self.image.fresh:
            return
        self.file.barrier()
        if self.image.data is not None and self.image.data is not self.file:
            self.image.data.barrier()

    def flush_tables(self) -> None:
        """Write the cached tables out, so that a crash between any two writes loses nothing but free space.

        1. refcount blocks, then what points to them; new L2 tables, as yet without their changes; 2. the L1 table;
        3. changes of the L2 tables, which now point to counted clusters whose data is there; 4. references that are
        gone are no longer counted.
        """
        image = self.image
        with image.lock:
            mapping, refcounts = image.mapping_read, image.refcounts_read
            if mapping is not None and mapping.changed or refcounts is not None and refcounts.changed:
                mapping = image.mapping
                new = mapping.unplaced()
                self._give_places(new)
                if not image.fresh:
                    mapping.write_origins(new)
                self.write_refcounts()
                mapping.link()
                if mapping.l1_dirty:
                    mapping.write_l1()
                    self.order_files()
                mapping.write_tables()
            self.give_back()

    def relieve(self) -> None:
        """Write tables out before they fill the memory."""
        refcounts = self.image.refcounts_read
        if self.image.mapping.crowded or refcounts is not None and refcounts.crowded:
            self.flush_tables()

    def write_refcounts(self) -> None:
        """What was allocated is counted on disk: now it may be pointed to."""
        refcounts, header = self.image.refcounts, self.header
        refcounts.apply()
        refcounts.write_blocks()
        if refcounts.table_dirty or refcounts.table_moved:
            self.order_files()
            refcounts.write_table()
        if refcounts.table_moved:
            self.order_files()
            header.refcount_table_offset = refcounts.offset
            header.refcount_table_clusters = len(refcounts.table) * 8 // self.unit
            self.write_header()
            refcounts.table_moved = False
        self.order_files()

    def _give_places(self, new: Sequence[Table]) -> None:
        """Give new L2 tables clusters, neighbouring ones where there are such."""
        if not new:
            return
        runs = self.image.refcounts.allocate(len(new))
        places = (first + index for first, count in runs for index in range(count))
        for table, cluster in zip(new, places, strict=True):
            table.offset = cluster * self.unit

    def place_table(self, at: int) -> None:
        """In a new image, give the L2 table of guest cluster *at* its place now, ahead of the clusters that it names:
        so that who reads the image once, from its first byte to its last, knows where each of them belongs."""
        if self.image.fresh:
            mapping = self.image.mapping
            index = at // mapping.count
            table = mapping.update(index, lambda offset: None)
            if not table.offset:
                self._give_places([table])
                mapping.link([index])

    def retire(self, clusters: list[tuple[int, int]]) -> None:
        """Runs of *clusters*, (first, number), each lose a reference as soon as nobody can be reading them."""
        self._retired.add(clusters)

    def give_back(self, *, last: bool = False) -> None:
        """Give back the clusters to which nothing points any more, on disk neither. The last step of a change.

        What somebody may still be reading waits for the next time.

        :param last: there is no next time.
        """
        image = self.image
        if image.refcounts_read is not None and (dropped := image.refcounts_read.dropped()):
            self.retire(dropped)
        ready = [run for clusters in self._retired.take(last=last or image.closed) for run in clusters]
        if not ready:
            return
        refcounts = image.refcounts
        self.order_files()
        freed = refcounts.release(ready)
        refcounts.write_blocks()
        self.order_files()
        if image.discards and not (image.closed and image.readers):
            for first, count in freed:
                self.file.discard(first * self.unit, count * self.unit)
        refcounts.offer(freed)

    def write_header(self) -> None:
        """Write the header area; features that this driver does not know, and so does not keep up, are cleared."""
        self.header.autoclear_features &= c.KNOWN_AUTOCLEAR
        if self.image.fresh:
            self.file.write(0, self.header.pack())
        else:
            write_header(self.file, self.header, self.order_files)

    def replace_header(self, header: Header) -> None:
        """Let *header* be the image's, on disk too.

        :raises UsageError: it does not fit in the first cluster; nothing is changed then.
        """
        header.pack()
        vars(self.header).update(vars(header))
        self.write_header()
        self.order_files()

    def mark_corrupt(self) -> None:
        """Nobody shall write to the image before it is repaired."""
        header = self.header
        if header.version > 2 and not header.incompatible_features & c.CORRUPT:
            header.incompatible_features |= c.CORRUPT
            self.write_header()
            self.order_files()
