"""Asking a registry: requests with short answers, and logging in.

Facts from the OCI Distribution Specification (see :mod:`.place`) and from docker's "Token Authentication
Specification", https://distribution.github.io/distribution/spec/auth/token/.
"""

from __future__ import annotations

import base64
import binascii
import errno
import json
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection, responses
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode, urljoin, urlsplit

from diskmill.contract.options import Value
from diskmill.errors import RefusedError, StorageError, UsageError
from diskmill.sizes import MiB

from .place import OciPlace

if TYPE_CHECKING:
    from diskmill import Context
    from diskmill.contract.node import ReadBuffer

_LONGEST = 4 * MiB
"""Bytes of an answer that is taken: the specification's limit for manifests."""
_CHALLENGE = re.compile(r'([a-z]+)="([^"]*)"')


@dataclass(frozen=True)
class Settings:
    """See the options of the driver."""

    plain: bool = False
    timeout: int = 30
    cafile: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def scheme(self) -> str:
        """Of URLs."""
        return "http" if self.plain else "https"


def settings_of(options: Mapping[str, Value], place: OciPlace, context: Context) -> Settings:
    """What *options* ask for; who logs in, by docker's configuration, where they do not say.

    :raises RefusedError: it is an image that sets options. UsageError: they do not make sense.
    """
    name = place.display()
    told = sorted(key for key in options if key not in ("filename", "timeout"))
    if place.judged and told:
        raise RefusedError(f"an image may not set the option '{told[0]}' (--trust=anything lets it)", file=name)
    user = str(options["username"]) if "username" in options else None
    password = None
    if "password-secret" in options:
        password = context.secret(str(options["password-secret"])).decode(errors="replace").rstrip("\n")
    if user is None and password is not None:
        raise UsageError("a password goes with a username", file=name)
    if user is None:
        user, password = _from_docker(place.registry, name)
    return Settings(
        plain=bool(options.get("plain-http", False)),
        timeout=max(int(options.get("timeout", 30)), 1),
        cafile=str(options["cafile"]) if "cafile" in options else None,
        user=user,
        password=password,
    )


def _from_docker(registry: str, name: str) -> tuple[str | None, str | None]:
    """User and password that ``docker login`` (or podman's) has kept for *registry*. No helper program is run."""
    folder = os.environ.get("DOCKER_CONFIG")
    path = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    try:
        entry = json.loads(path.read_text()).get("auths", {}).get(registry, {})
        text = base64.b64decode(entry.get("auth", ""), validate=True).decode()
    except (FileNotFoundError, NotADirectoryError):
        return None, None
    except (OSError, ValueError, AttributeError, TypeError, binascii.Error):  # what it holds is not shown
        raise UsageError(f"the file '{path}' cannot be read as docker's configuration", file=name) from None
    user, colon, password = text.partition(":")
    return (user, password) if colon else (None, None)


