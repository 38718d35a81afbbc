"""One write that fails, and disks that get full, for every format that can be written.

The command ends with one line. Whatever the write was part of, the image then opens, checks, reads and takes writes;
each sector of its disk holds what was there before or what was written there since, and what was flushed is there.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from diskmill.commands.commit import commit
from diskmill.commands.convert import convert
from diskmill.commands.resize import resize, set_size
from diskmill.contract.node import Image
from diskmill.contract.results import CheckResult
from diskmill.errors import DiskmillError
from diskmill.opening.graph import open_image
from diskmill.sizes import SECTOR, KiB, MiB
from formats import FORMATS, NOISE, Machine, formats
from tools import diskmill, qemu_img

LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "vdi": [{"cluster_size": 16 * KiB}, {}, {"static": True}],
    "vpc": [{"force_size": True}, {"force_size": True, "subformat": "fixed"}],
    "vhdx": [{"block_size": MiB}],
    "parallels": [{"cluster_size": 16 * KiB}],
    "qed": [{"cluster_size": 16 * KiB, "table_size": 2}],
    "qcow2": [{"cluster_size": 4 * KiB}, {"cluster_size": 16 * KiB, "extended_l2": True}],
    "vmdk": [
        *({}, {"zeroed_grain": True}, {"subformat": "monolithicFlat"}),
        *({"subformat": "twoGbMaxExtentFlat"}, {"subformat": "twoGbMaxExtentSparse"}),
    ],
    "luks": [{}, {"version": "2", "pbkdf": "pbkdf2"}],
}
"""What images of a format are made with, so that all its ways to write are taken; for the others, what is usual."""
SIZE = 2 * MiB + 5 * SECTOR
LARGER = 3 * MiB
LARGEST = 5 << 30
"""So much that tables must move."""
CHECKED_BY_QEMU = ("qcow2", "qed", "vdi", "vhdx", "vmdk", "parallels")
Values = dict[int, list[bytes]]
"""Sector → what it may hold; what was written last stands last."""


def sound(machine: Machine, format: str, manner: str) -> None:
    """The image is marked as in use, if at all, only where that was the write that failed."""
    with machine.open("disk", format) as image:
        assert manner == "broken" or not image.dirty


def layouts(*capabilities: str) -> list[Any]:
    """(format, options) as parameters, for the formats that have *capabilities*."""
    return [
        pytest.param(format, options, id="-".join([format, *map(str, options.values())]))
        for format in formats("create", "write", *capabilities)
        for options in LAYOUTS.get(format, [{}])
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
    driver = machine.context.registry.protocol("memory")
    before = {name: content.copy() for name, content in machine.files.items()}

    def attempt(manner: str, point: int) -> int:
        machine.files.clear()
        machine.files.update({name: content.copy() for name, content in before.items()})
        setattr(driver, manner, point)
        driver.failures = 0
        try:
            operation()
            return getattr(driver, manner)
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


UNCLEAN = ("not closed properly", "footer", "headers", "redundant copy differ")
"""Corruptions that a failure may leave: each is mended, or does no harm."""


def examine(machine: Machine, format: str, name: str = "disk") -> bytes:
    """What the disk holds, before and after a repair; then the image takes writes."""
    found = check(machine, name, format)
    wrong = [one.text for one in found.findings if one.kind == "corruption" and not any(w in one.text for w in UNCLEAN)]
    assert not wrong and not found.check_errors
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


def agreed(machine: Machine, format: str, options: dict[str, Any], folder: Path) -> None:
    """qemu-img finds at most leaks, and reads what we read."""
    if format not in CHECKED_BY_QEMU or (format == "vdi" and "cluster_size" in options):  # QEMU has blocks of 1 MiB
        return
    for name, content in machine.files.items():
        for path in (folder / name, folder / f"memory:{name}"):  # a descriptor names its extents so
            path.write_bytes(bytes(content))
    done = qemu_img("check", "-f", format, folder / "disk", check=False)
    assert done.returncode in (0, 3), done.stdout + done.stderr
    with machine.open("disk", format) as image:
        disk = image.read(0, image.size)
    qemu_img("convert", "-f", format, "-O", "raw", folder / "disk", folder / "read")
    assert (folder / "read").read_bytes() == disk


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


@pytest.mark.parametrize(("format", "options"), layouts())
def test_writes(format: str, options: dict[str, Any], tmp_path: Path) -> None:
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
            agreed(machine, format, options, tmp_path)
        holds(examine(machine, format), values)


class Insistent:
    """Does what fails once more, when there is room again. To be asked at most once for both."""

    def __init__(self, machine: Machine) -> None:
        self.driver = machine.context.registry.protocol("memory")
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


@pytest.mark.parametrize(("format", "options"), layouts())
def test_what_is_tried_again_works(format: str, options: dict[str, Any]) -> None:
    """Once there is room again, and after a failure that went by: nothing is lost of what was written then."""
    machine = Machine()
    disk = made(machine, format, options)
    size = LARGER if format in NOISE or options.get("subformat") == "fixed" else LARGEST
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


def test_refcounts_that_leave_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A qcow2 image of many refcount blocks writes some back while it counts in others: what fails then is not lost."""
    monkeypatch.setattr("diskmill_qcow2.refcounts.CACHE_BYTES", 0)
    options = {"cluster_size": 512, "refcount_bits": 64}
    test_writes("qcow2", options, tmp_path)
    machine = Machine()
    machine.create("disk", "qcow2", SIZE, options)
    data = random.Random(3).randbytes(SIZE)

    def operation() -> None:
        insist = Insistent(machine)
        image = machine.open("disk", "qcow2", writable=True)
        insist(lambda: image.write(0, data))
        insist(image.flush)
        insist.close(image)

    for _ in faults(machine, operation, samples=40):
        found = check(machine, "disk", "qcow2")
        assert not found.corruptions and not found.check_errors, found.findings
        with machine.open("disk", "qcow2") as image:
            assert image.read(0, SIZE) == data


