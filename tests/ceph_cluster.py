"""A real Ceph cluster, as small as there is: a monitor, and an OSD in memory, on the loopback address."""

from __future__ import annotations

import contextlib
import subprocess
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from http_servers import free_port
from tools import run, tool

_PATIENCE = 60
"""Seconds that a program of Ceph may take on a busy machine."""
_CONF = """[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{port}/0
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
ms bind msgr2 = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
osd objectstore = memstore
memstore device bytes = 1073741824
mon data = {folder}/mon
osd data = {folder}/osd
run dir = {folder}
log file = {folder}/$name.log
admin socket = {folder}/$name.$pid.asok
osd class dir = /usr/lib/x86_64-linux-gnu/rados-classes
"""


class CephCluster:
    """A monitor and an OSD, with the pool ``rbd``; they run while this is entered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "conf"
        self.processes: list[subprocess.Popen[bytes]] = []

    def url(self, image: str, pool: str = "rbd") -> str:
        """The name of *image*."""
        return f"rbd:{pool}/{image}:conf={self.conf}"

    def rbd(self, *words: object) -> str:
        """What the program ``rbd`` answers to *words*."""
        return run(tool("rbd"), "-c", str(self.conf), *map(str, words), timeout=_PATIENCE).stdout

    def images(self) -> list[str]:
        """The names in the pool ``rbd``."""
        return self.rbd("ls", "rbd").split()

    def _start(self, *words: str) -> None:
        with (self.folder / "out").open("ab") as out:
            self.processes.append(subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out))

    def __enter__(self) -> Self:
        port, identity, osd = free_port(), str(uuid.uuid4()), str(uuid.uuid4())
        for name in ("mon", "osd"):
            (self.folder / name).mkdir()
        self.conf.write_text(_CONF.format(fsid=identity, port=port, folder=self.folder))
        conf, monitors = str(self.conf), str(self.folder / "monmap")
        address = f"v1:127.0.0.1:{port}/0"
        run(tool("monmaptool"), "--create", "--addv", "a", address, "--fsid", identity, monitors, timeout=_PATIENCE)
        run(
            tool("ceph-mon"),
            "-c",
            conf,
            "--mkfs",
            "-i",
            "a",
            "--monmap",
            monitors,
            "--keyring",
            "/dev/null",
            timeout=_PATIENCE,
        )
        self._start(tool("ceph-mon"), "-c", conf, "-i", "a", "-f")
        try:
            number = run(
                tool("ceph"), "-c", conf, "--connect-timeout", "30", "osd", "new", osd, timeout=_PATIENCE
            ).stdout.strip()
            run(tool("ceph-osd"), "-c", conf, "-i", number, "--mkfs", "--osd-uuid", osd, timeout=_PATIENCE)
            for _ in range(10):  # it gives up where it asks the monitor before that has told it of the cluster
                self._start(tool("ceph-osd"), "-c", conf, "-i", number, "-f")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.processes[-1].wait(1)
                    continue
                break
            run(tool("ceph"), "-c", conf, "osd", "pool", "create", "rbd", "8", timeout=_PATIENCE)
            self.rbd("ls", "rbd")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self.processes:
            process.kill()
            process.wait(10)
