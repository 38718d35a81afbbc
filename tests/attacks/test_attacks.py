"""What a file may cost that was made to cost much: see the package's docstring."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tools import tool

from attacks import MODULES, corpus

ROOT = Path(__file__).parents[2]
SECONDS = 10.0
"""Processor time that a command may take."""
MEMORY = 256 << 10
"""KiB that it may take."""


COMMANDS_EACH = 0 if os.environ.get("DISKMILL_ATTACKS") == "all" else 1
"""How many commands each file gets, by turns; 0: all. ``DISKMILL_ATTACKS=all`` takes an hour of processor time."""


def run(names: list[str], folder: Path, *tracer: str) -> list[dict[str, Any]]:
    """What the runner tells of the attacks with *names*."""
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [*tracer, sys.executable, "-W", "error", tests / "attacks" / "runner.py", folder, *names],
        env={
            "PYTHONPATH": str(tests),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(folder.parent),
            "TMPDIR": str(folder.parent),
            "DISKMILL_ATTACKS": str(COMMANDS_EACH),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert runs
    return runs


def bad(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that took too much, or told more than they should."""
    return [
        one
        for one in runs
        if one["seconds"] > SECONDS
        or one["memory"] > MEMORY
        or one["status"] not in (0, 1, 2, 3, 4, 63)
        or re.search("Traceback|internal error|Warning|a mistake in", one["error"])
    ]


def test_the_corpus_has_two_hundred_files_of_different_names() -> None:
    names = [one.name for one in corpus()]
    assert len(names) == len(set(names)) >= 200


@pytest.mark.timeout(7200 if not COMMANDS_EACH else 600)
@pytest.mark.parametrize("module", [module for module in MODULES if module != "references"])
def test_no_command_takes_more_than_its_budget(module: str, tmp_path: Path) -> None:
    """No traceback, no warning of Python's, no endless work: whatever is claimed, the file is small."""
    found = bad(run([f"{module}:"], tmp_path))
    assert not found, json.dumps(found, indent=1)


@pytest.mark.timeout(7200 if not COMMANDS_EACH else 600)
def test_no_name_in_an_image_opens_what_is_not_beside_it(tmp_path: Path) -> None:
    """Seen from outside, in the system calls that open, connect and run: only the image's own folder, and Python's
    files; nobody is connected to, and nothing run."""
    folder, trace = tmp_path / "images", tmp_path / "trace"
    folder.mkdir()
    calls = "trace=open,openat,openat2,creat,connect,execve,execveat"
    strace = (tool("strace"), "-f", "--seccomp-bpf", "-y", "-e", calls, "-o", str(trace))
    found = bad(run(["references:"], folder, *strace))
    assert not found, json.dumps(found, indent=1)
    lines = trace.read_text(errors="replace").splitlines()
    assert not [line for line in lines if "connect(" in line]
    programs = {found[1] for line in lines if (found := re.search(r'execve(?:at)?\([^"]*"([^"]*)"', line))}
    assert {os.path.basename(path) for path in programs} == {Path(sys.executable).name, "cp", "qemu-img"}, (
        "the corpus's"
    )
    opened = [line.rpartition("= ")[2].partition("<")[2].rstrip(">") for line in lines]
    opened = [path for path in opened if path]
    secret = str(folder / "outside")
    made = sum(1 for one in corpus() if one.module == "references")  # the generators write it, and nobody else
    assert opened.count(secret) == made
    known = (str(folder), str(tmp_path), sys.prefix, sys.base_prefix, str(ROOT), "/usr/", "/lib", "/etc/ld.so.cache")
    known += (
        "/etc/locale",
        "/etc/ssl/openssl.cnf",
        "/dev/null",
        "/dev/urandom",
        "/proc/filesystems",
        "/proc/self/maps",
        "/sys/devices/system",
    )
    # Of /proc/PID its status and mounts are read; a folder is opened on the way to what is in it.
    opened = [path for path in opened if not re.fullmatch(r"/proc/\d+/(status|mountinfo)", path)]
    foreign = {path for path in opened if not path.startswith(known) and not str(folder).startswith(path)}
    assert not foreign
