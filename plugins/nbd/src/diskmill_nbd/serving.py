"""Images as exports of a server: from names to :class:`Serving`, for the command and for Python."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import diskmill
from diskmill import Context
from diskmill.contract import calls
from diskmill.contract.server import Server as ServerContract
from diskmill.errors import DiskmillError, UnsupportedError, UsageError
from diskmill.records import record

from .authorization import Name
from .export import ImageExport
from .location import Location
from .partitions import partition
from .server import Server, listen_tcp, listen_unix
from .tls import Credentials, server_context

if TYPE_CHECKING:
    from types import TracebackType

    from diskmill.contract.node import Image
    from diskmill.contract.results import Bitmap


@record(frozen=True)
class Exported:
    """An image, and how it is exported.

    :param image: its name.
    :param name: the export's.
    :param format: its driver; None: probe.
    :param writable: clients may write.
    :param snapshot: of an internal snapshot; it is exported for reading only.
    :param temporary: clients may write, and it is forgotten.
    :param offset: where in the guest disk the export begins, in bytes.
    :param partition: export this partition of the disk, counted from 1; 0: all of it.
    :param discard: ``unmap``: what clients trim is given back; ``ignore``: it is not.
    :param detect_zeroes: ``on``: zeros that are written are stored as zeros; ``unmap``: and their space is given back.
    :param depth: whether clients may ask for allocation depths.
    :param bitmaps: names of dirty bitmaps that they may read.
    """

    image: str
    name: str = ""
    description: str = ""
    format: str | None = None
    image_opts: bool = False
    writable: bool = False
    snapshot: str | None = None
    temporary: bool = False
    offset: int = 0
    partition: int = 0
    discard: str = ""
    detect_zeroes: str = ""
    depth: bool = False
    bitmaps: tuple[str, ...] = ()

    def open(self, context: Context) -> ImageExport:
        """The export.

        :raises DiskmillError: the image cannot be opened, or exported so.
        """
        writable = self.writable or self.temporary
        if writable and self.snapshot is not None:
            raise UsageError("a snapshot is exported for reading only", file=self.image)
        image = diskmill.open(
            self.image,
            self.format,
            writable=writable,
            snapshot=self.snapshot,
            image_opts=self.image_opts,
            rehearse=self.temporary,
            context=context,
        )
        try:
            start, length = 0, image.size
            if self.partition:
                start, length = partition(image, self.partition, image.sector_size)
            if not 0 <= self.offset <= length:
                raise UsageError(f"offset {self.offset} is beyond the end, {length}", file=image.name)
            if self.discard:
                image.discards = self.discard == "unmap"
            if self.detect_zeroes:
                image.detect_zeroes = self.detect_zeroes
            return ImageExport(
                image,
                self.name,
                description=self.description,
                writable=writable,
                offset=start + self.offset,
                length=length - self.offset if self.partition else None,
                depth=self.depth,
                bitmaps=self._bitmaps(image, context),
            )
        except BaseException:
            image.abandon()
            raise

    def _bitmaps(self, image: Image, context: Context) -> tuple[Bitmap, ...]:
        """The bitmaps by name, each of the first image of the backing chain that has it."""
        found = []
        for wanted in self.bitmaps:
            link: Image | None = image
            one: Bitmap | None = None
            while link is not None and one is None:
                if "bitmaps" in link.driver.capabilities:
                    found_here = calls.bitmaps(context.registry, link)
                    one = next((each for each in found_here if each.name == wanted), None)
                link = link.backing
            if one is None:
                raise UsageError(f"dirty bitmap '{wanted}' not found", file=image.name)
            if one.inconsistent:
                raise UnsupportedError(f"dirty bitmap '{wanted}' is inconsistent", file=image.name)
            if one.enabled and self.writable:
                raise UsageError(
                    f"dirty bitmap '{wanted}' records writes: disable it, or export read-only", file=image.name
                )
            found.append(one)
        return tuple(found)


class Serving(ServerContract):
    """A server that runs, with what was made for it; a context manager.

    :param images: what it exports.
    :param context: to open them with.
    :param unix: the path of the socket to listen at; ``True``: one in a folder of its own that goes with it.
    :param host: the address to listen at, where there is no *unix*; empty: all of this machine.
    :param port: 0: any that is free.
    :param listeners: sockets that listen already, instead.
    :param credentials: for TLS.
    """

    def __init__(
        self,
        images: Sequence[Exported],
        *,
        context: Context | None = None,
        unix: str | bool | None = None,
        host: str = "127.0.0.1",
        port: int = 10809,
        listeners: Sequence[socket.socket] = (),
        credentials: Credentials | None = None,
        authorize: Callable[[Name], bool] | None = None,
        max_clients: int = 16,
        handshake_limit: float = 10,
        persistent: bool = True,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._folder: str | None = None
        self._socket: str | None = None
        self._closed = False
        context = context or Context()
        tls = server_context(credentials) if credentials is not None else None
        exports: list[ImageExport] = []
        sockets = list(listeners)
        try:
            for image in images:
                exports.append(image.open(context))
            if not sockets:
                sockets = self._listen(unix, host, port)
            self.server = Server(
                exports,
                sockets,
                tls=tls,
                authorize=authorize,
                max_clients=max_clients,
                handshake_limit=handshake_limit,
                persistent=persistent,
                warn=warn,
            )
        except BaseException:
            for export in exports:
                export.image.abandon()
            for one in sockets:
                one.close()
            self._clean()
            raise
        self.location = _location(sockets[0], exports[0].name if exports else "", tls is not None)

    def _listen(self, unix: str | bool | None, host: str, port: int) -> list[socket.socket]:
        if not unix:
            return listen_tcp(host, port)
        if unix is True:
            self._folder = tempfile.mkdtemp(prefix="diskmill-nbd-")
            unix = os.path.join(self._folder, "socket")
        listener = listen_unix(unix)
        self._socket = unix
        return [listener]

    @property
    def uri(self) -> str:
        """Where the first export is."""
        return self.location.uri

    def start(self) -> None:
        """Begin to serve."""
        self.server.start()

    def close(self) -> None:
        """Stop serving, and close the images: what was written is flushed. Calling it twice is harmless.

        :raises DiskmillError: an image could not be closed properly.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self.server.close()
        finally:
            self._clean()

    def _clean(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                os.unlink(self._socket)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except DiskmillError:
            if error is None:
                raise


def _location(listener: socket.socket, export: str, tls: bool) -> Location:
    address = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        path = address.decode("utf-8", "surrogateescape") if isinstance(address, bytes) else str(address)
        return Location("unix", path=os.path.abspath(path) if path[:1] != "\0" else path, export=export, tls=tls)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0])
    kind = "inet" if listener.family in (socket.AF_INET, socket.AF_INET6) else "vsock"
    return Location(kind, host=str(host), port=str(address[1]), export=export, tls=tls)


