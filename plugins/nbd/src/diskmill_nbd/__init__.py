"""NBD, network block devices: exports of servers as storage, and images as exports (:func:`diskmill.serve`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diskmill.contract.drivers import ProtocolDriver, hookimpl
from diskmill.contract.options import Option

if TYPE_CHECKING:
    from diskmill.contract.requests import CreateRequest, OpenRequest
    from diskmill.kit.emptied import Emptied

    from .place import NbdPlace
    from .serving import Serving
    from .storage import NbdStorage


def _option(name: str, type: str, help: str, default: str | int | bool | None = None) -> Option:
    return Option(name, type, help, default=default, when=("open",))


class NbdDriver(ProtocolDriver):
    """``nbd``: what a server exports."""

    contract = 1
    name = "nbd"
    title = "network block devices: exports of NBD servers"
    prefixes = ("nbd", "nbds", "nbd+unix", "nbds+unix", "nbd+vsock", "nbds+vsock")
    capabilities = frozenset({"create", "write", "preallocation"})
    options = (
        _option("server.type", "str", "inet, unix or vsock"),
        _option("server.host", "str", "the host's name or address"),
        _option("server.port", "str", "the port; default 10809"),
        _option("server.path", "str", "the path of a Unix socket"),
        _option("server.abstract", "bool", "the path is the name of an abstract socket"),
        _option("server.cid", "str", "the context identifier of a vsock address"),
        _option("host", "str", "the same as server.host"),
        _option("port", "str", "the same as server.port"),
        _option("path", "str", "the same as server.path"),
        _option("export", "str", "the export's name; default the empty one"),
        _option("tls-creds", "str", "id of a tls-creds-x509 or tls-creds-psk object"),
        _option("tls-hostname", "str", "whom the server's certificate must name; default the host"),
        _option("reconnect-delay", "int", "seconds for which a lost server is tried again", default=0),
        _option("open-timeout", "int", "seconds for which a server that is not there yet is tried again", default=0),
        _option("x-dirty-bitmap", "str", "a metadata context to be read instead of base:allocation"),
        _option("timeout", "int", "seconds after which a silent server counts as stalled; 0: never", default=60),
        _option("retries", "int", "times that a request is repeated after an input/output error", default=0),
        _option("connections", "int", "connections at most, to a server that allows several", default=4),
    )

    def place(self, options: Mapping[str, Any]) -> NbdPlace:
        from .place import place_of

        return place_of(self, options)

    @hookimpl
    def open(self, request: OpenRequest) -> NbdStorage:
        """An export."""
        from .storage import open_nbd

        return open_nbd(self, request)

    @hookimpl
    def create(self, request: CreateRequest) -> Emptied:
        """An export for a new image: its server has made it, and it keeps its size."""
        from .storage import create_nbd

        return create_nbd(self, request)

    def serve(self, image: str, **options: Any) -> Serving:
        """See :func:`diskmill_nbd.serving.serve`, whose options these are."""
        from .serving import serve

        return serve(image, **options)


driver = NbdDriver()
