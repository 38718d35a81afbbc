"""The files in a tar archive: where they lie. Sources: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended
Header"; GNU tar 1.34, "Basic Tar Format"."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from diskmill.contract.extents import Extent
from diskmill.contract.node import Buffer, Node, ReadBuffer, Storage
from diskmill.errors import ImageError
from diskmill.sizes import SECTOR, MiB, round_up

_MOST = 10_000
"""Files that are looked at."""
_LONGEST = MiB
"""Bytes of an extended header at most: a name, or some records."""


class Entry(NamedTuple):
    """A regular file in the archive: its *name*, and that its *size* bytes begin at *offset*."""

    name: str
    offset: int
    size: int


def is_archive(file: Node) -> bool:
    """Whether *file* begins as an archive does, or as nothing that is text."""
    head = file.read_some(0, SECTOR)
    return head[257:262] == b"ustar" or not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def entries(file: Node, name: str) -> Iterator[Entry]:
    """The regular files of the archive in *file*, as they come.

    :raises ImageError: it is damaged.
    """
    at, told = 0, dict[str, str]()
    for _ in range(_MOST):
        block = file.read_some(at, SECTOR)
        if len(block) < SECTOR or not any(block):
            return  # two blocks of zeros end it, or the file does
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise ImageError(f"the archive is damaged: {error}", file=name, place=f"offset {at}") from None
        size = info.size
        if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            if not 0 <= size <= _LONGEST:
                raise ImageError(f"an extended header of {size} bytes", file=name, place=f"offset {at}")
            data = file.read_some(at + SECTOR, size)
            if info.type == tarfile.XHDTYPE:
                told |= _records(data)
            elif info.type == tarfile.GNUTYPE_LONGNAME:
                told["path"] = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
        else:
            if told.get("size", "").isdigit():
                size = int(told["size"][:20])
            if size < 0 or at + SECTOR + size > file.size:
                raise ImageError("the archive is cut short, or damaged", file=name, place=f"offset {at}")
            if info.isreg() and info.type != tarfile.GNUTYPE_SPARSE and "GNU.sparse.major" not in told:
                yield Entry(told.get("path", info.name), at + SECTOR, size)
            told = {}
        at += SECTOR + round_up(size, SECTOR)
    raise ImageError(f"the archive has more than {_MOST} files", file=name)


def _records(data: bytes) -> dict[str, str]:
    """The records of a pax header: ``LENGTH KEY=VALUE`` and a line feed each."""
    found: dict[str, str] = {}
    while data:
        digits, gap, _ = data[:20].partition(b" ")
        if not gap or not digits.isdigit() or not len(digits) + 1 < int(digits) <= len(data):
            break
        key, _, value = data[len(digits) + 1 : int(digits) - 1].partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        data = data[int(digits) :]
    return found


class Member(Storage):
    """A file inside of an archive: bytes of *base* from *offset* on. Who opened that closes it.

    :param size: how many; of a new one, how many it has so far.
    """

    def __init__(self, base: Storage, name: str, offset: int, size: int, *, writable: bool = False) -> None:
        self.base = base
        self.driver = base.driver
        self.name = name
        self.offset = offset
        self.size = size
        self.writable = writable
        self.blank = base.blank
        self.requests = base.requests
        self.forward, self.one_pass = base.forward, base.one_pass
        self.charged = base.charged

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer)
        inside = max(min(len(view), self.size - offset), 0)
        if inside:
            self.base.read_into(self.offset + offset, view[:inside])
        view[inside:] = bytes(len(view) - inside)

    def read_some(self, offset: int, length: int) -> bytes:
        return self.base.read_some(self.offset + offset, max(min(length, self.size - offset), 0))

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        inside = max(min(length, self.size - offset), 0)
        for extent in self.base.extents(self.offset + offset, inside):
            yield extent.moved(-self.offset)
        if inside < length:
            yield from super().extents(offset + inside, length - inside)

    def write(self, offset: int, data: ReadBuffer) -> None:
        self.base.write(self.offset + offset, data)
        self.size = max(self.size, offset + len(memoryview(data).cast("B")))

    def truncate(self, size: int) -> None:
        self.base.truncate(self.offset + size)
        self.size = size

    def flush(self) -> None:
        if self.writable:
            self.base.flush()

    def settle(self, others: object = ()) -> None:
        """It has its name in the archive."""

    def close(self) -> None:
        """Nothing of its own is open."""

    def abandon(self) -> None:
        """Nothing of its own is open."""

    def children(self) -> Iterator[Node]:
        yield self.base
