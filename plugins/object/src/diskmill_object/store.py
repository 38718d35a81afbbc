"""The service, through obstore: connections, and its failures in our words."""

from __future__ import annotations

import asyncio
import errno
import re
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import obstore.exceptions as theirs
from diskmill.errors import StorageError, UnsupportedError, UsageError
from obstore.store import AzureStore, GCSStore, S3Store

from .place import ObjectPlace
from .settings import Settings

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

CHANGED = "it changed on the server while it was read"
_Result = TypeVar("_Result")


def store_of(place: ObjectPlace, settings: Settings) -> ObjectStore:
    """The bucket of *place*. Nothing is sent yet.

    :raises UsageError: the service cannot be used so.
    """
    client: ClientConfig = {
        "timeout": timedelta(hours=6),
        "connect_timeout": timedelta(seconds=settings.timeout),
        "read_timeout": timedelta(seconds=settings.timeout),
        "user_agent": "diskmill",
        "allow_http": settings.endpoint.startswith("http://"),
    }
    if settings.certificates is not None:
        client["root_certificate"] = settings.certificates
    retry: RetryConfig = {"max_retries": settings.retries}
    provider: dict[str, Any] = {}
    if settings.profile is not None:
        provider["credential_provider"] = _fetched(settings.profile, place)
    kind: Any = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[place.driver.name]
    try:
        store: ObjectStore = kind(
            place.bucket, config=dict(settings.config), client_options=client, retry_config=retry, **provider
        )
    except (theirs.BaseError, ValueError, TypeError):  # its words may quote a key
        raise UsageError(
            "the service cannot be used with these options, or what the environment says", file=place.display()
        ) from None
    return store


def _fetched(profile: str, place: ObjectPlace) -> Any:
    """What fetches the credentials of a profile that logs in by a role, single sign-on, or a program."""
    try:
        import boto3  # type: ignore[import-not-found, import-untyped, unused-ignore]
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise UnsupportedError(
            f"the credentials of profile '{profile}' have to be fetched: install boto3 for that", file=place.display()
        ) from None
    return Boto3CredentialProvider(boto3.Session(profile_name=profile))


class Requests:
    """Those of one storage, made from any thread, that another thread can end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: set[Future[Any]] = set()
        self._stopped = False

    def run(self, ask: Callable[[], Awaitable[_Result]], name: str, place: str | None = None) -> _Result:
        """What comes of *ask*, which is called where answers arrive.

        :raises StorageError: it failed, or was ended.
        """
        with self._lock:
            if self._stopped:
                raise StorageError("interrupted", file=name, place=place)
            future = asyncio.run_coroutine_threadsafe(_awaited(ask), _loop())
            self._pending.add(future)
        try:
            return future.result()
        except CancelledError:
            raise StorageError("interrupted", file=name, place=place) from None
        except (theirs.BaseError, OSError, ValueError) as error:
            raise failure(error, name, place) from None
        except BaseException:  # a signal, say
            future.cancel()
            raise
        finally:
            with self._lock:
                self._pending.discard(future)

    def stop(self) -> None:
        """Whoever waits gets an error at once, and whoever comes later, too."""
        with self._lock:
            self._stopped = True
            pending = list(self._pending)
        for future in pending:
            future.cancel()


async def _awaited(ask: Callable[[], Awaitable[_Result]]) -> _Result:
    return await ask()


_starting = threading.Lock()
_running: asyncio.AbstractEventLoop | None = None


def _loop() -> asyncio.AbstractEventLoop:
    """The loop that answers arrive in, of all storages."""
    global _running
    with _starting:
        if _running is None:
            _running = asyncio.new_event_loop()
            threading.Thread(target=_running.run_forever, name="objects", daemon=True).start()
        return _running


def failure(error: Exception, name: str, place: str | None = None) -> StorageError:
    """*error* of obstore's in one line. Its own words are not shown whole: they quote URLs, which may hold tokens."""
    if isinstance(error, StorageError):
        return error
    text = str(error)
    number: int | None = None
    code = re.search(r"<Code>(\w{1,60})</Code>", text)
    status = re.search(r"status code: (\d{3} [A-Za-z -]{1,40})", text)
    said = (code and code[1]) or (status and status[1].strip()) or ""
    if isinstance(error, FileNotFoundError | theirs.NotFoundError):
        cause, number = "No such file or directory", errno.ENOENT
        if said == "NoSuchBucket":
            cause = "there is no such bucket"
    elif isinstance(error, theirs.PermissionDeniedError | theirs.UnauthenticatedError):
        cause, number = f"the service denies access ({said})" if said else "the service denies access", errno.EACCES
    elif isinstance(error, theirs.PreconditionError):
        cause = CHANGED
    elif isinstance(error, theirs.AlreadyExistsError | FileExistsError):
        cause, number = "File exists", errno.EEXIST
    elif said:
        cause = f"the service says: {said}"
    elif re.search(r"timed ?out", text, re.IGNORECASE):
        cause = "the service was silent for too long"
    elif "redirect" in text:
        cause = "the service redirects to elsewhere: is the bucket in another region (option 'region')?"
    elif re.search(r"certificate|invalid peer", text, re.IGNORECASE):
        cause = "its certificate is not accepted"
    elif re.search(r"169\.254\.169\.254|credential|metadata", text, re.IGNORECASE):
        cause = "there are no credentials, or they cannot be had"
    elif "error sending request" in text:
        cause = "the service cannot be reached"
    else:
        cause = "the service failed"
    tries = re.search(r"after (\d+) retries", text)
    if tries and number is None and int(tries[1]):
        cause += f", after {int(tries[1]) + 1} tries"
    return StorageError(cause, file=name, place=place, errno=number)
