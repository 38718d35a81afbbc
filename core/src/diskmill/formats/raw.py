"""The raw format: the guest disk's bytes as they are, in a file or a window of one.

``offset`` and ``size`` choose the window, so a disk inside a tar archive can be read in place; ``partition`` lets the
disk's own table choose it. See the QEMU manual, "Raw disk format options".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..contract.drivers import FormatDriver, hookimpl
from ..contract.extents import Placement
from ..contract.node import Node
from ..contract.options import Option
from ..errors import UnsupportedError, UsageError
from ..kit.forward import foretell
from ..kit.window import WindowImage
from ..sizes import SECTOR, round_up

if TYPE_CHECKING:
    from ..contract.requests import CreateRequest, MeasureRequest, OpenRequest
    from ..contract.results import Measurement
    from .head import Head


class RawImage(WindowImage):
    """A window onto ``file``, which takes what is written to its first bytes only where it may."""

    def __init__(
        self,
        driver: FormatDriver,
        file: Node,
        *,
        name: str,
        writable: bool,
        offset: int = 0,
        size: int | None = None,
        head: Head | None = None,
    ) -> None:
        # Guest disks are whole sectors; the bytes after the end of the file read as zeros.
        available = round_up(max(file.size - offset, 0), SECTOR)
        given = available if size is None else size
        super().__init__(driver, file, name=name, size=given, writable=writable, offset=offset)
        self.unsized = file.unsized and size is None
        self.fixed = offset > 0 or size is not None
        self.head = head
        """Looks at what is written to the file's first bytes, where the format was guessed."""

    def reserve(self, offset: int, length: int) -> list[Placement]:
        at = offset + self.origin
        [whole] = super().reserve(offset, length)
        inside = 0 if self.head is None else min(max(self.head.length - at, 0), length)
        if self.head is None or inside == 0:
            return [whole]
        first = Placement(offset, inside, self.head, at)
        return [first] if inside == length else [first, whole.clip(offset + inside, offset + length)]

    def zero_units(self, offset: int, length: int, *, unmap: bool) -> None:
        self._written(offset + self.origin).zero(offset + self.origin, length, unmap=unmap)

    def discard_units(self, offset: int, length: int) -> None:
        self._written(offset + self.origin).discard(offset + self.origin, length)

    def _written(self, at: int) -> Node:
        """What takes a change of the file from *at* on."""
        return self.file if self.head is None or at >= self.head.length else self.head


class RawDriver(FormatDriver):
    """``raw``, shipped with the core, found like any other driver."""

    contract = 1
    name = "raw"
    title = "the disk's bytes as they are"
    capabilities = frozenset({"create", "write", "resize", "shrink", "preallocation", "zero", "pipe", "forward"})
    options = (
        Option("offset", "size", "where the guest disk begins in the file", when=("open",)),
        Option("size", "size", "the guest disk's size", when=("open",)),
        Option("partition", "str", "the partition to open: its number, name or UUID (GPT, MBR)", when=("open",)),
        Option(
            "preallocation",
            "str",
            "how space is claimed: off, falloc (allocated, not written), full (written)",
            default="off",
            choices=("off", "falloc", "full"),
        ),
    )

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        """Everything could be raw, and nothing is surely."""
        return 1

    @hookimpl
    def open(self, request: OpenRequest) -> RawImage:
        """Any node will do."""
        file, options = request.below(), request.options
        offset, size = int(options.get("offset", 0)), options.get("size")
        if "partition" in options:
            if "offset" in options or "size" in options:
                raise UsageError("give either 'partition', or 'offset' and 'size'", file=request.name)
            from .partitions import find

            _, _, _, offset, size = find(file, str(options["partition"]))
        available = round_up(max(file.size - offset, 0), SECTOR)
        if offset and offset > file.size or size is not None and int(size) > available:
            raise UsageError(f"the window of offset and size does not fit in {file.size} bytes", file=request.name)
        if size is not None and int(size) % SECTOR:
            raise UsageError("the option 'size' must be a multiple of 512 bytes", file=request.name)
        return RawImage(
            self,
            file,
            name=request.name,
            writable=request.writable,
            offset=offset,
            size=None if size is None else int(size),
            head=_head(request) if request.writable and request.guessed else None,
        )

    @hookimpl
    def create(self, request: CreateRequest) -> RawImage:
        """A file of the right size."""
        file = request.output()
        mode = str(request.options.get("preallocation", "off"))
        if request.layout is not None:
            foretell(file, request.size)
        if file.size != request.size:
            file.truncate(request.size)
        if mode != "off" and request.size:
            file.allocate(0, request.size, mode)
        return RawImage(self, file, name=request.name, writable=True)

    @hookimpl
    def resize(self, image: RawImage, size: int, preallocation: str) -> bool:
        """Grow with zeros, or cut."""
        if image.fixed:
            raise UsageError("a raw image with an offset or size option cannot be resized", file=image.name)
        file, old = image.file, image.file.size
        if not file.resizable:
            raise UnsupportedError("a raw image that stands on another image cannot be resized", file=image.name)
        if image.head is not None:
            image.head.judge_size(size)
        file.truncate(size)
        if preallocation != "off" and size > old:
            try:
                file.allocate(old, size - old, preallocation)
            except BaseException:  # no space, most likely: as it was
                file.truncate(old)
                raise
        image.size = round_up(size, SECTOR)
        return True

    @hookimpl
    def measure(self, request: MeasureRequest) -> Measurement:
        """As large as the guest disk."""
        from ..contract.results import Measurement

        return Measurement(request.size, request.size)


def _head(request: OpenRequest) -> Head:
    from .head import Head

    return Head(request.below(), request.context)


driver = RawDriver()
