"""Places of the three protocols: a bucket (or container) and a key."""

from __future__ import annotations

import errno
import posixpath
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diskmill.contract.place import Place
from diskmill.errors import StorageError, UsageError

if TYPE_CHECKING:
    from . import ObjectDriver

_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]{0,254}")
"""What the services take, and some more; nothing that means something in the URL of a request."""
_LONGEST = 1024
"""Bytes of a key (S3, Google Cloud Storage and Azure have the same limit)."""


class ObjectPlace(Place):
    """The object *key* in *bucket*.

    :param key: to the letter: no character stands for another.
    :param kept: options, as typed, that hold for objects beside it too.
    :param judged: whether it was resolved to be judged: no option of a reference is for it.
    """

    driver: ObjectDriver

    def __init__(
        self, driver: ObjectDriver, bucket: str, key: str, kept: Mapping[str, Any], *, judged: bool = False
    ) -> None:
        self.driver = driver
        self.bucket = bucket
        self.key = key
        self.kept = kept
        self.judged = judged

    @classmethod
    def parse(cls, driver: ObjectDriver, text: str, kept: Mapping[str, Any]) -> ObjectPlace:
        """The place that *text* names.

        :raises UsageError: it names none.
        """
        scheme, slashes, rest = text.partition("://")
        bucket, _, key = rest.partition("/")
        if not slashes or scheme != driver.name:
            raise UsageError(f"a name of protocol '{driver.name}' is {driver.name}://BUCKET/KEY")
        if not _BUCKET.fullmatch(bucket):  # what stands there may be a password
            raise UsageError(f"the name of protocol '{driver.name}' has no possible bucket: it is BUCKET/KEY")
        return cls(driver, bucket, key, kept)

    def display(self) -> str:
        return f"{self.driver.name}://{self.bucket}/{self.key}"

    def beside(self, reference: str) -> ObjectPlace:
        return self._at(posixpath.join("/", posixpath.dirname(self.key), reference))

    def inside(self, name: str) -> ObjectPlace:
        return self._at(posixpath.join("/", self.key, name))

    def _at(self, path: str) -> ObjectPlace:
        """What the absolute *path* stands for. Keys know no ``..``, so it is gone here."""
        key = posixpath.normpath(path).lstrip("/")
        return ObjectPlace(self.driver, self.bucket, key, self.kept)

    def resolved(self) -> ObjectPlace:
        """The same; of a folder, without the slash that may stand at its end."""
        key = self.key.rstrip("/")
        place = ObjectPlace(self.driver, self.bucket, key, self.kept, judged=True)
        if key:
            place.expected_key()
        return place

    def expected_key(self) -> str:
        """The key.

        :raises StorageError: no object can have it, or services and proxies might take it for another.
        """
        parts = self.key.split("/")
        if not self.key or len(self.key.encode(errors="replace")) > _LONGEST or not self.key.isprintable():
            raise StorageError("it is not a possible key", file=self.display(), errno=errno.EINVAL)
        if any(part in ("", ".", "..") for part in parts):
            raise StorageError("keys with empty parts, '.' or '..' are not taken", file=self.display())
        return self.key

    def folder(self) -> ObjectPlace | None:
        """The key up to its last slash; the bucket, of one that has none; None of the bucket."""
        if not self.key:
            return None
        return ObjectPlace(self.driver, self.bucket, posixpath.dirname(self.key.rstrip("/")), self.kept)

    def within(self, folder: Place) -> bool:
        if not isinstance(folder, ObjectPlace) or self._service != folder._service:
            return False
        path = folder.key.strip("/")
        return not path or self.key == path or self.key.startswith(f"{path}/")

    @property
    def _service(self) -> tuple[object, ...]:
        """Whose objects they are: keys of one are not those of another."""
        return self.driver.name, str(self.kept.get("endpoint", "")), str(self.kept.get("account", "")), self.bucket

    def identity(self) -> object | None:
        return (*self._service, self.key)
