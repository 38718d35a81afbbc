"""Images from strangers: whatever is damaged, the answer is data or one clear error, in bounded time and memory."""

from __future__ import annotations

import random
import resource
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice

import pytest
from diskmill.contract.extents import Kind
from diskmill.errors import DiskmillError
from diskmill.opening.graph import open_image
from diskmill.opening.known_drivers import recognise
from diskmill.sizes import KiB, MiB

from ..machine import FORMATS, Machine, formats, fragments, names, read_only, unit_of, variants
from ..selection import Chosen, over
from ..traits import made_by
from ..twins import Content

__all__ = [
    "test_a_new_image_is_taken_for_what_it_is",
    "test_damaged_images",
    "test_guest_data_does_not_change_what_an_image_is",
    "test_noise",
    "test_truncated_images",
]
"""What a test module takes."""

SECONDS = 20
"""That one damaged image may take, on a machine that is busy with other things."""
MEMORY = 256 * MiB
"""That one damaged image may take."""
MUTATIONS = 1000

EDGES = [
    0,
    1,
    2,
    3,
    7,
    8,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63,
    2**64 - 1,
]


def readable(chosen: Chosen) -> list[str]:
    """A case for each chosen format of which there are images here."""
    return [name for name in dict.fromkeys([*names("create"), *read_only()]) if name in chosen]


