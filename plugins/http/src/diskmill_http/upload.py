"""A new file on a web server: one PUT (RFC 9110, section 9.3.4), whose body is never complete before the image is.

A body ends with its announced length, or its last chunk (RFC 9112, sections 6 and 7.1). Where the output fails, the
connection is closed before, and the server knows that it has not got all. What it does with that is its own affair:
those that are known (see the driver's page) keep nothing under the name.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPException, HTTPResponse, responses
from typing import TYPE_CHECKING

from diskmill.contract.node import ReadBuffer, Storage
from diskmill.errors import StorageError
from diskmill.kit.forward import ForwardOutput
from diskmill.sizes import MiB

from .client import Answer, Client
from .connections import Connection
from .patience import PassingError
from .place import UrlPlace
from .settings import settings_of

if TYPE_CHECKING:
    from diskmill.contract.requests import CreateRequest

    from . import UrlDriver

_PIECE = MiB
"""Bytes of a chunk. An output that is not longer is announced with its length."""
_TAKEN = (200, 201, 204)
_SILENT = (*_TAKEN, 400, 401, 403, 404, 405, 501)
"""What a server may say that takes files and does not show them."""


def create_file(driver: UrlDriver, request: CreateRequest) -> HttpOutput:
    """A new file at the request's place.

    :raises StorageError: there is one, and it is not to be replaced.
    """
    place = request.place
    assert isinstance(place, UrlPlace)
    options = {key: value for key, value in request.options.items() if value is not None}
    name = place.display()
    stopped = threading.Event()
    client = Client(place, settings_of(options, place, request.context, name), stopped, name)
    anew = request.context.overwrite == "refuse"
    output = HttpOutput(driver, place, client, stopped, anew=anew)
    if anew and output.exists():
        raise StorageError("File exists", file=name, errno=errno.EEXIST)
    return output


class HttpOutput(ForwardOutput):
    """See the module.

    :param anew: the server is told to take it only where there is nothing of that name.
    """

    one_pass = "an upload"

    def __init__(
        self, driver: UrlDriver, place: UrlPlace, client: Client, stopped: threading.Event, *, anew: bool
    ) -> None:
        super().__init__(driver, place.display())
        self.place = place
        self._url = place.url
        self._client = client
        self._stopped = stopped
        self._anew = anew
        self._buffer = bytearray()
        self._connection: Connection | None = None
        self._announced: int | None = None
        self._sent = 0
        self._settled = False

    def append(self, data: ReadBuffer) -> None:
        self._buffer += data
        if len(self._buffer) >= _PIECE:
            self._send()

    def _send(self) -> None:
        """Send the buffer."""
        try:
            if self._connection is None:
                self._begin(self.total)
            self._put(self._buffer)
        except (OSError, HTTPException) as error:
            raise self._failed(error) from None
        self._buffer = bytearray()

    def _begin(self, length: int | None) -> None:
        """The request's head; *length* is None where nobody knows it."""
        self._announced = length
        self._connection = connection = self._client.connections.take(self._url.origin)
        http = connection.http
        http.putrequest("PUT", self._url.address if connection.proxied else self._url.target, skip_accept_encoding=True)
        headers = {**self._client.told(connection), "Content-Type": "application/octet-stream"}
        if self._anew:
            headers["If-None-Match"] = "*"
        if length is None:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(length)
        for key, value in headers.items():
            http.putheader(key, value)
        http.endheaders()

    def _put(self, data: bytearray) -> None:
        """A part of the body, which is not empty."""
        assert self._connection is not None
        self._sent += len(data)
        if self._announced is None:
            data[:0] = b"%x\r\n" % len(data)
            data += b"\r\n"
        elif self._sent > self._announced:
            raise StorageError(f"it is longer than the {self._announced} bytes that were announced", file=self.name)
        self._connection.http.send(data)

    def _failed(self, error: OSError | HTTPException) -> StorageError:
        """What to raise for *error*. A server that does not want the body may have said why, and closed."""
        if isinstance(error, StorageError):
            return error
        connection = self._connection
        if connection is not None and not isinstance(error, TimeoutError) and not self._stopped.is_set():
            try:
                connection.http.sock.settimeout(1)
                answer = connection.http.getresponse()
            except (OSError, HTTPException, AttributeError):
                pass
            else:
                return self._refusal(answer)
        why = self._client.failure(error, 0)
        cause = why.cause if isinstance(why, PassingError) else str(why)
        if self._stopped.is_set():
            cause = "interrupted"
        return why if isinstance(why, StorageError) else StorageError(cause, file=self.name, place=f"sent {self._sent}")

    def _refusal(self, answer: HTTPResponse) -> StorageError:
        """What *answer*, which is not that the file was taken, says."""
        status = answer.status
        if status in (411, 501) and self._announced is None:
            text = f"the server wants to know the length beforehand ({status}): send a local file, as raw"
        elif status == 412 and self._anew:
            return StorageError("File exists", file=self.name, errno=errno.EEXIST)
        elif 300 <= status < 400:
            text = f"the server redirects an upload ({status}): name the URL that it leads to"
        else:
            text = f"the server does not take it: {status} {responses.get(status, '')}".rstrip()
        return StorageError(text, file=self.name, errno=errno.EACCES if status in (401, 403) else None)

    # -- the end ------------------------------------------------------------------------------------------------

    def settle(self, others: Sequence[Storage] = ()) -> None:
        super().settle(others)
        if self._settled:
            return
        self.finish()
        try:
            if self._connection is None:
                self._begin(self.size)
            if self._buffer:
                self._put(self._buffer)
            self._buffer = bytearray()
            if self._announced is not None and self._sent != self._announced:
                raise StorageError(f"it has {self._sent} bytes, and {self._announced} were announced", file=self.name)
            connection = self._connection
            assert connection is not None
            if self._announced is None:
                connection.http.send(b"0\r\n\r\n")
            answer = connection.http.getresponse()
        except (OSError, HTTPException) as error:
            raise self._failed(error) from None
        if answer.status not in _TAKEN:
            raise self._refusal(answer)
        self._connection = None
        self._client.done(Answer(answer, connection))
        self._settled = True
        with suppress(PassingError):  # a URL that is signed for a PUT gives no other answer
            answer = self._asked("HEAD", _SILENT)
            told = answer.headers.get("Content-Length", "") if answer.status in _TAKEN else ""
            if told.isdigit() and int(told) != self.size:
                raise StorageError(f"{self.size} bytes were sent, but the server has {told}", file=self.name)

    @property
    def settled(self) -> bool:
        return self._settled

    def exists(self) -> bool:
        """Whether there is something of the name."""
        try:
            return self._asked("HEAD", (*_TAKEN, 404)).status != 404
        except PassingError as error:
            raise StorageError(error.cause, file=self.name) from None

    def _asked(self, method: str, accepted: tuple[int, ...]) -> HTTPResponse:
        """The answer to a request without a body, on a new connection: an old one may be closed just now.

        :raises PassingError, StorageError: there is none of the statuses *accepted*.
        """
        self._client.connections.close()
        answer = self._client.ask({}, accepted, method)
        self._client.discard(answer)
        return answer.response

    def remove(self) -> None:
        with suppress(PassingError):
            self._asked("DELETE", (*_TAKEN, 202, 404))

    def interrupt(self) -> None:
        self._stopped.set()
        self._client.connections.stop()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._client.connections.drop(connection)
        self._client.connections.close()
