"""Asking a web server for bytes of one URL: redirections, credentials, and which failures may pass (RFC 9110)."""

from __future__ import annotations

import errno
import socket
import ssl
import threading
import time
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse, IncompleteRead, responses
from typing import NamedTuple, NoReturn

from diskmill.errors import RefusedError, StorageError
from diskmill.sizes import KiB

from .connections import Connection, Connections, basic
from .patience import PassingError
from .place import UrlPlace
from .settings import Settings
from .url import Url

_REDIRECTIONS = (301, 302, 303, 307, 308)
_HOPS = 10
_PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Statuses that another try may not meet."""
_LEFT = (401, 403, 404, 410)
"""Statuses by which a place that a redirection led to may say that this was for a time only."""
_PIECE = 64 * KiB
_CUT = "the connection was closed in the middle"
_DRAINED = 64 * KiB
"""Bytes of an answer without use that are read for the connection's sake; a longer one costs the connection."""


class Answer(NamedTuple):
    """A response whose body is still to be read, and the connection that it comes on."""

    response: HTTPResponse
    connection: Connection

    def header(self, name: str) -> str:
        """The header *name*; empty where there is none."""
        return self.response.headers.get(name, "").strip()


class Client:
    """Asks for one place.

    :param name: of the storage, for messages.
    """

    def __init__(self, place: UrlPlace, settings: Settings, stopped: threading.Event, name: str) -> None:
        self._place = place
        self._url = place.url
        self._name = name
        self._at = place.url
        """Where the last redirection led: what comes next is asked there."""
        self.connections = Connections(settings, stopped, name)
        self._common = {"User-Agent": "diskmill", "Accept": "*/*", "Accept-Encoding": "identity"}
        self._own = dict(settings.headers)
        if settings.user is not None:
            self._own["Authorization"] = basic(settings.user, settings.password or "")
        self.reached = False
        """Whether the server has answered: from then on it not being there may pass."""

    def ask(self, headers: dict[str, str], accepted: tuple[int, ...], method: str = "GET") -> Answer:
        """What the server answers to a *method* with *headers*, with one of the statuses *accepted*.

        :raises PassingError: another try may have it. StorageError: none would.
        """
        url = self._at
        for _ in range(_HOPS + 1):
            answer = self._once(url, headers, method)
            status = answer.response.status
            if status in accepted:
                self._at, self.reached = url, True
                return answer
            where, wait = answer.header("Location"), answer.header("Retry-After")
            self.discard(answer)
            if status not in _REDIRECTIONS:
                self._refused(status, wait, url)
            url = self._redirected(url, where)
        raise StorageError(f"the server redirects more than {_HOPS} times", file=self._name)

    def told(self, connection: Connection) -> dict[str, str]:
        """The headers of every request on *connection*. Credentials are for the place's own origin."""
        own = self._own if connection.origin == self._url.origin else {}
        return {**self._common, **own, **self.connections.headers_for(connection)}

    def _once(self, url: Url, headers: dict[str, str], method: str) -> Answer:
        connection = self.connections.take(url.origin)
        try:
            told = {**self.told(connection), **headers}
            connection.http.request(method, url.address if connection.proxied else url.target, headers=told)
            return Answer(connection.http.getresponse(), connection)
        except (OSError, HTTPException) as error:
            self.connections.drop(connection)
            raise self.failure(error, 0, stale=connection.used and not isinstance(error, TimeoutError)) from None
        except BaseException:
            self.connections.drop(connection)
            raise

    def failure(self, error: OSError | HTTPException, received: int, *, stale: bool = False) -> Exception:
        """What to raise for *error*, after *received* good bytes. Its own words are not shown: they may quote a URL."""
        if isinstance(error, StorageError):  # an OSError too, which says all that there is to say
            return error
        if isinstance(error, ssl.SSLCertVerificationError):
            return StorageError(f"its certificate is not accepted: {error.verify_message}", file=self._name)
        if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
            return StorageError("its host is not known", file=self._name)
        if isinstance(error, TimeoutError):
            cause = "the server was silent for too long"
        elif isinstance(error, ssl.SSLError):
            cause = f"TLS failed: {error.reason or 'the connection was closed'}"
        elif isinstance(error, ConnectionRefusedError) or getattr(error, "errno", None) in _UNREACHABLE:
            cause = f"the server cannot be reached: {getattr(error, 'strerror', None) or 'no route'}"
            if not self.reached:
                return StorageError(cause, file=self._name, transient=True)
        elif isinstance(error, OSError) and "Tunnel connection failed" in str(error):
            return StorageError("the proxy refuses to connect to it", file=self._name)
        elif isinstance(error, OSError):
            cause = f"the connection failed: {error.strerror or 'it was closed'}"
        elif isinstance(error, IncompleteRead):
            cause = _CUT
        else:
            cause = "the server's answer is not HTTP"
        return PassingError(cause, received=received, stale=stale)

    def _refused(self, status: int, wait: str, url: Url) -> NoReturn:
        text = f"the server says: {status} {responses.get(status, '')}".rstrip()
        if url != self._url:
            text += f" (redirected to {url.display()})"
        if status in _PASSING:
            raise PassingError(text, wait=_seconds(wait))
        if status in _LEFT and self._at != self._url:  # what a redirection led to is often good for a time only
            self._at = self._url
            raise PassingError(text)
        raise StorageError(text, file=self._name, errno=errno.EACCES if status in (401, 403) else None)

    def _redirected(self, url: Url, location: str) -> Url:
        """Where the answer for *url* sends us.

        :raises DiskmillError: one does not go there.
        """
        try:
            target = url.redirected(location)
        except ValueError:
            raise StorageError("the server redirects to what is no URL", file=self._name) from None
        why: str | None = None
        if target.origin.scheme not in ("http", "https"):
            why = "which is another protocol"
        elif url.origin.scheme == "https" and target.origin.scheme == "http":
            why = "without TLS"
        if why is not None:
            raise StorageError(f"the server redirects to '{target.display()}', {why}", file=self._name)
        folder = self._url.folder
        if self._place.judged and (folder is None or not target.within(folder) or target.ambiguous):
            raise RefusedError(
                f"the server redirects to '{target.display()}', outside of the folder that an image may name "
                "(allow it with --trust=anything)",
                file=self._name,
            )
        return target

    def discard(self, answer: Answer) -> None:
        """The rest of the answer is not wanted."""
        try:
            left = answer.response.length
            if left is None or left > _DRAINED:
                self.connections.drop(answer.connection)
                return
            answer.response.read()
        except (OSError, HTTPException):
            self.connections.drop(answer.connection)
            return
        self.done(answer)

    def done(self, answer: Answer) -> None:
        """All of the answer was read."""
        if answer.response.isclosed() and not answer.response.will_close:
            self.connections.give(answer.connection)
        else:
            self.connections.drop(answer.connection)

    def fill(self, answer: Answer, view: memoryview) -> None:
        """Fill *view* with what comes next of the answer.

        :raises PassingError: it ends before, and tells how much there was.
        """
        got = 0
        while got < len(view):
            try:
                count = self.some(answer, view[got:])
            except PassingError as error:
                error.received = got
                raise
            if not count:
                raise PassingError(_CUT, received=got)
            got += count

    def some(self, answer: Answer, view: memoryview) -> int:
        """Put what comes next of the answer into *view*; gives how many bytes, 0 at its end.

        :raises PassingError: the connection failed.
        """
        response = answer.response
        try:
            if response.chunked or response.length is None:
                return response.readinto(view[:_PIECE])
            # Not more than one call to the kernel: what one call has brought is not lost when the next one fails.
            count = response.fp.readinto1(view[: response.length])
            response.length -= count
            return count
        except (OSError, HTTPException) as error:
            raise self.failure(error, 0) from None


_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL)


def _seconds(text: str) -> float:
    """What Retry-After asks for: seconds, or a date (RFC 9110, section 10.2.3)."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0)
    except (ValueError, TypeError, OverflowError):
        return 0
