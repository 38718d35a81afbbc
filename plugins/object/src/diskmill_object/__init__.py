"""The protocols ``s3``, ``gs`` and ``az``: images in object stores, read by ranges, written as uploads in parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from diskmill.contract.drivers import ProtocolDriver, hookimpl
from diskmill.contract.options import Option

if TYPE_CHECKING:
    from diskmill.contract.node import Storage
    from diskmill.contract.place import Place
    from diskmill.contract.requests import CreateRequest, OpenRequest

_BOTH = ("open", "create")


def _option(name: str, type: str, help: str, *, when: tuple[str, ...] = _BOTH, runtime: bool = False) -> Option:
    return Option(name, type, help, when=when, runtime=runtime)


_ALL = (
    _option("endpoint", "str", "URL of the service, where it is not the vendor's own"),
    _option("anonymous", "bool", "send no credentials (off)"),
    _option("cafile", "str", "file with certificates of authorities that are believed too"),
    _option("readahead", "size", "bytes that are asked for at least, and kept (256k)", when=("open",), runtime=True),
    _option("timeout", "int", "seconds that the service may be silent (30)", runtime=True),
    _option("retries", "int", "failures in a row that are borne (5)", runtime=True),
    _option("connections", "int", "how many requests are made at once (8)", runtime=True),
    _option("part-size", "size", "bytes of an upload's parts; default: by the disk's size", when=("create",)),
)
_S3 = (
    _option("region", "str", "where the bucket is"),
    _option("profile", "str", "section of ~/.aws/credentials and ~/.aws/config to take the rest from"),
    _option("access-key-id", "str", "the key's name"),
    _option("key-secret", "str", "id of the secret with the secret access key"),
    _option("token-secret", "str", "id of the secret with the session token"),
    _option("virtual-hosted", "bool", "the bucket is a part of the host's name (off)"),
    _option("requester-pays", "bool", "agree to pay for what is read (off)"),
)
_GS = (_option("key-secret", "str", "id of the secret with the service account's key, in JSON"),)
_AZ = (
    _option("account", "str", "the storage account"),
    _option("key-secret", "str", "id of the secret with the account's key"),
    _option("sas-secret", "str", "id of the secret with a shared access signature"),
)
INHERITED = (
    "endpoint", "region", "profile", "account", "anonymous", "virtual-hosted", "requester-pays",
    "cafile", "readahead", "timeout", "retries", "connections",
)  # fmt: skip
"""Options that hold for an object beside a place, too: how its service is used. None of them is a credential."""


class ObjectDriver(ProtocolDriver):
    """Of one kind of object store: its name is that of the URL's scheme."""

    contract = 1
    capabilities = frozenset({"create", "list"})

    def __init__(self, name: str, title: str, options: tuple[Option, ...]) -> None:
        self.name = name
        self.title = title
        self.prefixes = (name,)
        where = Option("filename", "str", f"{name}://BUCKET/KEY", when=("open",))
        self.options = (where, *_ALL, *options)

    def place(self, options: Mapping[str, Any]) -> Place:
        """Bucket and key."""
        from .place import ObjectPlace

        kept = {name: options[name] for name in INHERITED if name in options}
        return ObjectPlace.parse(self, str(options.get("filename", "")), kept)

    @hookimpl
    def open(self, request: OpenRequest) -> Storage:
        """An object that is there."""
        from .reading import open_object

        return open_object(self, request)

    @hookimpl
    def listing(self, request: OpenRequest) -> Iterator[Place]:
        """The objects whose keys begin with that of a folder."""
        from .listing import objects

        return objects(self, request)

    @hookimpl
    def create(self, request: CreateRequest) -> Storage:
        """A new object, which is there once it is settled."""
        from .upload import create_object

        return create_object(self, request)


s3_driver = ObjectDriver("s3", "objects of S3 and of what speaks its protocol", _S3)
gs_driver = ObjectDriver("gs", "objects of Google Cloud Storage", _GS)
az_driver = ObjectDriver("az", "blobs of Azure Blob Storage", _AZ)
