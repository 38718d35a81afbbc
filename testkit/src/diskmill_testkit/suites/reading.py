"""What a format that is only read keeps: its images are made by encoders (tests/encoders)."""

from __future__ import annotations

import random

import diskmill
import pytest
from diskmill.errors import DiskmillError, UnsupportedError
from diskmill.opening.graph import open_image
from diskmill.opening.known_drivers import PACKAGES, recognise
from diskmill.sizes import KiB, MiB

from ..machine import FORMATS, Machine, fragments, kinds, merged, names, pattern, read_only, refused
from ..selection import Chosen, over

__all__ = [
    "test_a_format_that_is_only_read_has_an_encoder_or_samples",
    "test_extents_cover_the_disk_in_order",
    "test_it_is_clean_and_described",
    "test_it_is_converted",
    "test_it_is_taken_for_what_it_is",
    "test_it_reads_as_the_disk_that_was_encoded",
    "test_writing_and_creating_are_refused",
]
"""What a test module takes."""

SIZE = 6 * MiB + 512
OTHER = "qcow2" if "qcow2" in FORMATS else "qcow"
"""A format with tables of its own to convert into; the kit brings the simpler one along."""


def disk(seed: int = 21) -> bytes:
    """Zeros, text and noise in stretches that begin and end anywhere."""
    data = bytearray(SIZE)
    for offset, part in fragments(seed, SIZE, 256 * KiB):
        data[offset : offset + len(part)] = part
    data[MiB + 1000 : MiB + 900000] = (b"the same again; %d " % seed * 60000)[:899000]
    data[:4] = b"boot"
    data[-512:] = pattern(seed, 512)
    return bytes(data)


DISK = disk()


def only_read(chosen: Chosen) -> list[str]:
    """A case for each chosen format that cannot be created."""
    return [name for name, driver in FORMATS.items() if "create" not in driver.capabilities and name in chosen]


@over("format", only_read)
def test_a_format_that_is_only_read_has_an_encoder_or_samples(format: str) -> None:
    assert format in read_only(), f"nothing makes images of it: see diskmill_testkit.traits, describe({format!r}, …)"


@over("format,kind", kinds)
def test_it_reads_as_the_disk_that_was_encoded(format: str, kind: str) -> None:
    machine = Machine()
    disk = machine.fill("disk", format, DISK, kind)
    chance = random.Random(kind)
    with machine.open("disk", format) as image:
        assert len(disk) <= image.size < len(disk) + 4 * MiB
        data = image.read(0, image.size)
        assert data[: len(disk)] == disk
        assert not any(data[len(disk) :])
        for _ in range(60):
            offset = chance.randrange(image.size)
            length = min(chance.choice((1, 511, 512, 4096, 70000, 700000)), image.size - offset)
            assert image.read(offset, length) == data[offset : offset + length]
        for at in range(image.size - 65536, 0, -MiB):  # backwards, which suits no stream
            assert image.read(at, 512) == data[at : at + 512]


@over("format,kind", kinds)
def test_extents_cover_the_disk_in_order(format: str, kind: str) -> None:
    machine = Machine()
    machine.fill("disk", format, DISK, kind)
    chance = random.Random(1)
    with machine.open("disk", format) as image:
        ranges = [(0, image.size)]
        ranges += [(at, chance.randrange(1, image.size - at + 1)) for at in (1, 12345, image.size // 2, image.size - 1)]
        for start, length in ranges:
            at = start
            found = list(image.extents(start, length))
            for extent in found:
                assert extent.start == at
                assert extent.length > 0
                if extent.unit:
                    assert extent.skip + extent.length <= extent.unit <= 2 * MiB
                at = extent.end
            assert at == start + length
            assert found == merged(found)


@over("format,kind", kinds)
@pytest.mark.parametrize(("target", "threads"), [("raw", 1), ("raw", 4), (OTHER, 4)])
def test_it_is_converted(format: str, kind: str, target: str, threads: int) -> None:
    machine = Machine()
    disk = machine.fill("disk", format, DISK, kind)
    diskmill.convert(
        ["memory:disk"],
        "memory:out",
        format=format,
        output_format=target,
        threads=threads,
        context=machine.context,
    )
    with machine.open("out", target) as image:
        assert image.read(0, len(disk)) == disk
        assert not any(image.read(len(disk), image.size - len(disk)))
    names = ("memory:disk", "memory:out")
    assert diskmill.compare(*names, format_a=format, format_b=target, context=machine.context).identical


@over("format,kind", kinds)
def test_it_is_clean_and_described(format: str, kind: str) -> None:
    machine = Machine()
    machine.fill("disk", format, DISK, kind)
    machine.check("disk", format)
    told = diskmill.info("memory:disk", format=format, context=machine.context)
    with machine.open("disk", format) as image:
        assert (told.format, told.cluster_size) == (format, image.unit if image.unit > 1 else None)
    entries = list(diskmill.map("memory:disk", format=format, context=machine.context))
    assert sum(entry.length for entry in entries) == told.virtual_size


@over("format", only_read)
def test_writing_and_creating_are_refused(format: str) -> None:
    machine = Machine()
    machine.fill("disk", format, DISK)
    before = bytes(machine.files["disk"])
    with pytest.raises(DiskmillError) as caught:
        machine.open("disk", format, writable=True)
    refused(caught.value, "read")
    for action in (
        lambda: diskmill.create("memory:new", 1 * MiB, format=format, context=machine.context),
        lambda: diskmill.convert(["memory:disk"], "memory:new", output_format=format, context=machine.context),
        lambda: diskmill.resize("memory:disk", 64 * MiB, format=format, context=machine.context),
        lambda: diskmill.check("memory:disk", format=format, repair="all", context=machine.context),
    ):
        with pytest.raises(UnsupportedError) as told:
            action()
        refused(told.value, format, "read")
    assert "new" not in machine.files
    assert bytes(machine.files["disk"]) == before


@over("format,kind", kinds)
def test_it_is_taken_for_what_it_is(format: str, kind: str) -> None:
    machine = Machine()
    guest = Machine()
    name = f"disk.{format}"
    for other in ["raw", *names("create")]:
        guest.create("guest", other, MiB)
        header = bytes(guest.files["guest"].read(0, 4096))
        machine.fill(name, format, header + DISK[4096 : 128 * KiB], kind)
        with open_image(f"memory:{name}", context=machine.context, shallow=True) as image:
            assert image.driver.name == format
        known = format if format in PACKAGES else None  # the core need not know of a driver to find its images
        assert recognise(bytes(machine.files[name].read(0, 4096)), name) == known
        assert not machine.warnings
