"""What the fuzzer does with an image, and what it counts as a fault."""

from __future__ import annotations

import io
import os
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from itertools import islice
from types import FrameType
from typing import Self

import diskmill.commands.check
import diskmill.commands.info
import diskmill.commands.map
import diskmill.commands.measure
from diskmill.errors import DiskmillError
from diskmill.opening.gate import FOLDER
from diskmill_cli.main import _run as run_command
from diskmill_cli.session import Session
from formats import FORMATS, Machine
from mutations import MEMORY
from twins import PAGE, Content

from .mutant import SEALED, SHOWN, WRITTEN, Mutant
from .seeds import seal, seeds

LONGEST = 10.0
"""Seconds of processor time that one image may take."""


class TooSlowError(BaseException):
    """An image has taken :data:`LONGEST`. No driver may catch it."""


class Find(Exception):
    """What a driver must not do: *what* in few words, the same for the same fault."""

    def __init__(self, error: BaseException) -> None:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/diskmill" in frame.filename]
        place = f"{frames[-1].filename.rpartition('/src/')[2]}:{frames[-1].lineno}" if frames else "?"
        self.what = f"{type(error).__name__} in {place}"
        self.story = "".join(traceback.format_exception(error))
        super().__init__(self.what)


class Target:
    """The driver of *format*."""

    def __init__(self, format: str) -> None:
        self.format = format
        self.machine = Machine()
        self.seeds = list(seeds(self.machine, format))
        self.machine.context = replace(self.machine.context, trust=FOLDER)  # no file of this machine's may be named
        self._beside = dict(self.machine.files)
        capabilities = FORMATS[format].capabilities
        self._reading: list[Callable[[], object]] = [self._probed, self._info, self._map, self._read]
        self._reading += [self._measure] if format not in ("raw",) else []
        self._reading += [self._check] if "check" in capabilities else []
        self._shown = ["info {}", "info --output=json --limits {}"]
        self._shown += ["check {}"] if "check" in capabilities else []
        self._shown += ["snapshot -l {}"] if "snapshots" in capabilities else []
        self._folder = tempfile.TemporaryDirectory(prefix="diskmill-fuzz-")
        self._writing: list[Callable[[], object]] = [self._write] if "write" in capabilities else []
        self._writing += [self._repair] if "repair" in capabilities else []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._folder.cleanup()

    def run(self, mutant: Mutant) -> None:
        """Do all that commands do.

        :raises Find: something went wrong.
        """
        content = mutant.content()
        if mutant.flags & SEALED:
            seal(self.format, content)
        with _bounded():
            for action in self._reading:
                self._do(action, content)
            if mutant.flags & SHOWN and self._put(content):
                for words in self._shown:
                    self._do(lambda words=words: self._show(words), content)  # type: ignore[misc]
            for action in self._writing if mutant.flags & WRITTEN else ():
                self._do(action, content.copy())

    def _do(self, action: Callable[[], object], content: Content) -> None:
        files = self.machine.files
        files.clear()
        files |= self._beside
        files["mutant"] = content
        try:
            action()
        except DiskmillError as error:
            if "\n" in str(error) or not str(error):
                raise

    def _put(self, content: Content) -> bool:
        """Make a real file of *content*; whether there can be one."""
        with open(os.path.join(self._folder.name, "image"), "wb") as file:
            try:
                file.truncate(content.size)
                for number, page in content.pages.items():
                    os.pwrite(file.fileno(), page[: max(content.size - number * PAGE, 0)], number * PAGE)
            except OSError:
                return False
        return True

    def _show(self, words: str) -> None:
        """Run a command line, but for what turns an unforeseen exception into a message."""
        options = f"driver={self.format},file.filename={self._folder.name}/image"
        out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="surrogateescape")
        with redirect_stdout(out), redirect_stderr(io.StringIO()):
            run_command(words.format(f"--image-opts {options}").split(), Session())
            out.flush()

    @property
    def _name(self) -> str:
        options = f"driver={self.format},file.driver=memory,file.filename=memory:mutant"
        return options + (",key-secret=key,kdf-limit=1" if self.format == "luks" else "")

    def _probed(self) -> None:
        diskmill.commands.info.info("memory:mutant", context=self.machine.context)

    def _info(self) -> None:
        diskmill.commands.info.info(self._name, limits=True, image_opts=True, context=self.machine.context)

    def _map(self) -> None:
        for _ in islice(diskmill.commands.map.map(self._name, image_opts=True, context=self.machine.context), 100_000):
            pass

    def _measure(self) -> None:
        with self.machine.open("mutant", self.format) as image:
            small = image.size <= 64 << 20  # of a disk of terabytes one look at its map, above, is enough
        if small:
            diskmill.commands.measure.measure(
                self._name, output_format="qcow2", image_opts=True, context=self.machine.context
            )

    def _check(self) -> None:
        diskmill.commands.check.check(self._name, image_opts=True, context=self.machine.context)

    def _places(self, size: int) -> list[int]:
        return sorted({0, size // 2 // 512 * 512, max(size - 512, 0)}) if size else []

    def _read(self) -> None:
        with self.machine.open("mutant", self.format) as image:
            for at in self._places(image.size):
                image.read(at, min(64 << 10, image.size - at))

    def _write(self) -> None:
        with self.machine.open("mutant", self.format, writable=True) as image:
            for at in self._places(image.size):
                piece = b"w" * min(5000, image.size - at)
                image.write(at, piece)  # it may read otherwise: a damaged image can have one place for two blocks
                image.read(at, len(piece))
                image.zero(at, len(piece))
            image.flush()

    def _repair(self) -> None:
        diskmill.commands.check.check(self._name, repair="all", image_opts=True, context=self.machine.context)


@contextmanager
def _bounded() -> Iterator[None]:
    """Raise :class:`Find` for an exception of the block, and for one that it takes too much to finish."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, _late)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    start = time.process_time()
    try:
        yield
        if time.process_time() - start > LONGEST:
            raise TooSlowError
    except Exception as error:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        raise Find(error) from error
    except TooSlowError as error:
        raise Find(error) from error
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _late(number: int, frame: FrameType | None) -> None:
    raise TooSlowError
