"""A new artifact: its blobs first, the manifest last, so that a tag never leads to what is not whole."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diskmill.contract.drivers import ProtocolDriver
from diskmill.contract.node import ReadBuffer, Storage
from diskmill.errors import DiskmillError, StorageError, UnsupportedError
from diskmill.kit.forward import ForwardOutput
from diskmill.sizes import MiB

from .client import Client, settings_of
from .place import OciPlace
from .reading import MANIFESTS, TITLE

if TYPE_CHECKING:
    from diskmill import Context
    from diskmill.contract.requests import CreateRequest

ARTIFACT = "application/vnd.diskmill.disk.v1"
LAYER = "application/octet-stream"
_PIECE = 8 * MiB
_EMPTY = b"{}"
_CONFIG = "application/vnd.oci.empty.v1+json"


def create_artifact(driver: ProtocolDriver, request: CreateRequest) -> OciOutput:
    """A new artifact at the request's place.

    :raises StorageError: it cannot be made.
    """
    place = request.place
    assert isinstance(place, OciPlace)
    if place.digest:
        raise UnsupportedError("what a digest names cannot be made anew: give a tag", file=place.display())
    client = Client(place, settings_of(request.options, place, request.context), "pull,push")
    refuse = request.context.overwrite == "refuse"
    if refuse and client.ask("HEAD", f"manifests/{place.tag}", (200, 404)).status == 200:
        raise StorageError("File exists", file=client.name, errno=errno.EEXIST)
    return OciOutput(driver, place, client, request.context)


class OciOutput(ForwardOutput):
    """See the module."""

    one_pass = "an upload"

    def __init__(self, driver: ProtocolDriver, place: OciPlace, client: Client, context: Context) -> None:
        super().__init__(driver, place.display())
        self.place = place
        self._tag = place.tag
        self._client = client
        self._context = context
        self._digest = hashlib.sha256()
        self._buffer = bytearray(_PIECE)
        self._filled = 0
        self._sent = 0
        self._settled = False
        self._location: str | None = self._begun()

    def _begun(self) -> str:
        """Where a new blob is to be sent."""
        return self._where(self._client.ask("POST", "blobs/uploads/", (202,)).headers)

    def _where(self, headers: object) -> str:
        location = headers.get("location") if isinstance(headers, dict) else None
        if not location:
            raise StorageError("the registry does not tell where to send bytes", file=self.name)
        return str(location)

    def append(self, data: ReadBuffer) -> None:
        view, at = memoryview(data), 0
        self._digest.update(view)
        while at < len(view):
            count = min(len(view) - at, _PIECE - self._filled)
            self._buffer[self._filled : self._filled + count] = view[at : at + count]
            self._filled += count
            at += count
            if self._filled == _PIECE:
                self._send()

    def _send(self) -> None:
        assert self._location is not None
        piece = bytes(memoryview(self._buffer)[: self._filled])
        headers = {
            "Content-Type": LAYER,
            "Content-Range": f"{self._sent}-{self._sent + len(piece) - 1}",
        }
        answer = self._client.ask("PATCH", self._location, (202,), body=piece, headers=headers)
        self._location = self._where(answer.headers)
        self._sent += self._filled
        self._filled = 0

    def settle(self, others: Sequence[Storage] = ()) -> None:
        super().settle(others)
        if self._settled:
            return
        self.finish()
        if self._filled:
            self._send()
        assert self._location is not None
        layer = f"sha256:{self._digest.hexdigest()}"
        self._finished(self._location, layer)
        self._location = None
        config = f"sha256:{hashlib.sha256(_EMPTY).hexdigest()}"
        where = self._begun()
        answer = self._client.ask("PATCH", where, (202,), body=_EMPTY, headers={"Content-Type": LAYER})
        self._finished(self._where(answer.headers), config)
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFESTS[0],
            "artifactType": ARTIFACT,
            "config": {"mediaType": _CONFIG, "digest": config, "size": len(_EMPTY)},
            "layers": [
                {"mediaType": LAYER, "digest": layer, "size": self.size, "annotations": {TITLE: "disk.img"}},
            ],
        }
        self._client.ask(
            "PUT",
            f"manifests/{self._tag}",
            (201,),
            body=json.dumps(manifest).encode(),
            headers={"Content-Type": MANIFESTS[0]},
        )
        self._settled = True

    def _finished(self, location: str, digest: str) -> None:
        """The blob at *location* is whole. The registry holds it against its digest."""
        url = f"{location}{'&' if '?' in location else '?'}digest={digest}"
        self._client.ask("PUT", url, (201,), headers={"Content-Length": "0"})

    @property
    def settled(self) -> bool:
        return self._settled

    def remove(self) -> None:
        self._client.ask("DELETE", f"manifests/{self._tag}", (202, 404, 405))

    def close(self) -> None:
        location, self._location = self._location, None
        if location is None:
            return
        try:
            self._client.ask("DELETE", location, (204, 404, 405))
        except DiskmillError:
            self._context.warn(f"'{self.name}': an upload that was given up may be left in the registry, unseen")
