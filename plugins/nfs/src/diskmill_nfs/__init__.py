"""The ``nfs`` protocol: files of NFS servers, over the system's libnfs. Nothing is mounted, and root is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diskmill.contract.drivers import ProtocolDriver, hookimpl
from diskmill.contract.options import Option

if TYPE_CHECKING:
    from diskmill.contract.place import Place
    from diskmill.contract.requests import CreateRequest, OpenRequest

    from .storage import NfsStorage


class NfsDriver(ProtocolDriver):
    """``nfs``, with QEMU's names and options (``BlockdevOptionsNfs`` of its QAPI schema)."""

    contract = 1
    name = "nfs"
    title = "files of NFS servers, over libnfs"
    prefixes = ("nfs",)
    capabilities = frozenset({"create", "write", "resize", "preallocation"})
    siblings = True
    options = (
        Option("server.type", "str", "the kind of address", choices=("inet",), when=("open",)),
        Option("server.host", "str", "the server", when=("open",)),
        Option("path", "str", "the file's absolute path there, its export's included", when=("open",)),
        Option("user", "int", "the number of the user to the server; default: of who runs it", when=("open",)),
        Option("group", "int", "the number of the group to the server; default: of who runs it", when=("open",)),
        Option("tcp-syn-count", "int", "how often a connection is tried (SYN packets)", when=("open",)),
        Option("readahead-size", "int", "bytes that libnfs reads ahead; at most 1 MiB", when=("open",)),
        Option("page-cache-size", "int", "pages that libnfs keeps; at most 2048", when=("open",)),
        Option("debug", "int", "what libnfs tells on standard error: 0 to 2", when=("open",), runtime=True),
        Option("timeout", "int", "seconds without an answer until it is an error", default=60, when=("open", "create")),
    )

    def place(self, options: Mapping[str, Any]) -> Place:
        from .place import place_of

        return place_of(self, options)

    @hookimpl
    def open(self, request: OpenRequest) -> NfsStorage:
        """An existing file."""
        from .storage import open_file

        return open_file(self, request)

    @hookimpl
    def create(self, request: CreateRequest) -> NfsStorage:
        """A new file, which gets its name when it is settled."""
        from .storage import create_file

        return create_file(self, request)


driver = NfsDriver()
