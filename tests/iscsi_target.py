"""A real iSCSI target, tgtd, on the loopback address, with a control socket of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from http_servers import free_port
from tools import run, tool

NAME = "iqn.2026-11.test:disks"


class IscsiTarget:
    """tgtd, which offers files as LUNs; it runs while this is entered.

    :param login: name and password for CHAP; None: everybody is let in.
    """

    def __init__(self, folder: Path, login: tuple[str, str] | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self.portal = f"127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self._login = login
        self._luns = 0
        self._environment = {"TGT_IPC_SOCKET": str(folder / "ipc")}

    def admin(self, *words: str) -> str:
        """What tgtadm answers to *words*."""
        return run(tool("tgtadm"), "-C", "0", "--lld", "iscsi", *words, env=self._environment).stdout

    def lun(self, path: Path, *words: str, **parameters: int) -> int:
        """The number of a new LUN that holds *path*; *words* and *parameters* are those of tgtadm."""
        self._luns += 1
        number = str(self._luns)
        self.admin("--mode", "logicalunit", "--op", "new", "--tid", "1", "--lun", number, "-b", str(path), *words)
        for name, value in parameters.items():
            one = ("--mode", "logicalunit", "--op", "update", "--tid", "1", "--lun", number)
            self.admin(*one, "--params", f"{name}={value}")
        return self._luns

    def url(self, lun: int, login: str = "") -> str:
        """The name of *lun*."""
        return f"iscsi://{login}{self.portal}/{NAME}/{lun}"

    def __enter__(self) -> Self:
        words = [tool("tgtd"), "-f", "-C", "0", "--iscsi", f"portal={self.portal}"]
        with (self.folder / "out").open("wb") as out:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, **self._environment}
            )
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() > until:
                    self.process.kill()
                    pytest.fail(f"tgtd does not run: {(self.folder / 'out').read_text()}", pytrace=False)
                time.sleep(0.02)
        self.admin("--op", "new", "--mode", "target", "--tid", "1", "-T", NAME)
        if self._login is not None:
            user, password = self._login
            account = ("--mode", "account", "--user", user)
            self.admin("--op", "new", *account, "--password", password)
            self.admin("--op", "bind", *account, "--tid", "1")
        self.admin("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process is not None
        self.process.kill()  # asked to end, it stays while it has targets
        self.process.wait(10)
