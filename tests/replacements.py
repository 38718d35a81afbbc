"""Images that are made over older ones, in a child that is killed, and what is found then."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diskmill
from diskmill.errors import DiskmillError
from diskmill.opening.context import Context

KiB, GiB = 1 << 10, 1 << 30
LONG = 64 * KiB


@dataclass
class Kind:
    """A format of several files, and where its guest disks hold data."""

    format: str
    options: Mapping[str, Any]
    main: str
    size: int = 256 * KiB
    probes: tuple[int, ...] = (0, 128 * KiB)
    header: str | None = None

    overwrite: str = "replace"

    def context(self) -> Context:
        return Context(cache="writeback", secrets={"key": b"passphrase"}, overwrite=self.overwrite)

    def make(self, folder: Path, byte: bytes, how: str = "convert") -> None:
        """Make the image, or replace it, so that it holds *byte* at each probe; with ``create``, zeros everywhere."""
        if how == "create":
            diskmill.create(
                str(folder / self.main), self.size, format=self.format, options=self.options, context=self.context()
            )
            return
        source = folder.parent / f"source-{byte.hex()}"
        if not source.exists():
            with source.open("wb") as file:
                file.truncate(self.size)
                for at in self.probes:
                    file.seek(at)
                    file.write(byte * LONG)
        if how == "dd":
            diskmill.dd(
                str(source),
                str(folder / self.main),
                block=64 * KiB,
                format="raw",
                output_format=self.format,
                options=self.options,
                context=self.context(),
            )
            return
        diskmill.convert(
            [str(source)],
            str(folder / self.main),
            format="raw",
            output_format=self.format,
            options=self.options,
            context=self.context(),
            target_context=self.context(),
        )

    def state(self, folder: Path) -> str:
        """What opens under the main file's name: ``old``, ``new``, ``empty``, or ``none``."""
        spec: dict[str, Any] = {"driver": self.format, "file": {"driver": "file", "filename": str(folder / self.main)}}
        if "key-secret" in self.options:
            spec["key-secret"] = "key"
        if self.header is not None:
            spec["header"] = {"driver": "file", "filename": str(folder / self.header)}
        try:
            with diskmill.open(spec, context=self.context()) as image:
                found = {bytes(image.read(at, LONG)) for at in self.probes}
        except DiskmillError:
            return "none"
        for name, byte in (("old", b"A"), ("new", b"B"), ("empty", b"\0")):
            if found == {byte * LONG}:
                return name
        return f"garbage: {[one[:8] for one in found]}"


def killed_at(functions: Sequence[str], number: int, work: Callable[[], None]) -> bool:
    """Do *work* in a child that is killed right before its call *number* of *functions* of ``os``; False: it made
    fewer.
    """
    child = os.fork()
    if child == 0:
        count = 0

        def counting(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **keywords: Any) -> Any:
                nonlocal count
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **keywords)

            return call

        for name in functions:
            setattr(os, name, counting(getattr(os, name)))
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False
