"""The ``rbd`` protocol: images in pools of a Ceph cluster, over the system's librbd: no kernel device, no root."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diskmill.contract.drivers import ProtocolDriver, hookimpl
from diskmill.contract.options import Option

if TYPE_CHECKING:
    from diskmill.contract.place import Place
    from diskmill.contract.requests import CreateRequest, OpenRequest

    from .storage import RbdStorage

_BOTH = ("open", "create")
_SERVERS = 8
"""Monitors that options can name."""


class RbdDriver(ProtocolDriver):
    """``rbd``, with QEMU's names and options (``BlockdevOptionsRbd`` of its QAPI schema)."""

    contract = 1
    name = "rbd"
    title = "RBD images of Ceph clusters, over librbd"
    prefixes = ("rbd",)
    capabilities = frozenset({"create", "write", "resize", "preallocation"})
    options = (
        Option("pool", "str", "the pool", when=("open",)),
        Option("namespace", "str", "the namespace in the pool", when=("open",)),
        Option("image", "str", "the image's name there", when=("open",)),
        Option("snapshot", "str", "a snapshot of it, which is only read", when=("open",)),
        Option("conf", "str", "the cluster's configuration file; default: where Ceph looks for it", when=_BOTH),
        Option("user", "str", "who one is to the cluster, without 'client.'", when=_BOTH),
        Option("auth-client-required.0", "str", "how the cluster is spoken to", choices=("cephx", "none"), when=_BOTH),
        Option("auth-client-required.1", "str", "the next best way", choices=("cephx", "none"), when=_BOTH),
        Option("key-secret", "str", "id of the secret with the user's key, in base64", when=_BOTH),
        *(
            Option(f"server.{number}.{part}", "str", f"{what} of a monitor", when=_BOTH)
            for number in range(_SERVERS)
            for part, what in (("host", "the host"), ("port", "the port"))
        ),
        Option("encrypt.format", "str", "not supported: the driver 'luks' over this one is", when=("open",)),
        Option("encrypt.key-secret", "str", "not supported", when=("open",)),
        Option("timeout", "int", "seconds without an answer; default 60, and 10 to connect", when=_BOTH),
    )

    def place(self, options: Mapping[str, Any]) -> Place:
        from .place import place_of

        return place_of(self, options)

    @hookimpl
    def open(self, request: OpenRequest) -> RbdStorage:
        """An image, or a snapshot of one."""
        from .storage import open_image

        return open_image(self, request)

    @hookimpl
    def create(self, request: CreateRequest) -> RbdStorage:
        """A new image, which gets its name when it is settled."""
        from .storage import create_image

        return create_image(self, request)


driver = RbdDriver()
