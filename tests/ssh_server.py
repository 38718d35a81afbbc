"""A real sshd on the loopback address, with keys, known hosts and a configuration of its own."""

from __future__ import annotations

import getpass
import os
import shlex
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from http_servers import free_port
from tools import run, tool


class SshServer:
    """sshd, whose files are in *folder*; it runs while this is entered."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.user = getpass.getuser()
        self.known_hosts = folder / "known_hosts"
        self.command = shlex.join([tool("ssh"), "-F", str(folder / "ssh_config")])
        """What DISKMILL_SSH is to hold."""
        self.env = {"DISKMILL_SSH": self.command}
        self.process: subprocess.Popen[bytes] | None = None

    def url(self, path: Path | str, query: str = "") -> str:
        """The name of *path* on the server."""
        return f"ssh://{self.user}@127.0.0.1:{self.port}{path}{query}"

    def hash(self, kind: str) -> str:
        """The hash of the server's key, as ssh-keygen shows it, without its kind."""
        shown = run(tool("ssh-keygen"), "-E", kind, "-lf", self.folder / "host.pub").stdout.split()[1]
        return shown.partition(":")[2]

    def __enter__(self) -> Self:
        for name in ("host", "user"):
            run(tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name)
        (self.folder / "authorized_keys").write_bytes((self.folder / "user.pub").read_bytes())
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {(self.folder / 'host.pub').read_text()}")
        (self.folder / "ssh_config").write_text(
            f"IdentityFile {self.folder}/user\nIdentitiesOnly yes\nIdentityAgent none\n"
            f"UserKnownHostsFile {self.known_hosts}\nGlobalKnownHostsFile /dev/null\n"
        )
        (self.folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\nStrictModes no\nUsePAM no\nPidFile none\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nMaxStartups 100\n"
            "Subsystem sftp internal-sftp\n"
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # privilege separation needs it
        log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            [tool("sshd"), "-D", "-e", "-f", self.folder / "sshd_config"], stderr=log, stdin=subprocess.DEVNULL
        )
        until = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() > until:
                    pytest.fail(f"sshd does not run: {(self.folder / 'log').read_text()}", pytrace=False)
                time.sleep(0.05)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(10)
