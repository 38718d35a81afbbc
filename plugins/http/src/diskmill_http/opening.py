"""Opening a URL, of whatever scheme."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diskmill.errors import UnsupportedError

from .place import UrlPlace
from .settings import settings_of

if TYPE_CHECKING:
    from diskmill.contract.node import Storage
    from diskmill.contract.requests import OpenRequest

    from . import UrlDriver


def open_url(driver: UrlDriver, request: OpenRequest) -> Storage:
    """What the server has at the request's place.

    :raises StorageError: it cannot be had. UnsupportedError: it is to be written.
    """
    place = request.place
    assert isinstance(place, UrlPlace)
    if request.writable:
        raise UnsupportedError("a file of its server cannot be changed, but only written anew", file=request.name)
    settings = settings_of(request.options, place, request.context, request.name)
    if driver.name in ("ftp", "ftps"):
        from .ftp_storage import FtpStorage

        return FtpStorage.open(driver, place, settings)
    from .http_storage import open_http

    return open_http(driver, place, settings, request.context)