@pytest.mark.parametrize(("format", "options"), layouts("resize"))
def test_life_goes_on_after_a_failed_resize(format: str, options: dict[str, Any]) -> None:
    """The disk has its old size, or the new one, for who goes on to write as for who opens the image then."""
    machine = Machine()
    machine.create("disk", format, SIZE, options)
    size = LARGER if format in NOISE or options.get("subformat") == "fixed" else LARGEST
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


@pytest.mark.parametrize(("format", "options"), layouts())
def test_new_blocks_are_tried_again(format: str, options: dict[str, Any]) -> None:
    """Every single write that makes new blocks part of the image."""
    machine = Machine()
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
        if format == "vpc" and "subformat" not in options:
            full_bitmaps(bytes(machine.files["disk"]))


def full_bitmaps(data: bytes) -> None:
    """Of a dynamic VHD: fail unless all sectors of blocks that are there count. Not all readers look; Hyper-V does."""
    (header,) = struct.unpack_from(">Q", data, 16)
    table, entries = struct.unpack_from(">QxxxxI", data, header + 16)
    found = [entry for entry in struct.unpack_from(f">{entries}I", data, table) if entry != 0xFFFFFFFF]
    assert found and all(data[entry * 512 : entry * 512 + 512] == b"\xff" * 512 for entry in found)


def resized(format: str, options: dict[str, Any], size: int) -> None:
    machine = Machine()
    disk = made(machine, format, options)
    name = spec_of(format)
    for manner, _, _ in faults(machine, lambda: resize(name, size, shrink=True, context=machine.context)):
        sound(machine, format, manner)
        with machine.open("disk", format) as image:
            assert image.size in (size, len(disk))
            common = min(image.size, len(disk))
            assert image.read(0, common) == disk[:common]
            if format not in NOISE:
                assert not any(image.read(common, min(image.size - common, MiB)))
        if size < LARGEST:
            examine(machine, format)


@pytest.mark.parametrize(("format", "options"), layouts("resize"))
def test_growing(format: str, options: dict[str, Any]) -> None:
    resized(format, options, LARGER if format in NOISE else LARGEST)


@pytest.mark.parametrize(("format", "options"), layouts("resize"))
def test_growing_a_little(format: str, options: dict[str, Any]) -> None:
    resized(format, options, LARGER)


