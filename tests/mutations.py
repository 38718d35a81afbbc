"""Damaged images by the thousand: what they are made of, and what every format owes them.

A damaged image either reads, or says in one line what is wrong; within bounded time and memory, and never with another
exception than the project's own.
"""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

from diskmill.contract.node import Image
from diskmill.engine.walk import walk
from diskmill.errors import DiskmillError
from formats import FORMATS, Machine
from twins import Content

MiB = 1 << 20
LONGEST = 10.0
"""Seconds of processor time that one damaged image may take: a machine may stand still for longer. (What waits for ever
ends with the test's own timeout.)"""
MEMORY = 256 * MiB
"""Bytes that the process may take more than before."""

Region = tuple[int, int]


def mutants(data: bytes, regions: Sequence[Region], *, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """*count* damaged copies of *data*, each with what was done to it.

    :param regions: (offset, length) of the stretches that are hit: headers and tables, not the guest's data.
    """
    chance = random.Random(seed)
    limits = [0, 1, 2, 3, 511, 512, 513, len(data), len(data) // 512, len(data) - 1]
    limits += [value for bits in (7, 8, 15, 16, 24, 31, 32, 33, 48, 63, 64) for value in ((1 << bits) - 1, 1 << bits)]
    for number in range(count):
        copy = bytearray(data)
        done = []
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            start, length = chance.choice(regions)
            length = min(length, len(copy) - start)
            if length <= 0:
                continue
            kind = chance.choice(("bit", "field", "field", "field", "noise", "zeros", "move", "cut"))
            width = chance.choice((1, 2, 4, 4, 8))
            at = start + (chance.randrange(length) // width * width if kind != "bit" else chance.randrange(length))
            if kind == "bit":
                copy[at] ^= 1 << chance.randrange(8)
            elif kind == "field":
                value = chance.choice(limits) if chance.random() < 0.8 else chance.getrandbits(64)
                order = chance.choice(("little", "big"))
                copy[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, order)  # type: ignore[arg-type]
            elif kind == "noise":
                copy[at : at + width * 4] = chance.randbytes(min(width * 4, len(copy) - at))
            elif kind == "zeros":
                upto = min(at + chance.randrange(1, 64), len(copy))
                copy[at:upto] = bytes(upto - at)
            elif kind == "move":
                source = start + chance.randrange(length)
                copy[at : at + width] = copy[source : source + width]
            elif chance.random() < 0.2:
                del copy[chance.randrange(len(copy)) :]
            done.append(f"{kind} at {at}")
        yield f"mutant {number} of seed {seed}: {', '.join(done)}", bytes(copy)


@contextmanager
def bounded(what: str) -> Iterator[None]:
    """Fail when the block takes too long, or more memory than :data:`MEMORY` beyond what there is now."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    start = time.process_time()
    try:
        yield
    except MemoryError:
        raise AssertionError(f"{what}: takes too much memory") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.process_time() - start < LONGEST, what


def withstand(
    format: str,
    images: Iterator[tuple[str, bytes | Content]],
    *,
    write: bool = True,
    beside: Mapping[str, Content] | None = None,
) -> dict[str, int]:
    """Put each image through all that a command would do with it.

    :param beside: files that lie beside it.
    :return: how many were "read", "refused" and, where *write* is set, "written".
    """
    machine = Machine()
    machine.files.update(beside or {})
    counts = {"read": 0, "refused": 0, "written": 0}
    for what, data in images:
        content = data if isinstance(data, Content) else Content(data)
        with bounded(what):
            machine.files["mutant"] = content.copy()
            counts["read" if _tried(what, _read, machine, format) else "refused"] += 1
            if write and "write" in FORMATS[format].capabilities:
                counts["written"] += _tried(what, _write, machine, format)
            if "repair" in FORMATS[format].capabilities:
                machine.files["mutant"] = content
                _tried(what, _repair, machine, format)
    return counts


def _tried(what: str, action: Callable[[Machine, str], None], machine: Machine, format: str) -> bool:
    try:
        action(machine, format)
    except DiskmillError as error:
        message = str(error)
    except Exception as error:
        raise AssertionError(f"{what}: {error!r}") from error
    else:
        return True
    assert message and "\n" not in message, what
    return False


def _read(machine: Machine, format: str) -> None:
    with machine.open("mutant", format) as image:
        image.details()
        if "check" in FORMATS[format].capabilities:
            machine.context.registry.call(image.driver, "check", image=image, repair="")
        for extent in islice(walk(image, 0, image.size), 100_000):
            assert 0 <= extent.start < extent.end <= image.size
        for at in _places(image):
            image.read(at, min(64 * 1024, image.size - at))


def _write(machine: Machine, format: str) -> None:
    with machine.open("mutant", format, writable=True) as image:
        for at in _places(image):
            piece = b"w" * min(5000, image.size - at)
            image.write(at, piece)
            assert image.read(at, len(piece)) == piece
            image.zero(at, len(piece))
            assert not any(image.read(at, len(piece)))
        image.flush()


def _repair(machine: Machine, format: str) -> None:
    with machine.open("mutant", format, writable=True) as image:
        machine.context.registry.call(image.driver, "check", image=image, repair="all")
        image.flush()


def _places(image: Image) -> list[int]:
    return sorted({0, image.size // 2 // 512 * 512, max(image.size - 512, 0)}) if image.size else []