@contextmanager
def bounded() -> Iterator[None]:
    """Fail, and not hang or eat the machine, where time or memory run out."""

    def late(*_: object) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def use(machine: Machine, format: str) -> bool:
    """Do with the image "disk" whatever commands do: look, read, check, write. Gives whether it could be opened."""
    driver = FORMATS[format]
    opened = False
    with suppress(DiskmillError), machine.open("disk", format) as image:
        opened = True
        image.details()
        for offset in (0, image.size // 2 // 512 * 512, max(image.size - 70000, 0)):
            length = min(70000, image.size - offset)
            with suppress(DiskmillError):
                for extent in islice(image.extents(offset, length), 300):
                    assert offset <= extent.start < extent.end <= offset + length
            with suppress(DiskmillError):
                image.read(offset, length)
        with suppress(DiskmillError):
            for extent in islice(image.extents(0, image.size), 300):
                assert extent.length > 0
        if "snapshots" in driver.capabilities:
            with suppress(DiskmillError):
                machine.context.registry.call(driver, "snapshot", image=image, action="list", name="")
        if "check" in driver.capabilities:
            machine.context.registry.call(driver, "check", image=image, repair="")
    if "write" in driver.capabilities:
        with suppress(DiskmillError):
            image = machine.open("disk", format, writable=True)
            try:
                for offset in (0, image.size // 2):
                    if image.size >= offset + 5000:
                        image.write(offset, b"w" * 5000)
                        image.zero(offset, 5000)
            finally:
                image.close()
    return opened


def samples(machine: Machine, format: str) -> list[dict[str, Content]]:
    """Small good images, one of each variant of the format: all the files that one consists of."""
    made = []
    encoders = made_by(format)
    if encoders:
        for kind, make in encoders.items():
            # Large chunks are more than what is decoded at once.
            disk = bytearray(2 * MiB + 64 * KiB if "large" in kind else 96 * KiB)
            for offset, data in fragments(1, len(disk), 64 * KiB)[:4]:
                disk[offset : offset + len(data)] = data
            made.append({"disk": Content(make(bytes(disk))[0])})
        return made
    chosen = [{}, *({option.name: value} for option, value in variants(FORMATS[format]) if option.choices)]
    for options in chosen:
        machine.files.clear()
        size = min(8 * unit_of(machine, format), 2 * MiB)
        machine.files.clear()
        with suppress(DiskmillError):
            machine.create("disk", format, size, options)
            with suppress(DiskmillError), machine.open("disk", format, writable=True) as image:
                for offset, data in fragments(1, size, 64 * KiB)[:4]:
                    image.write(offset, data)
                image.zero(0, 64 * KiB)
        if "disk" in machine.files and sum(file.size for file in machine.files.values()) <= 64 * MiB:
            made.append(copied(machine.files))
    assert made
    return made


def copied(files: Mapping[str, Content]) -> dict[str, Content]:
    """The same files once more, holes as holes: that is quick, however large they are."""
    return {name: content.copy() for name, content in files.items()}


def metadata(machine: Machine, format: str) -> list[tuple[int, int]]:
    """The stretches of the file "disk" that are not holes and not guest data."""
    content = machine.files["disk"]
    with machine.open("disk", format) as image:
        guest = [
            (extent.offset, extent.offset + extent.length)
            for extent in image.extents(0, image.size)
            if extent.kind is Kind.DATA and image.window is None
        ]
    pages = (page * 4096 for page in sorted(content.pages))
    return [
        (at, min(at + 4096, content.size))
        for at in pages
        if at < content.size and not any(low < at + 4096 and at < high for low, high in guest)
    ] or [(0, min(content.size, 4096))]


def damaged(chance: random.Random, disk: Content, places: list[tuple[int, int]]) -> str:
    """Change a few bytes of *disk* in *places*; says what was done."""
    done = []
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        low, high = chance.choice((places[0], chance.choice(places), places[-1]))
        # Most fields stand at the start of their structure.
        at = chance.choice((chance.randrange(low, high), min(low + chance.randrange(0, 128), high - 1)))
        width = chance.choice((1, 2, 4, 8))
        at -= at % width
        order = chance.choice(("big", "little"))
        value = chance.choice((*EDGES, chance.getrandbits(64), 1 << chance.randrange(64))) % 256**width
        part = value.to_bytes(width, order)
        disk.write(at, part[: disk.size - at])
        done.append(f"{part.hex()} at {at}")
    return ", ".join(done)


@over("format", readable)
def test_damaged_images(format: str) -> None:
    machine = Machine()
    originals = samples(machine, format)
    maps = []
    for original in originals:
        machine.files.update(copied(original))
        try:
            maps.append(metadata(machine, format))
        except DiskmillError:
            maps.append([(0, min(original["disk"].size, 4096))])
    opened = 0
    # Where each open derives a key, which is slow on purpose, fewer must do.
    slow = any(option.name == "key-secret" for option in FORMATS[format].options)
    count = MUTATIONS // 4 if slow else MUTATIONS
    for number in range(count):
        chance = random.Random(number)
        which = number % len(originals)
        machine.files.clear()
        machine.files.update(copied(originals[which]))
        if not machine.files["disk"].size:
            continue
        text = damaged(chance, machine.files["disk"], maps[which])
        started = time.monotonic()
        try:
            with bounded():
                opened += use(machine, format)
        except Exception as error:
            took = time.monotonic() - started
            pytest.fail(f"variant {which}, {text}: after {took:.1f} s {type(error).__name__}: {error}")
    assert opened > count // 20  # else nothing but the header was ever looked at


def cuts(length: int) -> list[int]:
    """Lengths to cut a file of *length* bytes at."""
    found = {0, length - 1, length - 511, length - 512, length - 513, length // 2}
    for power in range(26):
        found |= {2**power - 1, 2**power, 2**power + 1}
    found |= set(range(0, 600, 13))
    return sorted(cut for cut in found if 0 <= cut < length)


@over("format", readable)
def test_truncated_images(format: str) -> None:
    machine = Machine()
    original = samples(machine, format)[0]
    for cut in cuts(original["disk"].size):
        machine.files.clear()
        machine.files.update(copied(original))
        machine.files["disk"].truncate(cut)
        try:
            with bounded():
                use(machine, format)
        except Exception as error:
            pytest.fail(f"cut to {cut} bytes: {type(error).__name__}: {error}")


def beginnings(format: str) -> list[bytes]:
    """What files of the format may begin with, as far as the core can tell."""
    from diskmill.opening.known_drivers import _MAGICS

    return [b"", *(bytes(offset) + magic for name, offset, magic in _MAGICS if name == format)]


@over("format", formats())
def test_noise(format: str) -> None:
    machine = Machine()
    for number in range(300):
        chance = random.Random(number)
        data = bytearray(chance.randbytes(chance.choice((0, 1, 511, 512, 2000, 70000))))
        if chance.random() < 0.3:
            data = bytearray(len(data))
        start = chance.choice(beginnings(format))
        data[: len(start)] = start
        machine.put("disk", bytes(data))
        try:
            with bounded():
                use(machine, format)
        except Exception as error:
            pytest.fail(f"noise {number}: {type(error).__name__}: {error}")


# -- probing --------------------------------------------------------------------------------------------


def head(machine: Machine) -> bytes:
    return bytes(machine.files["disk"].read(0, min(4096, machine.files["disk"].size)))


def probed(machine: Machine) -> str:
    """The format that the file "disk" is taken for when nobody names one."""
    with open_image("memory:disk", context=machine.context, shallow=True) as image:
        return image.driver.name


@over("format", formats("create"))
def test_a_new_image_is_taken_for_what_it_is(format: str) -> None:
    machine = Machine()
    machine.create("disk", format, 4 * MiB)
    registry = machine.context.registry
    scores = {
        name: registry.call(driver, "probe", data=head(machine), name="disk") or 0 for name, driver in FORMATS.items()
    }
    best = scores.pop(format)
    assert best > max(scores.values(), default=0), scores
    assert probed(machine) == format
    assert recognise(head(machine)) in (format, None)
    assert not machine.warnings


@over("format", formats("create", "write"))
def test_guest_data_does_not_change_what_an_image_is(format: str) -> None:
    machine = Machine()
    machine.create("disk", format, 4 * MiB)
    with machine.open("disk", format) as image:
        if image.window is not None:
            return  # its first bytes are the guest's: nobody can tell
    for other in names("create"):
        guest = Machine()
        guest.create("disk", other, 4 * MiB)
        header = head(guest)
        machine = Machine()
        machine.create("disk", format, 4 * MiB)
        with machine.open("disk", format, writable=True) as image:
            image.write(0, header)
        assert probed(machine) == format
        with machine.open("disk", format) as image:
            assert image.read(0, len(header)) == header
