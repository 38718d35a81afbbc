"""One write that fails, and disks that get full, for every format that can be written.

The command ends with one line. Whatever the write was part of, the image then opens, checks, reads and takes writes;
each sector of its disk holds what was there before or what was written there since, and what was flushed is there.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from diskmill.commands.commit import commit
from diskmill.commands.convert import convert
from diskmill.commands.resize import resize, set_size
from diskmill.contract.node import Image
from diskmill.contract.results import CheckResult
from diskmill.errors import DiskmillError
from diskmill.opening.graph import open_image
from diskmill.sizes import SECTOR, KiB, MiB

from ..machine import FORMATS, Machine, layouts
from ..selection import over
from ..traits import traits_of

__all__ = [
    "test_commit",
    "test_convert_into_an_image",
    "test_growing",
    "test_growing_a_little",
    "test_life_goes_on_after_a_failed_resize",
    "test_new_blocks_are_tried_again",
    "test_shrinking",
    "test_what_is_tried_again_works",
    "test_writes",
]
"""What a test module takes."""

SIZE = 2 * MiB + 5 * SECTOR
LARGER = 3 * MiB
OTHER = "qcow2" if "qcow2" in FORMATS else "qcow"
"""The format of an overlay on an image whose own format has none."""
Oracle = Callable[[Machine, str, Mapping[str, Any]], None]
"""Fails unless another program agrees with what an image "disk" holds, which was made with these options."""
Values = dict[int, list[bytes]]
"""Sector → what it may hold; what was written last stands last."""


def sound(machine: Machine, format: str, manner: str) -> None:
    """The image is marked as in use, if at all, only where that was the write that failed."""
    with machine.open("disk", format) as image:
        assert manner == "broken" or not image.dirty


def largest(format: str, options: Mapping[str, Any]) -> int:
    """How large a disk is made: so large that tables must move, but for one all of whose space is written then."""
    return LARGER if traits_of(format).noise or options.get("subformat") == "fixed" else traits_of(format).grown


def named(machine: Machine, format: str) -> str:
    """The image "disk", as commands take it."""
    return "json:" + json.dumps({"driver": format, **machine.spec("disk", format)})


def harm(format: str, found: CheckResult) -> list[str]:
    """Corruptions that neither a crash nor a failed write may leave."""
    harmless = traits_of(format).harmless
    return [
        one.text
        for one in found.findings
        if one.kind == "corruption" and not any(words in one.text for words in harmless)
    ]


def made(machine: Machine, format: str, options: dict[str, Any], name: str = "disk", **more: Any) -> bytes:
    """An image with some blocks; what its disk holds."""
    chance = random.Random(name)
    machine.create(name, format, SIZE, options, **more)
    with machine.open(name, format, writable=True) as image:
        for _ in range(6):
            at = chance.randrange(image.size // SECTOR) * SECTOR
            image.write(at, chance.randbytes(min(40_000 // SECTOR * SECTOR, image.size - at)))
        return image.read(0, image.size)


def values_of(disk: bytes) -> Values:
    return {at: [disk[at : at + SECTOR]] for at in range(0, len(disk), SECTOR)}


def add(values: Values, offset: int, data: bytes) -> None:
    """*data* may be there, too."""
    for at in range(0, len(data), SECTOR):
        values.setdefault(offset + at, [bytes(SECTOR)]).append(data[at : at + SECTOR])


def faults(machine: Machine, operation: Callable[[], object], samples: int = 8) -> Iterator[tuple[str, int, str]]:
    """Run *operation* while one change of a file fails, and while the disk gets full, at this moment and that.

    Gives the manner, the moment, and the one line that said so; the files are as the operation left them. First it
    gives what the operation leaves when nothing fails.

    :param samples: at how many moments, for each manner, beside the first and the last one.
    """
    driver = machine.driver
    before = {name: content.copy() for name, content in machine.files.items()}

    def attempt(manner: str, point: int) -> int:
        machine.files.clear()
        machine.files.update({name: content.copy() for name, content in before.items()})
        setattr(driver, manner, point)
        driver.failures = 0
        try:
            operation()
            left: int = getattr(driver, manner)
            return left
        finally:
            driver.room = driver.broken = None

    chance = random.Random(1)
    for manner in ("broken", "room"):
        most = (1 << 40) - attempt(manner, 1 << 40)
        yield "", 0, ""
        for point in sorted({0, most - 1, *(chance.randrange(most) for _ in range(samples))} if most else ()):
            error = ""
            try:
                attempt(manner, point)
            except DiskmillError as caught:
                error = str(caught)
            assert driver.failures and error, f"nobody hears of it: {manner} {point}"
            assert "\n" not in error
            assert ("No space left" if manner == "room" else "Input/output error") in error
            yield manner, point, error


def check(machine: Machine, name: str, format: str, repair: str = "") -> CheckResult:
    if "check" not in FORMATS[format].capabilities:
        return CheckResult()
    with machine.open(name, format, writable=bool(repair)) as image:
        found = machine.context.registry.call(image.driver, "check", image=image, repair=repair)
        assert isinstance(found, CheckResult)
        return found


def examine(machine: Machine, format: str, name: str = "disk") -> bytes:
    """What the disk holds, before and after a repair; then the image takes writes."""
    found = check(machine, name, format)
    assert not harm(format, found) and not found.check_errors
    with machine.open(name, format) as image:
        disk = image.read(0, image.size)
    if "repair" in FORMATS[format].capabilities:
        done = check(machine, name, format, repair="all")
        assert done.corruptions <= done.corruptions_fixed and not done.check_errors, done.findings
    found = check(machine, name, format)
    assert not found.corruptions, found.findings
    with machine.open(name, format, writable=True) as image:
        assert image.read(0, image.size) == disk
        at = image.size // 2 // SECTOR * SECTOR
        image.write(at, b"new!" * 128)
    with machine.open(name, format) as image:
        assert image.read(0, image.size) == disk[:at] + b"new!" * 128 + disk[at + SECTOR :]
    return disk


def holds(disk: bytes, values: Values) -> None:
    """Fail unless each sector of *disk* is one of *values*."""
    wrong = [at for at in range(0, len(disk), SECTOR) if disk[at : at + SECTOR] not in values.get(at, [bytes(SECTOR)])]
    assert not wrong, f"sectors at {wrong[:8]} of {len(wrong)} hold what was never there"


def steps(disk: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """Writes: (guest offset, data, whether to flush then)."""
    chance = random.Random(7)
    for _ in range(16):
        at = chance.randrange(len(disk) // SECTOR) * SECTOR
        length = min(chance.choice((1, 3, 40, 90)) * SECTOR, len(disk) - at)
        yield at, bytes(length) if chance.random() < 0.2 else chance.randbytes(length), chance.random() < 0.3


def put(image: Image, at: int, data: bytes) -> None:
    """Write *data*, zeros as such."""
    if any(data):
        image.write(at, data)
    else:
        image.zero(at, len(data))


@over("format,options", layouts())
def test_writes(format: str, options: dict[str, Any], oracle: Oracle) -> None:
    machine = Machine()
    disk = made(machine, format, options)
    values: Values = {}

    def operation() -> None:
        values.clear()
        values.update(values_of(disk))
        with machine.open("disk", format, writable=True) as image:
            for at, data, flush in steps(disk):
                add(values, at, data)
                put(image, at, data)
                if flush:
                    image.flush()
                    values.update({sector: found[-1:] for sector, found in values.items()})

    for manner, point, _ in faults(machine, operation):
        sound(machine, format, manner)
        if manner == "room" and point % 2:
            oracle(machine, format, options)
        holds(examine(machine, format), values)


class Insistent:
    """Does what fails once more, when there is room again. To be asked at most once for both."""

    def __init__(self, machine: Machine) -> None:
        self.driver = machine.driver
        self.failure: DiskmillError | None = None

    def __call__(self, call: Callable[[], object], *, again: bool = True) -> None:
        try:
            call()
        except DiskmillError as error:
            assert self.failure is None
            self.failure, self.driver.room = error, None
            if again:
                call()

    def close(self, image: Image) -> None:
        image.close()
        if self.failure is not None:
            raise self.failure


@over("format,options", layouts())
def test_what_is_tried_again_works(format: str, options: dict[str, Any]) -> None:
    """Once there is room again, and after a failure that went by: nothing is lost of what was written then."""
    machine = Machine()
    disk = made(machine, format, options)
    size = largest(format, options)
    grows = "resize" in FORMATS[format].capabilities
    model = bytearray(disk)
    for at, data, _ in steps(disk):
        model[at : at + len(data)] = data

    def operation() -> None:
        insist = Insistent(machine)
        image = machine.open("disk", format, writable=True)
        for at, data, flush in steps(disk):
            insist(lambda: put(image, at, data))  # noqa: B023
            if flush:
                insist(image.flush)
        if grows:
            insist(lambda: set_size(image, size, machine.context))
        for at, data, _ in steps(disk):
            insist(lambda: put(image, at, data))  # noqa: B023
        insist(image.flush)
        insist.close(image)

    for _ in faults(machine, operation):
        with machine.open("disk", format) as image:
            assert image.read(0, len(disk)) == model


@over("format,options", layouts("resize"))
def test_life_goes_on_after_a_failed_resize(format: str, options: dict[str, Any]) -> None:
    """The disk has its old size, or the new one, for who goes on to write as for who opens the image then."""
    machine = Machine()
    machine.create("disk", format, SIZE, options)
    size = largest(format, options)
    written = bytearray(SIZE)
    places = [slice(0, 40 * KiB), slice(MiB, MiB + 40 * KiB), slice(SIZE - 2 * SECTOR, SIZE)]
    for place in places:
        written[place] = random.Random(2).randbytes(place.stop - place.start)

    def operation() -> None:
        insist = Insistent(machine)
        image = machine.open("disk", format, writable=True)
        insist(lambda: image.write(0, written[places[0]]))
        insist(image.flush)
        insist(lambda: set_size(image, size, machine.context), again=False)
        for place in places[1:]:
            insist(lambda: image.write(place.start, written[place]))  # noqa: B023
        insist(image.flush)
        insist.close(image)

    for _ in faults(machine, operation, samples=100):
        with machine.open("disk", format) as image:
            assert image.size in (SIZE, size)
            assert image.read(0, SIZE) == written


@over("format,options", layouts())
def test_new_blocks_are_tried_again(format: str, options: dict[str, Any]) -> None:
    """Every single write that makes new blocks part of the image."""
    for _ in new_blocks(Machine(), format, options):
        pass


def new_blocks(machine: Machine, format: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Write to places where there is nothing while that fails once; stops at each image that this leaves."""
    machine.create("disk", format, 8 * MiB, options)
    places = [at * MiB for at in (0, 3, 4, 7)]

    def operation() -> None:
        insist = Insistent(machine)
        image = machine.open("disk", format, writable=True)
        for at in places:
            insist(lambda: image.write(at, b"data" * 1024))  # noqa: B023
            if at > 3 * MiB:
                insist(image.flush)
        insist.close(image)

    for _ in faults(machine, operation, samples=200):
        with machine.open("disk", format) as image:
            for at in places:
                assert image.read(at, 4096) == b"data" * 1024
        yield


