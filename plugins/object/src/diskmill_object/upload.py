"""A new object: an upload in parts, which nobody sees before it is complete."""

from __future__ import annotations

import errno
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import obstore
from diskmill.contract.drivers import ProtocolDriver
from diskmill.contract.node import Node, ReadBuffer, Storage
from diskmill.errors import StorageError
from diskmill.kit.forward import ForwardOutput
from diskmill.sizes import MiB, round_up

from .place import ObjectPlace
from .reading import ObjectStorage
from .settings import Settings, settings_of
from .store import Requests, failure, store_of

if TYPE_CHECKING:
    from diskmill import Context
    from diskmill.contract.requests import CreateRequest
    from obstore import ObjectMeta, PutResult
    from obstore.store import ObjectStore

MOST_PARTS = 10_000
"""That an upload may have (S3's limit; the others allow more)."""
SMALLEST = 8 * MiB
"""Bytes of a part, where the output cannot become longer than 10,000 of them. S3 wants 5 MiB at least."""
UNTOLD = 56 * MiB
"""The same where nobody knows how long it becomes: enough for 546 GiB. With 64 MiB, a process was seen to take 127 MiB,
and 128 is the most that it should."""
LARGEST = 5 << 30
"""Bytes of the largest part that services take."""
_PIECE = MiB
"""Bytes that are handed over at once. obstore gathers them: with those that are sent, a part more is in memory, unless
parts are sent one by one: the next is begun when the last has arrived."""
_IN_FLIGHT = 32 * MiB
"""Bytes of parts that are sent at once, where parts are smaller."""
_TIDYING = 10.0
"""Seconds that the service has to forget an upload that is given up."""
LARGEST_COPY = 5 << 30
"""Bytes of the largest object that a service copies by itself with one request."""


