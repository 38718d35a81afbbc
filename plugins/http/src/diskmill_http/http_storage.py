"""A file on a web server, by ranges (RFC 9110, section 14), or, where the server has none, in one pass."""

from __future__ import annotations

import re
from typing import NamedTuple

from diskmill import Context
from diskmill.contract.drivers import ProtocolDriver
from diskmill.errors import StorageError
from diskmill.kit.forward import ForwardStorage
from diskmill.sizes import MAX_SIZE

from .client import Answer, Client
from .patience import PassingError
from .place import UrlPlace
from .retried import RetriedStorage
from .settings import Settings

_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")
_NO_RANGE = re.compile(r"bytes \*/(\d{1,19})")
CHANGED = "it changed on the server while it was read"


class Pin(NamedTuple):
    """What tells one state of a file from another (RFC 9110, section 8.8)."""

    etag: str
    modified: str

    @classmethod
    def of(cls, answer: Answer) -> Pin:
        """That of what *answer* is about."""
        return cls(answer.header("ETag"), answer.header("Last-Modified"))

    @property
    def condition(self) -> dict[str, str]:
        """The header with which a server sends a range only of this state; weak tags are not allowed there."""
        if self.etag and not self.etag.startswith("W/"):
            return {"If-Range": self.etag}
        return {"If-Range": self.modified} if self.modified else {}

    def differs(self, other: Pin) -> bool:
        """Whether *other* is of another state: the tag decides where there is one."""
        return self.etag != other.etag if self.etag else self.modified != other.modified


def open_http(driver: ProtocolDriver, place: UrlPlace, settings: Settings, context: Context) -> HttpStorage | OnePass:
    """What is there, after asking for its first byte: that tells its size, and whether the server has ranges."""
    storage = HttpStorage(driver, place, settings)
    try:
        answer = _first(storage)
    except BaseException:
        storage.close()
        raise
    if answer is not None:
        return OnePass(driver, storage, answer)
    if storage.size and not storage.pin.condition:
        context.warn(f"'{storage.name}': the server tells neither ETag nor date: a change meanwhile would go unnoticed")
    return storage


def _first(storage: HttpStorage) -> Answer | None:
    patience = storage.patience()
    while True:
        try:
            return storage.begin()
        except PassingError as error:
            patience.bear(error, "open")


