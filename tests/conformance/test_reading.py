"""What a format that is only read keeps: its images are made by encoders (tests/encoders)."""

from __future__ import annotations

import random

import diskmill
import pytest
from diskmill.errors import DiskmillError, UnsupportedError
from diskmill.opening.graph import open_image
from diskmill.opening.known import recognise
from diskmill.sizes import KiB, MiB
from formats import ENCODERS, FORMATS, Machine, formats, fragments, merged, pattern, refused

READ_ONLY = [name for name in FORMATS if name in ENCODERS]
VARIANTS = [(format, variant) for format in READ_ONLY for variant in ENCODERS[format]]
SIZE = 6 * MiB + 512


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


def test_every_format_that_is_only_read_has_an_encoder() -> None:
    lacking = [name for name, driver in FORMATS.items() if "create" not in driver.capabilities]
    assert sorted(lacking) == sorted(READ_ONLY)


@pytest.mark.parametrize(("format", "variant"), VARIANTS)
def test_it_reads_as_the_disk_that_was_encoded(format: str, variant: str) -> None:
    machine = Machine()
    machine.fill("disk", format, DISK, variant)
    chance = random.Random(variant)
    with machine.open("disk", format) as image:
        assert len(DISK) <= image.size < len(DISK) + 4 * MiB
        data = image.read(0, image.size)
        assert data[: len(DISK)] == DISK
        assert not any(data[len(DISK) :])
        for _ in range(60):
            offset = chance.randrange(image.size)
            length = min(chance.choice((1, 511, 512, 4096, 70000, 700000)), image.size - offset)
            assert image.read(offset, length) == data[offset : offset + length]
        for at in range(image.size - 65536, 0, -MiB):  # backwards, which suits no stream
            assert image.read(at, 512) == data[at : at + 512]


@pytest.mark.parametrize(("format", "variant"), VARIANTS)
def test_extents_cover_the_disk_in_order(format: str, variant: str) -> None:
    machine = Machine()
    machine.fill("disk", format, DISK, variant)
    chance = random.Random(1)
    with machine.open("disk", format) as image:
        ranges = [(0, image.size)]
        ranges += [(at, chance.randrange(1, image.size - at + 1)) for at in (1, 12345, 3 * MiB, image.size - 1)]
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


@pytest.mark.parametrize(("format", "variant"), VARIANTS)
@pytest.mark.parametrize(("target", "threads"), [("raw", 1), ("raw", 4), ("qcow2", 4)])
def test_it_is_converted(format: str, variant: str, target: str, threads: int) -> None:
    machine = Machine()
    machine.fill("disk", format, DISK, variant)
    diskmill.convert(
        ["memory:disk"],
        "memory:out",
        format=format,
        output_format=target,
        threads=threads,
        context=machine.context,
    )
    with machine.open("out", target) as image:
        assert image.read(0, len(DISK)) == DISK
        assert not any(image.read(len(DISK), image.size - len(DISK)))
    names = ("memory:disk", "memory:out")
    assert diskmill.compare(*names, format_a=format, format_b=target, context=machine.context).identical


@pytest.mark.parametrize(("format", "variant"), VARIANTS)
def test_it_is_clean_and_described(format: str, variant: str) -> None:
    machine = Machine()
    machine.fill("disk", format, DISK, variant)
    machine.check("disk", format)
    told = diskmill.info("memory:disk", format=format, context=machine.context)
    assert (told.format, told.cluster_size) == (format, None)
    entries = list(diskmill.map("memory:disk", format=format, context=machine.context))
    assert sum(entry.length for entry in entries) == told.virtual_size


@pytest.mark.parametrize("format", READ_ONLY)
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


@pytest.mark.parametrize(("format", "variant"), VARIANTS)
def test_it_is_taken_for_what_it_is(format: str, variant: str) -> None:
    machine = Machine()
    guest = Machine()
    name = f"disk.{format}"
    for other in ["raw", *formats("create")]:
        guest.create("guest", other, MiB)
        header = bytes(guest.files["guest"].read(0, 4096))
        machine.fill(name, format, header + DISK[4096 : 128 * KiB], variant)
        with open_image(f"memory:{name}", context=machine.context, shallow=True) as image:
            assert image.driver.name == format
        assert recognise(bytes(machine.files[name].read(0, 4096)), name) == format
        assert not machine.warnings
