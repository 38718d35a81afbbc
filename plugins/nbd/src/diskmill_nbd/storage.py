"""What the driver opens: an export as the core's storage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from diskmill.contract.extents import Extent, Kind, joined
from diskmill.contract.node import Buffer, ReadBuffer, Requests, Storage
from diskmill.contract.results import Bitmap
from diskmill.errors import UnsupportedError, UsageError
from diskmill.records import replace
from diskmill.sizes import KiB, MiB

from . import c_nbd as c
from .client import Client, Settings, contexts_of
from .location import Location
from .place import NbdPlace, place_of
from .tls import Credentials, credentials_of

if TYPE_CHECKING:
    from diskmill.contract.requests import CreateRequest, OpenRequest
    from diskmill.kit.emptied import Emptied

    from . import NbdDriver


_GRANULARITY = 64 * KiB
"""Bytes for each bit of a copy of a server's bitmap, whose own granularity is not told: QEMU's default."""


class NbdStorage(Storage):
    """An export."""

    def __init__(self, driver: NbdDriver, client: Client, context: str, cache: str) -> None:
        self.driver = driver
        self.client = client
        self.name = client.name
        self.size = client.size
        self.writable = client.writable
        self.requests = Requests(align=client.alignment, best=MiB, at_once=4)
        self._context = context
        self._through = cache in ("writethrough", "directsync")
        self._flushes = cache != "unsafe"
        self._closed = False

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        if self._context != c.BASE_ALLOCATION or not self.client.has(c.BASE_ALLOCATION):
            return super().extents(offset, length)
        return joined(self._allocation(offset, length))

    def _allocation(self, offset: int, length: int) -> Iterator[Extent]:
        if not length:
            return
        for count, flags in self.client.statuses(self._context, offset, length):
            yield Extent(offset, count, Kind.ZERO if flags & c.NBD_STATE_ZERO else Kind.DATA, self, offset)
            offset += count

    def marks(self, offset: int, length: int) -> Iterator[tuple[int, bool, bool]] | None:
        """In the metadata context that the user asked for; None where that is the usual one.

        The flags count as if they were those of ``base:allocation``, which is how QEMU shows them: what is dirty is no
        data; of the depths, 1 (the image itself) is no data, and all that lies deeper is zeros.
        """
        if self._context == c.BASE_ALLOCATION:
            return None
        return self._marks(offset, length)

    def _marks(self, offset: int, length: int) -> Iterator[tuple[int, bool, bool]]:
        for count, flags in self.client.statuses(self._context, offset, length):
            if self._context == c.ALLOCATION_DEPTH:
                flags = min(flags, c.NBD_STATE_ZERO)
            yield count, not flags & c.NBD_STATE_HOLE, bool(flags & c.NBD_STATE_ZERO)
        beyond = length - max(self.size - offset, 0)
        if beyond > 0:
            yield beyond, False, True

    def bitmaps(self) -> list[Bitmap]:
        """The dirty bitmaps that the server offers with the export. Each look at one has a connection of its own."""
        client = self.client
        names = contexts_of(client.location, client.settings)
        return [self._bitmap(name) for name in names if name.startswith(c.DIRTY_BITMAP)]

    def _bitmap(self, context: str) -> Bitmap:
        client, size = self.client, self.size

        def ranges() -> Iterator[tuple[int, int]]:
            one = Client(client.location, replace(client.settings, contexts=(context,), connections=1))
            try:
                at = 0
                for length, flags in one.statuses(context, 0, size):
                    if flags & c.NBD_STATE_DIRTY:
                        yield at, length
                    at += length
            finally:
                one.close()

        name = context.removeprefix(c.DIRTY_BITMAP)
        return Bitmap(name, _GRANULARITY, size, enabled=False, inconsistent=False, ranges=ranges)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        self.client.read_into(offset, buffer)

    def read_pieces(self, pieces: Sequence[tuple[int, Buffer]]) -> None:
        self.client.read_pieces(pieces)

    def write(self, offset: int, data: ReadBuffer) -> None:
        self.client.write(offset, data, fua=self._through)

    def write_pieces(self, pieces: Sequence[tuple[int, ReadBuffer]]) -> None:
        self.client.write_pieces(pieces, fua=self._through)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        self.client.zero(offset, length, hole=unmap, fua=self._through)

    def discard(self, offset: int, length: int) -> None:
        self.client.trim(offset, length)

    def truncate(self, size: int) -> None:
        if size != self.size:
            raise UnsupportedError(f"an NBD export stays as large as it is, {self.size} bytes", file=self.name)

    def flush(self) -> None:
        if self._flushes:
            self.client.flush()

    def interrupt(self) -> None:
        self.client.interrupt()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            # In the cache mode ``unsafe``, too: what a server has in its memory dies with the server, not the machine.
            self.client.flush()
        finally:
            self.client.close()

    def abandon(self) -> None:
        self._closed = True
        self.client.close()


def open_nbd(driver: NbdDriver, request: OpenRequest) -> NbdStorage:
    """The export that *request* names, or whose server its options tell."""
    options = request.options
    place = request.place
    if not isinstance(place, NbdPlace):
        place = place_of(driver, {"filename": request.name, **options})
    location = place.location
    context = str(options.get("x-dirty-bitmap", c.BASE_ALLOCATION))
    credentials = _credentials(request, location)
    if credentials is not None:
        location = replace(location, tls=True)
    settings = Settings(
        timeout=int(options["timeout"]),
        open_timeout=int(options["open-timeout"]),
        reconnect_delay=int(options["reconnect-delay"]),
        retries=int(options["retries"]),
        connections=max(int(options["connections"]), 1),
        contexts=tuple(dict.fromkeys((c.BASE_ALLOCATION, context))),
        credentials=credentials,
        tls_hostname=str(options.get("tls-hostname", "")),
    )
    client = Client(location, settings, writable=request.writable)
    if not client.has(context) and context != c.BASE_ALLOCATION:
        client.close()
        raise UnsupportedError(f"the server does not have the metadata context '{context}'", file=client.name)
    return NbdStorage(driver, client, context, request.context.cache)


def create_nbd(driver: NbdDriver, request: CreateRequest) -> Emptied:
    """The export called ``request.name``, emptied.

    :raises StorageError: it cannot be reached, or not be written.
    """
    from diskmill.kit.emptied import Emptied

    if request.like is not None:
        raise UsageError("an NBD export cannot be replaced", file=request.name)
    place = request.place
    if not isinstance(place, NbdPlace):
        place = place_of(driver, {"filename": request.name})
    client = Client(place.location, Settings(), writable=True)
    try:
        storage = NbdStorage(driver, client, c.BASE_ALLOCATION, request.context.cache)
        storage.place = place
        return Emptied(storage, client.flush)
    except BaseException:
        client.close()
        raise


def _credentials(request: OpenRequest, location: Location) -> Credentials | None:
    key = request.options.get("tls-creds")
    if key is None:
        return None
    properties = request.context.properties(str(key))
    if properties is None:
        raise UsageError(f"no TLS credentials with id '{key}': define them with --object tls-creds-x509,id={key},dir=…")
    if properties.get("endpoint", "client") != "client":
        raise UsageError(f"the TLS credentials '{key}' are for a server (endpoint=client is needed)")
    return credentials_of(properties)
