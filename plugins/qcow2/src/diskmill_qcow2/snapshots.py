"""Internal snapshots: the snapshot table.

Source: the specification's section "Snapshots"; limits are QEMU's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from diskmill.errors import ImageError, UnsupportedError, UsageError
from diskmill.sizes import round_up

from . import c_qcow2 as c

if TYPE_CHECKING:
    from diskmill.node import Node
    from diskmill.results import Snapshot

    from .header import Header
    from .image import Qcow2Image


@dataclass
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
        from diskmill.results import Snapshot

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
    """List the snapshots, or ``load`` one: *image*, open for reading, then reads as the snapshot.

    :raises UsageError: there is no snapshot with that id or name.
    :raises UnsupportedError: another action.
    """
    entries, _ = read_table(image.file, image.header, image.name)
    if action == "load":
        _load(image, find(entries, name, image.name))
    elif action != "list":
        raise UnsupportedError(f"this driver cannot {action} internal snapshots", file=image.name)
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
    header, place = image.header, f"snapshot {entry.id}"
    size = header.size if entry.disk_size is None else entry.disk_size // 512 * 512
    length = entry.l1_size * 8
    if (
        length > c.MAX_L1_BYTES
        or entry.l1_table_offset % image.unit
        or entry.l1_table_offset + length > image.file.size
    ):
        raise ImageError(
            f"its L1 table of {entry.l1_size} entries at offset {entry.l1_table_offset} cannot be",
            file=image.name,
            place=place,
        )
    if entry.l1_size < -(-size // (image.unit * header.l2_entries)):
        raise ImageError(f"its L1 table is too small for {size} bytes", file=image.name, place=place)
    image.load(entry.l1_table_offset, entry.l1_size, size)


_NO_ICOUNT = (1 << 64) - 1


def read_table(file: Node, header: Header, name: str) -> tuple[list[Entry], int]:
    """The snapshot table's entries, and its length in bytes.

    :raises ImageError: it runs beyond the file or the limits.
    """
    entries: list[Entry] = []
    if not header.nb_snapshots:
        return entries, 0
    limit = min(header.snapshots_offset + c.MAX_SNAPSHOT_TABLE_BYTES, file.size)
    window, base = b"", header.snapshots_offset
    at = base
    for index in range(header.nb_snapshots):
        place = f"snapshot table entry {index}"
        at = round_up(at, 8)
        window, base = _window(file, window, base, at, c.SNAPSHOT.size, limit)
        record = c.SNAPSHOT.unpack(window, at - base, file=name)
        if record.extra_data_size > c.MAX_SNAPSHOT_EXTRA_DATA:
            raise ImageError(f"extra data of {record.extra_data_size} bytes", file=name, place=place)
        length = c.SNAPSHOT.size + record.extra_data_size + record.id_size + record.name_size
        if at + length > limit:
            raise ImageError("it ends beyond the file", file=name, place=place)
        window, base = _window(file, window, base, at, length, limit)
        body = window[at - base + c.SNAPSHOT.size : at - base + length]
        extra, rest = body[: record.extra_data_size], body[record.extra_data_size :]
        numbers = [int.from_bytes(extra[low : low + 8], "big") for low in range(0, min(len(extra), 24) // 8 * 8, 8)]
        if header.version > 2 and len(numbers) < 2:
            raise ImageError("the extra data that version 3 demands is missing", file=name, place=place)
        entries.append(
            Entry(
                l1_table_offset=record.l1_table_offset,
                l1_size=record.l1_size,
                id=rest[: record.id_size].decode("utf-8", "replace"),
                name=rest[record.id_size :].decode("utf-8", "replace"),
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
    return entries, at - header.snapshots_offset


def _window(file: Node, window: bytes, base: int, at: int, length: int, limit: int) -> tuple[bytes, int]:
    """Bytes of the file that have *at* to *at + length* in them, as far as the *limit* lets."""
    if at >= base and at + length <= base + len(window):
        return window, base
    return file.read(at, max(min(max(length, 65536), limit - at), 0)), at
