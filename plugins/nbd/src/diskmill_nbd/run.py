"""What ``diskmill serve`` does."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from diskmill.errors import StorageError, UsageError
from diskmill_cli import common
from diskmill_cli.arguments import Arguments

from . import c_nbd as c
from .authorization import Name, authorization
from .location import Location
from .serving import Exported, Serving
from .tls import Credentials, credentials_of

if TYPE_CHECKING:
    from diskmill import Context
    from diskmill_cli.session import Session

_DISCARD = {"": "", "ignore": "ignore", "off": "ignore", "unmap": "unmap", "on": "unmap"}
_FIRST_SOCKET = 3
"""The first descriptor of systemd's socket activation (sd_listen_fds(3))."""


def run(arguments: Arguments, session: Session) -> int:
    """Run the command; gives the exit status."""
    context = common.context_of(arguments, session, "none" if arguments.has("nocache") else "writeback")
    if arguments.has("list"):
        return _list(arguments, context, session)
    images, command = arguments.operands[: arguments.mark], arguments.operands[arguments.mark :]
    if arguments.has("exit_with"):
        if command:
            raise UsageError("a command to run is given by --exit-with or after --, not both")
        command = _words(arguments.one("exit_with") or "")
    if not images:
        raise UsageError("expecting the name of an image")
    if command and arguments.has("fork"):
        raise UsageError("a command to run (after --) and --fork exclude each other")
    serving = Serving(
        _exports(arguments, images),
        context=context,
        unix=arguments.one("socket") or (True if command and not _told(arguments) else None),
        host=arguments.one("bind") or "127.0.0.1",
        port=arguments.number("port", "port", c.DEFAULT_PORT, 0, 65535),
        listeners=_activated(),
        credentials=_credentials(arguments, context, "server"),
        authorize=_authorization(arguments, context),
        max_clients=arguments.number("shared", "number of clients", 16, 0, 10_000) or 10_000,
        handshake_limit=arguments.number("limit", "time limit", 10, 0, 1 << 31),
        persistent=bool(command) or arguments.has("persistent"),
        warn=session.warn,
    )
    try:
        if arguments.has("fork"):
            _into_background(arguments, serving)
        else:
            _write_pid(arguments)
            serving.start()
        if command:
            return _child(command, serving)
        # For a server this is no failure, but how it is ended.
        signal.signal(signal.SIGTERM, lambda number, frame: serving.server.stop())
        serving.server.wait()
        return 0
    finally:
        serving.close()
        if arguments.has("pid_file"):
            with suppress(OSError):
                os.unlink(arguments.one("pid_file") or "")


def _words(text: str) -> list[str]:
    """The words of a command as a shell parts them."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--exit-with: {error}") from None
    if not words:
        raise UsageError("--exit-with names a command")
    return words


def _told(arguments: Arguments) -> bool:
    return any(arguments.has(key) for key in ("port", "bind", "socket"))


def _exports(arguments: Arguments, images: list[str]) -> list[Exported]:
    if arguments.has("socket") and (arguments.has("port") or arguments.has("bind")):
        raise UsageError("a server listens at a socket (-k), or at an address (-b, -p)")
    if arguments.has("read_only") and arguments.has("writable"):
        raise UsageError("--read-only and --writable exclude each other")
    if arguments.has("temporary") and arguments.has("writable"):
        raise UsageError("what is written is kept (--writable) or forgotten (--temporary)")
    names = arguments.all("export")
    if len(names) not in (0, len(images)):
        raise UsageError(f"{len(names)} names (-x) for {len(images)} images")
    texts = arguments.all("description")
    if len(texts) not in (0, len(images)):
        raise UsageError(f"{len(texts)} descriptions (-D) for {len(images)} images")
    if not names:
        names = [""] if len(images) == 1 else [os.path.basename(image) for image in images]
    for what in (*names, *texts):
        if len(os.fsencode(what)) > c.MAX_STRING:
            raise UsageError(f"a name or description is at most {c.MAX_STRING} bytes")
    return [
        Exported(
            image,
            name,
            description=texts[index] if texts else "",
            format=arguments.one("format"),
            image_opts=arguments.has("image_opts"),
            writable=arguments.has("writable"),
            snapshot=arguments.one("snapshot"),
            temporary=arguments.has("temporary"),
            offset=arguments.size("offset", "offset"),
            partition=arguments.number("partition", "partition", 0, 1, 256),
            discard=_DISCARD[arguments.one("discard") or ""],
            detect_zeroes=arguments.one("detect_zeroes") or "",
            depth=arguments.has("depth"),
            bitmaps=tuple(arguments.all("bitmap")),
        )
        for index, (image, name) in enumerate(zip(images, names, strict=True))
    ]


def _activated() -> list[socket.socket]:
    """The sockets that systemd gave us."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = os.environ.get("LISTEN_FDS", "")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    if not count.isdigit() or not 0 < int(count) < 1000:
        raise UsageError("LISTEN_FDS is no number of sockets")
    try:
        sockets = [socket.socket(fileno=fd) for fd in range(_FIRST_SOCKET, _FIRST_SOCKET + int(count))]
        for one in sockets:
            one.set_inheritable(False)
    except OSError as error:
        raise StorageError.from_os(error, "LISTEN_FDS") from None
    return sockets


