"""The header: read with every field checked, kept with what is not understood, written back.

Source: the specification's sections "Header" and "Header extensions"; the limits are those that QEMU sets.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from diskmill.errors import ImageError, UnsupportedError, UsageError
from diskmill.records import field, record, replace
from diskmill.sizes import SECTOR, KiB, MiB, round_down, round_up

from . import c_qcow2 as c
from .bounds import outside, unaligned

if TYPE_CHECKING:
    from collections.abc import Callable

    from diskmill.contract.node import Node

_MOST_WITHOUT_NAMES = 4096
"""Clusters of up to so many bytes are kept for the names of files."""
_WORDS = {0: "incompatible", 1: "compatible", 2: "autoclear"}


@record
class Header:
    """The header's fields in the specification's names, and the extensions behind it.

    ``backing_file_offset``, ``backing_file_size`` and ``header_length`` follow from the rest when it is written.
    """

    version: int
    cluster_bits: int
    size: int
    l1_size: int = 0
    l1_table_offset: int = 0
    refcount_table_offset: int = 0
    refcount_table_clusters: int = 0
    refcount_order: int = 4
    crypt_method: int = c.CRYPT_NONE
    nb_snapshots: int = 0
    snapshots_offset: int = 0
    incompatible_features: int = 0
    compatible_features: int = 0
    autoclear_features: int = 0
    compression_type: int = 0
    extensions: list[tuple[int, bytes]] = field(default_factory=list)
    """(type, data) in order, those that this driver does not know included."""
    backing_file: str | None = None
    short: bool = False
    """Whether it has 104 bytes, as older writers made them: readers that know no more refuse longer ones."""
    rest: bytes = b""
    """Header bytes after the fields known here; they are preserved."""

    def copy(self) -> Header:
        """Another one that says the same."""
        return replace(self, extensions=list(self.extensions))

    @property
    def cluster_size(self) -> int:
        """Bytes in a cluster."""
        return 1 << self.cluster_bits

    @property
    def refcount_bits(self) -> int:
        """Bits in a refcount."""
        return 1 << self.refcount_order

    @property
    def extended_l2(self) -> bool:
        """Whether L2 entries have subcluster bitmaps."""
        return bool(self.incompatible_features & c.EXTENDED_L2)

    @property
    def l2_entries(self) -> int:
        """Entries of an L2 table."""
        return self.cluster_size // (16 if self.extended_l2 else 8)

    @property
    def l1_needed(self) -> int:
        """L1 entries that the guest disk needs; the VM state of snapshots lies after them."""
        return -(-self.size // (self.cluster_size * self.l2_entries))

    def extension(self, kind: int) -> bytes | None:
        """The data of the header extension of type *kind*."""
        return next((data for number, data in self.extensions if number == kind), None)

    def set_extension(self, kind: int, data: bytes | None) -> None:
        """Replace, add or (None) remove an extension."""
        for index, (number, _) in enumerate(self.extensions):
            if number == kind:
                self.extensions[index : index + 1] = [] if data is None else [(kind, data)]
                return
        if data is not None:
            self.extensions.append((kind, data))

    @property
    def backing_format(self) -> str | None:
        """The driver that the header names for the backing file."""
        data = self.extension(c.EXT_BACKING_FORMAT)
        return None if data is None else data.decode("utf-8", "replace")

    @property
    def data_file(self) -> str | None:
        """The name of the external data file, where the header has one."""
        data = self.extension(c.EXT_DATA_FILE)
        return None if data is None else os.fsdecode(data)

    def pack(self, backing_at: int | None = None) -> bytes:
        """The header area, from the file's first byte to the end of the backing file name.

        :param backing_at: leave the name out: it is at this offset.
        :raises UsageError: it does not fit in the first cluster.
        """
        record = c.HEADER.new(magic=c.QCOW_MAGIC, header_length=self._length())
        for name in c.HEADER.offsets:
            if name in self.__dict__:
                setattr(record, name, self.__dict__[name])
        parts = []
        for kind, data in [*self.extensions, (c.EXT_END, b"")]:
            parts.append(c.EXTENSION.pack(c.EXTENSION.new(type=kind, length=len(data))))
            parts.append(data.ljust(round_up(len(data), 8), b"\0"))
        extensions = b"".join(parts)
        if self.backing_file is not None:
            backing = os.fsencode(self.backing_file)
            record.backing_file_offset = backing_at or self._length() + len(extensions)
            record.backing_file_size = len(backing)
            extensions += backing if backing_at is None else b""
        if self.version == 2:
            data = c.HEADER_V2.pack(record) + extensions
        else:
            fields = c.HEADER.pack(record) + bytes([self.compression_type])
            data = (fields + self.rest).ljust(self._length(), b"\0")[: self._length()] + extensions
        if len(data) > self.cluster_size:
            raise UsageError(
                f"the header with its names takes {len(data)} bytes, more than a cluster of {self.cluster_size}"
            )
        return data

    def name_features(self) -> None:
        """Add the feature name table, where there is room for it, and QEMU would."""
        room = self.cluster_size - len(self.pack()) - 8
        if self.version > 2 and self.cluster_size > _MOST_WITHOUT_NAMES and len(feature_table()) < room:
            self.set_extension(c.EXT_FEATURE_TABLE, feature_table())

    def _length(self) -> int:
        if self.version == 2:
            return c.HEADER_V2.size
        if self.short and not self.compression_type:
            return c.HEADER.size
        return c.HEADER_LENGTH + len(self.rest)

    def beyond(self, file_size: int) -> list[tuple[str, int, int]]:
        """(name, offset, length) of the tables that do not lie inside a file of *file_size* bytes."""
        places = [
            ("L1 table", self.l1_table_offset, self.l1_size * 8),
            ("snapshot table", self.snapshots_offset, self.nb_snapshots * c.SNAPSHOT.size),
        ]
        return [
            (what, offset, length)
            for what, offset, length in places
            if length and outside(offset, length, self.cluster_size, file_size)
        ]


def feature_table() -> bytes:
    """The data of the feature name table extension for new images."""
    return b"".join(
        c.FEATURE_NAME.pack(c.FEATURE_NAME.new(type=kind, bit=bit, name=name.encode()))
        for kind, bit, name in c.FEATURES
    )


def write_header(file: Node, header: Header, barrier: Callable[[], None]) -> None:
    """Let the header area on disk be *header*; a crash leaves that or the one before, where there is room to do so.

    Only a sector is written whole or not at all, so what lies in further sectors is not changed while the first one
    has it read.
    """
    data, old = header.pack(), file.read(0, header.cluster_size)
    first, rest = data[:SECTOR], data[SECTOR:]
    if rest != old[SECTOR : len(data)]:
        if old[SECTOR : len(data)].strip(b"\0"):
            _write_short(file, header, max(len(data), len(old.rstrip(b"\0"))), barrier)
        file.write(SECTOR, rest)
        barrier()
    file.write(0, first)


def _write_short(file: Node, header: Header, free: int, barrier: Callable[[], None]) -> None:
    """Write *header*, but all in the first sector: without feature names, and the backing file's name at *free*."""
    short = header.copy()
    short.set_extension(c.EXT_FEATURE_TABLE, None)
    data = short.pack()
    if len(data) > SECTOR and short.backing_file is not None:
        name, free = os.fsencode(short.backing_file), round_up(free, SECTOR)
        if free + len(name) > short.cluster_size:
            return
        data = short.pack(free)
        file.write(free, name)
        barrier()
    if len(data) <= SECTOR:
        file.write(0, data)
        barrier()