@pytest.mark.parametrize(("format", "options"), layouts("shrink"))
def test_shrinking(format: str, options: dict[str, Any]) -> None:
    resized(format, options, SIZE // 2 // SECTOR * SECTOR)


def spec_of(format: str) -> str:
    """The image "disk", as commands take it."""
    spec: dict[str, Any] = {"driver": format, "file": {"driver": "memory", "filename": "memory:disk"}}
    if format in NOISE:
        spec["key-secret"] = "key"
    return "json:" + json.dumps(spec)


@pytest.mark.parametrize(("format", "options"), layouts())
def test_convert_into_an_image(format: str, options: dict[str, Any]) -> None:
    machine = Machine()
    values = values_of(made(machine, format, options))
    source = random.Random(3).randbytes(MiB) + bytes(MiB // 2) + random.Random(4).randbytes(SIZE - MiB - MiB // 2)
    add(values, 0, source)
    machine.put("source", source)
    target = f"driver={format},file.driver=memory,file.filename=memory:disk" + ",key-secret=key" * (format in NOISE)

    def operation() -> None:
        convert(
            ["memory:source"],
            target,
            format="raw",
            output_format=format,
            existing=True,
            target_image_opts=True,
            context=machine.context,
        )

    for manner, _, _ in faults(machine, operation):
        sound(machine, format, manner)
        holds(examine(machine, format), values)


@pytest.mark.parametrize(("format", "options"), layouts())
def test_commit(format: str, options: dict[str, Any]) -> None:
    """Into a smaller image of the format, from an overlay of the same where it has those, else from a qcow2 one."""
    machine = Machine()
    base = made(machine, format, options, "base")
    over = format if "backing" in FORMATS[format].capabilities and "subformat" not in options else "qcow2"
    larger = "resize" in FORMATS[format].capabilities
    backing = machine.backing("base", format)
    machine.create("disk", over, LARGER if larger else SIZE, options if over == format else {}, backing=backing)
    spec: dict[str, Any] = {"driver": over, "file": {"driver": "memory", "filename": "memory:disk"}}
    spec["backing"] = {"driver": format, "file": {"driver": "memory", "filename": "memory:base"}}
    if format in NOISE:
        spec["backing"]["key-secret"] = "key"
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
        if format not in NOISE:
            holds(examine(machine, format, "base"), values)


@pytest.mark.parametrize("format", [name for name in CHECKED_BY_QEMU if name in formats("create", "write")])
def test_a_file_that_may_not_grow(format: str, tmp_path: Path) -> None:
    """The programs, on a file: qemu-img finds nothing wrong with what a conversion leaves that ran out of space."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(random.Random(5).randbytes(12 * MiB))
    diskmill("create", "-f", format, target, "16M")
    done = diskmill("convert", "-n", "-f", "raw", "-O", format, source, target, check=False, file_size=8 * MiB)
    warning, error = done.stderr.splitlines()
    assert done.returncode == 1
    assert f"'{target}' is incomplete" in warning
    assert str(target) in error and "File too large" in error
    checked = qemu_img("check", "-f", format, target, check=False)
    assert checked.returncode in (0, 3), checked.stdout + checked.stderr
    diskmill("convert", "-n", "-f", "raw", "-O", format, source, target)
    qemu_img("compare", "-f", "raw", "-F", format, source, target)


EVENTS = ("pwritev", "pwritev_done", "write_aio", "flush_to_disk")
"""What happens in every format, as blkdebug calls it."""
TABLE_EVENTS = {
    "qcow2": (
        *("l1_update", "l2_update", "l2_load", "l2_alloc_write", "refblock_load", "refblock_alloc"),
        *("refblock_update_part", "refblock_alloc_write", "refblock_alloc_hookup", "cow_write"),
    ),
    "qed": ("cow_write", "l1_update", "l2_update", "l2_alloc_write"),
    "qcow": ("cow_write", "l1_update", "l2_update"),
    "vmdk": ("cow_write", "l2_update"),
    "vdi": ("l2_update",),
    "vpc": ("l2_update",),
    "parallels": ("l2_update",),
}


@pytest.mark.parametrize(
    ("format", "event"),
    [
        pytest.param(format, event, id=f"{format}-{event}")
        for format in formats("create", "write")
        for event in (*EVENTS, *TABLE_EVENTS.get(format, ()))
    ],
)
@pytest.mark.parametrize("once", [True, False], ids=["once", "from-then-on"])
def test_what_blkdebug_lets_fail_costs_nothing_else(format: str, event: str, once: bool) -> None:
    machine = Machine()
    options = LAYOUTS.get(format, [{}])[0]
    if format == "qcow2" and event != "cow_write":
        options = {"cluster_size": 512}  # tables so small that there is more than one of each
    if event in TABLE_EVENTS.get(format, ()) and format != "qcow2":
        machine.create("disk", format, SIZE, options)  # the tables that there are do for all the disk
        disk = bytes(SIZE)
    else:
        disk = made(machine, format, options)
    values = values_of(disk)
    rule = {"event": event, "once": once, "iotype": "flush" if event == "flush_to_disk" else "write"}
    if event.endswith("_load"):
        del rule["iotype"]

    def operation() -> None:
        with machine.open("disk", format, writable=True, over=debugged) as image:
            for at, data, flush in steps(disk):
                add(values, at, data)
                put(image, at, data)
                if flush:
                    image.flush()
                    values.update({sector: found[-1:] for sector, found in values.items()})

    def debugged(file: dict[str, Any]) -> dict[str, Any]:
        return {"driver": "blkdebug", "image": file, "inject-error": [rule]}

    with pytest.raises(DiskmillError, match="Input/output error"):
        operation()
    holds(examine(machine, format), values)
