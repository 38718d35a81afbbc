"""What bounds a fleet: a simulation of jobs on machines that share a network and a store.

``python -m bench.fleet [MB_A_SECOND]`` prints the table of docs/fleet.md, and ``python -m bench.fleet measured`` runs a
small fleet here, with what the simulation says of it beside. Each image is read from the store, packed by one core, and
written back; a machine has cores and a link, and the store a rate of its own. Time goes in steps: in each, the jobs
that run share links and store evenly, and none is faster than its core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GiB = 1 << 30
MB = 10**6


@dataclass(frozen=True)
class Fleet:
    """*images* of *size* bytes of data, of which a *kept* part is written.

    :param machines: with so many *cores* each, on a link of *link* bytes a second each way.
    :param store: bytes a second that the store gives, and takes, in all.
    :param core: bytes a second of source that a core packs.
    :param overhead: seconds that a job costs beside.
    """

    images: int
    size: float
    machines: int
    cores: int
    link: float
    store: float
    core: float
    kept: float = 0.5
    overhead: float = 0.03


def simulate(fleet: Fleet) -> float:
    """Seconds until the last image is done. All are of one size, so that they go in waves."""
    left, done, clock = [fleet.size] * fleet.images, 0, 0.0
    slots = fleet.machines * fleet.cores
    while done < fleet.images:
        running = min(slots, fleet.images - done)
        a_machine = min(running, fleet.cores)
        rate = min(fleet.core, fleet.link / a_machine, fleet.link / a_machine / fleet.kept, fleet.store / running)
        clock += left[done] / rate + fleet.overhead
        done += running
    return clock


def bound(fleet: Fleet) -> str:
    """What holds it up."""
    slots = min(fleet.machines * fleet.cores, fleet.images)
    rates = {
        "processors": fleet.core * slots,
        "network": fleet.link * min(fleet.machines, fleet.images),
        "store": fleet.store,
    }
    return min(rates, key=lambda name: rates[name])


def table(core: float) -> Sequence[tuple[str, ...]]:
    """10,000 images of 100 GiB, half of it data."""
    rows = [("machines", "link", "store", "time", "bound by")]
    for machines in (1, 10, 100):
        for link, store in ((1250 * MB, 5000 * MB), (3125 * MB, 40_000 * MB)):
            fleet = Fleet(10_000, 50 * GiB, machines, 16, link, store, core)
            hours = simulate(fleet) / 3600
            rows.append(
                (
                    str(machines),
                    f"{link * 8 / 1e9:.0f} Gbit/s",
                    f"{store / 1e9:.0f} GB/s",
                    f"{hours:.0f} h",
                    bound(fleet),
                )
            )
    return rows


def measured(images: int, size: int) -> Iterator[str]:
    """Pack *images* raw disks of *size* bytes here with ``diskmill batch``, and say what the simulation makes of that.
    What a core packs it is told by a run on one worker; a job's overhead, by many that do nothing."""
    with tempfile.TemporaryDirectory(prefix="diskmill-fleet-") as scratch:
        folder = Path(scratch)
        data = b"".join(path.read_bytes() for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
        data = (data * (size // len(data) + 1))[:size]
        for number in range(images):
            at = number * 4093 % size  # no two are the same
            (folder / f"{number}.raw").write_bytes(data[at:] + data[:at])
        (folder / "empty").write_bytes(bytes(512))
        idle = [{"job": "info", "source": str(folder / "empty"), "format": "raw", "id": str(n)} for n in range(500)]
        none = run(folder, [], 1)[0]
        overhead = (run(folder, idle, 1)[0] - run(folder, idle[:1], 1)[0]) / (len(idle) - 1)
        alone = images // 4
        core = alone * size / (run(folder, packing(folder, alone), 1)[0] - none)
        cores = len(os.sched_getaffinity(0))
        seconds, busy = run(folder, packing(folder, images), cores)
        said = simulate(Fleet(images, size, 1, cores, 1e12, 1e12, core, overhead=overhead)) + none
        yield f"a core packs {core / MB:.0f} MB/s, a job costs {overhead * 1000:.1f} ms beside, a run {none:.2f} s"
        yield f"{images} images of {size / MB:.0f} MB on {cores} workers:"
        yield f"simulated {said:.1f} s, measured {seconds:.1f} s"
        yield f"processors busy: {busy / seconds / cores:.0%}"


def packing(folder: Path, count: int) -> list[dict[str, object]]:
    """Jobs for the first *count* images in *folder*."""
    how = {"format": "raw", "output_format": "qcow2", "compress": True, "options": {"compression_type": "zstd"}}
    return [{"source": str(folder / f"{n}.raw"), "to": str(folder / f"{n}.qcow2"), **how} for n in range(count)]


def run(folder: Path, jobs: Sequence[Mapping[str, object]], workers: int) -> tuple[float, float]:
    """Do *jobs*: seconds that it took, and seconds of processor time."""
    manifest, journal = folder / "jobs", folder / "journal"
    manifest.write_text("".join(json.dumps(job) + "\n" for job in jobs))
    journal.unlink(missing_ok=True)
    words = [sys.executable, "-m", "diskmill_cli", "batch", "run"]
    words += [str(manifest), "--journal", str(journal), "-j", str(workers)]
    used, began = os.times(), time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    seconds, now = time.monotonic() - began, os.times()
    return seconds, now.children_user + now.children_system - used.children_user - used.children_system


if __name__ == "__main__":
    if sys.argv[1:] == ["measured"]:
        for text in measured(64, 32 * MB):
            print(text)
    else:
        packed = float(sys.argv[1]) * MB if len(sys.argv) > 1 else 123 * MB
        for row in table(packed):
            print("| " + " | ".join(row) + " |")
