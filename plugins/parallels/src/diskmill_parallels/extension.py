"""The format extension: a cluster with features, of which the dirty bitmap is the only one that is known.

For the source see :mod:`diskmill_parallels.c_parallels`.
"""

from __future__ import annotations

import hashlib
import uuid
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from diskmill.errors import ImageError
from diskmill.kit import tables
from diskmill.records import field, record
from diskmill.sizes import SECTOR, MiB, round_up

from .c_parallels import BITMAP, BITMAP_FEATURE, END_FEATURE, EXTENSION, EXTENSION_MAGIC, FEATURE, NECESSARY

if TYPE_CHECKING:
    from diskmill.contract.node import Node

    from .image import ParallelsImage

_FEATURES = 1024
"""Features in an extension at most."""


@record
class Feature:
    """A section of the extension: its magic number, its flags, and where in the file its data is."""

    magic: int
    flags: int
    offset: int
    size: int

    @property
    def necessary(self) -> bool:
        """Whether who cannot keep it up to date must not change the image."""
        return bool(self.flags & NECESSARY)


@record
class DirtyBitmap:
    """A dirty bitmap: a bit for each *granularity* sectors of the guest disk, least significant bit first.

    :param name: its identifier, a UUID.
    :param size: sectors of the guest disk.
    :param table: for each cluster of the bitmap: 0 all clear, 1 all set, else its sector in the file.
    """

    name: str
    size: int
    granularity: int
    table: array[int]
    file: Node
    cluster: int

    def dirty(self) -> Iterator[tuple[int, int]]:
        """(guest offset, length) of the stretches that are dirty, in bytes, in order."""
        grain = self.granularity * SECTOR
        start = end = 0
        for low, high in self._set_bits():
            if low != end or end == start:
                if end > start:
                    yield start * grain, min(end * grain, self.size * SECTOR) - start * grain
                start = low
            end = high
        if end > start:
            yield start * grain, min(end * grain, self.size * SECTOR) - start * grain

    def _set_bits(self) -> Iterator[tuple[int, int]]:
        """First and end of stretches of set bits; those of neighbouring pieces may touch."""
        bits = -(-self.size // self.granularity)
        per_cluster = self.cluster * 8
        for index, where in enumerate(self.table):
            base = index * per_cluster
            count = min(per_cluster, bits - base)
            if where == 1 and count > 0:
                yield base, base + count
            if where < 2:
                continue
            for at in range(0, -(-count // 8), MiB):
                data = self.file.read(where * SECTOR + at, min(MiB, -(-count // 8) - at))
                if not data.strip(b"\0"):
                    continue
                text = f"{int.from_bytes(data, 'little'):b}"[::-1]
                first = text.find("1")
                while first >= 0:
                    upto = text.find("0", first)
                    upto = len(text) if upto < 0 else upto
                    low, high = at * 8 + first, min(at * 8 + upto, count)
                    if low < high:
                        yield base + low, base + high
                    first = text.find("1", upto)


@record
class Extension:
    """What the extension of an image holds."""

    features: list[Feature] = field(default_factory=list)
    bitmaps: list[DirtyBitmap] = field(default_factory=list)
    end: int = 0
    """The file offset behind all its clusters."""

    @classmethod
    def read(cls, image: ParallelsImage) -> Extension:
        """The extension of *image*, whose header names one.

        :raises ImageError: it is damaged.
        """
        file, cluster, offset = image.file, image.block_size, image.header.ext_off * SECTOR

        def bad(cause: str) -> ImageError:
            return ImageError(cause, file=image.name, place="format extension")

        if offset < image.data_start or offset + cluster > file.size:
            raise bad("it does not lie inside the data area of the file")
        head = EXTENSION.unpack(file.read(offset, min(EXTENSION.size, cluster)), file=image.name)
        if head.magic != EXTENSION_MAGIC:
            raise bad("bad magic")
        digest = hashlib.md5(usedforsecurity=False)
        for at in range(EXTENSION.size, cluster, MiB):
            digest.update(file.read(offset + at, min(MiB, cluster - at)))
        if digest.digest() != head.m_CheckSum:
            raise bad("wrong checksum")
        result = cls(end=offset + cluster)
        at = EXTENSION.size
        while True:
            if at + FEATURE.size > cluster or len(result.features) > _FEATURES:
                raise bad("it has no end")
            section = FEATURE.unpack(file.read(offset + at, FEATURE.size))
            at += FEATURE.size
            if section.magic == END_FEATURE:
                return result
            if at + section.data_size > cluster:
                raise bad("a feature is longer than its cluster")
            feature = Feature(section.magic, section.flags, offset + at, section.data_size)
            result.features.append(feature)
            if section.magic == BITMAP_FEATURE:
                result._bitmap(image, feature, bad_size=bad("a dirty bitmap does not fit the disk"))
            at += round_up(section.data_size, 8)

    def _bitmap(self, image: ParallelsImage, feature: Feature, *, bad_size: ImageError) -> None:
        file, cluster = image.file, image.block_size
        if feature.size < BITMAP.size:
            raise bad_size
        record = BITMAP.unpack(file.read(feature.offset, BITMAP.size))
        grain, count = record.granularity, record.l1_size
        if record.size != image.size // SECTOR or not grain or grain & grain - 1:
            raise bad_size
        bits = -(-record.size // grain)
        needed = -(-bits // (cluster * 8))
        if count != needed or BITMAP.size + count * 8 > feature.size:
            raise bad_size
        table = tables.read(file, feature.offset + BITMAP.size, count, 8, "little")
        for where in table:
            if where > 1:
                end = where * SECTOR + cluster
                if where * SECTOR < image.data_start or end > file.size:
                    raise bad_size
                self.end = max(self.end, end)
        name = str(uuid.UUID(bytes_le=record.id))
        self.bitmaps.append(DirtyBitmap(name, record.size, grain, table, file, cluster))