def part_size(expected: int) -> int:
    """Bytes of the parts of an output that becomes *expected* bytes long, or somewhat longer, as what does not compress
    does; 0: nobody knows. All parts are of one size: some services want that, and obstore knows no other way. (It signs
    no request for a single part, and tells nobody the keys that it finds, so parts cannot be sent beside it.)"""
    if not expected:
        return UNTOLD
    enough = round_up(-(-(expected + expected // 32 + 64 * MiB) // MOST_PARTS), MiB)
    return min(max(SMALLEST, enough), LARGEST)


def create_object(driver: ProtocolDriver, request: CreateRequest) -> ObjectOutput:
    """A new object at the request's place.

    :raises StorageError: there can be none.
    """
    place = request.place
    assert isinstance(place, ObjectPlace)
    settings = settings_of(
        {key: value for key, value in request.options.items() if value is not None},
        place,
        request.context,
        told=False,
    )
    output = ObjectOutput(driver, place, settings, request.context, expected=request.size)
    output.expect_no_other()
    return output


class _GivenUpError(Exception):
    """Ends an upload: what was sent is forgotten."""


class ObjectOutput(ForwardOutput):
    """See the module.

    :param expected: bytes that it will have about; 0: nobody knows.
    """

    one_pass = "an upload"

    def __init__(
        self, driver: ProtocolDriver, place: ObjectPlace, settings: Settings, context: Context, *, expected: int
    ) -> None:
        super().__init__(driver, place.display())
        self.place = self._where = place
        self._context = context
        self._settings = settings
        self._expected = expected
        self._key = place.expected_key()
        self._store = store_of(place, settings)
        self._requests = Requests()
        self._buffer = bytearray()
        self._filled = 0
        self._held: list[ReadBuffer] = []
        """Whole pieces, as long as they are too few for an upload in parts."""
        self._upload: _Upload | None = None
        self._copied: ObjectStorage | None = None
        """The object whose bytes, from the first on, are those up to ``position``: nothing of it was sent."""
        self._settled = False
        self._closed = False

    def exists(self) -> bool:
        """Whether there is an object of its name."""
        try:
            self._look()
        except StorageError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def expect_no_other(self) -> None:
        """:raises StorageError: there is an object of its name, which is to stay."""
        if self._context.overwrite == "refuse" and self.exists():
            raise StorageError("File exists", file=self.name, errno=errno.EEXIST)

    def _look(self) -> ObjectMeta:
        return self._requests.run(lambda: obstore.head_async(self._store, self._key), self.name)

    # -- writing ------------------------------------------------------------------------------------------------

    def append(self, data: ReadBuffer) -> None:
        if self._copied is not None:
            self._send_copied()
        view, at = memoryview(data), 0
        while at < len(view):
            if not self._buffer:
                self._buffer = bytearray(_PIECE)
            count = min(len(view) - at, _PIECE - self._filled)
            self._buffer[self._filled : self._filled + count] = view[at : at + count]
            self._filled += count
            at += count
            if self._filled == _PIECE:
                self._send()

    def _send(self) -> None:
        """The buffer is full. It belongs to the upload from now on: what comes next gets another."""
        self._held.append(self._buffer)
        self._buffer, self._filled = bytearray(), 0
        if self._upload is None:
            if len(self._held) * _PIECE < SMALLEST:  # it may be all
                return
            part = self._settings.part or part_size(self.total or self._expected)
            if (self.total or 0) > MOST_PARTS * part:
                raise _too_long(self.name)
            at_once = max(min(self._settings.connections, _IN_FLIGHT // part), 1)
            self._upload = _Upload(self._store, self._key, part, at_once, self.name)
        held, self._held = self._held, []
        for piece in held:
            self._upload.put(piece)

    def take_from(self, source: Node, start: int, offset: int, length: int) -> bool:
        """Where the new object becomes the same as another of its bucket, the service copies it.

        It cannot be told to copy but a certain state: where an object bears the name, that could be lost for a state
        that nobody asked for, so bytes are read and sent then.
        """
        if not isinstance(source, ObjectStorage) or source is not (self._copied or source):
            return False
        here, there = self._where, source.where
        same = (here.driver, here.bucket, self._settings.config) == (
            there.driver, there.bucket, source.settings.config
        )  # fmt: skip
        begins = self._copied is not None or self.position == 0
        if not same or not begins or start != offset or offset != self.position:
            return False
        if source.size > LARGEST_COPY or start + length > source.size:
            return False
        if self._copied is None and self.exists():
            return False
        self._copied = source
        self.position += length
        self.size = max(self.size, self.position)
        return True

    def _send_copied(self) -> None:
        """The object does not become the same as another after all: what would have been copied is read and sent."""
        source, upto = self._copied, self.position
        assert source is not None
        self._copied, self.position = None, 0
        buffer = memoryview(bytearray(MiB))
        while self.position < upto:
            part = buffer[: upto - self.position]
            source.read_into(self.position, part)
            self.append(part)
            self.position += len(part)

    # -- the end ------------------------------------------------------------------------------------------------

    def settle(self, others: Sequence[Storage] = ()) -> None:
        super().settle(others)
        if self._settled:
            return
        source = self._copied
        if source is not None and self.position == self.size == source.size and not self.exists():
            self._copy(source)
        else:
            self._complete()
        self._settled = True

    def _copy(self, source: ObjectStorage) -> None:
        """Have the service copy *source*. There is no object of the name yet."""
        changed = StorageError("it changed on the server while it was copied", file=source.name)
        if not source.unchanged():
            raise changed
        self._requests.run(lambda: obstore.copy_async(self._store, source.where.key, self._key), self.name, "copy")
        if not source.unchanged():
            self.remove()
            raise changed

    def _complete(self) -> None:
        if self._copied is not None:
            self._send_copied()
        self.finish()
        self.expect_no_other()  # somebody may have put one there meanwhile
        rest = memoryview(self._buffer)[: self._filled]
        if self._upload is None:
            put = self._requests.run(
                lambda: obstore.put_async(self._store, self._key, b"".join([*self._held, rest]), use_multipart=False),
                self.name,
            )
        else:
            put = self._upload.finish(rest)
            self._upload = None
        self._buffer, self._held = bytearray(), []
        self._see(put["e_tag"])

    def _see(self, tag: str | None) -> None:
        """See that the object, which the service says it has, with *tag*, is as long as it should be.

        :raises StorageError: it is not; nothing bears the name then.
        """
        try:
            meta = self._look()
        except StorageError as error:
            if error.errno != errno.EACCES:  # who may write need not be allowed to look
                self._context.warn(f"'{self.name}': it was sent, but nobody can see whether all arrived: {error.cause}")
            return
        if meta["size"] == self.size or meta["e_tag"] != tag:  # another: somebody has replaced it since
            return
        with suppress(StorageError):
            self.remove()
        raise StorageError(
            f"{self.size} bytes were sent, but the service has {meta['size']}", file=self.name, place="upload"
        )

    @property
    def settled(self) -> bool:
        return self._settled

    def remove(self) -> None:
        self._requests.run(lambda: obstore.delete_async(self._store, self._key), self.name, "remove")

    def interrupt(self) -> None:
        self._requests.stop()
        if self._upload is not None:
            self._upload.interrupt()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._buffer, self._held = bytearray(), []
        upload, self._upload = self._upload, None
        if upload is not None and not upload.give_up():
            self._context.warn(f"'{self.name}': parts of the upload that was given up may be left, unseen")


def _too_long(name: str) -> StorageError:
    return StorageError(
        f"an upload has at most {MOST_PARTS} parts: ask for larger ones (option 'part-size')", file=name, place="upload"
    )


class _Upload:
    """An upload at work, in a thread of its own, which takes pieces as they come.

    :param part: bytes of each part but the last.
    :param at_once: how many are sent at the same time.
    """

    def __init__(self, store: ObjectStore, key: str, part: int, at_once: int, name: str) -> None:
        self._name = name
        self._waiting: queue.Queue[ReadBuffer | None] = queue.Queue(2)
        self._ended = threading.Event()
        self._stopped = False
        self._error: Exception | None = None
        self._put: PutResult | None = None
        self._room = MOST_PARTS * part
        """Bytes that may still come."""

        def work() -> None:
            try:
                self._put = obstore.put(
                    store, key, self._pieces(), use_multipart=True, chunk_size=part, max_concurrency=at_once
                )  # it forgets the upload where the pieces end with an error
            except _GivenUpError:
                pass
            except Exception as error:
                self._error = error
            finally:
                self._ended.set()

        self._thread = threading.Thread(target=work, name="upload", daemon=True)
        self._thread.start()

    def _pieces(self) -> Iterator[ReadBuffer]:
        while True:
            try:
                piece = self._waiting.get(timeout=0.2)
            except queue.Empty:
                if self._stopped:
                    raise _GivenUpError from None
                continue
            if self._stopped:
                raise _GivenUpError
            if piece is None:
                return
            yield piece

    def put(self, piece: ReadBuffer | None) -> None:
        """Send *piece*; None: there are no more.

        :raises StorageError: the upload has failed, or becomes too long.
        """
        if piece is not None:
            self._room -= memoryview(piece).nbytes
            if self._room < 0:
                raise _too_long(self._name)
        while True:
            if self._ended.is_set():
                raise failure(self._error or OSError(), self._name, "upload")
            if self._stopped:
                raise StorageError("interrupted", file=self._name, place="upload")
            try:
                self._waiting.put(piece, timeout=0.2)
                return
            except queue.Full:
                continue

    def finish(self, rest: ReadBuffer) -> PutResult:
        """Send the last bytes, and have the object made of all parts.

        :raises StorageError: it was not.
        """
        if len(rest):
            self.put(rest)
        self.put(None)
        while not self._ended.wait(0.2):
            if self._stopped:
                raise StorageError("interrupted", file=self._name, place="upload")
        if self._error is not None or self._put is None:
            raise failure(self._error or OSError(), self._name, "upload")
        return self._put

    def interrupt(self) -> None:
        """Whoever waits gets an error, and the upload is forgotten."""
        self._stopped = True

    def give_up(self) -> bool:
        """Have what was sent forgotten. False: nobody knows whether it is."""
        self._stopped = True
        return self._ended.wait(_TIDYING)
