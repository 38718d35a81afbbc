"""The ``file`` protocol: regular files and block devices of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..drivers import ProtocolDriver, hookimpl
from ..options import Option

if TYPE_CHECKING:
    from ..requests import CreateRequest, OpenRequest
    from .storage import FileStorage


class FileDriver(ProtocolDriver):
    """``file``, shipped with the core, found like any other driver."""

    name = "file"
    title = "files and block devices of this machine"
    prefixes = ("file",)
    capabilities = frozenset({"create", "write", "resize", "preallocation"})
    options = (
        Option("filename", "str", "the path", when=("open",)),
        Option("follow", "bool", "follow a symbolic link at the end of the path", default=True, when=("open",)),
        Option(
            "locking",
            "str",
            "see to it that no other process uses the file: on, off or auto (on)",
            default="auto",
            choices=("on", "off", "auto"),
            when=("open",),
            runtime=True,
        ),
        Option(
            "aio",
            "str",
            "without effect: how QEMU reads and writes",
            choices=("threads", "native", "io_uring"),
            when=("open",),
            runtime=True,
        ),
        Option("pr-manager", "str", "without effect: who makes persistent reservations", when=("open",), runtime=True),
        Option("drop-cache", "bool", "without effect: what happens to the page cache", when=("open",), runtime=True),
        Option("x-check-cache-dropped", "bool", "without effect", when=("open",), runtime=True),
        Option("nocow", "bool", "no copy on write for the file (btrfs)", default=False),
    )

    @hookimpl
    def open(self, request: OpenRequest) -> FileStorage:
        """An existing file."""
        from .storage import open_file

        return open_file(self, request)

    @hookimpl
    def create(self, request: CreateRequest) -> FileStorage:
        """A new file, which gets its name when it is settled."""
        from .storage import create_file

        return create_file(self, request)


driver = FileDriver()
