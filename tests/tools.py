"""Programs that the tests run: diskmill itself, and the tools of others that say what is true (qemu-img, …).

A tool that is missing *fails* the test that needs it, with the Debian package to install: a test that skips proves
nothing. Import from here (`from tools import qemu_img`), or take the fixtures of the same names (conftest.py).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

#: Where Debian keeps each tool that a test may ask for.
PACKAGES: Mapping[str, str] = tomllib.loads(Path(__file__).with_name("tools.toml").read_text())

_OURS = Path(sys.executable).parent
#: System tools live where an ordinary user's PATH may not look; the drop-in `qemu-img` beside this Python is no oracle.
SEARCH_PATH = os.pathsep.join(
    [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if Path(folder) != _OURS]
    + ["/usr/sbin", "/sbin"]
)

Argument = str | os.PathLike[str]


def tool(name: str) -> str:
    """The path of an outside tool; fails the test when it is not installed. A path is a file that must be there."""
    found = name if "/" in name and Path(name).is_file() else shutil.which(name, path=SEARCH_PATH)
    if found is None:
        pytest.fail(f"{name} is not installed: apt-get install {PACKAGES[name]}", pytrace=False)
    return found


def run(
    *arguments: Argument,
    check: bool = True,
    input: str | None = None,
    timeout: float = 120,
    cwd: Argument | None = None,
    env: Mapping[str, str] | None = None,
    address_space: int | None = None,
    file_size: int | None = None,
    open_files: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, without a terminal; its stdout and stderr come back as text.

    With `check`, a status other than 0 fails the test and shows the command and what it printed. `env` adds to the
    environment. `address_space` and `file_size` are limits in bytes (RLIMIT_AS, RLIMIT_FSIZE), `open_files` is one of
    descriptors (RLIMIT_NOFILE).
    """

    limits = {
        resource.RLIMIT_AS: address_space,
        resource.RLIMIT_FSIZE: file_size,
        resource.RLIMIT_NOFILE: open_files,
    }

    def limit() -> None:
        for kind, value in limits.items():
            if value is not None:
                resource.setrlimit(kind, (value, value))

    command = [os.fspath(argument) for argument in arguments]
    done = subprocess.run(
        command,
        input="" if input is None else input,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=timeout,
        cwd=cwd,
        env=None if env is None else {**os.environ, **env},
        preexec_fn=limit if any(value is not None for value in limits.values()) else None,
    )
    if check:
        require_success(done)
    return done


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process, all threads of it, does nothing meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        while any(") T " not in task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/stat")):
            time.sleep(0.001)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def require_success(done: subprocess.CompletedProcess[str]) -> None:
    """Fail the test if a program did not end with 0, and show the command and what it printed."""
    if done.returncode:
        pytest.fail(f"{' '.join(done.args)}\nexit status {done.returncode}\n{done.stdout}{done.stderr}")


def qemu_img(*arguments: Argument, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run qemu-img; takes the keywords of `run`.

    Where processor time is counted by clock ticks, it often gives up on making a LUKS header (one time in three on an
    idle machine, two in three on a busy one), because the hash that it times took no tick: that says nothing about
    anyone's code, so it is asked again.
    """
    for _ in range(200):
        done = run(tool("qemu-img"), *arguments, check=False, **options)
        if "Unable to get accurate CPU usage" not in done.stderr:
            break
    if check:
        require_success(done)
    return done


def qemu_img_json(*arguments: Argument, **options: Any) -> Any:
    """What `qemu-img COMMAND --output=json …` answers, parsed; `arguments` start with the command."""
    command, *rest = arguments
    return json.loads(qemu_img(command, "--output=json", *rest, **options).stdout)


def qemu_io(
    image: Argument, *commands: str, format: str | None = None, check: bool = True, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run commands of qemu-io on an image in one process: `qemu_io(path, "write -P 7 0 64k", "flush", format="qcow2")`.

    A command that fails, a read whose pattern differs too, makes qemu-io exit 1.
    """
    words: list[Argument] = [tool("qemu-io")]
    if format is not None:
        words += ["-f", format]
    for command in commands:
        words += ["-c", command]
    return run(*words, image, check=check, **options)


def diskmill(*arguments: Argument, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the diskmill command of the environment that the tests run in; takes the keywords of `run`."""
    return run(Path(sys.executable).with_name("diskmill"), *arguments, check=check, **options)


def dropin(*arguments: Argument) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of the drop-in `qemu-img` in this process, in the folder that is
    current: starting a program costs more than most commands."""
    sys.path[:0] = [one for one in [str(Path(__file__).parents[1] / "dropin" / "src")] if one not in sys.path]
    from diskmill_cli.main import run as run_line
    from diskmill_qemu_img import QemuImg

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run_line([os.fspath(argument) for argument in arguments], QemuImg())
    return status, out.getvalue(), err.getvalue()


def diskmill_json(*arguments: Argument, **options: Any) -> Any:
    """What `diskmill COMMAND --output=json …` answers, parsed, as release 7.2 of QEMU has it; `arguments` start with
    the command."""
    command, *rest = arguments
    return without_newer(json.loads(diskmill(command, "--output=json", *rest, **options).stdout))


def without_newer(value: Any) -> Any:
    """QAPI objects without the members that releases after 7.2 add: `children` of images, `compressed` in maps."""
    if isinstance(value, dict):
        newer = {"children", "compressed"} if "depth" in value else {"children"}
        return {key: without_newer(one) for key, one in value.items() if key not in newer}
    return [without_newer(one) for one in value] if isinstance(value, list) else value


def assert_identical(one: Argument, other: Argument, *, formats: tuple[str, str] | None = None) -> None:
    """Fail unless qemu-img finds the same guest data in both images; `formats` are theirs, else qemu-img probes."""
    words: Iterable[str] = () if formats is None else ("-f", formats[0], "-F", formats[1])
    qemu_img("compare", *words, one, other)


def assert_clean(image: Argument, format: str = "qcow2") -> None:
    """Fail unless qemu-img's check finds neither errors nor leaks."""
    qemu_img("check", "-f", format, image)
