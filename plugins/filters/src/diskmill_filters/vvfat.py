"""The protocol ``vvfat``: a folder as a disk with a FAT file system, which is only read.

See ``BlockdevOptionsVVFAT`` in QEMU's ``qapi/block-core.json``. Links are not followed: they are left out.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from diskmill.contract.drivers import ProtocolDriver, hookimpl
from diskmill.contract.extents import Extent, Kind
from diskmill.contract.node import Storage
from diskmill.contract.options import Option
from diskmill.contract.place import NamedPlace
from diskmill.errors import StorageError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from diskmill.contract.node import Buffer
    from diskmill.contract.requests import OpenRequest

    from .fat import FileSystem, Found

_WORDS = ("floppy", "12", "16", "32", "rw")


class VvfatPlace(NamedPlace):
    """A folder as a disk: *options* are those of the node, without a name."""

    def __init__(self, driver: ProtocolDriver, name: str, options: Mapping[str, Any]) -> None:
        super().__init__(driver, name)
        self.options = options

    def objection(self) -> str:
        """What an image names is a file; not all that is in a folder."""
        return "it shows a whole folder"

    def identity(self) -> None:
        """Two of them have nothing in common that is written."""


class VvfatStorage(Storage):
    """The disk *system*."""

    def __init__(self, driver: ProtocolDriver, name: str, system: FileSystem) -> None:
        self.driver = driver
        self.name = name
        self.size = system.size
        self._segments = system.segments
        self._starts = [one.offset for one in system.segments]

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        for start, stop, place in self._parts(offset, end):
            yield Extent(start, stop - start, Kind.ZERO if place is None else Kind.DATA, self, start)

    def _parts(self, offset: int, end: int) -> Iterator[tuple[int, int, int | None]]:
        """The range in pieces: beginning, end, and the number of the segment, where there is one."""
        place = max(bisect_right(self._starts, offset) - 1, 0)
        while offset < end:
            if place == len(self._segments):
                yield offset, end, None
                return
            one = self._segments[place]
            if offset < one.offset:
                upto = min(one.offset, end)
                yield offset, upto, None
                offset = upto
            upto = min(one.offset + one.length, end)
            if offset < upto:
                yield offset, upto, place
                offset = upto
            place += 1

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        for start, end, place in self._parts(offset, offset + len(view)):
            part = view[start - offset : end - offset]
            if place is None:
                part[:] = bytes(len(part))
                continue
            segment = self._segments[place]
            inside = start - segment.offset
            if isinstance(segment.content, bytes):
                part[:] = segment.content[inside : inside + len(part)]
            else:
                self._read(segment.content, inside, part)

    def _read(self, found: Found, offset: int, part: memoryview) -> None:
        try:
            fd = os.open(found.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                info = os.fstat(fd)
                same = (info.st_dev, info.st_ino, info.st_mtime_ns) == found.identity and info.st_size == found.size
                if not same or not stat.S_ISREG(info.st_mode) or os.preadv(fd, [part], offset) != len(part):
                    raise StorageError(f"'{found.path}' was changed meanwhile", file=self.name)
            finally:
                os.close(fd)
        except StorageError:
            raise
        except OSError as error:
            raise StorageError.from_os(error, found.path) from None

    def allocated(self) -> int:
        return 0


class VvfatDriver(ProtocolDriver):
    """``vvfat``; names are ``fat:[floppy:][12:|16:|32:]DIR``."""

    contract = 1
    name = "vvfat"
    title = "a folder as a disk with a FAT file system, read-only"
    prefixes = ("fat",)
    capabilities = frozenset()
    options = (
        Option("dir", "str", "the folder", when=("open",)),
        Option("fat-type", "int", "12, 16 or 32 bits; default 16, of a floppy 12", when=("open",)),
        Option("floppy", "bool", "a floppy disk, without a partition table", default=False, when=("open",)),
        Option(
            "label", "str", "the name of the file system, up to 11 characters", default="QEMU VVFAT", when=("open",)
        ),
        Option("rw", "bool", "only off: nothing is written to the folder", default=False, when=("open",)),
    )

    def place(self, options: Mapping[str, Any]) -> VvfatPlace:
        name = options.get("filename")
        if name is None:
            return VvfatPlace(self, f"fat:{options.get('dir', '')}", {})
        rest, found = str(name).removeprefix("fat:"), {}
        while (word := rest.partition(":")[0]) in _WORDS and ":" in rest:
            rest = rest[len(word) + 1 :]
            found["fat-type" if word.isdigit() else word] = int(word) if word.isdigit() else True
        given = options.keys() & {"dir", *found}
        if given:
            raise UsageError(f"the name says it, and so does the option '{min(given)}': give one", file=str(name))
        return VvfatPlace(self, str(name), {**found, "dir": rest})

    @hookimpl
    def open(self, request: OpenRequest) -> VvfatStorage:
        """The folder as it is now."""
        from .fat import FileSystem, layout_of

        place = request.place if isinstance(request.place, VvfatPlace) else self.place({"filename": request.name})
        options = {**request.options, **place.options}
        name = place.display()
        if request.writable or options.get("rw"):
            raise UnsupportedError("a folder as a disk is only read", file=name)
        if not options.get("dir"):
            raise UsageError("the option 'dir' is missing: it names the folder", file=name)
        label = str(options.get("label", "QEMU VVFAT"))
        if len(label) > 11:
            raise UsageError("a label has up to 11 characters", file=name)
        floppy = bool(options.get("floppy"))
        # QEMU's floppy of no type has 2.8 MiB and FAT12: a cluster then has two sectors.
        bits = int(options.get("fat-type", 16))
        if bits not in (12, 16, 32):
            raise UsageError("'fat-type' is 12, 16 or 32", file=name)
        if floppy and bits == 32:
            raise UnsupportedError("a floppy is too small for FAT32", file=name)
        layout = layout_of(bits, floppy=floppy)
        if floppy and "fat-type" not in options:
            layout = layout._replace(bits=12, per_cluster=2, root_entries=240)
        system = FileSystem(str(options["dir"]), layout, label)
        if system.left_out:
            more = f", and {len(system.left_out) - 1} more" if len(system.left_out) > 1 else ""
            request.context.warn(f"'{name}': left out, as FAT has no such file or name: '{system.left_out[0]}'{more}")
        return VvfatStorage(self, name, system)


driver = VvfatDriver()
