"""Running the works: images made, programs started in turn, time and memory taken from the kernel."""

from __future__ import annotations

import math
import os
import random
import re
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .works import IMAGES, Command, Work

KiB = 1024
MiB = 1024 * KiB

#: A first run leaves its bytecode for the next ones, as an installation does, whatever this shell has set.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class BenchError(Exception):
    """A program failed or two results differ; the message says which and how."""


@dataclass(frozen=True)
class Run:
    """One process: seconds from start to end, seconds of processor time, and the most memory it held, in bytes.

    The kernel counts what the starting process held as the least, so this one is kept small.
    """

    seconds: float
    cpu: float
    memory: int


@dataclass(frozen=True)
class Result:
    """All runs of one work; the n-th of ours and the n-th of theirs followed each other."""

    work: Work
    ours: Sequence[Run]
    theirs: Sequence[Run]
    #: Bytes that the outputs take on the disk, ours and theirs; 0 where there is none.
    sizes: tuple[int, int]

    @property
    def seconds(self) -> tuple[float, float]:
        ours, theirs = (statistics.median(run.seconds for run in side) for side in (self.ours, self.theirs))
        return ours, theirs

    @property
    def cpu(self) -> tuple[float, float]:
        ours, theirs = (statistics.median(run.cpu for run in side) for side in (self.ours, self.theirs))
        return ours, theirs

    @property
    def memory(self) -> tuple[int, int]:
        return max(run.memory for run in self.ours), max(run.memory for run in self.theirs)

    @property
    def ratio(self) -> float:
        """The median over the pairs of their time divided by ours."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return statistics.median(theirs.seconds / ours.seconds for ours, theirs in pairs)

    @property
    def misses(self) -> list[str]:
        """Which goals were not reached, in words."""
        ours, theirs = self.sizes
        return [
            text
            for missed, text in (
                (self.ratio < self.work.goal, "time"),
                (self.memory[0] > self.work.memory * MiB, "memory"),
                (self.work.no_larger and ours > theirs, "size"),
            )
            if missed
        ]


@dataclass(frozen=True)
class _Side:
    """What one side runs, and beside it."""

    command: list[str]
    server: list[str] | None


def _listens(path: Path) -> bool:
    """Whether somebody accepts connections at the socket; it is there a moment earlier."""
    rows = (line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:])
    return any(row[-1] == str(path) and int(row[3], 16) & 0x10000 for row in rows)


def _free_port() -> int:
    """A TCP port that nobody listens at, below those that Linux gives to clients."""
    while True:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Bench:
    """Two programs, and a folder for the images, which are made when first asked for and then kept."""

    def __init__(self, folder: Path, size: int, *, ours: Sequence[str], theirs: Sequence[str]) -> None:
        self.folder = folder
        self.size = size
        self.ours = list(ours)
        self.theirs = list(theirs)
        self.out = folder / "out"
        self.socket = folder / "socket"
        self.port = _free_port()
        self._images: dict[str, str] = {}

    def run(self, work: Work, runs: int, enough: float = math.inf) -> Result:
        """Check once that both programs do the work right, then run them by turns. Raises BenchError.

        :param enough: seconds of measured runs after which no other pair of them begins.
        """
        count = runs * 4 if work.short else runs
        printed = self.folder / "printed-ours", self.folder / "printed-theirs"
        ours, theirs = self._sides(work)
        sizes = self._try(work, ours, printed[0]), self._try(work, theirs, printed[1])
        if work.same_json:
            self._compare_printed(work, printed)
        runs_of_ours, runs_of_theirs = [], []
        for _ in range(count):
            runs_of_ours.append(self._measure(work, ours))
            runs_of_theirs.append(self._measure(work, theirs))
            if sum(run.seconds for run in (*runs_of_ours, *runs_of_theirs)) >= enough:
                break
        self.out.unlink(missing_ok=True)
        return Result(work, runs_of_ours, runs_of_theirs, sizes)

    def _sides(self, work: Work) -> tuple[_Side, _Side]:
        servers = work.measured or (work.server, work.server)
        filled = [None if one is None else self._program(self._fill(one)) for one in servers]
        return _Side(self._ours(work), filled[0]), _Side(self._theirs(work), filled[1])

    def _ours(self, work: Work) -> list[str]:
        if work.measured is not None:
            return self._fill(work.command)
        if work.whole is not None:
            return self._program(self._fill(work.whole))
        return [*self.ours, *self._fill(work.command)]

    def _theirs(self, work: Work) -> list[str]:
        if work.measured is not None:
            return self._fill(work.command)
        if work.against is not None:
            return self._program(self._fill(work.against))
        return [*self.theirs, *self._fill(work.command)]

    def _program(self, words: list[str]) -> list[str]:
        names = {"qemu-img": self.theirs, "diskmill": self.ours, "python": [sys.executable]}
        names["its-python"] = [self._interpreter()]
        return [*names.get(words[0], words[:1]), *words[1:]]

    def _interpreter(self) -> str:
        """The one that stands beside the diskmill that is measured; where there is none, this process's."""
        beside = Path(shutil.which(self.ours[0]) or self.ours[0]).with_name("python")
        return str(beside) if beside.exists() else sys.executable

    def _fill(self, command: Command, image: Path | None = None) -> list[str]:
        """A command's words with the paths in; makes the images that it names."""
        own = {"out": str(self.out), "size": str(self.size), "image": str(image), "folder": str(self.folder)}
        own |= {"socket": str(self.socket), "uri": f"nbd+unix:///?socket={self.socket}", "port": str(self.port)}
        own["diskmill"] = shlex.join(self.ours)

        def path(found: re.Match[str]) -> str:
            name = found[1]
            return own[name] if name in own else self._image(name)

        return [re.sub(r"\{([\w-]+)\}", path, word) for word in command]

    def _around(self, work: Work) -> dict[str, str]:
        """The environment of the work's programs."""
        return {**ENVIRONMENT, **{name: self._fill((value,))[0] for name, value in work.environment}}

    def _image(self, name: str) -> str:
        if name not in self._images:
            path = self.folder / name
            for command in IMAGES[name].commands:
                self._make(self._program(self._fill(command, path)))
            self._images[name] = str(path)
        return self._images[name]

    def _make(self, command: list[str]) -> None:
        # qemu-img often gives up on a new LUKS header: its clock cannot time the hash.
        for _ in range(99):
            try:
                return self._must(command)
            except BenchError as error:
                if "accurate CPU usage" not in str(error):
                    raise
        return self._must(command)

    def _must(self, command: list[str]) -> None:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=ENVIRONMENT)
        if done.returncode:
            raise BenchError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}".rstrip())

    def _prepare(self, work: Work) -> None:
        self.out.unlink(missing_ok=True)
        for command in work.before:
            self._must(self._program(self._fill(command)))

    @contextmanager
    def _served(self, work: Work, side: _Side) -> Iterator[list[Run]]:
        """With the side's server beside, where it has one; afterwards the list holds what that took."""
        used: list[Run] = []
        if side.server is None:
            yield used
            return
        self.socket.unlink(missing_ok=True)
        server = subprocess.Popen(side.server, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT)
        assert server.stderr is not None
        try:
            end = time.monotonic() + 30
            while not _listens(self.socket):
                if server.poll() is not None or time.monotonic() > end:
                    server.kill()
                    raise BenchError(f"{work.name}: {' '.join(side.server)}: {server.stderr.read().decode()}".rstrip())
                time.sleep(0.01)
            yield used
        finally:
            server.stderr.close()
            if server.returncode is None:
                server.terminate()
                _, server.returncode, taken = os.wait4(server.pid, 0)
                used.append(Run(0, taken.ru_utime + taken.ru_stime, taken.ru_maxrss * KiB))

    def _try(self, work: Work, side: _Side, printed: Path) -> int:
        with self._served(work, side):
            return self._try_command(work, side.command, printed)

    def _try_command(self, work: Work, command: list[str], printed: Path) -> int:
        """A first run, which fills the caches: it must succeed, and its result be right. Returns the output's size."""
        self._prepare(work)
        with printed.open("wb") as stdout:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
                env=self._around(work),
            )
        if done.returncode:
            raise BenchError(f"{work.name}: {' '.join(command)}: exit status {done.returncode}\n{done.stderr}".rstrip())
        if work.verify is not None:
            self._must([*self.theirs, *self._fill(work.verify)])
        return self.out.stat().st_blocks * 512 if self.out.exists() else 0

    def _compare_printed(self, work: Work, printed: Sequence[Path]) -> None:
        # In a process of its own: parsing a long answer would raise the floor of the memory measured (see Run).
        # qemu-img says whether data is compressed since 8.2: what an older one lacks can't be compared.
        script = (
            "import json, sys; ours, theirs = (json.load(open(path)) for path in sys.argv[1:]);"
            "older = isinstance(theirs, list) and not any('compressed' in one for one in theirs);"
            "older and [one.pop('compressed', None) for one in ours];"
            "assert ours == theirs"
        )
        if subprocess.run([sys.executable, "-c", script, *printed], capture_output=True).returncode:
            start = [path.read_bytes()[:300].decode() for path in printed]
            raise BenchError(f"{work.name}: diskmill printed\n{start[0]}\nqemu-img\n{start[1]}")

    def _measure(self, work: Work, side: _Side) -> Run:
        with self._served(work, side) as used:
            run = self._measure_command(work, side.command)
        return run if work.measured is None else Run(run.seconds, used[0].cpu, used[0].memory)

    def _measure_command(self, work: Work, command: list[str]) -> Run:
        self._prepare(work)
        program = shutil.which(command[0]) or command[0]
        null = os.open(os.devnull, os.O_RDWR)
        complaint = self.folder / "stderr"
        stderr = os.open(complaint, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        around = self._around(work)
        streams = [(os.POSIX_SPAWN_DUP2, source, target) for source, target in ((null, 0), (null, 1), (stderr, 2))]
        try:
            start = time.perf_counter()
            child = os.posix_spawn(program, command, around, file_actions=streams)
            _, status, used = os.wait4(child, 0)
            seconds = time.perf_counter() - start
        finally:
            os.close(null)
            os.close(stderr)
        if status:
            code = os.waitstatus_to_exitcode(status)
            raise BenchError(f"{work.name}: {' '.join(command)}: exit status {code}\n{complaint.read_text()}".rstrip())
        return Run(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * KiB)
