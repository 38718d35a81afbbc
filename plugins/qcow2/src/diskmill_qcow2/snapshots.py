"""Internal snapshots: the snapshot table.

Source: the specification's section "Snapshots"; limits are QEMU's.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from diskmill.errors import ImageError, UnsupportedError, UsageError
from diskmill.records import record
from diskmill.sizes import round_up

from . import c_qcow2 as c
from .bounds import outside

if TYPE_CHECKING:
    from diskmill.contract.node import Node
    from diskmill.contract.results import Snapshot

    from .header import Header
    from .image import Qcow2Image
    from .revision import Revision


@record
class Entry:
    """A snapshot table entry.

    :ivar disk_size: the guest disk's size in bytes when it was taken; None where the entry does not say.
    :ivar extra: the extra data after the fields known here.
    """

    l1_table_offset: int
    l1_size: int
    id: str
    name: str
    date_sec: int
    date_nsec: int
    vm_clock_nsec: int
    vm_state_size: int
    disk_size: int | None
    icount: int | None = None
    extra: bytes = b""

    def result(self) -> Snapshot:
        """As commands show it."""
        from diskmill.contract.results import Snapshot

        second, rest = divmod(self.vm_clock_nsec, 1_000_000_000)
        return Snapshot(
            self.id,
            self.name,
            self.vm_state_size,
            self.date_sec,
            self.date_nsec,
            second,
            rest,
            self.icount,
            self.disk_size,
        )


def act(image: Qcow2Image, action: str, name: str) -> list[Snapshot]:
    """List the snapshots; ``create``, ``apply`` or ``delete`` one; or ``load`` one: *image*, open for reading, then
    reads as the snapshot.

    :raises UsageError: there is no such snapshot, or one cannot be called so.
    :raises UnsupportedError: the image cannot have snapshots, or its refcounts cannot count them.
    """
    with image.lock:
        entries, length = read_table(image.file, image.header, image.name)
        if action == "load":
            _load(image, find(entries, name, image.name))
        elif action == "create":
            entries = _create(image, entries, length, name)
        elif action == "apply":
            _apply(image, find(entries, name, image.name))
        elif action == "delete":
            entries = _delete(image, entries, length, name)
        return [entry.result() for entry in entries]


def find(entries: list[Entry], name: str, file: str) -> Entry:
    """The snapshot whose id, else whose name, is *name*.

    :raises UsageError: there is none.
    """
    for key in ("id", "name"):
        for entry in entries:
            if getattr(entry, key) == name:
                return entry
    raise UsageError(f"there is no snapshot '{name}'", file=file)


def _load(image: Qcow2Image, entry: Entry) -> None:
    image.load(entry.l1_table_offset, entry.l1_size, _check(image, entry))


def _check(image: Qcow2Image, entry: Entry) -> int:
    """The guest disk's size in *entry*, whose L1 table can be where it says.

    :raises ImageError: it cannot.
    """
    header, place = image.header, f"snapshot {entry.id}"
    size = header.size if entry.disk_size is None else entry.disk_size // 512 * 512
    length = entry.l1_size * 8
    if length > c.MAX_L1_BYTES or outside(entry.l1_table_offset, length, image.unit, image.file.size):
        raise ImageError(
            f"its L1 table of {entry.l1_size} entries at offset {entry.l1_table_offset} cannot be",
            file=image.name,
            place=place,
        )
    if entry.l1_size < -(-size // (image.unit * header.l2_entries)):
        raise ImageError(f"its L1 table is too small for {size} bytes", file=image.name, place=place)
    return size


# -- taking, going back to, deleting --------------------------------------------------------------------------------


def _create(image: Qcow2Image, entries: list[Entry], length: int, name: str) -> list[Entry]:
    """The snapshot shares everything with the active L1 table, which so loses every COPIED flag."""
    import time

    from .revision import Revision

    if image.external:
        raise UnsupportedError("an image with an external data file has no internal snapshots", file=image.name)
    if len(entries) >= c.MAX_SNAPSHOTS:
        raise UnsupportedError(f"it has {len(entries)} snapshots: there can be no more", file=image.name)
    if len(os.fsencode(name)) > c.MAX_SNAPSHOT_NAME:
        raise UsageError(f"the snapshot's name is longer than {c.MAX_SNAPSHOT_NAME} bytes", file=image.name)
    revision = Revision(image)
    revision.refer(revision.l1, revision.gained)
    revision.verify()
    l1 = revision.share(revision.l1, weight=2)
    revision.set_l1(l1)
    second, rest = divmod(time.time_ns(), 1_000_000_000)
    entry = Entry(
        l1_table_offset=revision.put(l1.astype(">u8").tobytes()),
        l1_size=len(l1),
        id=str(max((_number(entry.id) for entry in entries), default=0) + 1),
        name=name,
        date_sec=second & 0xFFFFFFFF,
        date_nsec=rest,
        vm_clock_nsec=0,
        vm_state_size=0,
        disk_size=image.size,
        icount=0,
    )
    put_table(revision, [*entries, entry], length)
    revision.commit()
    return [*entries, entry]


def _apply(image: Qcow2Image, entry: Entry) -> None:
    """The active L1 table becomes a copy of the snapshot's, and the disk as large as it was then."""
    from .revision import Revision

    if image.external:
        raise UnsupportedError("an image with an external data file has no internal snapshots", file=image.name)
    size = _check(image, entry)
    if size != image.size and image.header.version < 3:
        raise UnsupportedError("a version 2 image with snapshots cannot be resized", file=image.name)
    if image.header.autoclear_features & c.BITMAPS:  # as in QEMU: they would tell of another disk
        raise UnsupportedError("Device has active dirty bitmaps: remove them first", file=image.name)
    image.begin_change()
    revision = Revision(image)
    there = revision.read_l1(*checked(image, entry))
    revision.refer(there, revision.gained)
    revision.refer(revision.l1, revision.lost)
    revision.verify()
    revision.set_l1(revision.share(there, weight=1))
    revision.header.size = size
    revision.commit()


