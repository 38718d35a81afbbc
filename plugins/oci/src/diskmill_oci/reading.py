"""A disk in a layer: a raw one by ranges, one in a tar archive where that is not compressed, too; else in one pass.

Media types from the OCI Image Format Specification, https://github.com/opencontainers/image-spec/blob/main/media-types.md;
container disks (``/disk/…`` in a layer) from KubeVirt's user guide, "containerDisk".
"""

from __future__ import annotations

import errno
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any, cast

from diskmill.contract import calls
from diskmill.contract.drivers import ProtocolDriver
from diskmill.contract.node import Buffer, Storage
from diskmill.contract.options import validate
from diskmill.contract.requests import OpenRequest
from diskmill.errors import StorageError, UnsupportedError
from diskmill.kit.forward import ForwardStorage
from diskmill.sizes import MAX_SIZE, MiB

from .client import Client, Settings, settings_of
from .place import DIGEST, OciPlace

if TYPE_CHECKING:
    from diskmill import Context

INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
TITLE = "org.opencontainers.image.title"
_ACCEPT = ", ".join((*MANIFESTS, *INDEXES))
_MOST_LAYERS = 1000
_FOLDER = "disk/"
_HEADER = "diskmill-oci-authorization"


def open_layer(driver: ProtocolDriver, request: OpenRequest) -> Storage:
    """The disk at the request's place.

    :raises StorageError: it cannot be had. UnsupportedError: it is to be written.
    """
    place = request.place
    assert isinstance(place, OciPlace)
    if request.writable:
        raise UnsupportedError("an artifact cannot be changed, only made anew", file=request.name)
    settings = settings_of(request.options, place, request.context)
    client = Client(place, settings, "pull")
    layer = _layer(client, place, request.options.get("layer"))
    digest, size, kind = str(layer.get("digest")), layer.get("size"), str(layer.get("mediaType"))
    if not DIGEST.fullmatch(digest) or not isinstance(size, int) or not 0 <= size <= MAX_SIZE:
        raise StorageError("its manifest names an impossible layer", file=client.name)
    blob = BlobStorage(driver, place, client, settings, digest, request.context)
    try:
        if blob.size != size:
            raise StorageError("the layer is not as long as its manifest says", file=client.name)
        if ".tar" not in kind and "+tar" not in kind:
            return blob
        if blob.read(0, min(2, size)) == b"\x1f\x8b" or "zstd" in kind:
            if "zstd" in kind:
                raise UnsupportedError("layers compressed with zstd are not supported", file=client.name)
            return PackedStorage(driver, place, blob)
        return _member(driver, place, blob)
    except BaseException:
        blob.close()
        raise


def _layer(client: Client, place: OciPlace, wanted: object) -> Mapping[str, Any]:
    """The descriptor of the layer that is meant."""
    found = client.ask("GET", f"manifests/{place.reference}", (200,), headers={"Accept": _ACCEPT}).json(client.name)
    if isinstance(found.get("manifests"), list):
        one = _of_this_machine(found["manifests"])
        if one is None:
            raise StorageError("its index has no manifest for this kind of machine", file=client.name)
        found = client.ask("GET", f"manifests/{one}", (200,), headers={"Accept": _ACCEPT}).json(client.name)
    layers = found.get("layers")
    if not isinstance(layers, list) or not all(isinstance(one, dict) for one in layers[:_MOST_LAYERS]):
        raise StorageError("its manifest has no layers", file=client.name)
    layers = layers[:_MOST_LAYERS]
    if wanted is not None:
        layers = [one for one in layers if wanted in (one.get("digest"), (one.get("annotations") or {}).get(TITLE))]
    if len(layers) != 1:
        some = "several layers: choose one" if layers else "no such layer: see"
        raise StorageError(f"it has {some} (option 'layer')", file=client.name)
    return cast("Mapping[str, Any]", layers[0])


def _of_this_machine(manifests: list[Any]) -> str | None:
    """The digest of the manifest for this kind of machine; of the only one, where there is one."""
    import platform

    here = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    known = [one for one in manifests if isinstance(one, dict) and DIGEST.fullmatch(str(one.get("digest")))]
    fitting = [one for one in known if (one.get("platform") or {}).get("architecture") == here] or (
        known if len(known) == 1 else []
    )
    return str(fitting[0]["digest"]) if fitting else None


