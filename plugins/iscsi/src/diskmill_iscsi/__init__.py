"""The ``iscsi`` protocol: LUNs of iSCSI targets, over the system's libiscsi: no kernel initiator, no root."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diskmill.contract.drivers import ProtocolDriver, hookimpl
from diskmill.contract.options import Option

if TYPE_CHECKING:
    from diskmill.contract.place import Place
    from diskmill.contract.requests import CreateRequest, OpenRequest
    from diskmill.kit.emptied import Emptied

    from .storage import IscsiStorage

_BOTH = ("open", "create")


class IscsiDriver(ProtocolDriver):
    """``iscsi``, with QEMU's names and options (``BlockdevOptionsIscsi`` of its QAPI schema)."""

    contract = 1
    name = "iscsi"
    title = "LUNs of iSCSI targets, over libiscsi"
    prefixes = ("iscsi",)
    capabilities = frozenset({"create", "write", "preallocation"})
    options = (
        Option("transport", "str", "how the target is reached", choices=("tcp",), when=("open",)),
        Option("portal", "str", "the server, as host or host:port; default port 3260", when=("open",)),
        Option("target", "str", "the target's name there (iqn.…)", when=("open",)),
        Option("lun", "int", "the number of the LUN; default 0", when=("open",)),
        Option("user", "str", "the name for CHAP", when=_BOTH),
        Option("password-secret", "str", "id of the secret with the password for CHAP", when=_BOTH),
        Option("initiator-name", "str", "who one is to the target (iqn.…)", when=_BOTH),
        Option(
            "header-digest",
            "str",
            "checksums over headers, best first; default none-crc32c",
            choices=("none", "none-crc32c", "crc32c-none", "crc32c"),
            when=_BOTH,
        ),
        Option("timeout", "int", "seconds without an answer until it is an error; 0: never", default=60, when=_BOTH),
    )

    def place(self, options: Mapping[str, Any]) -> Place:
        from .place import place_of

        return place_of(self, options)

    @hookimpl
    def open(self, request: OpenRequest) -> IscsiStorage:
        """A LUN."""
        from .storage import open_lun

        return open_lun(self, request)

    @hookimpl
    def create(self, request: CreateRequest) -> Emptied:
        """A LUN for a new image: it is there, and keeps its size."""
        from .storage import create_on_lun

        return create_on_lun(self, request)


driver = IscsiDriver()
