"""Connected sockets: whole messages in and out, each within a time limit, with or without TLS."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from diskmill.errors import StorageError
from diskmill.sizes import KiB, MiB

if TYPE_CHECKING:
    import ssl

    from .location import Location

Buffer = bytearray | memoryview
ReadBuffer = bytes | bytearray | memoryview


_UNIX_BUFFER = 2 * MiB
"""Bytes that may be on their way through a Unix socket, as far as the system lets us: the default makes both sides wait
for each other several times for each request. TCP finds its own."""


_PROGRESS = 256 * KiB
"""Bytes of a message that must come within each time limit. A large one over a slow line takes several; who sends less
counts as stalled."""


class ConnectionLost(StorageError):
    """The connection broke, or the other side broke the protocol: nothing more can be had of it. A new one may do."""

    def __init__(self, cause: str, *, place: str | None = None, **named: Any) -> None:
        super().__init__(cause, place=place, **{"transient": place != "TLS", **named})


class Stalled(ConnectionLost):
    """The other side did nothing for too long."""


class Transport:
    """A stream socket.

    :param name: whom messages blame.
    :param timeout: seconds that a receive or send may take; 0: for ever. It holds for each call, however much of the
        message trickled in.
    """

    def __init__(self, sock: socket.socket, name: str, timeout: float) -> None:
        self.name = name
        self.timeout = timeout
        self._deadline: float | None = None
        self._tls = False
        self._wait = 0
        self.sock = sock
        sock.setblocking(True)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNIX_BUFFER)
        self._limit(timeout)

    def _limit(self, seconds: float) -> None:
        """Let the system end receives and sends after *seconds*: Python's own limit would cost a poll for each call,
        and take ``MSG_WAITALL`` its meaning. TLS reads as often as it needs, so there Python's is right.
        """
        if self._tls:
            self.sock.settimeout(seconds or None)
            return
        value = struct.pack(
            "@ll", int(seconds), int(seconds % 1 * 1_000_000) or (0 if seconds >= 1 or not seconds else 1)
        )
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)

    def until(self, deadline: float | None) -> None:
        """From now on everything must be done by *deadline* (of :func:`time.monotonic`); None: the timeout holds."""
        self._deadline = deadline
        if deadline is None:
            self._limit(self.timeout)

    def _begin(self) -> float:
        """When what begins now has to be done."""
        now = time.monotonic()
        if self._deadline is None:
            return now + self.timeout if self.timeout else float("inf")
        if now >= self._deadline:
            raise self.stalled()
        self._limit(max(self._deadline - now, 0.001))
        return self._deadline

    def stalled(self) -> Stalled:
        return Stalled("the other side does not answer: timed out", file=self.name)

    def start_tls(self, context: ssl.SSLContext, *, hostname: str | None = None, server: bool = False) -> None:
        """Encrypt what comes from here on.

        :raises ConnectionLost: the handshake failed; the message says why.
        """
        import ssl

        end = self._begin()
        self.sock.settimeout(None if end == float("inf") else max(end - time.monotonic(), 0.001))
        try:
            self.sock = context.wrap_socket(self.sock, server_side=server, server_hostname=hostname)
        except TimeoutError:
            raise self.stalled() from None
        except ssl.SSLCertVerificationError as error:
            why = f"the certificate is not valid: {error.verify_message}"
            raise ConnectionLost(why, file=self.name, place="TLS") from None
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
            raise ConnectionLost(f"the handshake failed: {why}", file=self.name, place="TLS") from None
        self._tls = True
        self._limit(self.timeout)

    @property
    def encrypted(self) -> bool:
        """Whether TLS is in use."""
        return self._tls

    def receive_into(self, buffer: Buffer, patience: Callable[[], int] | None = None, least: int | None = None) -> int:
        """Fill *buffer*, or at least its first *least* bytes; gives how many came.

        :param patience: asked, when a time limit has passed, how many may before the first byte comes; None: one.

        :raises ConnectionLost: the other side closed the connection, broke it, or took too long.
        """
        view = memoryview(buffer)
        end = self._begin()
        at, length = 0, len(view) if least is None else least
        counted = passed = 0
        flags = 0 if self._tls or length < len(view) else socket.MSG_WAITALL
        try:
            while at < length:
                try:
                    count = self.sock.recv_into(view[at:], 0, flags)
                except (TimeoutError, BlockingIOError):
                    passed += 1
                    if at or patience is None or passed >= patience() or self._deadline is not None:
                        raise
                    end += self.timeout
                    continue
                if not count:
                    raise self.closed(at)
                at += count
                if at < length and time.monotonic() >= end:
                    if self._deadline is not None or at - counted < _PROGRESS:
                        raise self.stalled()
                    counted, end = at, end + self.timeout
        except (TimeoutError, BlockingIOError):
            raise self.stalled() from None
        except (OSError, ValueError) as error:
            raise self._lost(error) from None
        return at

    def receive_both(self, head: Buffer, body: memoryview) -> None:
        """Fill *head*, then *body*, with one call to the system where it can be.

        :raises ConnectionLost: see :meth:`receive_into`.
        """
        if self._tls:
            self.receive_into(head)
            self.receive_into(body)
            return
        self._begin()
        try:
            count = self.sock.recvmsg_into([head, body], 0, socket.MSG_WAITALL)[0]
        except (TimeoutError, BlockingIOError):
            raise self.stalled() from None
        except (OSError, ValueError) as error:
            raise self._lost(error) from None
        if not count:
            raise self.closed(0)
        if count < len(head):
            self.receive_into(memoryview(head)[count:])
            count = len(head)
        if count < len(head) + len(body):
            self.receive_into(body[count - len(head) :])

    def receive(self, length: int, patience: Callable[[], int] | None = None) -> bytes:
        """*length* bytes, which the caller has checked."""
        buffer = bytearray(length)
        self.receive_into(buffer, patience)
        return bytes(buffer)

    def closed(self, at: int) -> ConnectionLost:
        return ConnectionLost(
            "the other side closed the connection" + (" amid a message" if at else ""), file=self.name
        )

    def send(self, *parts: ReadBuffer) -> None:
        """Send *parts*, one after the other.

        :raises ConnectionLost: see :meth:`receive_into`.
        """
        self._begin()
        try:
            if self._tls or len(parts) == 1:
                for part in parts:
                    self.sock.sendall(part)
                return
            total = sum(len(part) for part in parts)
            sent = self.sock.sendmsg(parts)
            if sent == total:
                return
            for part in parts:
                if sent < len(part):
                    self.sock.sendall(memoryview(part)[sent:])
                    sent = 0
                else:
                    sent -= len(part)
        except (TimeoutError, BlockingIOError):
            raise self.stalled() from None
        except (OSError, ValueError) as error:
            raise self._lost(error) from None

    def send_more(self, data: ReadBuffer) -> None:
        """Send *data*, which more follows at once."""
        self._begin()
        try:
            self.sock.sendall(data, socket.MSG_MORE)
        except (TimeoutError, BlockingIOError):
            raise self.stalled() from None
        except (OSError, ValueError) as error:
            raise self._lost(error) from None

    def _lost(self, error: Exception) -> ConnectionLost:
        if isinstance(error, ConnectionLost):
            return error
        number = error.errno if isinstance(error, OSError) else None
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return ConnectionLost(f"the connection broke: {why}", file=self.name, errno=number)

    def certificate(self) -> tuple[tuple[tuple[str, str], ...], ...]:
        """The subject of the other side's certificate; empty where it has shown none."""
        import ssl

        if not isinstance(self.sock, ssl.SSLSocket):
            return ()
        found = self.sock.getpeercert() or {}
        subject: tuple[tuple[tuple[str, str], ...], ...] = found.get("subject", ())  # type: ignore[assignment]
        return subject

    def stop_reading(self) -> None:
        """Let receives end, while what is being sent still goes out."""
        with suppress(OSError, ValueError):
            socket.socket.shutdown(self.sock, socket.SHUT_RD)

    def shut_down(self) -> None:
        """Let every call in this or another thread fail at once."""
        with suppress(OSError, ValueError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self.sock.close()


def connect(location: Location, timeout: float) -> socket.socket:
    """A socket that is connected to the server of *location*.

    :param timeout: seconds, for each address that the host's name has; 0: as long as the system tries.
    :raises StorageError: there is no such server, or it does not answer.
    """
    limit = timeout or None
    try:
        if location.kind == "inet":
            return socket.create_connection((location.host, _port(location)), limit)
        family = socket.AF_UNIX if location.kind == "unix" else socket.AF_VSOCK
        address = location.path if location.kind == "unix" else (int(location.host), int(location.port))
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(limit)
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock
    except TimeoutError:
        raise StorageError(f"no connection to {location.server}: timed out", file=location.uri) from None
    except (OSError, ValueError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        number = error.errno if isinstance(error, OSError) else None
        raise StorageError(f"no connection to {location.server}: {why}", file=location.uri, errno=number) from None


def _port(location: Location) -> int | str:
    return int(location.port) if location.port.isdigit() else location.port
