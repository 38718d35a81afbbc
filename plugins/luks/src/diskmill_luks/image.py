"""The luks format: a header, and after it (or in a file of its own) the guest disk, encrypted sector by sector."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diskmill.contract.crypto import CryptoRequest, Header
from diskmill.contract.drivers import FormatDriver
from diskmill.contract.extents import Extent, Kind, Placement
from diskmill.contract.node import Node, Storage
from diskmill.contract.options import Value
from diskmill.errors import ImageError, UnsupportedError, UsageError
from diskmill.kit.image import FormatImage
from diskmill.sizes import SECTOR, round_down, round_up

from .volume import LuksVolume, create_volume, open_volume

if TYPE_CHECKING:
    from diskmill import Context
    from diskmill.contract.requests import CreateRequest, OpenRequest


class LuksImage(FormatImage):
    """A LUKS volume as a disk.

    :param header: the node that holds the header where that is not *file*.
    """

    blank = False

    def __init__(
        self,
        driver: FormatDriver,
        file: Node,
        volume: LuksVolume,
        *,
        name: str,
        size: int,
        writable: bool,
        context: Context,
        options: Mapping[str, Value],
        header: Node | None = None,
    ) -> None:
        super().__init__(driver, file, name=name, size=size, writable=writable)
        self.volume = volume
        self.header = header
        self.context = context
        self.options = {name: options[name] for name in ("key-secret", "kdf-limit", "kdf-memory") if name in options}

    @property
    def encrypted(self) -> bool:
        return True

    @property
    def unsized(self) -> bool:  # type: ignore[override]
        """Only some images of version 2 say how long the payload is."""
        return self.file.unsized and self.volume.payload_size is None

    @property
    def ended(self) -> int | None:  # type: ignore[override]
        """In bytes, where the payload has ended: it has whole sectors."""
        if self.file.ended is None:
            return None
        return round_down(max(self.file.ended - self.volume.payload_offset, 0), self.volume.granularity)

    def details(self) -> dict[str, Any]:
        return self.volume.details()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        if length:
            where = self.volume.payload_offset + offset
            yield Extent(offset, length, Kind.ENCODED, self.file, where, codec=self.volume)

    def reserve(self, offset: int, length: int) -> list[Placement]:
        sector = self.volume.granularity
        start, end = round_down(offset, sector), round_up(offset + length, sector)
        where = self.volume.payload_offset + start
        return [Placement(start, end - start, self.file, where, cipher=self.volume)]

    def publish(self, placements: Sequence[Placement]) -> None:
        """Nothing points to the payload: where it is, is what it is."""

    def children(self) -> Iterator[Node]:
        yield from super().children()
        if self.header is not None:
            yield self.header

    def files(self) -> Iterator[Storage]:
        """The header first: without it, nobody opens the payload."""
        if self.header is not None:
            yield from self.header.files()
        yield from self.file.files()

    def release(self, *, abandon: bool = False) -> None:
        self.volume.close()
        super().release(abandon=abandon)

    def flush(self) -> None:
        if self.header is not None and self.header.writable:
            self.header.flush()
        super().flush()

    def amend(self, options: Mapping[str, Value], force: bool) -> None:
        """Change key slots."""
        node = self.header if self.header is not None else self.file
        request = CryptoRequest(self.name, self.context, {**self.options, **options}, _whole(node))
        from .amend import amend

        amend(request, force)

    def growing_file(self) -> Node:
        """The file whose size is that of the disk.

        :raises UnsupportedError: there is none.
        """
        if not self.file.resizable or self.volume.payload_size is not None:
            raise UnsupportedError("the size of this LUKS image is fixed", file=self.name)
        return self.file

    def resize(self, size: int, preallocation: str) -> None:
        """Make the payload *size* bytes long; what is new decrypts to noise, as with qemu-img."""
        file = self.growing_file()
        size = round_up(size, self.volume.granularity)
        old, end = file.size, self.volume.payload_offset + size
        file.truncate(end)
        if preallocation != "off" and end > old:
            try:
                file.allocate(old, end - old, preallocation)
            except BaseException:  # no space, most likely: as it was
                file.truncate(old)
                raise
        self.size = size


def _whole(node: Node) -> Header:
    return Header(node, 0, node.size)


def open_image(driver: FormatDriver, request: OpenRequest) -> LuksImage:
    """See the hook ``open``."""
    file = request.below()
    header = request.child("header")
    try:
        volume = open_volume(
            CryptoRequest(
                request.name,
                request.context,
                request.options,
                _whole(header if header is not None else file),
                shallow=request.shallow,
            )
        )
    except BaseException:
        if header is not None:
            header.abandon()
        raise
    start, size = volume.payload_offset, volume.payload_size
    cut = file.unsized and not file.read_some(start - 1, 1)
    if cut or start > file.size or size is not None and start + size > file.size:
        if not request.shallow:
            volume.close()
            if header is not None:
                header.abandon()
            raise ImageError(f"its payload at byte {start} lies beyond the end of the file", file=request.name)
        request.excuses("payload")
        size = 0
    if size is None:
        size = round_down(file.size - start, max(volume.granularity, SECTOR))
    return LuksImage(
        driver,
        file,
        volume,
        name=request.name,
        size=size,
        writable=request.writable,
        context=request.context,
        options=request.options,
        header=header,
    )


def _install(header: bytes, file: Storage) -> None:
    """Write a new header: of the space for key slots, what is in use; the rest is zeros."""
    used = header.rstrip(b"\0")
    file.write(0, used)
    file.truncate(len(header))
    file.zero(len(used), len(header) - len(used))


def create_image(driver: FormatDriver, request: CreateRequest) -> LuksImage:
    """See the hook ``create``."""
    file, options = request.output(), request.options
    alone = bool(options.get("detached-header"))
    if alone and options.get("header"):
        raise UsageError("the options 'detached-header' and 'header' exclude each other", file=request.name)
    volume = create_volume(CryptoRequest(request.name, request.context, options))
    size = round_up(request.size, volume.granularity)
    header: Storage | None = None
    try:
        if options.get("header"):
            header = request.header(str(options["header"]))
        _install(volume.header, file if header is None else header)
        if alone:
            size = 0
        else:
            mode = str(options.get("preallocation", "off"))
            file.truncate(volume.payload_offset + size)
            if mode != "off" and size:
                file.allocate(volume.payload_offset, size, mode)
    except BaseException:
        volume.close()
        raise
    volume.header = b""
    return LuksImage(
        driver,
        file,
        volume,
        name=request.name,
        size=size,
        writable=True,
        context=request.context,
        options=options,
        header=header,
    )
