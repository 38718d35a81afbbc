"""The ``ssh`` program as a child process, whose standard input and output are a channel to an SFTP server.

It is the user's own program, so their configuration, agents, jump hosts, hardware keys and known hosts hold. It is
started with a list of arguments, never through a shell. The environment variable ``DISKMILL_SSH`` may hold another
program and options for it (``ssh -F FILE``), as GIT_SSH_COMMAND and RSYNC_RSH do for others; no image can set that.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from diskmill.errors import StorageError, UsageError

from .server import Check, Server

VARIABLE = "DISKMILL_SSH"
_KEPT = 4096
"""Bytes of what ``ssh`` says that are kept: the last ones."""
_LEAVE = 2.0
"""Seconds that ``ssh`` has to end by itself."""
_PIPE = 1 << 20
_F_SETPIPE_SZ = 1031


def arguments(server: Server, *, ask: bool) -> list[str]:
    """What is run to reach the SFTP server of *server*.

    :param ask: whether ``ssh`` may ask a person at the terminal.
    :raises UsageError: the environment variable cannot be parsed.
    """
    text = os.environ.get(VARIABLE, "").strip() or "ssh"
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"the environment variable {VARIABLE} cannot be parsed: {error}") from None
    settings = [
        f"BatchMode={'no' if ask else 'yes'}",
        "ClearAllForwardings=yes",
        "ForwardAgent=no",
        "ForwardX11=no",
        "PermitLocalCommand=no",
        "RemoteCommand=none",
        "RequestTTY=no",
        *_checking(server.check),
    ]
    words += [word for setting in settings for word in ("-o", setting)]
    if server.port is not None:
        words += ["-p", str(server.port)]
    if server.user is not None:
        words += ["-l", server.user]
    return [*words, "-s", "--", server.host, "sftp"]


def _checking(check: Check | None) -> list[str]:
    """Settings that have the machine's key checked so."""
    if check is None:
        return []
    if check.mode == "known_hosts":
        return ["StrictHostKeyChecking=yes"]
    nothing_known = ["UserKnownHostsFile=/dev/null", "GlobalKnownHostsFile=/dev/null", "UpdateHostKeys=no"]
    if check.mode == "none":
        return ["StrictHostKeyChecking=no", *nothing_known]
    program = Path(__file__).with_name("hostkey.py")
    command = [sys.executable, "-I", "-S", str(program), check.type, check.hash]
    quoted = " ".join(_quoted(word) for word in command)
    return [
        "StrictHostKeyChecking=yes",
        "VerifyHostKeyDNS=no",
        *nothing_known,
        f"KnownHostsCommand={quoted} %H %t %K",
    ]


def _quoted(word: str) -> str:
    """*word* as ssh_config(5) takes it."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


class Channel:
    """A running ``ssh``.

    :param ask: whether it may ask a person at the terminal.
    :raises StorageError: it cannot be started.
    """

    def __init__(self, server: Server, *, ask: bool) -> None:
        words = arguments(server, ask=ask)
        self.program = os.path.basename(words[0])
        try:
            self._process = subprocess.Popen(
                words,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # A key press that interrupts us must not end it: we may still have to tidy up over there.
                start_new_session=not ask,
                preexec_fn=_ignore_interrupts if ask else None,
            )
        except (OSError, ValueError) as error:
            cause = getattr(error, "strerror", None) or str(error)
            raise StorageError(
                f"the program '{words[0]}' cannot be run ({cause}): install OpenSSH's client, or set {VARIABLE}"
            ) from None
        self._own_group = not ask
        assert self._process.stdin is not None and self._process.stdout is not None and self._process.stderr is not None
        self.to, self.out, self.errors = (
            stream.fileno() for stream in (self._process.stdin, self._process.stdout, self._process.stderr)
        )
        os.set_blocking(self.to, False)
        self._said = b""
        for pipe in (self.to, self.out):
            with contextlib.suppress(OSError, ImportError):  # larger pipes let both sides sleep longer, no more
                import fcntl

                fcntl.fcntl(pipe, _F_SETPIPE_SZ, _PIPE)

    def hear(self) -> bool:
        """Take what it has written to its standard error; False: that is closed."""
        data = os.read(self.errors, 4096)
        self._said = (self._said + data)[-_KEPT:]
        return bool(data)

    def why(self) -> str:
        """Why it ended: the last line that it said, or its exit status."""
        until = time.monotonic() + _LEAVE
        os.set_blocking(self.errors, False)
        while time.monotonic() < until:
            try:
                if not self.hear():
                    break
            except BlockingIOError:
                if self._process.poll() is not None:
                    break
                time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(until - time.monotonic(), 0.01))
        lines = [line.strip() for line in self._said.decode("utf-8", "replace").splitlines() if line.strip()]
        if lines:
            return f"{self.program}: {lines[-1][:300].removeprefix(f'{self.program}: ').rstrip('.')}"
        status = self._process.poll()
        return f"{self.program} closed the connection" + (f" (exit status {status})" if status else "")

    def kill(self) -> None:
        """End it now. May be called from any thread, more than once."""
        if self._process.poll() is None:
            with contextlib.suppress(OSError):
                if self._own_group:
                    os.killpg(self._process.pid, signal.SIGKILL)
                else:
                    self._process.kill()

    def finish(self) -> None:
        """Let it end, and see that it does. Nobody writes to it any more."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_LEAVE)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()

    def release(self) -> None:
        """Close what it was read from. Nobody reads from it any more."""
        assert self._process.stdout is not None and self._process.stderr is not None
        self._process.stdout.close()
        self._process.stderr.close()


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
