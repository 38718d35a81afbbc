"""Sessions with a target: contexts of libiscsi that are logged in, each with one command at work at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import threading
import time
from ctypes import byref, c_char
from dataclasses import dataclass

from diskmill.contract.node import Buffer
from diskmill.errors import StorageError
from diskmill.kit.pool import Pool

from . import c_libiscsi as c
from . import c_scsi
from .place import Unit

AT_ONCE = 4
"""Sessions at most."""
_TICK = 0.2
"""Seconds after which who waits looks whether it was interrupted."""
_LEAVING = 2
"""Seconds that a logout may take."""
_REST = 5
"""Seconds after which an idle session looks whether the target pings it."""
_BUSY = 10.0
"""Seconds for which a target may be busy."""
_ATTENTIONS = 8
"""Unit attentions that one command may meet."""
_RANDOM = 0xFFFFFF


@dataclass(frozen=True)
class Login:
    """Where to log in, and as whom."""

    unit: Unit
    initiator: str
    user: str | None = None
    password: str | None = None
    header_digest: str = "none-crc32c"
    timeout: int = 60
    """Seconds without an answer until it is an error; 0: never."""


class RefusedError(StorageError):
    """The target answered that it does not do that.

    :ivar answer: why.
    """

    def __init__(self, answer: c_scsi.Answer) -> None:
        self.answer = answer
        cause, number = _meaning(answer)
        super().__init__(cause, errno=number)


def _meaning(answer: c_scsi.Answer) -> tuple[str, int]:
    key, ascq = answer
    if ascq == c_scsi.ASCQ_SPACE_ALLOCATION_FAILED:
        return os.strerror(errno.ENOSPC), errno.ENOSPC
    if key == c_scsi.KEY_DATA_PROTECT:
        return "the LUN is write-protected", errno.EROFS
    if key == c_scsi.KEY_NOT_READY:
        medium = ascq >> 8 == c_scsi.ASC_NO_MEDIUM
        return "there is no medium" if medium else "the LUN is not ready", errno.ENOMEDIUM if medium else errno.EIO
    number = errno.EOPNOTSUPP if key == c_scsi.KEY_ILLEGAL_REQUEST else errno.EIO
    return f"the target answers with sense key {key:#x}, code {ascq >> 8:#04x}/{ascq & 0xFF:#04x}", number


class Session:
    """One session, logged in."""

    def __init__(self, login: Login) -> None:
        self._library = c.library()
        self._lun = login.unit.lun
        self._timeout = login.timeout
        self._busy = threading.Lock()
        """Held while libiscsi is called."""
        self._interrupted = False
        self._status: int | None = None
        self._answered = c.CALLBACK(self._done)
        self.resets = 0
        """How often the target told that it was reset since: what it had not put where it lasts may be gone."""
        self._context: int | None = self._library.iscsi_create_context(login.initiator.encode())
        if self._context is None:
            raise StorageError("libiscsi made no context", errno=errno.ENOMEM)
        try:
            self._set_up(login)
            self._log_in(login.unit)
        except BaseException:
            self._end()
            raise

    def _set_up(self, login: Login) -> None:
        self._set("targetname", login.unit.target.encode())
        self._set("session_type", c.ISCSI_SESSION_NORMAL)
        self._set("header_digest", c.HEADER_DIGESTS[login.header_digest])
        # No two sessions of one initiator may have the same.
        chance = int.from_bytes(os.urandom(8), "little")
        self._set("isid_random", chance & _RANDOM, chance >> 32 & 0xFFFF)
        if login.user is not None:
            self._set("initiator_username_pwd", login.user.encode(), (login.password or "").encode())
        self._library.iscsi_set_noautoreconnect(self._context, 1)  # a write that may have been lost is an error

    def _set(self, name: str, *values: object) -> None:
        if getattr(self._library, f"iscsi_set_{name}")(self._context, *values):
            raise StorageError(self._told(f"libiscsi does not take the {name.replace('_', ' ')}"), errno=errno.EINVAL)

    def _log_in(self, unit: Unit) -> None:
        begun = self._library.iscsi_full_connect_async(
            self._context, unit.portal.encode(), unit.lun, self._answered, None
        )
        if begun or self._wait() != c.SCSI_STATUS_GOOD:
            raise StorageError(self._told("the target cannot be reached"), errno=errno.ECONNREFUSED)

    def _told(self, otherwise: str) -> str:
        text = (self._library.iscsi_get_error(self._context) or b"").decode("utf-8", "replace")
        return otherwise if "reconnect" in text else " ".join(text.split()).rstrip(".") or otherwise

    # -- one command --------------------------------------------------------------------------------------------

    def _done(self, context: object, status: int, data: object, own: object) -> None:
        """What libiscsi calls: the command is answered, or given up."""
        self._status = status

    def _wait(self) -> int:
        """Let libiscsi work until there is an answer: its status.

        :raises StorageError: the connection was lost, or nothing came for too long.
        """
        library, context = self._library, self._context
        last = time.monotonic()
        while self._status is None:
            poller = select.poll()
            fd, wanted = library.iscsi_get_fd(context), library.iscsi_which_events(context)
            if fd >= 0 and wanted:
                poller.register(fd, wanted)
            ready = poller.poll(_TICK * 1000)
            if self._interrupted:
                raise StorageError("the connection was given up", errno=errno.ECANCELED)
            now = time.monotonic()
            if ready:
                last = now
            elif self._timeout and now - last > self._timeout:
                raise StorageError(f"the target has not answered for {self._timeout} s", errno=errno.ETIMEDOUT)
            if library.iscsi_service(context, ready[0][1] if ready else 0):
                raise StorageError(self._told("the connection was lost"), errno=errno.ECONNRESET)
        status, self._status = self._status, None
        return status

    def run(self, cdb: bytes, into: Buffer | None = None, data: bytes | None = None, *, exact: bool = False) -> None:
        """Let the target do *cdb*, which fills *into*, or takes *data*.

        :param exact: whether less than all of *into* is an error.
        :raises RefusedError: it says that it will not. StorageError: it did not answer, or the connection was lost.
        """
        attentions = 0
        until = time.monotonic() + _BUSY
        pause = 0.05
        while True:
            status, sense = self._attempt(cdb, into, data, exact=exact)
            if status == c.SCSI_STATUS_GOOD:
                return
            if status == c.SCSI_STATUS_CHECK_CONDITION:
                answer = c_scsi.Answer(sense.key, sense.ascq)
                if answer.key != c_scsi.KEY_UNIT_ATTENTION or attentions == _ATTENTIONS:
                    raise RefusedError(answer)
                attentions += 1  # it tells that something has changed, and did nothing
                self.resets += answer.ascq >> 8 == c_scsi.ASC_RESET
            elif status in (c.SCSI_STATUS_BUSY, c.SCSI_STATUS_TASK_SET_FULL) and time.monotonic() < until:
                time.sleep(pause)
                pause = min(2 * pause, 1)
            elif status == c.SCSI_STATUS_RESERVATION_CONFLICT:
                raise StorageError("another initiator has reserved the LUN", errno=errno.EBUSY)
            else:
                raise StorageError(f"the target answers with status {status:#x}", errno=errno.EIO)

    def _attempt(self, cdb: bytes, into: Buffer | None, data: bytes | None, *, exact: bool) -> tuple[int, c.Sense]:
        library = self._library
        length = len(into) if into is not None else len(data or b"")
        way = c.SCSI_XFER_READ if into is not None else c.SCSI_XFER_WRITE if data else c.SCSI_XFER_NONE
        sense = c.Sense()
        with self._busy:
            if self._context is None:
                raise StorageError("the connection was lost before", errno=errno.ECONNRESET)
            task = library.scsi_create_task(len(cdb), cdb, way, length)
            try:
                if into is not None:
                    library.scsi_task_add_data_in_buffer(task, length, (c_char * length).from_buffer(into))
                sent = None if data is None else c.Data(length, data)
                began = library.iscsi_scsi_command_async(
                    self._context, self._lun, task, self._answered, None if sent is None else byref(sent), None
                )
                if began:
                    raise StorageError(self._told("the command could not be sent"), errno=errno.ECONNRESET)
                status = self._wait()
                if status > 0xFF:  # not the target's: the connection is gone
                    raise StorageError(self._told("the connection was lost"), errno=errno.ECONNRESET)
                library.scsi_task_get_status(task, byref(sense))
                missing = c.Task.from_address(task)
                if exact and status == c.SCSI_STATUS_GOOD and missing.residual_status and missing.residual:
                    raise StorageError(f"the target left out {missing.residual} bytes", errno=errno.EIO)
            except BaseException:
                self._end()  # whatever is still on its way has nowhere to go
                raise
            finally:
                library.scsi_free_scsi_task(task)
        return status, sense

    # -- the rest -----------------------------------------------------------------------------------------------

    def answer_pings(self) -> None:
        """Let libiscsi answer what the target asked an idle session, which it would take for dead otherwise."""
        if not self._busy.acquire(blocking=False):
            return
        try:
            if self._context is None:
                return
            for _ in range(4):
                events = self._library.iscsi_which_events(self._context)
                poller = select.poll()
                poller.register(self._library.iscsi_get_fd(self._context), events)
                ready = poller.poll(0)
                if not ready or self._library.iscsi_service(self._context, ready[0][1]):
                    return
        finally:
            self._busy.release()

    def interrupt(self) -> None:
        """Let a command that waits end with an error."""
        self._interrupted = True

    def close(self) -> None:
        """Log out, unless the connection was lost, and end it."""
        with self._busy:
            if self._context is not None and not self._interrupted:
                self._timeout = _LEAVING
                with contextlib.suppress(StorageError):
                    if not self._library.iscsi_logout_async(self._context, self._answered, None):
                        self._wait()
            self._end()

    def _end(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            self._library.iscsi_destroy_context(context)


class Sessions(Pool[Session]):
    """Sessions with the target of *login*, from *first* on."""

    def __init__(self, login: Login, first: Session) -> None:
        super().__init__(first, AT_ONCE)
        self._login = login
        self._ended = threading.Event()
        self._pinged = threading.Thread(target=self._answer_pings, name="diskmill-iscsi", daemon=True)
        self._pinged.start()

    def another(self) -> Session:
        return Session(self._login)

    @property
    def resets(self) -> int:
        """How often the target told any of them that it was reset."""
        return sum(one.resets for one in self._all)

    def _answer_pings(self) -> None:
        while not self._ended.wait(_REST):
            for one in list(self._all):
                one.answer_pings()

    def close(self) -> None:
        self._ended.set()
        self._pinged.join()
        super().close()