_USUAL_CLUSTER = 64 * KiB


def read_header(file: Node, name: str) -> Header:
    """The header of the image in *file*, checked.

    :param name: the image's name, for errors.
    :raises ImageError: a field is impossible.
    :raises UnsupportedError: a version or a feature that this driver does not know.
    """
    # Mostly that is all of the first cluster; to read the longest one that may be costs more than all else of an open.
    data = file.read(0, min(file.size, _USUAL_CLUSTER))
    if data.startswith(c.QCOW_MAGIC) and len(data) == _USUAL_CLUSTER:
        bits = c.HEADER_V2.unpack(data, file=name).cluster_bits
        if 1 << min(bits, c.MAX_CLUSTER_BITS) > _USUAL_CLUSTER:
            data = file.read(0, min(file.size, 1 << min(bits, c.MAX_CLUSTER_BITS)))
    return parse_header(data, file.size, name)


def parse_header(data: bytes, file_size: int, name: str) -> Header:
    """As :func:`read_header`, from *data*, which begins a file of *file_size* bytes and has the first cluster."""
    if not data.startswith(c.QCOW_MAGIC):
        raise ImageError("not a qcow2 image: the magic is missing", file=name)
    record = c.HEADER_V2.unpack(data, file=name)
    version = record.version
    if version not in (2, 3):
        raise UnsupportedError(f"qcow2 version {version} is not known", file=name)
    if not c.MIN_CLUSTER_BITS <= record.cluster_bits <= c.MAX_CLUSTER_BITS:
        raise _bad(name, f"cluster_bits is {record.cluster_bits}, not 9 to 21")
    cluster = data[: 1 << record.cluster_bits]
    length, rest = c.HEADER_V2.size, b""
    header = Header(version=version, cluster_bits=record.cluster_bits, size=round_down(record.size, 512))
    if version == 3:
        record = c.HEADER.unpack(cluster, file=name)
        length = record.header_length
        if length < c.HEADER.size or length % 8:
            raise _bad(name, f"header_length is {length}")
        if length > len(cluster):
            raise _bad(name, f"header_length {length} exceeds the cluster")
        if length > c.COMPRESSION_TYPE_OFFSET:
            header.compression_type = cluster[c.COMPRESSION_TYPE_OFFSET]
        header.short = length == c.HEADER.size
        rest = cluster[c.HEADER_LENGTH : length]
    for field_name in c.HEADER.offsets:
        if field_name in header.__dict__ and field_name != "size" and hasattr(record, field_name):
            setattr(header, field_name, getattr(record, field_name))
    header.rest = bytes(rest)
    _extensions(header, cluster, length, record.backing_file_offset, name)
    _features(header, name)
    _backing(header, record.backing_file_offset, record.backing_file_size, cluster, name)
    _tables(header, name)
    return header


