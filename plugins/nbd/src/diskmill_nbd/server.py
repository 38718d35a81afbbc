"""A server: it listens, and gives each client a thread and a :class:`~diskmill_nbd.session.Session`.

Nothing grows with what clients do: there are at most so many of them, each with one buffer and a share of some more,
and whoever does not get through the handshake in time is gone.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from diskmill.errors import StorageError, UsageError

from .ahead import Readers
from .authorization import Name
from .export import Export
from .session import Session
from .transport import Transport

if TYPE_CHECKING:
    import ssl

_WAITING = 64
"""Clients amid their handshake, at most; more are not accepted before one of them is through, or out."""
_STACK = 1 << 20
_GRACE = 5.0
"""Seconds that requests under way get to be done when the server closes."""


class Server:
    """A server of *exports*. It serves from :meth:`start` to :meth:`close`, which also closes the exports.

    :param listeners: sockets that listen.
    :param tls: with what clients must encrypt; None: nothing is encrypted.
    :param authorize: takes the name in a client's certificate, and says whether it may come in.
    :param max_clients: how many may be connected at once.
    :param handshake_limit: seconds for the handshake; 0: no limit.
    :param persistent: go on when the last client has left.
    :param warn: takes a line about a request that failed here.
    """

    def __init__(
        self,
        exports: Sequence[Export],
        listeners: Sequence[socket.socket],
        *,
        tls: ssl.SSLContext | None = None,
        authorize: Callable[[Name], bool] | None = None,
        max_clients: int = 16,
        handshake_limit: float = 10,
        persistent: bool = True,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.exports: dict[str, Export] = {}
        for export in exports:
            if export.name in self.exports:
                raise UsageError(f"two exports have the name '{export.name}'")
            self.exports[export.name] = export
        self.listeners = list(listeners)
        self.tls = tls
        self.max_clients = max_clients
        self.handshake_limit = handshake_limit
        self.persistent = persistent
        self.warn = warn
        self.readers = Readers()
        self._authorize = authorize
        self._turn = threading.Condition()
        self._sessions: set[Session] = set()
        self._threads: set[threading.Thread] = set()
        self._transmitting = 0
        self._stopped = False
        self._wake, self._woken = socket.socketpair()
        self._acceptor = threading.Thread(target=self._accept, name="nbd-accept", daemon=True)

    def start(self) -> None:
        """Begin to accept clients."""
        self._acceptor.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Until the server stops, because :meth:`stop` was called or the last client has left; False: not in time."""
        with self._turn:
            return self._turn.wait_for(lambda: self._stopped, timeout)

    def stop(self) -> None:
        """Let :meth:`wait` end. From a signal handler, too."""
        self._stopped = True
        with suppress(OSError):
            self._wake.send(b"x")

    @property
    def clients(self) -> int:
        """How many are connected."""
        return len(self._sessions)

    def close(self) -> None:
        """Accept nobody more, let requests under way be done, and close the exports."""
        self.stop()
        if self._acceptor.is_alive():
            self._acceptor.join()
        for listener in self.listeners:
            listener.close()
        with self._turn:
            sessions = list(self._sessions)
            threads = list(self._threads)
        for session in sessions:
            session.transport.stop_reading()
        end = time.monotonic() + _GRACE
        for thread in threads:
            thread.join(max(end - time.monotonic(), 0))
        for session in sessions:
            session.transport.shut_down()
        for thread in threads:  # a request that is under way must not find its image closed
            thread.join()
        self.readers.close()
        self._wake.close()
        self._woken.close()
        failures = []
        for export in self.exports.values():
            try:
                export.close()
            except StorageError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    # -- clients ------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            for listener in self.listeners:
                listener.setblocking(False)
                selector.register(listener, selectors.EVENT_READ)
            while not self._stopped:
                with self._turn:
                    full = len(self._sessions) - self._transmitting >= _WAITING
                for key, _ in selector.select(0.05 if full else None):
                    if key.fileobj is self._woken:
                        self._woken.recv(4096)
                    elif not full and isinstance(key.fileobj, socket.socket):
                        self._welcome(key.fileobj)
                if full:
                    time.sleep(0.02)
        with self._turn:
            self._turn.notify_all()

    def _welcome(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:  # it left before it was let in, or we have no descriptor to spare
            time.sleep(0.01)
            return
        try:
            session = Session(self, Transport(sock, "the client", 0))
            thread = threading.Thread(target=self._serve, args=(session,), name="nbd-client", daemon=True)
            with self._turn:
                self._sessions.add(session)
                self._threads.add(thread)
            before = threading.stack_size(_STACK)
            try:
                thread.start()
            finally:
                threading.stack_size(before)
        except (OSError, RuntimeError) as error:
            sock.close()
            self.warn(f"a client was turned away: {error}")
            with self._turn:
                self._sessions = {one for one in self._sessions if one.transport.sock is not sock}
                self._threads = {one for one in self._threads if one.ident is not None}

    def admit(self, session: Session) -> bool:
        """Whether *session* may begin with requests; waits for another to leave, as long as a handshake may take."""
        limit = self.handshake_limit or None
        with self._turn:
            if not self._turn.wait_for(lambda: self._transmitting < self.max_clients or self._stopped, limit):
                return False
            if self._stopped:
                return False
            self._transmitting += 1
            return True

    def authorized(self, transport: Transport) -> bool:
        """Whether the client, with the certificate that it has shown, may come in."""
        if self._authorize is None:
            return True
        name = [(_SHORT.get(key, key), value) for part in transport.certificate() for key, value in part]
        return self._authorize(name)

    def _serve(self, session: Session) -> None:
        try:
            session.run()
        except Exception as error:
            self.warn(f"a client was dropped: {type(error).__name__}: {error}")
        finally:
            with self._turn:
                self._sessions.discard(session)
                self._threads.discard(threading.current_thread())
                if session.transmitting:
                    self._transmitting -= 1
                    if not self._transmitting and not self.persistent:
                        self.stop()
                self._turn.notify_all()


_SHORT = {
    "commonName": "CN",
    "countryName": "C",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "emailAddress": "EMAIL",
}


def listen_tcp(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address of *host* (empty: of this machine).

    :raises StorageError: none can.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise StorageError(f"no such address: {getattr(error, 'strerror', None) or error}", file=host) from None
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, _, _, _, address in found:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if sockets and not port:  # all on the port that the first one got
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            sock.bind(address)
            sock.listen(128)
        except OSError as error:
            sock.close()
            failure = error
            continue
        sockets.append(sock)
    if not sockets:
        assert failure is not None
        raise StorageError.from_os(failure, f"{host or '*'}:{port}", "listen")
    return sockets


def listen_unix(path: str) -> socket.socket:
    """A socket that listens at *path*, where nothing may be but a socket that nobody listens on any more.

    :raises StorageError: it cannot.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            sock.bind(path)
        except OSError as error:
            if not _abandoned(path):
                raise error from None
            import os

            os.unlink(path)
            sock.bind(path)
        sock.listen(128)
    except (OSError, ValueError) as error:
        sock.close()
        cause = error if isinstance(error, OSError) else OSError(0, str(error))
        raise StorageError.from_os(cause, path, "listen") from None
    return sock


def _abandoned(path: str) -> bool:
    """Whether *path* is a socket on which nobody listens."""
    import os
    import stat

    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.connect(path)
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
