"""A relay on the loopback address that stops at a certain byte: so a program is ended at a moment that its own bytes
choose, and no clock."""

from __future__ import annotations

import os
import socket
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from http_servers import free_port


class Relay(socketserver.ThreadingTCPServer):
    """Passes all connections on to *port*, but of what clients send, to all of them together, *most* bytes; then *act*
    is called, once, and nothing is passed on any more.

    :ivar sent: bytes that were passed on.
    """

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, port: int, most: int, act: Callable[[], None]) -> None:
        self.port = free_port()
        super().__init__(("127.0.0.1", self.port), _Connection)
        self.to = port
        self.most = most
        self.act = act
        self.sent = 0
        self.over = False
        self.lock = threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """A side that hangs up is no news."""


class _Connection(socketserver.BaseRequestHandler):
    server: Relay

    def handle(self) -> None:
        relay, client = self.server, self.request
        with socket.create_connection(("127.0.0.1", relay.to), 10) as server:
            server.settimeout(None)
            back = threading.Thread(target=_pass, args=(server, client), daemon=True)
            back.start()
            while data := client.recv(65536):
                with relay.lock:
                    data = data[: relay.most - relay.sent]
                    server.sendall(data)
                    relay.sent += len(data)
                    if relay.sent >= relay.most:
                        if not relay.over:
                            relay.over = True
                            relay.act()
                        break
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR if relay.over else socket.SHUT_WR)
            back.join()


def _pass(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def relayed(port: int, most: int, act: Callable[[], None]) -> Iterator[Relay]:
    """A `Relay` that runs."""
    with Relay(port, most, act) as relay:
        thread = threading.Thread(target=relay.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield relay
        finally:
            relay.shutdown()
            thread.join()


def killed_at(port: int, most: int, start: Callable[[int], subprocess.Popen[bytes]]) -> tuple[int, int]:
    """Run a program, which *start* gives the relay's port, and kill it when it has sent *most* bytes to *port*.

    :return: its exit status, and how many bytes it sent.
    """
    began = threading.Event()
    process: list[subprocess.Popen[bytes]] = []

    def kill() -> None:
        began.wait()
        process[0].kill()
        process[0].wait()

    with relayed(port, most, kill) as relay:
        process.append(start(relay.port))
        began.set()
        process[0].wait(60)
        return process[0].returncode, relay.sent


FORMATS = {
    "raw": (),
    "qcow2": (),
    "vmdk": ("-o", "subformat=streamOptimized"),
    "vpc": ("-o", "subformat=fixed,force_size=on"),
}
"""Formats that go forward, and how they are asked for."""
KILLS = int(os.environ.get("DISKMILL_KILLS", "4"))
KILLED = list(FORMATS) if "DISKMILL_KILLS" in os.environ else ["raw"]
"""How often an output is killed, and as which formats: ``DISKMILL_KILLS=20`` has all of them."""


def moments(total: int, count: int) -> list[int]:
    """Numbers of bytes, *count* of them: evenly over all *total*, and the last one missing."""
    return [*(total * number // count for number in range(1, count)), total - 1]