def _bad(name: str, cause: str, place: str = "header") -> ImageError:
    return ImageError(cause, file=name, place=place)


def _extensions(header: Header, cluster: bytes, at: int, backing_offset: int, name: str) -> None:
    if backing_offset > header.cluster_size:
        raise _bad(name, f"backing_file_offset {backing_offset} lies outside the first cluster")
    end = min(backing_offset or len(cluster), len(cluster))
    while at + c.EXTENSION.size <= end:
        extension = c.EXTENSION.unpack(cluster, at)
        at += c.EXTENSION.size
        if extension.type == c.EXT_END:
            return
        if extension.length > end - at:
            raise _bad(name, f"a header extension of {extension.length} bytes does not fit", f"header offset {at}")
        header.extensions.append((extension.type, cluster[at : at + extension.length]))
        at += round_up(extension.length, 8)


def _features(header: Header, name: str) -> None:
    unknown = header.incompatible_features & ~c.KNOWN_INCOMPATIBLE
    if unknown:
        names = _feature_names(header)
        words = [names.get((0, bit), f"bit {bit}") for bit in range(64) if unknown >> bit & 1]
        raise UnsupportedError(f"needs features that are not supported: {', '.join(words)}", file=name)
    typed = bool(header.incompatible_features & c.COMPRESSION_TYPE)
    if typed != (header.compression_type != 0):
        raise _bad(name, f"compression_type {header.compression_type} contradicts the feature bit for it")
    if header.compression_type >= len(c.COMPRESSION_TYPES):
        raise UnsupportedError(f"compression type {header.compression_type} is not known", file=name)
    if header.extended_l2 and header.cluster_bits < c.MIN_EXTENDED_CLUSTER_BITS:
        raise _bad(name, "extended L2 entries need clusters of at least 16 KiB")
    if header.refcount_order > 6:
        raise _bad(name, f"refcount_order is {header.refcount_order}, more than 6")
    for kind, most in ((c.EXT_BACKING_FORMAT, 15), (c.EXT_DATA_FILE, c.MAX_BACKING_NAME)):
        data = header.extension(kind)
        if data is not None and len(data) > most:
            raise _bad(name, f"a name of {len(data)} bytes is too long", "header extension")
    bitmaps = header.extension(c.EXT_BITMAPS)
    if bitmaps is not None and len(bitmaps) != c.BITMAPS_EXTENSION.size:
        raise _bad(name, f"the bitmaps extension has {len(bitmaps)} bytes, not {c.BITMAPS_EXTENSION.size}")
    crypto = header.extension(c.EXT_CRYPTO_HEADER)
    if crypto is not None and len(crypto) != c.CRYPTO_HEADER.size:
        raise _bad(name, f"the encryption header pointer has {len(crypto)} bytes, not {c.CRYPTO_HEADER.size}")
    if header.crypt_method == c.CRYPT_LUKS and crypto is None:
        raise _bad(name, "the pointer to the LUKS header is missing")


