"""The library against dissect's, in one process: ``python -m bench.library [SIZE] [--runs N]`` prints a table.

Each job is done by both by turns, and the medians of their times count: reading a disk from its beginning to its end,
4 KiB at random places, and opening 1,000 images. Both find the same bytes, or it fails. No process starts are in it.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .reading import CHUNK, opened

FORMATS: dict[str, tuple[str, ...]] = {
    "qcow2": ("qcow2",),
    "vmdk": ("vmdk",),
    "vdi": ("vdi",),
    "vpc": ("vpc", "-o", "force_size=on"),
    "vhdx": ("vhdx",),
}
GOALS = {"sequential": 1.3, "4 KiB at random": 3.0, "opening 1,000": 3.0}
BLOCK = 4096
READS = 10_000
OPENINGS = 1000

Job = Callable[[], object]


def sequential(path: Path, digest: bool) -> tuple[Job, Job]:
    import diskmill
    from diskmill.sizes import new_buffer

    def ours() -> object:
        seen, at = hashlib.sha256(), 0
        buffer = memoryview(new_buffer(CHUNK))
        with diskmill.open(path, path.name) as disk:
            while at < disk.size:
                part = buffer[: disk.size - at]
                disk.read_into(at, part)
                if digest:
                    seen.update(part)
                at += len(part)
        return at, seen.hexdigest()

    def theirs() -> object:
        seen, at = hashlib.sha256(), 0
        with path.open("rb") as file:
            disk = opened(path, file)
            while data := disk.read(CHUNK):
                if digest:
                    seen.update(data)
                at += len(data)
        return at, seen.hexdigest()

    return ours, theirs


def at_random(path: Path, size: int, digest: bool) -> tuple[Job, Job]:
    import diskmill

    chance = random.Random(1)
    places = [chance.randrange(size // BLOCK) * BLOCK for _ in range(READS)]

    def ours() -> object:
        seen, buffer = hashlib.sha256(), bytearray(BLOCK)
        with diskmill.open(path, path.name) as disk:
            read = disk.read_into
            for at in places:
                read(at, buffer)
                if digest:
                    seen.update(buffer)
        return seen.hexdigest()

    def theirs() -> object:
        seen = hashlib.sha256()
        with path.open("rb") as file:
            disk = opened(path, file)
            for at in places:
                disk.seek(at)
                data = disk.read(BLOCK)
                if digest:
                    seen.update(data)
        return seen.hexdigest()

    return ours, theirs


def opening(path: Path) -> tuple[Job, Job]:
    import diskmill

    def ours() -> object:
        for _ in range(OPENINGS):
            with diskmill.open(path, path.name) as disk:
                size = disk.size
        return size

    def theirs() -> object:
        for _ in range(OPENINGS):
            with path.open("rb") as file:
                size = opened(path, file).size
        return size

    return ours, theirs


def timed(job: Job) -> tuple[float, float]:
    """Seconds, and of processor time."""
    gc.collect()
    used, began = time.process_time(), time.perf_counter()
    job()
    return time.perf_counter() - began, time.process_time() - used


def held_against(ours: Job, theirs: Job, runs: int) -> tuple[float, float, float, float]:
    """Ours, theirs: the medians of seconds; then of processor time."""
    pairs = [(timed(ours), timed(theirs)) for _ in range(runs)]
    wall = [statistics.median(pair[side][0] for pair in pairs) for side in (0, 1)]
    used = [statistics.median(pair[side][1] for pair in pairs) for side in (0, 1)]
    return wall[0], wall[1], used[0], used[1]


def rows(size: int, runs: int) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    with tempfile.TemporaryDirectory(prefix="diskmill-bench-") as scratch:
        folder = Path(scratch)
        subprocess.run([sys.executable, "-m", "bench.source", str(folder / "raw"), str(size)], check=True)
        for name, words in FORMATS.items():
            path = folder / name
            source = folder / "raw"
            subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", *words, str(source), str(path)], check=True)
            jobs: dict[str, Callable[[bool], tuple[Job, Job]]] = {
                "sequential": lambda digest, path=path: sequential(path, digest),  # type: ignore[misc]
                "4 KiB at random": lambda digest, path=path: at_random(path, size, digest),  # type: ignore[misc]
                "opening 1,000": lambda _, path=path: opening(path),  # type: ignore[misc]
            }
            for what, make in jobs.items():
                ours, theirs = make(True)
                if ours() != theirs():
                    raise SystemExit(f"{name}: {what}: the two find other bytes")
                one, other, busy, others_busy = held_against(*make(False), runs)
                row = f"{other / one:.2f}", f"{GOALS[what]:.1f}", f"{one:.3f}", f"{other:.3f}"
                found.append((name, what, *row, f"{others_busy / busy:.2f}"))
                print(*found[-1], file=sys.stderr, flush=True)
    return found


def table(found: Sequence[tuple[str, ...]]) -> str:
    """As Markdown."""
    head = ("format", "job", "ratio", "goal", "s", "dissect's", "ratio of processor time")
    lines = [head, tuple("---" if n < 2 else "---:" for n in range(len(head))), *found]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser: Any = argparse.ArgumentParser(prog="bench.library", description=__doc__)
    parser.add_argument("size", nargs="?", type=int, default=512, help="MiB of the disk (512)")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args(arguments)
    print(table(rows(options.size << 20, options.runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
