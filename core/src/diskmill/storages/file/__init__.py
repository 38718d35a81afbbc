"""The ``file`` protocol: regular files and block devices of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...contract.drivers import ProtocolDriver, hookimpl
from ...contract.options import Option

if TYPE_CHECKING:
    from ...contract.node import Storage
    from ...contract.place import Place
    from ...contract.requests import CreateRequest, OpenRequest
    from .storage import FileStorage


class FileDriver(ProtocolDriver):
    """``file``, shipped with the core, found like any other driver."""

    contract = 1
    name = "file"
    title = "files and block devices of this machine"
    prefixes = ("file",)
    capabilities = frozenset({"create", "write", "resize", "preallocation", "unfinished"})
    options = (
        Option("filename", "str", "the path", when=("open",)),
        Option(
            "follow",
            "bool",
            "follow symbolic links, anywhere on the path; off: a regular file, and no link",
            default=True,
            when=("open",),
        ),
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
        Option("aio-max-batch", "int", "without effect: how many requests QEMU gathers", when=("open",), runtime=True),
        Option("pr-manager", "str", "without effect: who makes persistent reservations", when=("open",), runtime=True),
        Option("drop-cache", "bool", "without effect: what happens to the page cache", when=("open",), runtime=True),
        Option("x-check-cache-dropped", "bool", "without effect", when=("open",), runtime=True),
        Option("nocow", "bool", "no copy on write for the file (btrfs)", default=False),
    )

    siblings = True

    def place(self, options: Mapping[str, Any]) -> Place:
        from .place import FilePlace

        follow = options.get("follow", True) not in (False, "off")
        return FilePlace(self, str(options.get("filename", "")), follow=follow)

    @hookimpl
    def open(self, request: OpenRequest) -> FileStorage:
        """An existing file."""
        from .opening import open_file

        return open_file(self, request)

    @hookimpl
    def create(self, request: CreateRequest) -> Storage:
        """A new file, which gets its name when it is settled."""
        from .opening import create_file

        return create_file(self, request)


driver = FileDriver()
