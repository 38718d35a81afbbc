"""Web and FTP servers for tests, each on the loopback address and ended with the test: nginx, pyftpdlib, and one of our
own that fails as it is told."""

from __future__ import annotations

import os
import random
import re
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tools import run, tool

_PORTS = (20_000, 32_000)
"""Below those that Linux gives to clients."""


def free_port() -> int:
    """A port that nobody listens at just now, and that no connection gets by chance before a server has started."""
    while True:
        port = random.SystemRandom().randrange(*_PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextmanager
def running(port: int, *command: str | Path, leave: float = 10) -> Iterator[None]:
    """A server that runs as *command*, once it answers at *port*. In the end it has *leave* seconds to go by itself."""
    process = subprocess.Popen(
        [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        end = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    process.kill()
                    assert process.stdout is not None
                    pytest.fail(f"{command[0]} did not start: {process.stdout.read().decode()}")
                time.sleep(0.02)
        yield
    finally:
        process.terminate()
        try:
            process.wait(leave)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


class Web(NamedTuple):
    """nginx.

    :ivar url: of the folder that it serves. ``none`` before a path: without ranges; ``auth``: for user ``ann`` with
        password ``s3cret`` only; ``cookie``: with the cookie ``pass=s3cret`` only; ``gzip``: encoded; ``put``:
        takes files, from the same user; ``small``: takes files of 2 MiB at most.
    :ivar tls: the same over TLS, with a certificate of the authority in the file ``authority``.
    """

    url: str
    tls: str
    authority: Path
    log: Path

    def requests(self) -> str:
        """What was asked so far."""
        return self.log.read_text()


@contextmanager
def nginx(root: Path, state: Path, port: int | None = None) -> Iterator[Web]:
    """nginx over the folder *root*, with its own files in *state*."""
    state.mkdir()
    port, secure = port or free_port(), free_port()
    certificates(state)
    password = run(tool("openssl"), "passwd", "-apr1", "s3cret").stdout.strip()
    (state / "users").write_text(f"ann:{password}\n")
    temporary = "\n".join(
        f"{name}_temp_path {state}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = f"""
        daemon off; worker_processes 1; pid {state}/pid; error_log {state}/error.log;
        {"user root;" if os.geteuid() == 0 else ""}
        events {{ worker_connections 64; }}
        http {{
            log_format all '$scheme $request_method $request_uri $status "$http_range" "$http_authorization"'
                           ' "$http_cookie" "$http_x_token"';
            access_log {state}/access.log all; {temporary}
            server {{
                listen 127.0.0.1:{port};
                listen 127.0.0.1:{secure} ssl;
                ssl_certificate {state}/server.pem; ssl_certificate_key {state}/server.key;
                root {root};
                location /none/ {{ alias {root}/; max_ranges 0; }}
                location /auth/ {{ alias {root}/; auth_basic x; auth_basic_user_file {state}/users; }}
                location /cookie/ {{ if ($http_cookie != "pass=s3cret") {{ return 403; }} alias {root}/; }}
                location /token/ {{ if ($http_x_token != "s3cret") {{ return 403; }} alias {root}/; }}
                location /gzip/ {{ alias {root}/; add_header Content-Encoding gzip; }}
                location /sub/here/ {{ return 302 /sub/there/; }}
                location /moved/ {{ rewrite ^/moved/(.*)$ /$1 redirect; }}
                location /away/ {{ rewrite ^/away/(.*)$ http://localhost:{port}/$1 redirect; }}
                location /down/ {{ rewrite ^/down/(.*)$ http://127.0.0.1:{port}/$1 redirect; }}
                location /up/ {{ rewrite ^/up/(.*)$ https://127.0.0.1:{secure}/$1 redirect; }}
                location /loop/ {{ rewrite ^/loop/(.*)$ /loop/$1 redirect; }}
                location /file/ {{ return 302 file:///etc/passwd; }}
                location /put/ {{
                    alias {root}/put/; dav_methods PUT DELETE; create_full_put_path on; client_max_body_size 0;
                    auth_basic x; auth_basic_user_file {state}/users;
                }}
                location /small/ {{ alias {root}/put/; dav_methods PUT; client_max_body_size 2m; }}
            }}
        }}"""
    (state / "nginx.conf").write_text(configuration)
    with running(port, tool("nginx"), "-p", state, "-c", state / "nginx.conf"):
        log = state / "access.log"
        yield Web(f"http://127.0.0.1:{port}", f"https://127.0.0.1:{secure}", state / "authority.pem", log)


def certificates(folder: Path) -> None:
    """``authority.pem``, and ``server.pem`` and ``server.key`` for 127.0.0.1, in *folder*."""
    openssl = tool("openssl")
    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-batch")
    run(
        openssl, *new, "-x509", "-days", "2", "-subj", "/CN=a test's authority", "-keyout", "authority.key",
        "-out", "authority.pem", cwd=folder,
    )  # fmt: skip
    run(openssl, *new, "-subj", "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr", cwd=folder)
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    run(
        openssl, "x509", "-req", "-in", "server.csr", "-CA", "authority.pem", "-CAkey", "authority.key",
        "-CAcreateserial", "-days", "2", "-extfile", "names", "-out", "server.pem", cwd=folder,
    )  # fmt: skip


FTP = """
import sys
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer

root, port, certificate = sys.argv[1:]
handler = FTPHandler
if certificate != "-":
    from pyftpdlib.handlers import TLS_FTPHandler

    class handler(TLS_FTPHandler):
        certfile = certificate

        def __init__(self, *words, **options):
            super().__init__(*words, **options)
            self.secure_connection(self.ssl_context)  # implicit: TLS comes first

        def handle_ssl_established(self):
            self.handle()

        def handle(self):
            if self._ssl_established:
                super().handle()

handler.authorizer = DummyAuthorizer()
handler.authorizer.add_anonymous(root)
handler.authorizer.add_user("ann", "s3cret", root)
FTPServer(("127.0.0.1", int(port)), handler).serve_forever()
"""


@contextmanager
def ftp_server(root: Path, certificate: Path | None = None) -> Iterator[str]:
    """pyftpdlib over the folder *root*, for anybody and for user ``ann`` with password ``s3cret``; its URL."""
    port = free_port()
    with running(port, sys.executable, "-c", FTP, root, str(port), certificate or "-"):
        yield f"{'ftps' if certificate else 'ftp'}://127.0.0.1:{port}"


@contextmanager
def running_proxy() -> Iterator[tuple[str, list[str]]]:
    """A proxy for whole URLs and for CONNECT: its URL, and the head of each request, its lines joined by spaces."""
    asked: list[str] = []

    def pump(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            client: socket.socket = self.request
            while True:
                head = b""
                while b"\r\n\r\n" not in head:
                    data = client.recv(1)
                    if not data:
                        return
                    head += data
                asked.append(" ".join(head.decode().split("\r\n")))
                method, target = head.decode().split(" ", 2)[:2]
                address = target.removeprefix("http://").partition("/")[0]
                host, _, port = address.partition(":")
                with socket.create_connection((host, int(port or 80)), 10) as server:
                    if method == "CONNECT":
                        client.sendall(b"HTTP/1.1 200 yes\r\n\r\n")
                        back = threading.Thread(target=pump, args=(server, client), daemon=True)
                        back.start()
                        pump(client, server)
                        back.join()
                        return
                    own = head.replace(f"http://{address}".encode(), b"", 1)
                    server.sendall(own.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                    while data := server.recv(65536):
                        client.sendall(data)
                    return

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that hangs up is no news."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


class Fault(NamedTuple):
    """What goes wrong with one answer.

    :ivar kind: ``reset`` (after *number* bytes), ``close`` (so, too), ``stall`` (after *number* bytes, until the client
        goes), ``status`` (*number*, with *header*), ``etag`` (another one), ``bytes`` (other ones, with another ETag),
        ``length`` (Content-Length *number* more), ``range`` (another one), ``whole`` (all of it), ``gzip``, ``slow``
        (in small pieces), ``garbage`` (no HTTP), ``short`` (half of the range).
    """

    kind: str
    number: int = 0
    header: tuple[str, str] = ("X-Fault", "yes")


class FaultServer(ThreadingHTTPServer):
    """A web server with one file, at any path, that answers as *plan* says: called with the number of the request and
    the range that is asked for, it gives a fault or None."""

    daemon_threads = True

    def __init__(self, data: bytes, plan: Callable[[int, int, int], Fault | None]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data = data
        self.plan = plan
        self.count = 0
        self.lock = threading.Lock()
        self.asked: list[dict[str, str]] = []
        self.etag = '"one"'
        self.url = f"http://127.0.0.1:{self.server_address[1]}/disk.img"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


@contextmanager
def faulty(data: bytes, plan: Callable[[int, int, int], Fault | None]) -> Iterator[FaultServer]:
    """A `FaultServer` that runs."""
    server = FaultServer(data, plan)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultServer
    timeout = 30
    wbufsize = 0

    def log_message(self, format: str, *words: Any) -> None:
        pass

    def do_GET(self) -> None:
        server, data = self.server, self.server.data
        with server.lock:
            number = server.count
            server.count += 1
            server.asked.append(dict(self.headers))
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(found[1]), min(int(found[2]), len(data) - 1)) if found else (0, len(data) - 1)
        fault = server.plan(number, first, last - first + 1) or Fault("")
        kind, etag = fault.kind, server.etag
        if kind == "garbage":
            self.wfile.write(b"\0\1\2 no HTTP at all\r\n\r\n")
            self.close_connection = True
            return
        if found and first >= len(data):
            fault = Fault("status", 416, ("Content-Range", f"bytes */{len(data)}"))
        if fault.kind == "status":
            self.send_response(fault.number)
            self.send_header(*fault.header)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"busy")
            return
        if kind in ("etag", "bytes"):
            etag = '"two"'
        if kind == "short":
            last = first + (last - first) // 2
        condition = self.headers.get("If-Range")
        ranged = found is not None and kind != "whole" and condition in (None, etag)
        if kind == "etag":  # a server that does not know conditions
            ranged = found is not None
        if not ranged:
            first, last = 0, len(data) - 1
        body = data[first : last + 1]
        if kind == "bytes":
            body = bytes(len(body))
        self.send_response(206 if ranged else 200)
        self.send_header("ETag", etag)
        if ranged:
            shift = 1 if kind == "range" else 0
            self.send_header("Content-Range", f"bytes {first + shift}-{last + shift}/{len(data)}")
        if kind == "gzip":
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body) + (fault.number if kind == "length" else 0)))
        self.end_headers()
        if kind in ("reset", "close", "stall"):
            self.wfile.write(body[: fault.number])
            self.close_connection = True
            if kind == "reset":
                time.sleep(0.002)  # so that what was sent is not thrown away
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            elif kind == "stall":
                self.connection.settimeout(20)
                self.connection.recv(1)
            return
        if kind == "slow":
            for at in range(0, len(body), 16384):
                self.wfile.write(body[at : at + 16384])
                time.sleep(0.002)
            return
        self.wfile.write(body)
        if kind == "length":
            self.close_connection = True
