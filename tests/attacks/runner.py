"""Runs commands on the corpus, one process for each command, and tells what each took: a line of JSON for each.

``python -W error tests/attacks/runner.py FOLDER [NAME…] [COMMAND…]``, with ``tests`` on the module path and
in the environment ``DISKMILL_ATTACKS``, how many commands each file gets by turns (0: all of them). Everything is
imported once, here, and each command is a fork of this: a run costs little more than the command.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

COMMANDS = {
    "info": "info {image}",
    "map": "map --output=json {image}",
    "check": "check {image}",
    "repair": "check -r all {copy}",
    "measure": "measure -O qcow2 {image}",
    "compare": "compare {image} {image}",
    "raw": "convert -O raw {image} {output}",
    "qcow2": "convert -O qcow2 {image} {output}",
    "dd": "dd if={image} of={output} bs=1M count=64",
    "list": "snapshot -l {image}",
    "snapshot": "snapshot -c one {copy}",
    "chain": "info --backing-chain --output=json {image}",
    "amend": "amend -o size=1P {copy}",
    "compat": "amend -o compat=0.10 {copy}",
    "resize": "resize {copy} +1M",
    "shrink": "resize --shrink {copy} 1M",
    "unlink": "rebase -u -b {empty} {copy}",
    "rebase": "rebase -b {empty} {copy}",
    "bitmap": "bitmap --add {copy} one",
    "commit": "commit {copy}",
    "bench": "bench -q -w -c 4 {copy}",
    "create": "create -f qcow2 -b {image} -F {format} {output}",
    "digest": "digest {image}",
    "sync": "sync {image} {copy}",
    "plan": "batch plan {image} --to {output} -O raw",
    "batch": "batch run -j 1 {jobs} --journal {output}",
}
"""What is run on each file; ``copy`` is one that may be changed, ``empty`` no word at all, ``jobs`` a manifest of
:data:`JOBS` on it."""
JOBS = ("info", "measure", "digest")
FORMATS = ("qcow2", "qcow", "qed", "vmdk", "vhdx", "vpc", "vdi", "parallels", "dmg", "cloop")
"""The one that an attack's name tells."""
CPU = 20
"""Seconds of processor time after which a command is killed."""
WAIT = 300
"""Seconds after which one is that waits for something."""
WRITTEN = 64 << 20
"""Bytes up to which a command may write an output; a copy may be as large as it is, and that much more."""


def measured(words: list[str], errors: Path, written: int) -> tuple[int, float, int]:
    """Run a command line: its status (negative: a signal), its seconds of processor time, the KiB that it took."""
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU))
        resource.setrlimit(resource.RLIMIT_FSIZE, (written, written))
        signal.alarm(WAIT)
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


def run(folder: Path, wanted: list[str], commands: list[str], few: int) -> None:
    """Every attack whose name, or ``module:`` and name, begins with one of the *wanted*.

    :param few: how many of the *commands* each gets, by turns; 0: all.
    """
    for number, one in enumerate(corpus()):
        called = one.name, f"{one.module}:{one.name}"
        if wanted and not any(name.startswith(start) for name in called for start in wanted):
            continue
        home = folder / str(number)
        home.mkdir()
        path, copy, output, errors = home / "image", home / "copy", home / "output", folder / "errors"
        one.write(path)
        size = path.stat().st_size
        chosen = [commands[(number * few + at) % len(commands)] for at in range(few)] if few else commands
        for command in chosen:
            line, written = COMMANDS[command], WRITTEN
            if "{copy}" in line:
                subprocess.run(["cp", "--sparse=always", path, copy], check=True)
                written += size
            jobs = home / "jobs"
            jobs.write_text("".join(json.dumps({"source": str(path), "job": job}) + "\n" for job in JOBS))
            paths = {"image": path, "copy": copy, "output": output, "jobs": jobs, "empty": ""}
            paths["format"] = next((format for format in FORMATS if format in one.name), "raw")
            words = [word.format(**paths) for word in line.split()]
            code, seconds, memory = measured(words, errors, written)
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
            output.unlink(missing_ok=True)
        shutil.rmtree(home)


if __name__ == "__main__":
    import numpy  # noqa: F401 - so that no command has to
    from diskmill_cli.main import main

    from attacks import corpus

    where, *names = sys.argv[1:]
    chosen = [name for name in names if name in COMMANDS]
    few = int(os.environ.get("DISKMILL_ATTACKS", "0"))
    run(Path(where), [name for name in names if name not in COMMANDS], chosen or list(COMMANDS), few)
