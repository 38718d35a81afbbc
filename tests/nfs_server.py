"""A real NFS server, nfs-ganesha, in a network of its own: its ports are fixed, and several test runs may need them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from tools import tool

_NEW_NETWORK = 0x40000000
"""``CLONE_NEWNET`` of linux/sched.h."""
_LIBC = ctypes.CDLL(None, use_errno=True)
_START = """
mount -t tmpfs none /run && mkdir -p /run/rpcbind /run/ganesha || exit 1
"$1" -f & portmapper=$!
trap 'kill -9 $server $portmapper; exit 0' TERM
until [ -S /run/rpcbind.sock ]; do kill -0 $portmapper || exit 1; sleep 0.02; done
"$2" -F -f "$3/conf" -L "$3/log" -p "$3/pid" -N NIV_EVENT & server=$!
wait $server
"""
"""A portmapper, and the server, which is found by it; both see a /run of their own."""


def _checked(status: int, doing: str) -> None:
    if status:
        number = ctypes.get_errno()
        pytest.fail(f"cannot {doing} (the tests of servers need root): {os.strerror(number)}", pytrace=False)


class Network:
    """A network of its own with a loopback device. Threads begin in that of the thread that starts them."""

    def __init__(self) -> None:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        _checked(_LIBC.unshare(_NEW_NETWORK), "make a network")
        try:
            self._here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            subprocess.run([tool("ip"), "link", "set", "lo", "up"], check=True)
        finally:
            _LIBC.setns(self._home, 0)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """What is run, and which threads are started, meanwhile, is in it."""
        _checked(_LIBC.setns(self._here, 0), "enter a network")
        try:
            yield
        finally:
            _LIBC.setns(self._home, 0)

    def close(self) -> None:
        """It ends with the last process in it."""
        os.close(self._here)
        os.close(self._home)


class NfsServer:
    """nfs-ganesha, which exports ``share`` in *folder*; it runs while this is entered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.share = folder / "share"
        self.network = Network()
        self.process: subprocess.Popen[bytes] | None = None

    def url(self, path: Path | str, query: str = "") -> str:
        """The name of *path*, which is in the share."""
        return f"nfs://127.0.0.1{path}{query}"

    def __enter__(self) -> Self:
        self.share.mkdir()
        (self.folder / "recovery").mkdir()
        (self.folder / "conf").write_text(
            "NFS_CORE_PARAM { Enable_NLM = false; Enable_RQUOTA = false; Protocols = 3, 4; }\n"
            f'NFSv4 {{ Graceless = true; RecoveryRoot = "{self.folder}/recovery"; }}\n'
            f"EXPORT {{ Export_Id = 1; Path = {self.share}; Pseudo = {self.share}; Access_Type = RW; Squash = None;\n"
            "SecType = sys; FSAL { Name = VFS; } }\n"
        )
        words = [
            tool("unshare"),
            "-m",
            "sh",
            "-c",
            _START,
            "sh",
            tool("rpcbind"),
            tool("ganesha.nfsd"),
            str(self.folder),
        ]
        with (self.folder / "out").open("wb") as out, self.network.inside():
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            until = time.monotonic() + 30
            while True:
                try:
                    socket.create_connection(("127.0.0.1", 2049), 1).close()
                    break
                except OSError:
                    if self.process.poll() is not None or time.monotonic() > until:
                        pytest.fail(f"nfs-ganesha does not run: {(self.folder / 'out').read_text()}", pytrace=False)
                    time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process is not None
        self.process.terminate()
        self.process.wait(10)
        self.network.close()
