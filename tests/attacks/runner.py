"""Runs commands on the corpus, one process for each command, and tells what each took: a line of JSON for each.

``python -W error tests/attacks/runner.py FOLDER [NAME…]``, with ``tests`` on the module path. Everything is
imported once, here, and each command is a fork of this: a run costs little more than the command.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from pathlib import Path

COMMANDS = {
    "info": "info {0}",
    "map": "map --output=json {0}",
    "check": "check {0}",
    "repair": "check -r all {1}",
    "measure": "measure -O qcow2 {0}",
    "compare": "compare {0} {0}",
}
"""What is run on each file; ``{1}`` is a copy of it that may be changed."""
CPU = 20
"""Seconds of processor time after which a command is killed."""
WRITTEN = 4 << 30
"""Bytes up to which a command may write a file."""


def measured(words: list[str], errors: Path) -> tuple[int, float, int]:
    """Run a command line: its status (negative: a signal), its seconds of processor time, the KiB that it took."""
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU))
        resource.setrlimit(resource.RLIMIT_FSIZE, (WRITTEN, WRITTEN))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.argv[1:] = words
        try:
            main()
        finally:
            os._exit(99)
    _, status, usage = os.wait4(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code, usage.ru_utime + usage.ru_stime, usage.ru_maxrss


def run(folder: Path, wanted: list[str], commands: list[str]) -> None:
    """Every attack whose name, or ``module:`` and name, begins with one of the *wanted*."""
    for number, one in enumerate(corpus()):
        called = one.name, f"{one.module}:{one.name}"
        if wanted and not any(name.startswith(start) for name in called for start in wanted):
            continue
        home = folder / str(number)
        home.mkdir()
        path, copy, errors = home / "image", home / "copy", home / "errors"
        one.write(path)
        for command in commands:
            if "{1}" in COMMANDS[command]:
                os.system(f"cp --sparse=always {path} {copy}")
            words = COMMANDS[command].format(path, copy).split()
            code, seconds, memory = measured(words, errors)
            told = {
                "name": one.name,
                "command": command,
                "status": code,
                "seconds": round(seconds, 2),
                "memory": memory,
                "lines": errors.read_bytes().count(b"\n"),
                "error": errors.read_text(errors="replace")[:400],
            }
            print(json.dumps(told), flush=True)
        shutil.rmtree(home)


if __name__ == "__main__":
    import numpy  # noqa: F401 - so that no command has to
    from diskmill_cli.main import main

    from attacks import corpus

    where, *names = sys.argv[1:]
    chosen = [name for name in names if name in COMMANDS]
    run(Path(where), [name for name in names if name not in COMMANDS], chosen or list(COMMANDS))