class HttpStorage(RetriedStorage):
    """Read by ranges, each of the state that was there when it was opened."""

    def __init__(self, driver: ProtocolDriver, place: UrlPlace, settings: Settings) -> None:
        super().__init__(settings, place.display())
        self.driver = driver
        self.place = place
        self.client = Client(place, settings, self.stopped, self.name)
        self.pin = Pin("", "")

    def begin(self) -> Answer | None:
        """Ask for the first byte. Gives the answer where that is all of the file, because there are no ranges.

        :raises PassingError: another try may succeed.
        """
        answer = self.client.ask({"Range": "bytes=0-0"}, (200, 206, 416))
        try:
            self._refuse_encoding(answer)
            self.pin = Pin.of(answer)
            status = answer.response.status
            if status == 200 and answer.response.length != 0:
                return answer
            if status == 206:
                first, last, self.size = self._range(answer)
                if (first, last) != (0, 0):
                    raise StorageError("the server answers with another range than was asked for", file=self.name)
            elif status == 416:
                found = _NO_RANGE.fullmatch(answer.header("Content-Range"))
                if found is None or int(found[1]):
                    raise StorageError("the server refuses to give its first byte", file=self.name)
        except BaseException:
            self.client.connections.drop(answer.connection)
            raise
        self.client.discard(answer)
        return None

    def receive(self, offset: int, view: memoryview) -> int:
        last = offset + len(view) - 1
        answer = self.client.ask({"Range": f"bytes={offset}-{last}", **self.pin.condition}, (200, 206, 412, 416))
        try:
            count = self._checked(answer, offset, last)
            self.client.fill(answer, view[:count])
            if answer.response.readinto(bytearray(1)):  # this also tells the connection that the answer is over
                raise StorageError("the server sends more than it said", file=self.name)
        except BaseException:
            self.client.connections.drop(answer.connection)
            raise
        self.client.done(answer)
        return count

    def _checked(self, answer: Answer, offset: int, last: int) -> int:
        """How many of the bytes *offset* to *last*, from the first on, *answer* brings."""
        place = f"read at offset {offset}"
        status = answer.response.status
        if status != 206:
            if status == 200 and not self.pin.differs(Pin.of(answer)):
                raise StorageError("the server no longer gives ranges", file=self.name, place=place)
            raise StorageError(CHANGED, file=self.name, place=place)
        self._refuse_encoding(answer)
        first, upto, size = self._range(answer)
        if size != self.size or self.pin.differs(Pin.of(answer)):
            raise StorageError(CHANGED, file=self.name, place=place)
        if first != offset or not first <= upto <= last:
            raise StorageError("the server answers with another range than was asked for", file=self.name, place=place)
        count = upto - first + 1
        if answer.response.length not in (None, count):
            raise StorageError("the server's answer is not as long as its range", file=self.name, place=place)
        return count

    def _range(self, answer: Answer) -> tuple[int, int, int]:
        found = _RANGE.fullmatch(answer.header("Content-Range"))
        if found is None or int(found[3]) > MAX_SIZE:
            raise StorageError("the server does not tell which range it sends, or of how many bytes", file=self.name)
        return int(found[1]), int(found[2]), int(found[3])

    def _refuse_encoding(self, answer: Answer) -> None:
        encoding = answer.header("Content-Encoding").lower()
        if encoding not in ("", "identity"):
            raise StorageError(f"the server sends it encoded ({encoding[:20]}), not as it is", file=self.name)

    def interrupt(self) -> None:
        self.stopped.set()
        self.client.connections.stop()

    def close(self) -> None:
        self.client.connections.close()


class OnePass(ForwardStorage):
    """Read from the first byte to the last, once, from a server without ranges."""

    one_pass = "a server without ranges"

    def __init__(self, driver: ProtocolDriver, file: HttpStorage, answer: Answer) -> None:
        super().__init__(driver, file.name, answer.response.length)
        self.place = file.place
        self._file = file
        self._answer: Answer | None = answer
        self._length = answer.response.length
        self._patience = file.patience()

    def more(self, length: int) -> bytes:
        """The next bytes. After a failure the file is asked for anew, and what was read already is passed over."""
        if self._length is not None:
            length = min(length, self._length - self.position)
        if length <= 0:
            return b""
        while True:
            try:
                return self._some(length)
            except PassingError as error:
                self._drop()
                self._patience.bear(error, f"read at offset {self.position}")

    def _some(self, length: int) -> bytes:
        if self._answer is None:
            self._again()
        assert self._answer is not None
        buffer = bytearray(length)
        count = self._file.client.some(self._answer, memoryview(buffer))
        if not count and self._length is not None:
            raise PassingError("the connection was closed in the middle")
        self._patience.progress(count)
        return bytes(buffer[:count])

    def _again(self) -> None:
        pin = self._file.pin
        if not pin.condition:
            raise StorageError("the connection was lost, and nothing tells whether it has changed", file=self.name)
        answer = self._file.client.ask({}, (200,))
        try:
            if pin.differs(Pin.of(answer)) or answer.response.length != self._length:
                raise StorageError(CHANGED, file=self.name)
            scrap = memoryview(bytearray(1 << 18))
            for at in range(0, self.position, len(scrap)):
                self._file.client.fill(answer, scrap[: self.position - at])
        except BaseException:
            self._file.client.connections.drop(answer.connection)
            raise
        self._answer = answer

    def _drop(self) -> None:
        if self._answer is not None:
            self._file.client.connections.drop(self._answer.connection)
            self._answer = None

    def interrupt(self) -> None:
        self._file.interrupt()

    def close(self) -> None:
        self._drop()
        self._file.close()