def serve(
    image: str,
    *,
    format: str | None = None,
    image_opts: bool = False,
    export: str = "",
    description: str = "",
    writable: bool = False,
    temporary: bool = False,
    snapshot: str | None = None,
    offset: int = 0,
    partition: int = 0,
    depth: bool = False,
    bitmaps: Sequence[str] = (),
    unix: str | None = None,
    host: str | None = None,
    port: int = 10809,
    context: Context | None = None,
    max_clients: int = 16,
) -> Serving:
    """Export the guest disk of *image* as long as the ``with`` block runs; its ``uri`` says where.

    :param export: the export's name; the other options of the image are those of :class:`Exported`.
    :param unix: the path of a socket to listen at. Where neither this nor *host* is given, it is one in a folder of its
        own, which nobody but this user can reach.
    :param host: the address to listen at, with *port*; 0: any that is free.
    :raises DiskmillError: the image cannot be opened, or the address is not to be had.
    """
    one = Exported(
        image,
        export,
        description,
        format,
        image_opts,
        writable,
        snapshot,
        temporary,
        offset,
        partition,
        depth=depth,
        bitmaps=tuple(bitmaps),
    )
    if unix is None and host is None:
        return Serving([one], context=context, unix=True, max_clients=max_clients)
    return Serving([one], context=context, unix=unix, host=host or "", port=port, max_clients=max_clients)
