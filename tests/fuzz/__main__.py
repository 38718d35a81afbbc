"""`python3 dev.py fuzz [DRIVER] [SECONDS]`: fuzz one driver, or each for its share of the time (60 s in all).

New finds are written to `.fuzz/DRIVER/` and named; the exit status is 1 if there are any. `python3 dev.py fuzz keep`
makes the corpus in the tree anew, from it and from what the runs have left in `.fuzz`: as few and small images as reach
all that was reached.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import pkgutil
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / ".fuzz"
DRIVERS = [
    *("bochs", "cloop", "dmg", "ewf", "luks", "parallels", "qcow", "qcow2", "qed", "raw", "sparse", "sparseimage"),
    *("vdi", "vhdx", "vma", "vmdk", "vpc"),
]
PACKAGES = {"raw": "diskmill"}
"""Where a driver is, if not in `diskmill_DRIVER`."""
_LARGEST = 256 << 10
"""Bytes of an input, which is an image without its zeros."""
_LEG = 3 << 30
"""Bytes at which the engine is started anew: buffers that it compares it keeps for ever, 1 or 2 MiB an image."""


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--child"]:
        _fuzz(arguments[1], arguments[2], int(arguments[3]))
    if arguments[:1] == ["keep"]:
        from .corpus import keep

        for driver in arguments[1:] or DRIVERS:
            keep(driver, STATE / driver)
        return 0
    drivers = [word for word in arguments if not word.isdigit()]
    seconds = next((int(word) for word in arguments if word.isdigit()), 60)
    if set(drivers) - set(DRIVERS) or len(arguments) > 2:
        print(__doc__, f"Drivers: {' '.join(DRIVERS)}", sep="\n", file=sys.stderr)
        return 2
    drivers = drivers or DRIVERS
    status = 0
    for driver in drivers:
        status |= _run(driver, max(seconds // len(drivers), 1))
    return status


def _run(driver: str, seconds: int) -> int:
    """Fuzz *driver* in a process of its own; 1 where something was found."""
    finds = STATE / driver
    before = set(finds.glob("find-*"))
    finds.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="diskmill-fuzz-") as empty:
        command = [sys.executable, "-m", "fuzz", "--child", driver, str(STATE), str(seconds)]
        end, code = time.monotonic() + seconds, 0
        with (finds / "log").open("wb") as log:
            environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
            while not code and (left := round(end - time.monotonic())) > 0:
                command[-1] = str(left)
                code = subprocess.run(command, cwd=empty, env=environment, stdout=log, stderr=log).returncode
    new = sorted(path for path in finds.glob("find-*") if path not in before and path.suffix != ".txt")
    for path in new:
        print(f"{driver}: {path.with_suffix('.txt').read_text().splitlines()[0]}: {path.relative_to(ROOT)}", flush=True)
    if code:
        print(f"{driver}: the fuzzer ended with status {code}, see {finds / 'log'}", flush=True)
    return int(bool(new or code))


def _fuzz(driver: str, state: str, seconds: int) -> None:
    """Never returns: the engine ends the process."""
    import atheris

    package = PACKAGES.get(driver, f"diskmill_{driver}")
    with atheris.instrument_imports(include=["diskmill", package]):
        module = importlib.import_module(package)
        for found in pkgutil.walk_packages(module.__path__, f"{package}."):
            importlib.import_module(found.name)
    from .corpus import stored
    from .mutant import Mutant
    from .target import Find, Target

    target = Target(driver)
    folder, queue = Path(state) / driver, Path(state) / driver / "queue"
    queue.mkdir(parents=True, exist_ok=True)
    starts = [Mutant.of(content) for content in target.seeds] + stored(driver)
    for data in (start.pack() for start in starts):
        (queue / hashlib.sha1(data).hexdigest()).write_bytes(data)
    known = {path.read_text().splitlines()[0] for path in folder.glob("find-*.txt")}

    def run(data: bytes) -> int:
        mutant = Mutant.unpack(data)
        if mutant is None:
            return -1
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 > _LEG:
            os._exit(0)  # what was found is in the queue; the next one begins with that
        try:
            target.run(mutant)
        except Find as find:
            if find.what not in known:
                known.add(find.what)
                path = folder / f"find-{hashlib.sha1(data).hexdigest()[:12]}"
                path.write_bytes(data)
                path.with_suffix(".txt").write_text(f"{find.what}\n{find.story}")
        return 0

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        mutant = Mutant.unpack(data) or Mutant.unpack(starts[seed % len(starts)].pack())
        assert mutant is not None
        mutant.mutate(chance, lambda part, length: bytes(atheris.Mutate(part, length)))
        packed = mutant.pack() if mutant.possible else data
        return packed if len(packed) <= most else data

    options = [f"-max_total_time={seconds}", f"-max_len={_LARGEST}", "-timeout=60", "-rss_limit_mb=0"]
    options += ["-len_control=0", f"-artifact_prefix={folder}/engine-", "-print_final_stats=1"]
    atheris.Setup(["fuzz", *options, str(queue)], run, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
