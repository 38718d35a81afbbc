"""What a bucket holds below a folder, page by page, as the service lists it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import obstore
from diskmill.contract.drivers import ProtocolDriver

from .place import ObjectPlace
from .settings import settings_of
from .store import Requests, store_of

if TYPE_CHECKING:
    from diskmill.contract.requests import OpenRequest
    from obstore import ListStream, ObjectMeta
    from obstore.store import ObjectStore


def objects(driver: ProtocolDriver, request: OpenRequest) -> Iterator[ObjectPlace]:
    """The objects below the request's place, but for those of no bytes that stand for a folder.

    :raises StorageError: the service does not tell them.
    """
    place = request.place
    assert isinstance(place, ObjectPlace)
    settings = settings_of(request.options, place, request.context, told=True)
    store, requests, name = store_of(place, settings), Requests(), place.display()
    pages = _pages(store, place.key.strip("/"))
    while page := requests.run(lambda: _next(pages), name, "list"):
        for meta in page:
            if not meta["path"].endswith("/"):
                yield ObjectPlace(place.driver, place.bucket, meta["path"], place.kept)


def _pages(store: ObjectStore, folder: str) -> ListStream[Sequence[ObjectMeta]]:
    return obstore.list(store, prefix=folder or None)


async def _next(pages: ListStream[Sequence[ObjectMeta]]) -> Sequence[ObjectMeta] | None:
    return await anext(pages, None)
