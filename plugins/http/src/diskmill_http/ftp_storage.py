"""A file on an FTP server, by ranges: REST and RETR with a data connection for each (RFC 959, RFC 3659, RFC 4217)."""

from __future__ import annotations

import ftplib
import socket
import ssl
import threading
from contextlib import suppress
from urllib.parse import unquote

from diskmill.contract.drivers import ProtocolDriver
from diskmill.errors import DiskmillError, StorageError
from diskmill.sizes import MAX_SIZE

from .patience import PassingError
from .place import UrlPlace
from .retried import RetriedStorage
from .settings import Settings
from .sockets import Sockets
from .url import Origin

_BLOCK = 1 << 20
"""Bytes that are taken from the kernel at once."""


class _Control(ftplib.FTP):
    """A control connection that another thread can wake, with TLS from the first byte on where *tls* is set."""

    def __init__(self, sockets: Sockets, origin: Origin, timeout: int, tls: ssl.SSLContext | None) -> None:
        super().__init__(timeout=timeout)
        self._sockets = sockets
        self._tls = tls
        self._numbers: list[int] = []
        self.host, self.port = origin.host, origin.port

    def open(self, user: str, password: str) -> None:
        """Connect and log in. :raises ftplib.Error, OSError, EOFError: it failed."""
        sock, number = self._sockets.dial(self.host, self.port, float(self.timeout or 30))
        self._numbers.append(number)
        self.af = sock.family
        self.sock = sock if self._tls is None else self._tls.wrap_socket(sock, server_hostname=self.host)
        self.file = self.sock.makefile("r", encoding=self.encoding)
        self.welcome = self.getresp()
        self.login(user, password)
        if self._tls is not None:
            self.voidcmd("PBSZ 0")
            self.voidcmd("PROT P")
        self.voidcmd("TYPE I")

    def data(self, path: str, offset: int) -> tuple[socket.socket, int]:
        """The connection that brings the file's bytes from *offset* on, and its number among the sockets."""
        # The address that the server names is ignored by ftplib: data comes from where the control connection leads.
        host, port = self.makepasv()
        sock, number = self._sockets.dial(host, port, float(self.timeout or 30))
        try:
            if offset:
                self.sendcmd(f"REST {offset}")
            answer = self.sendcmd(f"RETR {path}")
            if not answer.startswith("1"):
                raise ftplib.error_reply(answer)
            if self._tls is not None:
                session = getattr(self.sock, "session", None)  # servers may ask for one session on both
                sock = self._tls.wrap_socket(sock, server_hostname=self.host, session=session)
        except BaseException:
            sock.close()
            self._sockets.forget(number)
            raise
        return sock, number

    def drop(self) -> None:
        """Close it, without a word."""
        self.close()
        for number in self._numbers:
            self._sockets.forget(number)


