"""How copies go with more threads: ``python -m bench.scaling [SIZE] [--runs N]`` prints two tables.

The first has a line for each job and number of threads. The second holds a model against it. Of a compressing copy with
one thread, time = bytes / speed + steps × cost, where a step is a cluster, and its cost is what Python does for it with
its lock held. Two sizes of clusters with the same bytes give both terms, by processor time, which others disturb least.
With more threads, time = max(steps × cost, (bytes / speed + steps × cost) / cores): the lock cannot be shared. What the
model is held against writes out of order (``-W``): how long tasks wait for their turns hangs on the data.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

THREADS = (1, 2, 4, 8, 16)
LARGE, SMALL = 64, 16
"""KiB of the clusters of which two sizes are compared."""
SECRET = ("--object", "secret,id=s0,data=correct horse")
JOBS: dict[str, tuple[str, ...]] = {
    "plain": ("convert", "-f", "raw", "-O", "raw", "{raw}", "{out}"),
    "plain to qcow2": ("convert", "-f", "raw", "-O", "qcow2", "{raw}", "{out}"),
    "deflate": ("convert", "-c", "-f", "raw", "-O", "qcow2", "{raw}", "{out}"),
    "zstd": ("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", "{raw}", "{out}"),
    "luks": ("convert", *SECRET, "-f", "raw", "-O", "luks", "-o", "key-secret=s0,iter-time=10", "{raw}", "{out}"),
    "digest": ("digest", "-f", "raw", "{raw}"),
}
MODELLED = ("deflate", "zstd")
FAR = (8, 16, 64)
"""Cores that the model is asked for."""


def seconds(job: Sequence[str], folder: Path, threads: int) -> tuple[float, float]:
    """What one run takes, and of processor time."""
    words = [word.format(raw=folder / "raw", out=folder / "out") for word in job]
    (folder / "out").unlink(missing_ok=True)
    program = Path(sys.executable).with_name("diskmill")
    before, began = os.times(), time.perf_counter()
    subprocess.run([program, words[0], "-m", str(threads), *words[1:]], check=True, stdout=subprocess.DEVNULL)
    taken, after = time.perf_counter() - began, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return taken, used


def medians(jobs: Sequence[tuple[Sequence[str], int]], folder: Path, runs: int) -> list[tuple[float, float]]:
    """Of each job with its number of threads, which are run by turns."""
    taken: list[list[tuple[float, float]]] = [[] for _ in jobs]
    for _ in range(runs):
        for number, (job, threads) in enumerate(jobs):
            taken[number].append(seconds(job, folder, threads))
    return [(statistics.median(t for t, _ in one), statistics.median(u for _, u in one)) for one in taken]


def clustered(job: Sequence[str], size: int) -> list[str]:
    """*job* with clusters of *size* KiB, out of order."""
    *words, source, out = job
    return [*words, "-W", "-o", f"cluster_size={size}k", source, out]


def table(rows: Sequence[Sequence[str]]) -> str:
    """As Markdown."""
    head, *rest = rows
    lines = [head, ["---", *("---:" for _ in head[1:])], *rest]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def scaling(folder: Path, runs: int) -> str:
    """The table of jobs by threads."""
    rows = [("job, s (CPU s)", *(str(count) for count in THREADS))]
    for name, job in JOBS.items():
        taken = medians([(job, count) for count in THREADS], folder, runs)
        rows.append((name, *(f"{wall:.2f} ({used:.2f})" for wall, used in taken)))
        print(*rows[-1], file=sys.stderr, flush=True)
    return table(rows)


def model(folder: Path, size: int, runs: int) -> str:
    """The table of the model's two terms, what it says of two cores, and of more."""
    cores = len(os.sched_getaffinity(0))
    start = started(folder, runs)
    head = ("job", "MiB/s", "µs a cluster", f"{cores} cores, predicted", "measured", "lock binds from")
    rows = [(*head, *(f"{count} cores" for count in FAR))]
    for name in MODELLED:
        jobs = [
            (clustered(JOBS[name], LARGE), 1),
            (clustered(JOBS[name], SMALL), 1),
            (clustered(JOBS[name], LARGE), cores),
        ]
        (_, large), (_, small), (measured, _) = medians(jobs, folder, runs)
        data = size // 2 / 1024
        steps = data / LARGE
        cost = (small - large) / (data / SMALL - steps)
        lock = steps * cost
        rest = large - start - lock

        def predicted(count: int, lock: float = lock, rest: float = rest) -> float:
            return start + max(lock, (rest + lock) / count)

        row = (f"{data / 1024 / rest:.0f}", f"{cost * 1e6:.0f}", f"{predicted(cores):.2f}", f"{measured:.2f}")
        binds = f"{(rest + lock) / lock:.0f} cores" if lock > 0 else "never"
        rows.append((name, *row, binds, *(f"{predicted(count):.2f}" for count in FAR)))
        print(*rows[-1], file=sys.stderr, flush=True)
    return table(rows)


def started(folder: Path, runs: int) -> float:
    """What a copy of next to nothing takes, of processor time."""
    (folder / "small").write_bytes(b"7" * 4096)
    job = ("convert", "-c", "-f", "raw", "-O", "qcow2", str(folder / "small"), "{out}")
    return medians([(job, 1)], folder, runs)[0][1]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.scaling", description=__doc__)
    parser.add_argument("size", nargs="?", type=int, default=1024, help="MiB of the disk, half of it data (1024)")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="diskmill-bench-") as scratch:
        folder = Path(scratch)
        size = options.size << 20
        subprocess.run([sys.executable, "-m", "bench.source", str(folder / "raw"), str(size)], check=True)
        print(scaling(folder, options.runs), model(folder, size, options.runs), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
