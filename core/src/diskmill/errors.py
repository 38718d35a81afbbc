"""The one hierarchy of errors that diskmill raises on purpose.

Every message is one line that names the file, the place in it and the cause; ``str(error)`` is what the command
line prints after ``diskmill: ``. ``exit_code`` is the process status that qemu-img gives for the same failure.
"""

from __future__ import annotations

import errno as numbers
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, ClassVar


class DiskmillError(Exception):
    """Base of all errors that a user can cause.

    :param cause: what went wrong, as a phrase without a final period.
    :param file: the image or file that it concerns, as the user knows it.
    :param place: the structure or byte offset inside that file.
    :param hint: what to do about it, as a phrase; it stands last in the message.
    """

    exit_code = 1
    code: ClassVar[str] = "error"
    """The kind of the error in one word, for programs (``--output=json``)."""
    opening: str | None = None
    """The name of the image that could not be opened, where that is what failed, as the user gave it."""

    def __init__(
        self, cause: str, *, file: str | None = None, place: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(cause)
        self.cause = cause
        self.file = file
        self.place = place
        self.hint = hint

    def __str__(self) -> str:
        parts = [f"'{self.file}'" if self.file is not None else None, self.place, self.cause]
        text = ": ".join(part for part in parts if part)
        # A name that came out of an image may hold line ends or terminal escapes: the message stays one plain line.
        return printable(f"{text}; {self.hint}" if self.hint else text)


def printable(text: str, *, raw_bytes: bool = False) -> str:
    """*text*, one line for a person, without credentials, and with U+FFFD for whatever a terminal would obey or nobody
    would see: control characters with line ends, and those that turn the direction of writing or have no width.

    :param raw_bytes: leave the bytes of a name that is not UTF-8 (see :func:`os.fsdecode`) as they are.
    """
    text = shown(text)
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or (raw_bytes and "\udc80" <= char <= "\udcff") else "\N{REPLACEMENT CHARACTER}"
        for char in text
    )


def shown(text: str) -> str:
    """*text*, of names and what is said of them, without the credentials that names hold."""
    if not ("://" in text or "@" in text or "=" in text or "json:" in text):  # most text: nothing is imported for it
        return text
    from .credentials import without_credentials

    return without_credentials(text)


as_options: ContextVar[bool] = ContextVar("as_options", default=False)
"""Set where messages go to who typed options, and not to who wrote Python."""


def said(argument: str, option: str) -> str:
    """What a message calls something that its reader gives: the *argument* in Python, or the command's *option*."""
    return option if as_options.get() else argument


def said_raw() -> str:
    """How a reader says that an image is raw."""
    return said('format="raw"', "-f raw")


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """A hint for *word*, which is none of the *known* ones: those that are spelled nearly so; None: none is."""
    from difflib import get_close_matches

    near = get_close_matches(word[:100], sorted(set(known) - {""}), n=3, cutoff=0.6)
    words = "' or '".join(near)
    return f"did you mean '{words}'?" if near else None


class UsageError(DiskmillError):
    """The arguments or options given do not make sense."""

    code = "usage"


class ImageError(DiskmillError):
    """An image breaks its format: a bad magic, a table beyond the end of the file, an impossible size."""

    code = "image"


class UnsupportedError(DiskmillError):
    """The format, or this driver of it, has no such operation or feature."""

    code = "unsupported"


class CheckUnsupportedError(UnsupportedError):
    """The format has no consistency check; qemu-img's ``check`` exits with 63 for it."""

    exit_code = 63


_PASSING = frozenset(
    {
        numbers.EAGAIN,
        numbers.EBUSY,
        numbers.ECONNABORTED,
        numbers.ECONNREFUSED,
        numbers.ECONNRESET,
        numbers.EHOSTDOWN,
        numbers.EHOSTUNREACH,
        numbers.EINTR,
        numbers.ENETDOWN,
        numbers.ENETRESET,
        numbers.ENETUNREACH,
        numbers.ENOTCONN,
        numbers.EPIPE,
        numbers.ESHUTDOWN,
        numbers.ETIMEDOUT,
    }
)
"""Of failures that may be over a moment later: a server that restarts, a network that comes back."""


class StorageError(DiskmillError, OSError):
    """The storage below an image failed: no such file, no permission, disk full, input/output error.

    It is an :class:`OSError` as well, with ``errno``, ``strerror`` and ``filename``.

    :param errno: the operating system's error number, where there is one.
    :param transient: whether the same, tried again later, may work; None: the error number tells.
    """

    code = "storage"

    def __init__(
        self,
        cause: str,
        *,
        file: str | None = None,
        place: str | None = None,
        hint: str | None = None,
        errno: int | None = None,
        transient: bool | None = None,
    ) -> None:
        super().__init__(cause, file=file, place=place, hint=hint)
        self.errno = errno
        self.strerror = cause
        self.filename = file
        self.transient = errno in _PASSING if transient is None else transient

    def __reduce__(self) -> tuple[Any, ...]:  # OSError keeps what these three have elsewhere
        kept = {"errno": self.errno, "strerror": self.strerror, "filename": self.filename}
        return type(self), (self.cause,), {**vars(self), **kept}

    @classmethod
    def from_os(cls, error: OSError, file: str, place: str | None = None) -> StorageError:
        """The same failure, told in one line: *file* is the name that the user knows. One that is told so already stays
        as it is."""
        if isinstance(error, StorageError):
            return error
        passing = True if isinstance(error, TimeoutError | ConnectionError) else None
        return cls(error.strerror or str(error), file=file, place=place, errno=error.errno, transient=passing)


class LockedError(StorageError):
    """Another process holds the image in a way that excludes this use."""

    code = "locked"

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **{"transient": True, **named})  # the other process may be done a moment later


class ClosedError(StorageError, ValueError):
    """The image was closed before; like a closed file's, it is a :class:`ValueError` too."""

    code = "closed"


class RefusedError(DiskmillError):
    """An image refers to a file that the trust policy does not let it open."""

    code = "refused"


class DriverError(DiskmillError):
    """A driver is missing, broken or given twice."""

    code = "driver"


class SecretError(DiskmillError):
    """A passphrase or key is missing or wrong."""

    code = "secret"


class CancelledError(DiskmillError):
    """The caller asked to stop; nothing that looks whole was left behind."""

    code = "cancelled"
