"""Images of a Ceph cluster as storage: positioned reads and writes, zeros, and holes as its objects have them."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from ctypes import byref, c_char, c_int, c_uint64, c_void_p
from typing import TYPE_CHECKING

from diskmill.contract.extents import Extent, Kind
from diskmill.contract.node import Buffer, ReadBuffer, Requests, Storage
from diskmill.errors import StorageError, UnsupportedError, UsageError
from diskmill.sizes import MiB, round_down, round_up

from .c_librbd import DIFF, THICK, call
from .place import RbdPlace

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from diskmill import Context
    from diskmill.contract.drivers import ProtocolDriver
    from diskmill.contract.requests import CreateRequest, OpenRequest

_SYNC = ("writethrough", "directsync")
AT_ONCE = 8
"""Requests at once: each waits for one object, and these lie on several machines."""
_OBJECT = 4 * MiB
"""Bytes of an object where nobody chose otherwise: steps in which an output grows, and in which holes are asked for."""
_ASKED = 1024 * MiB
"""Bytes of which one call asks where the holes are."""
_ZEROED = 256 * MiB
"""Bytes that one call makes zeros of, so that it is answered in time."""

_GREETING = 10
"""Seconds until a cluster must have let one in, where nobody says how many."""


def open_image(driver: ProtocolDriver, request: OpenRequest) -> RbdStorage:
    """The image, or the snapshot, that *request* names.

    :raises StorageError: it cannot be reached or opened. ``errno`` is ``ENOENT`` where it is missing.
    """
    place = _asked(request.place)
    if request.writable and place.snapshot is not None:
        raise StorageError("a snapshot is only read", file=place.display(), errno=errno.EROFS)
    with _told(place.display()):
        pool = Pool(place, request.options, request.context)
        try:
            return RbdStorage(driver, place, pool, place.image, request.context, writable=request.writable)
        except BaseException:
            pool.close()
            raise


def create_image(driver: ProtocolDriver, request: CreateRequest) -> RbdStorage:
    """A new, empty image, under a name of its own until it is settled.

    :raises StorageError: it cannot be made, or there is one of that name already.
    """
    place = _asked(request.place)
    if place.snapshot is not None:
        raise UsageError("a snapshot is not made by writing to it", file=place.display())
    if request.like is not None and request.like.identity() == place.identity():
        raise UnsupportedError("an image there is not replaced by a new one", file=place.display())
    with _told(place.display()):
        pool = Pool(place, request.options, request.context)
        try:
            pool.expect_none(place.image)
            temporary = f".diskmill-{os.urandom(8).hex()}.part"
            call("rbd_create", pool.handle, temporary.encode(), 0, byref(c_int(0)))
            try:
                return RbdStorage(driver, place, pool, temporary, request.context, writable=True, new=True)
            except BaseException:
                with contextlib.suppress(StorageError):
                    call("rbd_remove", pool.handle, temporary.encode())
                raise
        except BaseException:
            pool.close()
            raise


class Pool:
    """A connection to the cluster, with the pool and namespace of *place* open.

    :raises StorageError: the cluster does not answer, or there is no such pool.
    """

    def __init__(self, place: RbdPlace, options: Mapping[str, Any], context: Context) -> None:
        cluster = place.cluster
        timeout = int(options.get("timeout", 60))
        if not 0 < timeout <= 86400:
            raise UsageError("option 'timeout' takes 1 to 86400")
        self.handle: int | None = None
        handle = c_void_p()
        call("rados_create", byref(handle), None if cluster.user is None else cluster.user.encode())
        self._cluster = handle.value
        try:
            if cluster.conf is None:
                with contextlib.suppress(StorageError):  # there need be none
                    call("rados_conf_read_file", self._cluster, None)
            else:
                try:
                    call("rados_conf_read_file", self._cluster, os.fsencode(cluster.conf))
                except StorageError as error:
                    error.cause = f"its configuration '{cluster.conf}' cannot be read: {error.cause}"
                    raise
            # A cluster at work may pause for longer than one takes to greet: this call cannot be interrupted.
            self._set("client_mount_timeout", str(timeout if "timeout" in options else _GREETING))
            for key in ("rados_mon_op_timeout", "rados_osd_op_timeout"):
                self._set(key, str(timeout))
            for key, value in cluster.settings:
                self._set(key, value)
            if "key-secret" in options:
                self._set("key", context.secret(str(options["key-secret"])).decode("ascii", "replace").strip())
            self._set("rbd_cache", "false" if context.cache in ("none", "directsync") else "true")
            call("rados_connect", self._cluster)
            pool = c_void_p()
            try:
                call("rados_ioctx_create", self._cluster, place.pool.encode(), byref(pool))
            except StorageError as error:
                if error.errno == errno.ENOENT:
                    error.cause = f"the cluster has no pool '{place.pool}'"
                raise
            self.handle = pool.value
            call("rados_ioctx_set_namespace", self.handle, place.namespace.encode())
        except BaseException:
            self.close()
            raise

    def _set(self, key: str, value: str) -> None:
        try:
            call("rados_conf_set", self._cluster, key.encode(), value.encode())
        except StorageError:
            raise UsageError(f"Ceph has no setting '{key[:80]}', or not with that value") from None

    def open(self, name: str, snapshot: str | None, *, writable: bool) -> int:
        """The image *name*, opened."""
        image = c_void_p()
        how = "rbd_open" if writable else "rbd_open_read_only"
        call(how, self.handle, name.encode(), byref(image), None if snapshot is None else snapshot.encode())
        assert image.value is not None
        return image.value

    def expect_none(self, name: str) -> None:
        """:raises StorageError: there is an image *name*."""
        try:
            found = self.open(name, None, writable=False)
        except StorageError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        call("rbd_close", found)
        raise StorageError(os.strerror(errno.EEXIST), errno=errno.EEXIST)

    def close(self) -> None:
        """End it."""
        handle, self.handle = self.handle, None
        if handle is not None:
            call("rados_ioctx_destroy", handle)
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            call("rados_shutdown", cluster)


class RbdStorage(Storage):
    """The image *bears*, or its snapshot, of *pool*.

    :param new: it has a name of its own, and gets that of *place* when it is settled.
    """

    requests = Requests(best=1 * MiB, at_once=AT_ONCE)

    def __init__(
        self,
        driver: ProtocolDriver,
        place: RbdPlace,
        pool: Pool,
        bears: str,
        context: Context,
        *,
        writable: bool,
        new: bool = False,
    ) -> None:
        self.driver = driver
        self.place: RbdPlace = place
        self.name = place.display()
        self.writable = writable
        self._pool = pool
        self._bears = bears
        self._new = new
        self._context = context
        self._growing = threading.Lock()
        self._image: int | None = pool.open(bears, place.snapshot, writable=writable)
        size = c_uint64()
        call("rbd_get_size", self._image, byref(size))
        self.size = self._room = size.value
        """``_room`` is the image's size there: a new one grows in whole objects, and is cut when it is settled."""
        self._changed = False

    def _call(self, name: str, *arguments: object) -> int:
        if self._image is None:
            raise StorageError("it was closed", errno=errno.ECANCELED)
        return call(name, self._image, *arguments)

    # -- reading ------------------------------------------------------------------------------------------------

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        inside = max(min(self.size - offset, len(view)), 0)
        view[inside:] = bytes(len(view) - inside)
        with self._telling(f"read at offset {offset}"):
            at = 0
            while at < inside:
                part = (c_char * (inside - at)).from_buffer(view[at:inside])
                count = self._call("rbd_read", offset + at, inside - at, part)
                if count == 0:
                    raise StorageError("the image ends there: it was made shorter", errno=errno.EIO)
                at += count

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        end, inside = offset + length, min(offset + length, self.size)
        at = offset
        while at < inside:
            upto = min(round_down(at, _OBJECT) + _ASKED, inside)
            for start, stop in self._held(at, upto):
                if at < start:
                    yield Extent(at, start - at, Kind.ZERO, self, at)
                yield Extent(start, stop - start, Kind.DATA, self, start)
                at = stop
            if at < upto:
                yield Extent(at, upto - at, Kind.ZERO, self, at)
            at = upto
        if at < end:
            yield Extent(at, end - at, Kind.ZERO, self, at)

    def _held(self, start: int, end: int) -> list[tuple[int, int]]:
        """The ranges from *start* to *end* that hold something, those of the image that it is a clone of included.

        The question begins and ends where objects do: librbd before 17 answers others wrongly
        (https://tracker.ceph.com/issues/53784).
        """
        found: list[list[int]] = []

        def tell(offset: int, length: int, exists: int, _: object) -> int:
            if exists and found and found[-1][1] == offset:
                found[-1][1] += length
            elif exists:
                found.append([offset, offset + length])
            return 0

        low = round_down(start, _OBJECT)
        with self._telling(f"ask for what is at offset {start}"):
            high = min(round_up(end, _OBJECT), self._room)
            self._call("rbd_diff_iterate2", None, low, high - low, 1, 0, DIFF(tell), None)
        clipped = ((max(first, start), min(last, end)) for first, last in sorted(found))
        return [(first, last) for first, last in clipped if first < last]

    # -- writing ------------------------------------------------------------------------------------------------

    def write(self, offset: int, data: ReadBuffer) -> None:
        view = memoryview(data).cast("B")
        if not len(view):
            return
        self._reach(offset + len(view))
        sent = bytes(view)
        with self._telling(f"write at offset {offset}"):
            if self._call("rbd_write", offset, len(sent), sent) != len(sent):
                raise StorageError("the cluster took only a part of it", errno=errno.EIO)
        self._written()

    def _reach(self, end: int) -> None:
        """Make room up to *end*."""
        if not self.writable:
            self._refuse("write what was opened for reading")
        self._changed = True
        if end <= self.size:
            return
        with self._growing, self._telling(f"set the size to {end} bytes"):
            if end > self._room:
                room = round_up(end, _OBJECT) if self._new else end
                self._call("rbd_resize", room)
                self._room = room
            self.size = max(self.size, end)

    def _written(self) -> None:
        if self._context.cache in _SYNC:
            self.flush()

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        end = offset + length
        if length <= 0:
            return
        self._reach(end)
        thick = not unmap or not self.discards
        with self._telling(f"zero {length} bytes at offset {offset}"):
            for at in range(offset, end, _ZEROED):
                self._call("rbd_write_zeroes", at, min(_ZEROED, end - at), THICK if thick else 0, 0)
        self._written()

    def discard(self, offset: int, length: int) -> None:
        end = min(offset + length, self.size)
        if not self.writable or not self.discards or offset >= end:
            return
        self._changed = True
        with self._telling(f"discard {length} bytes at offset {offset}"):
            for at in range(offset, end, _ZEROED):
                self._call("rbd_discard", at, min(_ZEROED, end - at))
        self._written()

    def truncate(self, size: int) -> None:
        if not self.writable:
            self._refuse("resize what was opened for reading")
        with self._growing, self._telling(f"set the size to {size} bytes"):
            self._changed = True
            if size != self._room:
                if self._room > self.size < size:  # what is behind the end is made zeros by being cut off
                    self._call("rbd_resize", self.size)
                self._call("rbd_resize", size)
            self.size = self._room = size
        self._written()

    def allocate(self, offset: int, length: int, mode: str) -> None:
        if mode == "full":
            self.zero(offset, length, unmap=False)
        else:
            self._reach(offset + length)

    def flush(self) -> None:
        if self._context.cache != "unsafe":
            self._synchronize()

    def _synchronize(self) -> None:
        if self.writable and self._image is not None and self._changed:
            with self._telling("flush"):
                self._call("rbd_flush")

    # -- the end ------------------------------------------------------------------------------------------------

    def settle(self, others: object = ()) -> None:
        super().settle(others)  # type: ignore[arg-type]
        if not self._new:
            return
        with self._telling("give the finished output its name"):
            if self._room != self.size:
                self._call("rbd_resize", self.size)
                self._room = self.size
            self._synchronize()
            call("rbd_rename", self._pool.handle, self._bears.encode(), self.place.image.encode())
        self._bears, self._new = self.place.image, False

    @property
    def settled(self) -> bool:
        return not self._new

    def close(self) -> None:
        if self._image is None:
            return
        try:
            if not self._new:
                # In the cache mode ``unsafe``, too: what librbd keeps back dies with this process.
                self._synchronize()
        finally:
            self.abandon()

    def abandon(self) -> None:
        image, self._image = self._image, None
        if image is None:
            return
        try:
            with contextlib.suppress(StorageError):  # what went wrong before is what tells why
                call("rbd_close", image)
            if self._new:
                try:
                    call("rbd_remove", self._pool.handle, self._bears.encode())
                except StorageError:
                    self._context.warn(f"'{self.name}': the unfinished image '{self._bears}' is left in the pool")
        finally:
            self._pool.close()

    def _telling(self, doing: str) -> contextlib.AbstractContextManager[None]:
        return _told(self.name, doing)


@contextlib.contextmanager
def _told(name: str, doing: str | None = None) -> Iterator[None]:
    """Errors name the image, and what was being done to it."""
    try:
        yield
    except (StorageError, UnsupportedError, UsageError) as error:
        error.file = error.file or name
        error.place = error.place or doing
        raise


def _asked(place: object) -> RbdPlace:
    assert isinstance(place, RbdPlace)
    if not place.image:
        raise UsageError("it names a pool, and no image of it", file=place.display())
    return place
