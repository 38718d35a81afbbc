"""What bounds a fleet: a simulation of jobs on machines that share a network and a store.

``python -m bench.fleet`` prints the table of docs/fleet.md. Each image is read from the store, packed by one core, and
written back; a machine has cores and a link, and the store a rate of its own. Time goes in steps: in each, the jobs
that run share links and store evenly, and none is faster than its core.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

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


if __name__ == "__main__":
    packed = float(sys.argv[1]) * MB if len(sys.argv) > 1 else 330 * MB
    for row in table(packed):
        print("| " + " | ".join(row) + " |")
