"""The protocol ``oci``: disks in registries of container images, ``oci://REGISTRY/REPOSITORY:TAG``."""

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


class OciDriver(ProtocolDriver):
    """``oci``."""

    contract = 1
    name = "oci"
    title = "disks in registries of container images"
    prefixes = ("oci",)
    capabilities = frozenset({"create"})
    options = (
        Option("filename", "str", "oci://REGISTRY/REPOSITORY:TAG, or …@DIGEST", when=("open",)),
        Option("layer", "str", "title or digest of the layer, where there are several", when=("open",)),
        Option("username", "str", "who to log in as; default: as docker's config.json says", when=_BOTH),
        Option("password-secret", "str", "id of the secret with the password", when=_BOTH),
        Option("plain-http", "bool", "talk to the registry without TLS (off)", when=_BOTH),
        Option("cafile", "str", "file with the authorities' certificates, instead of the system's", when=_BOTH),
        Option("timeout", "int", "seconds that the registry may be silent", default=30, when=_BOTH),
    )

    def place(self, options: Mapping[str, Any]) -> Place:
        """Registry, repository, and tag or digest."""
        from .place import OciPlace

        return OciPlace.parse(self, str(options.get("filename", "")))

    @hookimpl
    def open(self, request: OpenRequest) -> Storage:
        """The disk in a layer."""
        from .reading import open_layer

        return open_layer(self, request)

    @hookimpl
    def create(self, request: CreateRequest) -> Storage:
        """A new artifact of one layer, which has its tag once it is settled."""
        from .upload import create_artifact

        return create_artifact(self, request)


driver = OciDriver()
