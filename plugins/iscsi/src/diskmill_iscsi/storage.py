"""A LUN as storage: blocks, which are read and written in whole; zeros and holes as far as the target has them."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from copy import copy
from typing import TYPE_CHECKING

from diskmill.contract.extents import Extent, Kind
from diskmill.contract.node import Buffer, ReadBuffer, Requests, Storage
from diskmill.errors import StorageError, UnsupportedError, UsageError
from diskmill.sizes import MiB, round_down, round_up

from . import c_scsi
from .place import IscsiPlace
from .session import AT_ONCE, Login, RefusedError, Session, Sessions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from diskmill import Context
    from diskmill.contract.drivers import ProtocolDriver
    from diskmill.contract.requests import CreateRequest, OpenRequest
    from diskmill.kit.emptied import Emptied

_INITIATOR = "iqn.2008-11.org.linux-kvm"
"""That of QEMU: a target that lets qemu-img in knows it."""
_SYNC = ("writethrough", "directsync")
_LARGEST = 1 * MiB
"""Bytes that one command moves at most."""
_MOST_ZEROS = 256 * MiB
"""Bytes of which one command makes zeros at most, so that it is answered in time."""
_STATUSES = 8 + 16 * 512
"""Bytes for the answer to GET LBA STATUS."""
_REPLY = 255
_LARGEST_BLOCK = 64 * 1024


def open_lun(driver: ProtocolDriver, request: OpenRequest) -> IscsiStorage:
    """The LUN that *request* names.

    :raises StorageError: it cannot be reached, or is not what can be opened so.
    """
    place = request.place
    assert isinstance(place, IscsiPlace)
    return _opened(driver, place, request.options, request.context, writable=request.writable)


def create_on_lun(driver: ProtocolDriver, request: CreateRequest) -> Emptied:
    """The LUN that *request* names, emptied.

    :raises StorageError: it cannot be reached, or not be written.
    """
    from diskmill.kit.emptied import Emptied

    place = request.place
    assert isinstance(place, IscsiPlace)
    if request.like is not None:
        raise UsageError("a LUN cannot be replaced", file=place.display())
    storage = _opened(driver, place, request.options, request.context, writable=True)
    try:
        return Emptied(storage, storage.synchronize)
    except BaseException:
        storage.abandon()
        raise


def _opened(
    driver: ProtocolDriver, place: IscsiPlace, options: Mapping[str, Any], context: Context, *, writable: bool
) -> IscsiStorage:
    name = place.display()
    login = _login(place, options, context)
    with _told(name):
        first = Session(login)
        try:
            unit = Found(first)
            if writable and unit.protected:
                raise StorageError("the LUN is write-protected", errno=errno.EROFS)
            return IscsiStorage(driver, place, Sessions(login, first), unit, writable=writable, cache=context.cache)
        except BaseException:
            first.close()
            raise


def _login(place: IscsiPlace, options: Mapping[str, Any], context: Context) -> Login:
    name = place.display()
    user, password = place.user, place.password
    if "user" in options:
        if user is not None:
            raise UsageError("a name says who one is, and so does the option 'user': give one of them", file=name)
        user = str(options["user"])
    if "password-secret" in options:
        if password is not None:
            raise UsageError("a name has a password, and so do options: give one of them", file=name)
        password = _text(context.secret(str(options["password-secret"])), name)
    if user is None and password is None:  # as libiscsi does
        user, password = (os.environ.get(f"LIBISCSI_CHAP_{key}") for key in ("USERNAME", "PASSWORD"))
    if user is None and password is not None:
        raise UsageError("a password goes with a user", file=name)
    if any("\0" in one or len(one) > 255 for one in (user or "", password or "")):
        raise UsageError("a name and a password for CHAP have up to 255 characters, and no NUL", file=name)
    initiator = str(options.get("initiator-name", _INITIATOR))
    if not initiator.isascii() or not initiator.isprintable() or not 0 < len(initiator) < 224:
        raise UsageError("'initiator-name' takes a name of up to 223 characters (iqn.…)", file=name)
    timeout = int(options.get("timeout", 60))
    if not 0 <= timeout <= 86400:
        raise UsageError("option 'timeout' takes 0 to 86400", file=name)
    return Login(place.unit, initiator, user, password, str(options.get("header-digest", "none-crc32c")), timeout)


def _text(secret: bytes, name: str) -> str:
    try:
        return secret.decode()
    except UnicodeDecodeError:
        raise UsageError("the secret of option 'password-secret' is not UTF-8", file=name) from None


class Found:
    """What a LUN says of itself, through *session*.

    :raises StorageError: it holds no blocks, or says what cannot be.
    """

    block: int
    """Bytes of a block."""
    blocks: int

    def __init__(self, session: Session) -> None:
        reply = bytearray(_REPLY)
        session.run(c_scsi.inquiry(None, _REPLY), reply)
        kind = reply[0] & 0x1F
        if reply[0] >> 5:
            raise StorageError("there is no LUN of that number", errno=errno.ENXIO)
        if kind not in c_scsi.TYPES:
            raise StorageError(f"the LUN is no disk, but a device of type {kind:#04x}", errno=errno.EINVAL)
        self.provisioned = self.zeros_unmapped = False
        self._capacity(session, rom=kind == c_scsi.TYPE_ROM)
        if self.block < 512 or self.block > _LARGEST_BLOCK or self.block & (self.block - 1):
            raise StorageError(f"the LUN has blocks of {self.block} bytes", errno=errno.EINVAL)
        if self.blocks * self.block >= 1 << 63:
            raise StorageError(f"the LUN says that it has {self.blocks} blocks", errno=errno.EINVAL)
        self.protected = kind == c_scsi.TYPE_ROM or self._protected(session)
        self.commands = c_scsi.Blocks(self.blocks >= 1 << 32)
        self.most = min(_LARGEST // self.block, self.commands.most)
        self.most_zeros = _MOST_ZEROS // self.block
        self.most_unmapped = 0
        """Blocks that one UNMAP names; 0: there is none."""
        self.same_unmaps = False
        """Whether WRITE SAME may unmap."""
        self.same = kind == c_scsi.TYPE_DISK
        """Whether to try WRITE SAME."""
        self._pages(session)

    def _capacity(self, session: Session, *, rom: bool) -> None:
        if not rom:
            with contextlib.suppress(RefusedError):
                reply = bytearray(32)
                session.run(c_scsi.read_capacity_16(32), reply)
                self.blocks = int.from_bytes(reply[:8], "big") + 1
                self.block = int.from_bytes(reply[8:12], "big")
                self.provisioned, self.zeros_unmapped = bool(reply[14] & 0x80), bool(reply[14] & 0x40)
                return
        reply = bytearray(8)
        session.run(c_scsi.read_capacity_10(), reply)
        self.blocks = int.from_bytes(reply[:4], "big") + 1
        self.block = int.from_bytes(reply[4:], "big")

    @staticmethod
    def _protected(session: Session) -> bool:
        reply = bytearray(_REPLY)
        try:
            session.run(c_scsi.mode_sense(_REPLY), reply)
        except RefusedError:
            return False
        return bool(reply[2] & 0x80)

    def _pages(self, session: Session) -> None:
        pages = bytes(_page(session, c_scsi.PAGE_SUPPORTED))
        if c_scsi.PAGE_BLOCK_LIMITS in pages:
            page = _page(session, c_scsi.PAGE_BLOCK_LIMITS).ljust(60, b"\0")
            transfer, unmapped = (int.from_bytes(page[at : at + 4], "big") for at in (4, 16))
            zeros = int.from_bytes(page[32:40], "big")
            self.most = min(self.most, transfer or self.most)
            self.most_zeros = min(self.most_zeros, zeros or self.most_zeros)
            self.most_unmapped = min(unmapped, self.most_zeros)
        if c_scsi.PAGE_PROVISIONING in pages and self.provisioned:
            page = _page(session, c_scsi.PAGE_PROVISIONING).ljust(4, b"\0")
            self.same_unmaps = bool(page[1] & 0x40)
            if not page[1] & 0x80:
                self.most_unmapped = 0
        else:
            self.most_unmapped = 0


def _page(session: Session, page: int) -> bytearray:
    """What follows the head of a page of vital product data; empty where there is none."""
    reply = bytearray(_REPLY)
    try:
        session.run(c_scsi.inquiry(page, _REPLY), reply)
    except RefusedError:
        return bytearray()
    return reply[4 : 4 + int.from_bytes(reply[2:4], "big")] if reply[1] == page else bytearray()


class IscsiStorage(Storage):
    """A LUN, which *sessions* are with."""

    def __init__(
        self,
        driver: ProtocolDriver,
        place: IscsiPlace,
        sessions: Sessions,
        unit: Found,
        *,
        writable: bool,
        cache: str,
    ) -> None:
        self.driver = driver
        self.place = place
        self.name = place.display()
        self.writable = writable
        self.size = unit.blocks * unit.block
        self.requests = Requests(align=unit.block, best=_LARGEST, at_once=AT_ONCE)
        self._sessions = sessions
        self._unit = unit
        self._cache = cache
        self._asks = unit.provisioned and unit.zeros_unmapped
        """Whether it can say which blocks hold nothing, and these read as zeros."""
        self._partial = threading.Lock()
        """Held while blocks are changed in part: two writers of one block must not undo each other's bytes."""
        self._changed = False
        self._resets = 0
        """Resets that were seen before what was written since the last flush."""
        self._lost: StorageError | None = None
        self._open = True

    def _run(self, cdb: bytes, into: Buffer | None = None, data: bytes | None = None, *, exact: bool = False) -> None:
        with self._sessions.one() as session:
            session.run(cdb, into, data, exact=exact)

    # -- reading ------------------------------------------------------------------------------------------------

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        end, inside = offset + length, min(offset + length, self.size)
        held: Extent | None = None
        while offset < inside:
            upto, kind = self._status(offset)
            upto = min(upto, inside)
            if held is not None and held.kind is kind:
                held = held._replace(length=upto - held.start)
            else:
                if held is not None:
                    yield held
                held = Extent(offset, upto - offset, kind, self, offset)
            offset = upto
        if held is not None:
            yield held
        if offset < end:
            yield Extent(offset, end - offset, Kind.ZERO, self, offset)

    def _status(self, offset: int) -> tuple[int, Kind]:
        """Up to where all is of one kind from *offset* on, as far as the target says, and of which."""
        if not self._asks:
            return self.size, Kind.DATA
        block = self._unit.block
        reply = bytearray(_STATUSES)
        try:
            with self._telling(f"ask for what is at offset {offset}"):
                self._run(c_scsi.get_lba_status(offset // block, _STATUSES), reply)
        except RefusedError:
            self._asks = False
            return self.size, Kind.DATA
        known = 4 + int.from_bytes(reply[:4], "big")
        at, found = offset, None
        for entry in range(8, min(known, _STATUSES) - 15, 16):
            start = int.from_bytes(reply[entry : entry + 8], "big") * block
            upto = start + int.from_bytes(reply[entry + 8 : entry + 12], "big") * block
            kind = Kind.DATA if reply[entry + 12] & 0xF == c_scsi.STATUS_MAPPED else Kind.ZERO
            if not start <= at < upto or found is not None and kind is not found:
                break
            at, found = upto, kind
        return (at, found) if found is not None else (self.size, Kind.DATA)

    def read_into(self, offset: int, buffer: Buffer) -> None:
        view = memoryview(buffer).cast("B")
        inside = max(min(self.size - offset, len(view)), 0)
        view[inside:] = bytes(len(view) - inside)
        if inside:
            with self._telling(f"read at offset {offset}"):
                self._read(offset, view[:inside])

    def _read(self, offset: int, view: memoryview) -> None:
        block, most, commands = self._unit.block, self._unit.most, self._unit.commands
        end = offset + len(view)
        at = offset
        while at < end:
            low = round_down(at, block)
            high = min(round_up(end, block), low + most * block)
            command = commands.read(low // block, (high - low) // block)
            if low == at and high <= end:
                self._run(command, view[at - offset : high - offset], exact=True)
            else:
                whole = bytearray(high - low)
                self._run(command, whole, exact=True)
                view[at - offset : min(high, end) - offset] = whole[at - low : min(high, end) - low]
            at = high

    # -- writing ------------------------------------------------------------------------------------------------

    def write(self, offset: int, data: ReadBuffer) -> None:
        view = memoryview(data).cast("B")
        end = offset + len(view)
        if not len(view):
            return
        self._expect_inside(end)
        block = self._unit.block
        low, high = round_up(offset, block), round_down(end, block)
        with self._telling(f"write at offset {offset}"):
            self._about_to_change()
            if low > high:  # inside one block
                self._merge(offset, view)
            else:
                if offset < low:
                    self._merge(offset, view[: low - offset])
                self._write(low, view[low - offset : high - offset])
                if high < end:
                    self._merge(high, view[high - offset :])
        self._written()

    def _write(self, offset: int, view: memoryview) -> None:
        """Whole blocks."""
        block, step = self._unit.block, self._unit.most * self._unit.block
        for at in range(0, len(view), step):
            part = bytes(view[at : at + step])
            self._run(self._unit.commands.write((offset + at) // block, len(part) // block), None, part)

    def _merge(self, offset: int, view: memoryview) -> None:
        """Some bytes of one block."""
        block = self._unit.block
        low = round_down(offset, block)
        with self._partial:
            whole = bytearray(block)
            self._read(low, memoryview(whole))
            whole[offset - low : offset - low + len(view)] = view
            self._write(low, memoryview(whole))

    def _about_to_change(self) -> None:
        if not self._changed:
            self._resets, self._changed = self._sessions.resets, True

    def _written(self) -> None:
        if self._cache in _SYNC:
            self.flush()

    def _expect_inside(self, end: int) -> None:
        if not self.writable:
            self._refuse("write what was opened for reading")
        if end > self.size:
            why = f"the LUN has {self.size} bytes, too few for {end}"
            raise StorageError(why, file=self.name, errno=errno.ENOSPC)

    def zero(self, offset: int, length: int, *, unmap: bool = True) -> None:
        end = offset + length
        if length <= 0:
            return
        self._expect_inside(end)
        block = self._unit.block
        low, high = round_up(offset, block), round_down(end, block)
        if low >= high or not self._unit.same:
            super().zero(offset, length, unmap=unmap)
            return
        with self._telling(f"zero {length} bytes at offset {offset}"):
            self._about_to_change()
            done = self._write_same(low, high, unmap=unmap and self.discards)
        for start, stop in ((offset, low), (done, end)):
            if start < stop:
                super().zero(start, stop - start, unmap=unmap)
        self._written()

    def _write_same(self, low: int, high: int, *, unmap: bool) -> int:
        """Make zeros of whole blocks by WRITE SAME. Up to where that worked: some targets know no such command."""
        unit = self._unit
        block = unit.block
        unmap = unmap and unit.same_unmaps and unit.zeros_unmapped
        at = low
        while at < high:
            count = min((high - at) // block, unit.most_zeros)
            try:
                self._run(c_scsi.write_same_16(at // block, count, unmap=unmap), None, bytes(block))
            except RefusedError as error:
                if error.answer.key != c_scsi.KEY_ILLEGAL_REQUEST:
                    raise
                unit.same = False
                break
            at += count * block
        return at

    def discard(self, offset: int, length: int) -> None:
        block, most = self._unit.block, self._unit.most_unmapped
        low, high = round_up(offset, block), round_down(min(offset + length, self.size), block)
        if not self.writable or not self.discards or not most or low >= high:
            return
        with self._telling(f"discard {length} bytes at offset {offset}"):
            self._about_to_change()
            for at in range(low // block, high // block, most):
                command, data = c_scsi.unmap([(at, min(most, high // block - at))])
                try:
                    self._run(command, None, data)
                except RefusedError as error:
                    if error.answer.key != c_scsi.KEY_ILLEGAL_REQUEST:
                        raise
                    self._unit.most_unmapped = 0
                    return
        self._written()

    def truncate(self, size: int) -> None:
        if size != self.size:
            raise UnsupportedError(f"a LUN stays as large as it is, {self.size} bytes", file=self.name)

    def allocate(self, offset: int, length: int, mode: str) -> None:
        self._expect_inside(offset + length)
        if mode == "full":
            self.zero(offset, length, unmap=False)

    def flush(self) -> None:
        if self._cache != "unsafe":
            self.synchronize()

    def synchronize(self) -> None:
        """Let the target put what was written where it lasts, whatever the cache mode."""
        if not self.writable or not self._open or not self._changed:
            return
        with self._telling("flush"):
            if self._lost is not None:
                raise copy(self._lost)
            resets = self._resets
            self._changed = False
            try:
                try:
                    self._run(self._unit.commands.synchronize_cache())
                except RefusedError as error:
                    if error.answer.key != c_scsi.KEY_ILLEGAL_REQUEST:  # which is: there is no cache
                        raise
                if self._sessions.resets != resets:
                    raise StorageError("the target was reset, and may have lost what was written", errno=errno.EIO)
            except StorageError as error:
                self._changed, self._lost = True, error
                raise

    # -- the end ------------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        self._sessions.interrupt()

    def close(self) -> None:
        if not self._open:
            return
        try:
            # In the cache mode ``unsafe``, too: what a target has in its memory dies with it, not with this machine.
            self.synchronize()
        finally:
            self.abandon()

    def abandon(self) -> None:
        if self._open:
            self._open = False
            self._sessions.close()

    def _telling(self, doing: str) -> contextlib.AbstractContextManager[None]:
        return _told(self.name, doing)


@contextlib.contextmanager
def _told(name: str, doing: str | None = None) -> Iterator[None]:
    """Errors name the LUN, and what was being done to it."""
    try:
        yield
    except (StorageError, UnsupportedError) as error:
        error.file = error.file or name
        error.place = error.place or doing
        raise