def _delete(image: Qcow2Image, entries: list[Entry], length: int, name: str) -> list[Entry]:
    """What the snapshot alone used is free; what the active L1 table has alone now gets its COPIED flag."""
    from .revision import Revision

    entry = next((entry for entry in entries if entry.name == name), None)
    if entry is None:
        raise UsageError(f"there is no snapshot named '{name}'", file=image.name)
    rest = [other for other in entries if other is not entry]
    revision = Revision(image)
    revision.refer(revision.read_l1(*checked(image, entry)), revision.lost)
    revision.verify()
    revision.set_l1(revision.own(revision.l1))
    revision.free(entry.l1_table_offset, entry.l1_size * 8)
    put_table(revision, rest, length)
    revision.commit()
    return rest


def checked(image: Qcow2Image, entry: Entry) -> tuple[int, int]:
    """Where the L1 table of *entry* is, and how many entries it has.

    :raises ImageError: it cannot be there.
    """
    _check(image, entry)
    return entry.l1_table_offset, entry.l1_size


def _number(text: str) -> int:
    """The number that *text* begins with; 0 where it does not."""
    digits = text[: len(text) - len(text.lstrip("0123456789"))]
    return int(digits[:18] or 0)


def put_table(revision: Revision, entries: list[Entry], old_length: int) -> None:
    """Write the snapshot table anew."""
    header = revision.header
    data = pack_table(entries, header.size)
    if len(data) > c.MAX_SNAPSHOT_TABLE_BYTES:
        raise UnsupportedError("the snapshot table is full", file=revision.image.name)
    if old_length:
        revision.free(header.snapshots_offset, old_length)
    header.snapshots_offset = revision.put(data)
    header.nb_snapshots = len(entries)


