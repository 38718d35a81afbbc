"""The ``file`` protocol: regular files and block devices of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..drivers import ProtocolDriver, hookimpl
from ..options import Option

if TYPE_CHECKING:
    from ..node import Storage
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
        Option("nocow", "bool", "no copy on write for the file (btrfs)", default=False),
    )

    @hookimpl
    def open(self, request: OpenRequest) -> FileStorage:
        """An existing file."""
        from .storage import open_file

        return open_file(self, request)

    @hookimpl
    def create(self, request: CreateRequest) -> Storage:
        """A new file, which gets its name when it is settled."""
        from .storage import create_file

        return create_file(self, request)


driver = FileDriver()