def _credentials(arguments: Arguments, context: Context, side: str) -> Credentials | None:
    key = arguments.one("tls_creds")
    if key is None:
        return None
    properties = context.properties(key)
    if properties is None:
        raise UsageError(f"no object with id '{key}': define it with --object tls-creds-x509,id={key},dir=…")
    if properties.get("endpoint", side) != side:
        raise UsageError(f"the TLS credentials '{key}' are not for a {side} (endpoint={side} is needed)")
    return credentials_of(properties)


def _authorization(arguments: Arguments, context: Context) -> Callable[[Name], bool] | None:
    """Who may come in."""
    key = arguments.one("tls_authz")
    if key is None:
        return None
    if not arguments.has("tls_creds"):
        raise UsageError("--tls-authz goes with --tls-creds")
    properties = context.properties(key)
    if properties is None:
        raise UsageError(f"no object with id '{key}': define it with --object authz-simple,id={key},identity=…")
    if (context.properties(arguments.one("tls_creds") or "") or {}).get("verify-peer", "on") not in (
        "on",
        "yes",
        "true",
    ):
        raise UsageError("--tls-authz needs clients' certificates (verify-peer=on)")
    return authorization(properties)


def _write_pid(arguments: Arguments) -> None:
    path = arguments.one("pid_file")
    if path is None:
        return
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
    except OSError as error:
        raise StorageError.from_os(error, path) from None


def _into_background(arguments: Arguments, serving: Serving) -> None:
    """Go on in a child process; this one ends once that serves."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        ready = os.read(reading, 1)
        os._exit(0 if ready else 1)
    os.close(reading)
    os.setsid()
    _write_pid(arguments)
    serving.start()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    os.write(writing, b"1")
    os.close(writing)


def _child(command: list[str], serving: Serving) -> int:
    """Run *command* while the server serves; its exit status, as a shell gives it."""
    path = serving.location.path
    words = [word.replace("{uri}", serving.uri).replace("{socket}", path) for word in command]
    try:
        child = subprocess.Popen(words)
    except OSError as error:
        raise StorageError.from_os(error, words[0], "run") from None
    except ValueError as error:
        raise UsageError(f"cannot run the command: {error}") from None
    try:
        status = child.wait()
    except BaseException:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(5)
        child.kill()
        raise
    return status if status >= 0 else 128 - status


def _list(arguments: Arguments, context: Context, session: Session) -> int:
    """Print what a server exports, in qemu-nbd's form."""
    from .client import Settings, list_exports

    if arguments.operands:
        raise UsageError("--list takes no image: -k, -b and -p name the server")
    path = arguments.one("socket")
    if path is not None:
        location = Location("unix", path=path)
    else:
        port = arguments.number("port", "port", c.DEFAULT_PORT, 1, 65535)
        location = Location("inet", host=arguments.one("bind") or "localhost", port=str(port))
    settings = Settings(
        credentials=_credentials(arguments, context, "client"), tls_hostname=arguments.one("tls_hostname") or ""
    )
    found = list_exports(location, settings)
    session.print(f"exports available: {len(found)}")
    for export, contexts in found:
        session.print(f" export: '{export.name}'")
        if export.description:
            session.print(f"  description: {export.description}")
        session.print(f"  size:  {export.size}")
        names = [name for bit, name in _FLAGS if export.flags & bit]
        session.print(f"  flags: 0x{export.flags:x} ( {' '.join(names)} )")
        session.print(f"  min block: {export.minimum}")
        session.print(f"  opt block: {export.preferred}")
        session.print(f"  max block: {export.maximum}")
        session.print(f"  available meta contexts: {len(contexts)}")
        for name in contexts:
            session.print(f"   {name}")
    return 0


_FLAGS = (
    (c.NBD_FLAG_READ_ONLY, "readonly"),
    (c.NBD_FLAG_SEND_FLUSH, "flush"),
    (c.NBD_FLAG_SEND_FUA, "fua"),
    (c.NBD_FLAG_ROTATIONAL, "rotational"),
    (c.NBD_FLAG_SEND_TRIM, "trim"),
    (c.NBD_FLAG_SEND_WRITE_ZEROES, "zeroes"),
    (c.NBD_FLAG_SEND_DF, "df"),
    (c.NBD_FLAG_CAN_MULTI_CONN, "multi"),
    (c.NBD_FLAG_SEND_RESIZE, "resize"),
    (c.NBD_FLAG_SEND_CACHE, "cache"),
    (c.NBD_FLAG_SEND_FAST_ZERO, "fast-zero"),
)