def pack_table(entries: list[Entry], disk_size: int) -> bytes:
    """The snapshot table, every entry with the extra data of version 3.

    :param disk_size: for entries that do not tell theirs.
    """
    parts = []
    for entry in entries:
        icount = _NO_ICOUNT if entry.icount is None else entry.icount
        size = disk_size if entry.disk_size is None else entry.disk_size
        extra = b"".join(value.to_bytes(8, "big") for value in (entry.vm_state_size, size, icount)) + entry.extra
        key, name = os.fsencode(entry.id), os.fsencode(entry.name)
        record = c.SNAPSHOT.new(
            l1_table_offset=entry.l1_table_offset,
            l1_size=entry.l1_size,
            id_size=len(key),
            name_size=len(name),
            date_sec=entry.date_sec,
            date_nsec=entry.date_nsec,
            vm_clock_nsec=entry.vm_clock_nsec,
            vm_state_size=entry.vm_state_size if entry.vm_state_size < 1 << 32 else 0,
            extra_data_size=len(extra),
        )
        data = c.SNAPSHOT.pack(record) + extra + key + name
        parts.append(data.ljust(round_up(len(data), 8), b"\0"))
    return b"".join(parts)


# -- the table ------------------------------------------------------------------------------------------------------

_NO_ICOUNT = (1 << 64) - 1


def read_table(file: Node, header: Header, name: str) -> tuple[list[Entry], int]:
    """The snapshot table's entries, and its length in bytes.

    :raises ImageError: it runs beyond the file or the limits.
    """
    entries, length, error = scan_table(file, header, name)
    if error is not None:
        raise error
    return entries, length


def scan_table(file: Node, header: Header, name: str) -> tuple[list[Entry], int, ImageError | None]:
    """The snapshot table's entries up to where they make no sense, their length in bytes, and what is wrong first.

    An entry that only lacks extra data, or has too much, is given with what it tells.
    """
    entries: list[Entry] = []
    first: ImageError | None = None
    if not header.nb_snapshots:
        return entries, 0, None
    limit = min(header.snapshots_offset + c.MAX_SNAPSHOT_TABLE_BYTES, file.size)
    window, base = b"", header.snapshots_offset
    at = base
    for index in range(header.nb_snapshots):
        place = f"snapshot table entry {index}"
        at = round_up(at, 8)
        window, base = _window(file, window, base, at, c.SNAPSHOT.size, limit)
        try:
            record = c.SNAPSHOT.unpack(window, at - base, file=name)
        except ImageError as error:
            return entries, at - header.snapshots_offset, first or error
        length = c.SNAPSHOT.size + record.extra_data_size + record.id_size + record.name_size
        if at + length > limit:
            first = first or ImageError("it ends beyond the file", file=name, place=place)
            return entries, at - header.snapshots_offset, first
        window, base = _window(file, window, base, at, length, limit)
        body = window[at - base + c.SNAPSHOT.size : at - base + length]
        extra, rest = body[: record.extra_data_size], body[record.extra_data_size :]
        numbers = [int.from_bytes(extra[low : low + 8], "big") for low in range(0, min(len(extra), 24) // 8 * 8, 8)]
        if record.extra_data_size > c.MAX_SNAPSHOT_EXTRA_DATA:
            extra = b""
            first = first or ImageError(f"extra data of {record.extra_data_size} bytes", file=name, place=place)
        if header.version > 2 and len(numbers) < 2:
            cause = "the extra data that version 3 demands is missing"
            first = first or ImageError(cause, file=name, place=place)
        entries.append(
            Entry(
                l1_table_offset=record.l1_table_offset,
                l1_size=record.l1_size,
                id=os.fsdecode(rest[: record.id_size]),
                name=os.fsdecode(rest[record.id_size :]),
                date_sec=record.date_sec,
                date_nsec=record.date_nsec,
                vm_clock_nsec=record.vm_clock_nsec,
                vm_state_size=numbers[0] if numbers else record.vm_state_size,
                disk_size=numbers[1] if len(numbers) > 1 else None,
                icount=numbers[2] if len(numbers) > 2 and numbers[2] != _NO_ICOUNT else None,
                extra=extra[24:],
            )
        )
        at += length
    return entries, at - header.snapshots_offset, first


def _window(file: Node, window: bytes, base: int, at: int, length: int, limit: int) -> tuple[bytes, int]:
    """Bytes of the file that have *at* to *at + length* in them, as far as the *limit* lets."""
    if at >= base and at + length <= base + len(window):
        return window, base
    return file.read(at, max(min(max(length, 65536), limit - at), 0)), at
