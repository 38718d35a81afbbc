"""An object, read by ranges of the state that was there when it was opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import obstore
from diskmill.contract.drivers import ProtocolDriver
from diskmill.errors import StorageError, UnsupportedError
from diskmill.kit.ranged import RangedStorage
from diskmill.sizes import MAX_SIZE, MiB

from .place import ObjectPlace
from .settings import Settings, settings_of
from .store import CHANGED, Requests, store_of

if TYPE_CHECKING:
    from diskmill.contract.requests import OpenRequest
    from obstore import GetOptions, ObjectMeta

_BEST = 3 * MiB
"""Bytes of a request: each costs the service more than that of a web server does. With 1 MiB a copy took a third longer
here; 4 MiB gained little, and eight of them much memory."""


def open_object(driver: ProtocolDriver, request: OpenRequest) -> ObjectStorage:
    """The object at the request's place.

    :raises StorageError: it cannot be had. UnsupportedError: it is to be written.
    """
    place = request.place
    assert isinstance(place, ObjectPlace)
    if request.writable:
        raise UnsupportedError("an object cannot be changed, only made anew", file=request.name)
    settings = settings_of(request.options, place, request.context, told=True)
    storage = ObjectStorage(driver, place, settings)
    if not storage.pin.get("e_tag"):
        request.context.warn(f"'{storage.name}': the service tells no ETag: a change meanwhile may go unnoticed")
    return storage


class ObjectStorage(RangedStorage):
    """See the module.

    :raises StorageError: the object cannot be had.
    """

    def __init__(self, driver: ProtocolDriver, place: ObjectPlace, settings: Settings) -> None:
        super().__init__(place.display(), readahead=settings.readahead, connections=settings.connections, best=_BEST)
        self.driver = driver
        self.place = self.where = place
        self.settings = settings
        self._key = place.expected_key()
        self._store = store_of(place, settings)
        self._requests = Requests()
        self.pin = self._requests.run(self._look, self.name)
        """What the service told of the object when it was opened."""
        self.size = self.pin["size"]
        if self.size > MAX_SIZE:
            raise StorageError("the service tells a size that no object has", file=self.name)

    async def _look(self) -> ObjectMeta:
        """A look at the first byte: some that may read an object may not ask for what is told of it (HEAD)."""
        try:
            return (await obstore.get_async(self._store, self._key, options={"range": (0, 1)})).meta
        except obstore.exceptions.GenericError:  # an empty one has no first byte
            return await obstore.head_async(self._store, self._key)

    def fetch(self, offset: int, view: memoryview) -> None:
        place = f"read at offset {offset}"
        data = memoryview(self._requests.run(lambda: self._get(offset, len(view)), self.name, place))
        if len(data) != len(view):
            raise StorageError("the service's answer is not as long as its range", file=self.name, place=place)
        view[:] = data

    async def _get(self, offset: int, length: int) -> Any:
        options: GetOptions = {"range": (offset, offset + length)}
        tag = self.pin["e_tag"]
        if tag and not tag.startswith("W/"):
            options["if_match"] = tag
        result = await obstore.get_async(self._store, self._key, options=options)
        if not self.same(result.meta) or result.range != (offset, offset + length):
            raise StorageError(CHANGED, file=self.name, place=f"read at offset {offset}")
        return await result.bytes_async()

    def same(self, meta: ObjectMeta) -> bool:
        """Whether *meta* is told of the state that was opened."""
        pin = self.pin
        if meta["size"] != pin["size"]:
            return False
        return meta["e_tag"] == pin["e_tag"] if pin["e_tag"] else meta["last_modified"] == pin["last_modified"]

    def unchanged(self) -> bool:
        """Whether it still is what was opened.

        :raises StorageError: nobody can tell.
        """
        return self.same(self._requests.run(self._look, self.name))

    def state(self) -> str | None:
        tag = self.pin.get("e_tag")
        return f"{self.size} {tag}" if tag and not tag.startswith("W/") else None

    def interrupt(self) -> None:
        self._requests.stop()

    def close(self) -> None:
        """Connections go when the store does."""