def resized(format: str, options: dict[str, Any], size: int) -> None:
    machine = Machine()
    disk = made(machine, format, options)
    name = named(machine, format)
    for manner, _, _ in faults(machine, lambda: resize(name, size, shrink=True, context=machine.context)):
        sound(machine, format, manner)
        with machine.open("disk", format) as image:
            assert image.size in (size, len(disk))
            common = min(image.size, len(disk))
            assert image.read(0, common) == disk[:common]
            if not traits_of(format).noise:
                assert not any(image.read(common, min(image.size - common, MiB)))
        if size <= LARGER:
            examine(machine, format)


@over("format,options", layouts("resize"))
def test_growing(format: str, options: dict[str, Any]) -> None:
    resized(format, options, largest(format, {}))


@over("format,options", layouts("resize"))
def test_growing_a_little(format: str, options: dict[str, Any]) -> None:
    resized(format, options, LARGER)


@over("format,options", layouts("shrink"))
def test_shrinking(format: str, options: dict[str, Any]) -> None:
    resized(format, options, SIZE // 2 // SECTOR * SECTOR)


@over("format,options", layouts())
def test_convert_into_an_image(format: str, options: dict[str, Any]) -> None:
    machine = Machine()
    values = values_of(made(machine, format, options))
    source = random.Random(3).randbytes(MiB) + bytes(MiB // 2) + random.Random(4).randbytes(SIZE - MiB - MiB // 2)
    add(values, 0, source)
    machine.put("source", source)
    file = {"file.driver": "memory", "file.filename": "memory:disk"}
    options_of_it = {"driver": format, **machine.spec("disk", format), **file}
    target = ",".join(f"{name}={value}" for name, value in options_of_it.items() if name != "file")

    def operation() -> None:
        convert(
            ["memory:source"],
            target,
            format="raw",
            existing=True,
            output_format=format,
            target_image_opts=True,
            context=machine.context,
        )

    for manner, _, _ in faults(machine, operation):
        sound(machine, format, manner)
        holds(examine(machine, format), values)


@over("format,options", layouts())
def test_commit(format: str, options: dict[str, Any]) -> None:
    """Into a smaller image of the format, from an overlay of the same where it has those, else from a qcow2 one."""
    machine = Machine()
    base = made(machine, format, options, "base")
    overlay = format if "backing" in FORMATS[format].capabilities and "subformat" not in options else OTHER
    larger = "resize" in FORMATS[format].capabilities
    backing = machine.backing("base", format)
    machine.create("disk", overlay, LARGER if larger else SIZE, options if overlay == format else {}, backing=backing)
    spec = {"driver": overlay, **machine.spec("disk", overlay)}
    spec["backing"] = {"driver": format, **machine.spec("base", format)}
    with open_image(spec, context=machine.context, writable=True) as image:
        for at, data, _ in steps(bytes(image.size)):
            put(image, at, data)
    with open_image(spec, context=machine.context) as image:
        disk = image.read(0, image.size)
    values = values_of(base)
    add(values, 0, disk)
    name = "json:" + json.dumps(spec)
    for _ in faults(machine, lambda: commit(name, context=machine.context)):
        with open_image(spec, context=machine.context) as image:
            assert image.read(0, image.size) == disk
        if not traits_of(format).noise:
            holds(examine(machine, format, "base"), values)