def _feature_names(header: Header) -> dict[tuple[int, int], str]:
    data = header.extension(c.EXT_FEATURE_TABLE) or b""
    names = {(kind, bit): name for kind, bit, name in c.FEATURES}
    for at in range(0, len(data) - c.FEATURE_NAME.size + 1, c.FEATURE_NAME.size):
        entry = c.FEATURE_NAME.unpack(data, at)
        text = entry.name.split(b"\0")[0].decode("utf-8", "replace").strip()
        if text:
            names[entry.type, entry.bit] = text
    return names


def _backing(header: Header, offset: int, size: int, cluster: bytes, name: str) -> None:
    if not offset:
        return
    if size > min(c.MAX_BACKING_NAME, header.cluster_size - offset):
        raise _bad(name, f"a backing file name of {size} bytes is too long")
    if offset + size > len(cluster):
        raise _bad(name, "the file ends inside the backing file name")
    if size:
        header.backing_file = os.fsdecode(cluster[offset : offset + size])


def _tables(header: Header, name: str) -> None:
    """The tables' places: aligned, of possible size. Whether they lie inside the file is asked by :meth:`beyond`."""
    if header.l1_size * 8 > c.MAX_L1_BYTES:
        raise _bad(name, f"an L1 table of {header.l1_size} entries is larger than {c.MAX_L1_BYTES // MiB} MiB")
    if header.l1_size < header.l1_needed:
        raise _bad(name, f"an L1 table of {header.l1_size} entries is too small for the disk's {header.size} bytes")
    _aligned(header, "L1 table", header.l1_table_offset, name)
    if header.refcount_table_clusters * header.cluster_size > c.MAX_REFTABLE_BYTES:
        raise _bad(name, f"a refcount table of {header.refcount_table_clusters} clusters is larger than 8 MiB")
    if header.nb_snapshots > c.MAX_SNAPSHOTS:
        raise _bad(name, f"{header.nb_snapshots} snapshots are more than {c.MAX_SNAPSHOTS}")
    _aligned(header, "snapshot table", header.snapshots_offset if header.nb_snapshots else 0, name)


def _aligned(header: Header, what: str, offset: int, name: str) -> None:
    if unaligned(offset, header.cluster_size):
        raise _bad(name, f"its offset {offset} is not at a cluster boundary", what)


def _place(header: Header, what: str, offset: int, length: int, file_size: int, name: str) -> None:
    _aligned(header, what, offset, name)
    if length and outside(offset, length, header.cluster_size, file_size):
        raise _bad(name, f"its {length} bytes at offset {offset} are not inside the file of {file_size} bytes", what)


def check_refcount_table(header: Header, file_size: int, name: str) -> None:
    """Refuse a refcount table that cannot be: needed for writing, not for reading.

    :raises ImageError: it is missing, misplaced or beyond the end of the file.
    """
    if not header.refcount_table_clusters:
        raise _bad(name, "the image has no refcount table")
    length = header.refcount_table_clusters * header.cluster_size
    end = round_up(file_size, header.cluster_size)
    _place(header, "refcount table", header.refcount_table_offset, length, end, name)