class Answer(NamedTuple):
    """A response, read."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self, name: str) -> dict[str, Any]:
        """The object that it holds.

        :raises StorageError: it holds none.
        """
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise StorageError("the registry's answer is no JSON object", file=name)
        return found


class Client:
    """Of one repository.

    :param actions: what is to be allowed: ``pull`` or ``pull,push``.
    """

    def __init__(self, place: OciPlace, settings: Settings, actions: str) -> None:
        self.base = f"{settings.scheme}://{place.registry}/v2/{place.repository}/"
        self.name = place.display()
        self._settings = settings
        self._scope = f"repository:{place.repository}:{actions}"
        self.authorization: str | None = None
        """The header by which one is let in, without its name; None: none was asked for yet."""

    def ask(
        self,
        method: str,
        path: str,
        accepted: tuple[int, ...],
        *,
        body: ReadBuffer = b"",
        headers: Mapping[str, str] = {},
    ) -> Answer:
        """The answer to *method* for *path*, which may be a URL of the registry, with one of the statuses *accepted*.

        :raises StorageError: there is another one, or none.
        """
        url = urljoin(self.base, path)
        if urlsplit(url)[:2] != urlsplit(self.base)[:2]:
            raise StorageError("the registry sends us to another host", file=self.name)
        for again in (False, True):
            told = dict(headers)
            if self.authorization is not None:
                told["Authorization"] = self.authorization
            answer = self._once(method, url, body, told)
            if answer.status == 401 and not again:
                self._log_in(answer.headers.get("www-authenticate", ""))
                continue
            break
        if answer.status not in accepted:
            self.refuse(answer)
        return answer

    def refuse(self, answer: Answer) -> None:
        """:raises StorageError: which says what *answer* does."""
        number = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT}.get(answer.status)
        text = f"the registry says: {answer.status} {responses.get(answer.status, '')}".rstrip()
        raise StorageError(text, file=self.name, errno=number)

    def log_in_again(self) -> None:
        """What lets one in is out of date."""
        self.authorization = None
        self.ask("GET", f"{self._settings.scheme}://{urlsplit(self.base).netloc}/v2/", (200, 404))

    def _once(self, method: str, url: str, body: ReadBuffer, headers: Mapping[str, str]) -> Answer:
        parts = urlsplit(url)
        try:
            connection: HTTPConnection
            if parts.scheme == "https":
                context = ssl.create_default_context(cafile=self._settings.cafile)
                connection = HTTPSConnection(parts.netloc, timeout=self._settings.timeout, context=context)
            else:
                connection = HTTPConnection(parts.netloc, timeout=self._settings.timeout)
            try:
                target = parts.path + (f"?{parts.query}" if parts.query else "")
                connection.request(method, target, body, {"User-Agent": "diskmill", **headers})
                response = connection.getresponse()
                data = response.read(_LONGEST + 1)
            finally:
                connection.close()
        except ssl.SSLCertVerificationError as error:
            raise StorageError(f"its certificate is not accepted: {error.verify_message}", file=self.name) from None
        except TimeoutError:
            raise StorageError("the registry was silent for too long", file=self.name) from None
        except (OSError, HTTPException) as error:
            cause = getattr(error, "strerror", None) or type(error).__name__
            raise StorageError(f"the registry cannot be reached: {cause}", file=self.name) from None
        if len(data) > _LONGEST:
            raise StorageError("the registry's answer is too long", file=self.name)
        return Answer(response.status, {key.lower(): value for key, value in response.getheaders()}, data)

    def _log_in(self, challenge: str) -> None:
        """Get what the *challenge* asks for."""
        scheme, _, rest = challenge.partition(" ")
        settings = self._settings
        basic: str | None = None
        if settings.user is not None:
            pair = f"{settings.user}:{settings.password or ''}".encode()
            basic = f"Basic {base64.b64encode(pair).decode()}"
        if scheme.lower() == "basic":
            if basic is None:
                raise StorageError("the registry wants a user and password", file=self.name, errno=errno.EACCES)
            self.authorization = basic
            return
        words = dict(_CHALLENGE.findall(rest))
        realm = words.get("realm", "")
        if scheme.lower() != "bearer" or not realm.startswith(("https://", "http://")):
            raise StorageError("the registry wants a login of a kind that is not known here", file=self.name)
        if realm.startswith("http://") and not settings.plain:  # who listens would have the password
            raise StorageError("the registry wants a login without TLS", file=self.name)
        query = urlencode({"service": words.get("service", ""), "scope": self._scope})
        answer = self._once(
            "GET",
            f"{realm}{'&' if '?' in realm else '?'}{query}",
            b"",
            {} if basic is None else {"Authorization": basic},
        )
        if answer.status != 200:
            self.refuse(answer)
        found = answer.json(self.name)
        token = found.get("token") or found.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise StorageError("the registry gives no token", file=self.name)
        self.authorization = f"Bearer {token}"