class BlobStorage(Storage):
    """A blob, by ranges: the driver of URLs reads it. It logs in anew when what lets one in gets out of date."""

    def __init__(
        self,
        driver: ProtocolDriver,
        place: OciPlace,
        client: Client,
        settings: Settings,
        digest: str,
        context: Context,
    ) -> None:
        self.driver = driver
        self.place = place
        self.name = place.display()
        self._client = client
        self._settings = settings
        self._context = context
        self._url = f"{client.base}blobs/{digest}"
        self._file = self._opened()
        self.size = self._file.size
        self.requests = self._file.requests
        self._tried = 0

    def _opened(self) -> Storage:
        context, scheme = self._context, self._settings.scheme
        driver = context.registry.protocol(scheme)
        options: dict[str, Any] = {"url": self._url, "timeout": self._settings.timeout}
        if self._client.authorization is not None:
            header = f"Authorization: {self._client.authorization}".encode()
            context = replace(context, secrets={**context.secrets, _HEADER: header})
            options["header-secret"] = _HEADER
        if self._settings.cafile is not None and not self._settings.plain:
            options["cafile"] = self._settings.cafile
        request = OpenRequest(
            self.name,
            context,
            options=validate(driver.options, options, when="open", driver=driver.name),
            place=driver.place({"url": self._url}),
        )
        file = calls.open_storage(context.registry, driver, request)
        if file.forward:
            file.close()
            raise UnsupportedError("the registry gives no ranges of its blobs", file=self.name)
        return file

    def read_into(self, offset: int, buffer: Buffer) -> None:
        file = self._file
        try:
            file.read_into(offset, buffer)
        except StorageError as error:
            if error.errno != errno.EACCES:
                raise
            if file is self._file:
                self._client.log_in_again()
                self._file = self._opened()
                if self._file.size != self.size:
                    raise StorageError("it changed in the registry while it was read", file=self.name) from None
            self._file.read_into(offset, buffer)

    def flush(self) -> None:
        """Nothing is written."""

    def interrupt(self) -> None:
        self._file.interrupt()

    def close(self) -> None:
        self._file.close()


class _Reader:
    """A blob from its first byte to its last, as ``tarfile`` reads it."""

    def __init__(self, blob: Storage) -> None:
        self._blob = blob
        self._at = 0

    def read(self, length: int) -> bytes:
        data = self._blob.read_some(self._at, length)
        self._at += len(data)
        return data


def _is_disk(member: tarfile.TarInfo) -> bool:
    name = member.name.removeprefix("./").removeprefix("/")
    return member.isreg() and name.startswith(_FOLDER) and "/" not in name.removeprefix(_FOLDER)


class PackedStorage(ForwardStorage):
    """The disk in a layer that is a compressed archive."""

    one_pass = "a compressed layer"

    def __init__(self, driver: ProtocolDriver, place: OciPlace, blob: BlobStorage) -> None:
        super().__init__(driver, blob.name)
        self.place = place
        self._blob = blob
        try:
            self._archive = tarfile.open(  # noqa: SIM115 - it lives as long as this
                mode="r|gz", fileobj=cast("IO[bytes]", _Reader(blob)), bufsize=MiB
            )
            member = next((one for one in self._archive if _is_disk(one)), None)
            if member is None:
                raise StorageError("its layer has no disk (/disk/…)", file=self.name)
            self._file = self._archive.extractfile(member)
        except (tarfile.TarError, zlib.error, EOFError) as error:
            raise StorageError(f"its layer is no archive: {error}", file=self.name) from None
        self.size, self.unsized = member.size, False

    def more(self, length: int) -> bytes:
        assert self._file is not None
        try:
            data = self._file.read(min(length, self.size - self.position, MiB))
        except (tarfile.TarError, zlib.error, EOFError):
            data = b""
        if not data and self.position < self.size and length:
            raise StorageError("its layer is damaged", file=self.name, place=f"read at offset {self.position}")
        return data

    def flush(self) -> None:
        """Nothing is written."""

    def interrupt(self) -> None:
        self._blob.interrupt()

    def close(self) -> None:
        self._blob.close()


class _Window(Storage):
    """*size* bytes of a blob, from *start* on."""

    def __init__(self, driver: ProtocolDriver, place: OciPlace, blob: Storage, start: int, size: int) -> None:
        self.driver = driver
        self.place = place
        self.name = blob.name
        self.size = size
        self.requests = blob.requests
        self._blob = blob
        self._start = start

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        inside = max(min(len(view), self.size - offset), 0)
        if inside:
            self._blob.read_into(self._start + offset, view[:inside])
        view[inside:] = bytes(len(view) - inside)

    def flush(self) -> None:
        """Nothing is written."""

    def interrupt(self) -> None:
        self._blob.interrupt()

    def close(self) -> None:
        self._blob.close()


def _member(driver: ProtocolDriver, place: OciPlace, blob: Storage) -> Storage:
    """The disk in a layer that is an archive as it is."""
    try:
        with tarfile.open(mode="r:", fileobj=blob.open_stream()) as archive:
            for member in archive:
                if _is_disk(member) and not member.issparse():
                    return _Window(driver, place, blob, member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        raise StorageError(f"its layer is no archive: {error}", file=blob.name) from None
    raise StorageError("its layer has no disk (/disk/…)", file=blob.name)
