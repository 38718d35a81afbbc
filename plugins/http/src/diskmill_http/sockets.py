"""Sockets that another thread can wake."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Sockets:
    """Those of one storage. Each is known by a second descriptor of its own, which stays good when TLS takes the first
    one over, or the owner closes it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handles: dict[int, socket.socket] = {}
        self._stopped = False

    def watch(self, sock: socket.socket) -> int:
        """A number for *sock*, to forget it by. Where all were stopped already, it is stopped too."""
        handle = sock.dup()
        with self._lock:
            self._handles[handle.fileno()] = handle
            if self._stopped:
                _shut(handle)
            return handle.fileno()

    def forget(self, number: int) -> None:
        """The socket is closed."""
        with self._lock:
            handle = self._handles.pop(number, None)
        if handle is not None:
            handle.close()

    def stop(self) -> None:
        """Whoever waits for one of them gets an error at once, and whoever comes later, too."""
        with self._lock:
            self._stopped = True
            for handle in self._handles.values():
                _shut(handle)

    def dial(self, host: str, port: int, timeout: float) -> tuple[socket.socket, int]:
        """A socket that is connected, and its number.

        :raises OSError: it cannot be.
        """
        failure: OSError | None = None
        for family, kind, proto, _, address in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM):
            try:
                sock = socket.socket(family, kind, proto)
            except OSError as error:  # a kind of address that this machine does not have
                failure = error
                continue
            number = self.watch(sock)
            try:
                sock.settimeout(timeout)
                sock.connect(address)
            except OSError as error:
                failure = error
                sock.close()
                self.forget(number)
            else:
                return sock, number
        raise failure or OSError("the host has no address")


def _shut(handle: socket.socket) -> None:
    with suppress(OSError):  # it is not connected yet, or no more
        handle.shutdown(socket.SHUT_RDWR)