class FtpStorage(RetriedStorage):
    """What the server has under the URL's path, which counts from the folder that one is in after logging in."""

    def __init__(self, driver: ProtocolDriver, place: UrlPlace, settings: Settings) -> None:
        super().__init__(settings, place.display())
        self.driver = driver
        self.place = place
        self._origin = place.url.origin
        self._path = unquote(place.url.path.removeprefix("/"), errors="surrogateescape")
        if any(ord(char) < 32 or ord(char) == 127 for char in self._path):
            raise StorageError("its path has control characters", file=self.name)
        self._tls = settings.tls() if driver.name == "ftps" else None
        self._sockets = Sockets()
        self._free = threading.Semaphore(settings.connections)
        self._idle: list[_Control] = []
        self._guard = threading.Lock()
        self._stamp: str | None = None
        self._reached = False

    @classmethod
    def open(cls, driver: ProtocolDriver, place: UrlPlace, settings: Settings) -> FtpStorage:
        """The file at *place*."""
        storage = cls(driver, place, settings)
        patience = storage.patience()
        while not storage._reached:
            try:
                storage._begin()
            except PassingError as error:
                patience.bear(error, "open")
        return storage

    def _begin(self) -> None:
        control, used = self._take()
        try:
            size, self._stamp = self._state(control)
        except BaseException as error:
            self._drop(control)
            raise self._failure(error, 0, used) from None
        self._give(control)
        if size is None or not 0 <= size <= MAX_SIZE:
            raise StorageError("the server does not tell its size", file=self.name)
        self.size, self._reached = size, True

    def _state(self, control: _Control) -> tuple[int | None, str | None]:
        """Size and time of the last change, as the server tells them; None for a time where it tells none."""
        size = control.size(self._path)
        try:
            stamp: str | None = control.voidcmd(f"MDTM {self._path}")
        except ftplib.error_perm:
            stamp = None
        return size, stamp

    def receive(self, offset: int, view: memoryview) -> int:
        control, used = self._take()
        got = 0
        try:
            sock, number = control.data(self._path, offset)
            try:
                while got < len(view):
                    count = sock.recv_into(view[got:], min(len(view) - got, _BLOCK))
                    if not count:
                        raise EOFError
                    got += count
            finally:
                sock.close()
                self._sockets.forget(number)
            with suppress(ftplib.error_temp, ftplib.error_perm):  # it may complain that we hung up
                control.voidresp()
            # The same state now: so it was when the bytes came, also those that came before a failure.
            if self._state(control) != (self.size, self._stamp):
                raise StorageError(
                    "it changed on the server while it was read", file=self.name, place=f"read at offset {offset}"
                )
        except BaseException as error:
            self._drop(control)
            raise self._failure(error, got, used) from None
        self._give(control)
        return got

    def _take(self) -> tuple[_Control, bool]:
        """A control connection that is logged in, and whether it was used before."""
        while not self._free.acquire(timeout=0.5):
            if self.stopped.is_set():
                raise StorageError("interrupted", file=self.name)
        with self._guard:
            if self._idle:
                return self._idle.pop(), True
        control = _Control(self._sockets, self._origin, self.settings.timeout, self._tls)
        try:
            control.open(self.settings.user or "anonymous", self.settings.password or "anonymous@")
        except BaseException as error:
            self._drop(control)
            raise self._failure(error, 0, False) from None
        return control, False

    def _give(self, control: _Control) -> None:
        with self._guard:
            self._idle.append(control)
        self._free.release()

    def _drop(self, control: _Control) -> None:
        control.drop()
        self._free.release()

    def _failure(self, error: BaseException, received: int, used: bool) -> BaseException:
        """What to raise for *error*. A server's own words are shown, unless they repeat the password."""
        words = str(error)[:200]
        if self.settings.password and self.settings.password in words:
            words = words[:3]
        if isinstance(error, DiskmillError):
            return error
        if isinstance(error, ftplib.error_temp):  # 4xx: busy, too many connections
            return PassingError(f"the server says: {words}", received=received)
        if isinstance(error, ftplib.Error):
            return StorageError(f"the server says: {words}", file=self.name)
        if isinstance(error, ssl.SSLCertVerificationError):
            return StorageError(f"its certificate is not accepted: {error.verify_message}", file=self.name)
        if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
            return StorageError("its host is not known", file=self.name)
        if isinstance(error, TimeoutError):
            return PassingError("the server was silent for too long", received=received)
        if isinstance(error, EOFError):
            return PassingError("the connection was closed in the middle", received=received)
        if isinstance(error, OSError):
            cause = f"the connection failed: {error.strerror or 'it was closed'}"
            if not self._reached and isinstance(error, ConnectionRefusedError):
                return StorageError(f"the server cannot be reached: {error.strerror}", file=self.name, transient=True)
            return PassingError(cause, received=received, stale=used and not self.stopped.is_set())
        if isinstance(error, ValueError):
            return StorageError("the server's answer is not FTP", file=self.name)
        return error

    def interrupt(self) -> None:
        self.stopped.set()
        self._sockets.stop()

    def close(self) -> None:
        with self._guard:
            idle, self._idle = self._idle, []
        for control in idle:
            control.drop()
