"""The protocol ``fsspec``: images in any file system that fsspec knows, ``fsspec+PROTOCOL://…``.

A bridge for what has no driver of its own: slower than one, and it notices less.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diskmill.contract.drivers import ProtocolDriver, hookimpl
from diskmill.contract.options import Option

if TYPE_CHECKING:
    from diskmill.contract.node import Storage
    from diskmill.contract.place import Place
    from diskmill.contract.requests import CreateRequest, OpenRequest

_BOTH = ("open", "create")


class FsspecDriver(ProtocolDriver):
    """``fsspec``. See https://filesystem-spec.readthedocs.io for the file systems and what they take."""

    contract = 1
    name = "fsspec"
    title = "any file system of Python's fsspec, slowly"
    prefixes = ("fsspec+*",)
    capabilities = frozenset({"create"})
    options = (
        Option("filename", "str", "fsspec+PROTOCOL://PATH", when=("open",)),
        Option("storage-options", "str", "what the file system takes, as a JSON object", when=_BOTH, secret=True),
        Option("storage-options-secret", "str", "id of the secret with such an object", when=_BOTH),
        Option("readahead", "size", "bytes that are asked for at least (1M)", when=("open",), runtime=True),
    )

    def place(self, options: Mapping[str, Any]) -> Place:
        """The URL."""
        from .place import FsspecPlace

        return FsspecPlace.parse(self, str(options.get("filename", "")))

    @hookimpl
    def open(self, request: OpenRequest) -> Storage:
        """A file that is there."""
        from .storage import open_file

        return open_file(self, request)

    @hookimpl
    def create(self, request: CreateRequest) -> Storage:
        """A new file, which gets its name when it is settled."""
        from .storage import create_file

        return create_file(self, request)


driver = FsspecDriver()
