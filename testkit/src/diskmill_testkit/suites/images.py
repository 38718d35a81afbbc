"""What every format driver that can make images keeps, whatever its format.

Each test runs over all that are installed and declare the capabilities that it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from diskmill.commands.resize import set_size
from diskmill.contract.extents import Extent, Kind
from diskmill.contract.node import Image
from diskmill.engine.walk import walk
from diskmill.errors import DiskmillError, UnsupportedError, UsageError
from diskmill.sizes import SECTOR, GiB, KiB, MiB, round_up
from hypothesis import given, settings
from hypothesis import strategies as st

from ..machine import FORMATS, Machine, formats, fragments, merged, pattern, refused, subformats, unit_of, variants
from ..patience import PATIENT
from ..selection import Chosen, over

__all__ = [
    "test_a_backing_image_of_another_format",
    "test_a_chain_reads_from_the_top",
    "test_a_disk_grows_with_zeros",
    "test_a_disk_grows_with_zeros_over_a_longer_backing_image",
    "test_a_disk_that_is_open_for_reading_cannot_be_written",
    "test_a_grown_disk_takes_random_writes",
    "test_a_huge_disk_takes_what_is_in_it",
    "test_an_abandoned_output_leaves_nothing",
    "test_every_choice_of_every_option",
    "test_every_size",
    "test_nothing_is_written_beyond_the_end",
    "test_random_writes",
    "test_random_writes_over_a_backing_image",
    "test_the_map_agrees_with_what_is_read",
    "test_the_map_of_a_part_is_that_part_of_the_map",
    "test_what_a_smaller_disk_lost_does_not_come_back",
    "test_zeros_hide_the_backing_image",
]
"""What a test module takes."""

CYLINDER = 16 * 255 * SECTOR
"""Formats that keep the disk's geometry round its size up to whole cylinders; this is the largest."""

WRITABLE = formats("create", "write")


def reads_as(image: Image, expected: bytes | bytearray) -> None:
    """Fail unless the guest disk begins with *expected* and goes on with zeros."""
    data = image.read(0, image.size)
    assert len(data) >= len(expected)
    if data[: len(expected)] != expected:
        at = next(at for at, pair in enumerate(zip(data, expected, strict=False)) if pair[0] != pair[1])
        pytest.fail(f"differs at byte {at}: {data[at : at + 8].hex()} for {bytes(expected[at : at + 8]).hex()}")
    assert not any(data[len(expected) :])


def covers(extents: list[Extent], start: int, end: int) -> None:
    """Fail unless *extents* are the range, in order and without gaps."""
    at = start
    for extent in extents:
        assert extent.start == at
        assert extent.length > 0
        at = extent.end
    assert at == end


# -- sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [0, 1, 2, 33])
@pytest.mark.parametrize("more", [-512, -1, 0, 1, 512, 700])
@over("format", WRITABLE)
def test_every_size(format: str, units: int, more: int) -> None:
    machine = Machine()
    asked = units * unit_of(machine, format) + more
    if asked < 0:
        return  # there are no such disks
    size = round_up(asked, SECTOR)
    try:
        machine.create("disk", format, asked)
    except (UsageError, UnsupportedError) as error:
        assert asked == 0  # the one size that a format may have no way to say
        refused(error, "size", "bytes")
        return
    with machine.open("disk", format, writable=True) as image:
        assert size <= image.size < size + CYLINDER
        reads_as(image, b"")
        if size:
            image.write(0, b"first")
            image.write(size - 4, b"last")
    with machine.open("disk", format) as image:
        expected = bytearray(size)
        if size:
            expected[:5] = b"first"
            expected[-4:] = b"last"
        reads_as(image, expected)
    machine.check("disk", format)


@over("format", formats("create", "write", blank=True))
def test_a_huge_disk_takes_what_is_in_it(format: str) -> None:
    machine = Machine()
    size = 100 * GiB
    machine.create("disk", format, size)
    with machine.open("disk", format, writable=True) as image:
        assert image.size >= size
        for at in (0, 10 * GiB + 12345, size - 5):
            image.write(at, b"here!")
    with machine.open("disk", format) as image:
        for at in (0, 10 * GiB + 12345, size - 5):
            assert image.read(at, 5) == b"here!"
        assert not any(image.read(50 * GiB, MiB))
        found = list(walk(image, 0, image.size))
        covers(found, 0, image.size)
        if image.blank:
            assert sum(extent.length for extent in found if not extent.reads_as_zeros) <= 16 * MiB
    machine.check("disk", format)
    assert sum(len(file.pages) for file in machine.files.values()) * 4096 <= 64 * MiB


# -- writing --------------------------------------------------------------------------------------------


def places(draw: st.DrawFn, size: int, unit: int) -> tuple[int, int]:
    """A range of the disk: (offset, length), often at or near the borders of units."""
    border = st.builds(lambda index, off: index * unit + off, st.integers(0, size // unit), st.integers(-2, 2))
    offset = max(0, min(draw(st.one_of(st.integers(0, size), border)), size))
    length = draw(st.one_of(st.integers(0, unit // 4), st.sampled_from([unit, 2 * unit, unit - 1, unit + 1, 512])))
    return offset, min(length, size - offset)


@st.composite
def operations(draw: st.DrawFn, size: int, unit: int) -> list[tuple[str, int, int]]:
    """Things to do to a disk of *size* bytes."""
    kinds = ["write", "write", "write", "zero", "keep", "discard", "flush", "reopen", "read"]
    return [(draw(st.sampled_from(kinds)), *places(draw, size, unit)) for _ in range(draw(st.integers(1, 12)))]


def play(machine: Machine, format: str, steps: list[tuple[str, int, int]], model: bytearray) -> None:
    """Do *steps* to the image "disk" and to *model*, a plain array; fail where they part."""
    image = machine.open("disk", format, writable=True)
    try:
        for number, (what, offset, length) in enumerate(steps):
            place = slice(offset, offset + length)
            if what == "write":
                data = pattern(number, length)
                image.write(offset, data)
                model[place] = data
            elif what in ("zero", "keep"):
                image.zero(offset, length, unmap=what == "zero")
                model[place] = bytes(length)
            elif what == "discard":
                image.discard(offset, length)
                model[place] = image.read(offset, length)  # anything, but it stays what it is
            elif what == "flush":
                image.flush()
            elif what == "reopen":
                image.close()
                image = machine.open("disk", format, writable=True)
            else:
                assert image.read(offset, length) == model[place]
        reads_as(image, model)
    finally:
        image.close()
    with machine.open("disk", format) as image:
        reads_as(image, model)
        covers(list(image.extents(0, image.size)), 0, image.size)
    machine.check("disk", format)


@over("format", WRITABLE)
@settings(PATIENT, max_examples=40)
@given(data=st.data())
def test_random_writes(format: str, data: st.DataObject) -> None:
    machine = Machine()
    unit = min(unit_of(machine, format), 256 * KiB)
    size = 6 * unit + 1536
    machine.create("disk", format, size)
    play(machine, format, data.draw(operations(size, unit)), bytearray(size))


@over("format", WRITABLE)
def test_a_disk_that_is_open_for_reading_cannot_be_written(format: str) -> None:
    machine = Machine()
    machine.create("disk", format, MiB)
    before = bytes(machine.files["disk"])
    with machine.open("disk", format) as image:
        changes: list[Callable[[], object]] = [
            lambda: image.write(0, b"x"),
            lambda: image.zero(0, MiB),
            lambda: image.discard(0, MiB),
        ]
        for change in changes:
            with pytest.raises(DiskmillError):
                change()
        reads_as(image, b"")
    assert bytes(machine.files["disk"]) == before


@over("format", WRITABLE)
def test_nothing_is_written_beyond_the_end(format: str) -> None:
    machine = Machine()
    machine.create("disk", format, MiB)
    with machine.open("disk", format, writable=True) as image:
        for offset, length in ((image.size, 1), (image.size - 1, 2), (-1, 1)):
            with pytest.raises(UsageError):
                image.write(offset, bytes(length))
        assert image.read(image.size - 1, 3) == bytes(3)


@over("format", WRITABLE)
def test_an_abandoned_output_leaves_nothing(format: str) -> None:
    from diskmill.opening.creation import create_image

    machine = Machine()
    image = create_image("memory:disk", format, MiB, machine.options(format), context=machine.context)
    image.write(0, b"half")
    image.abandon()
    assert not machine.files


# -- mapping --------------------------------------------------------------------------------------------


def fragmented(machine: Machine, format: str) -> bytearray:
    """The image "disk", written here and there; what it holds."""
    unit = min(unit_of(machine, format), 256 * KiB)
    size = 12 * unit + 512
    machine.create("disk", format, size)
    model = bytearray(size)
    with machine.open("disk", format, writable=True) as image:
        for offset, data in fragments(3, size, unit):
            image.write(offset, data)
            model[offset : offset + len(data)] = data
        image.zero(unit, 2 * unit)
        model[unit : 3 * unit] = bytes(2 * unit)
    return model


@over("format", WRITABLE)
def test_the_map_agrees_with_what_is_read(format: str) -> None:
    machine = Machine()
    model = fragmented(machine, format)
    with machine.open("disk", format) as image:
        found = list(machine.context.registry.call(image.driver, "map", image=image, offset=0, length=image.size))
        covers(found, 0, image.size)
        assert any(extent.kind is not Kind.ZERO for extent in found)
        for extent in walk(image, 0, len(model)):
            if extent.reads_as_zeros:
                assert not any(model[extent.start : extent.end])
            elif extent.kind is Kind.DATA:
                assert extent.node is not None
                assert extent.node.read(extent.offset, extent.length) == model[extent.start : extent.end]


@over("format", WRITABLE)
def test_the_map_of_a_part_is_that_part_of_the_map(format: str) -> None:
    machine = Machine()
    fragmented(machine, format)
    with machine.open("disk", format) as image:
        whole = list(image.extents(0, image.size))

        @settings(PATIENT, max_examples=100)
        @given(st.data())
        def parts(data: st.DataObject) -> None:
            offset = data.draw(st.integers(0, image.size - 1))
            length = data.draw(st.integers(1, image.size - offset))
            end = offset + length
            inside = [extent.clip(offset, end) for extent in whole if extent.start < end and extent.end > offset]
            found = list(image.extents(offset, length))
            covers(found, offset, end)
            assert merged(found) == merged(inside)

        parts()


# -- options --------------------------------------------------------------------------------------------


def choices(chosen: Chosen) -> list[tuple[str, str, Any]]:
    """A case for each value of each option."""
    return [
        (format, option.name, value)
        for format in formats("create")(chosen)
        for option, value in variants(FORMATS[format])
    ]


@over("format,name,value", choices)
def test_every_choice_of_every_option(format: str, name: str, value: Any) -> None:
    machine = Machine()
    given: dict[str, Any] = {name: value}
    if name.startswith("encrypt.") and name != "encrypt.format":
        given["encrypt.format"] = "luks"
    size = 3 * MiB + 512
    try:
        machine.create("disk", format, size, given)
    except (UsageError, UnsupportedError) as error:
        # A value that cannot be, or not without another option: the user hears which one is meant.
        refused(error, name, name.replace("_", " "), str(value))
        return
    with machine.open("disk", format) as image:
        assert size <= image.size < size + CYLINDER
        reads_as(image, b"")
    machine.check("disk", format)
    with machine.open("disk", format) as image:
        if "write" not in FORMATS[format].capabilities:
            return
    steps = [
        ("write", 5, 100000),
        ("write", 2 * MiB, 512),
        ("zero", 4096, 65536),
        ("reopen", 0, 0),
        ("write", 70000, 9),
    ]
    try:
        play(machine, format, steps, bytearray(size))
    except UnsupportedError as error:
        refused(error, "stream", "compress", str(value))  # a variant that is written once, from start to end


# -- backing --------------------------------------------------------------------------------------------


def overlay(machine: Machine, format: str, size: int, base: int) -> bytearray:
    """The image "disk" of *size* bytes on one of the same format with *base* bytes; what it holds."""
    content = pattern(99, base)
    machine.create("base", format, base)
    with machine.open("base", format, writable=True) as image:
        image.write(0, content)
    machine.create("disk", format, size, backing=machine.backing("base", format))
    return bytearray((content + bytes(size))[:size])


@pytest.mark.parametrize("length", ["shorter", "as long", "longer", "tiny"])
@over("format", formats("create", "write", "backing"))
@settings(PATIENT, max_examples=15)
@given(data=st.data())
def test_random_writes_over_a_backing_image(format: str, length: str, data: st.DataObject) -> None:
    machine = Machine()
    unit = min(unit_of(machine, format), 256 * KiB)
    size = 4 * unit + 1536
    base = {"shorter": 2 * unit + 1024, "as long": size, "longer": size + unit, "tiny": 512}[length]
    model = overlay(machine, format, size, base)
    with machine.open("disk", format) as image:
        reads_as(image, model)
    before = bytes(machine.files["base"])
    play(machine, format, data.draw(operations(size, unit)), model)
    assert bytes(machine.files["base"]) == before


@over("format", formats("create", "write", "backing"))
def test_a_chain_reads_from_the_top(format: str) -> None:
    machine = Machine()
    unit = min(unit_of(machine, format), 256 * KiB)
    size = 8 * unit
    below, model = None, bytearray(size)
    for depth in range(4):
        machine.create(f"disk{depth}", format, size, backing=below)
        with machine.open(f"disk{depth}", format, writable=True) as image:
            for offset, data in fragments(depth, size, unit)[:5]:
                image.write(offset, data)
                model[offset : offset + len(data)] = data
        below = machine.backing(f"disk{depth}", format)
    with machine.open("disk3", format) as image:
        reads_as(image, model)
        found = list(walk(image, 0, size))
        covers(found, 0, size)
        assert {extent.depth for extent in found} <= {0, 1, 2, 3}
        assert len({extent.depth for extent in found}) > 1


@over("format", formats("create", "write", "backing"))
def test_a_backing_image_of_another_format(format: str) -> None:
    machine = Machine()
    size = 2 * unit_of(machine, format)
    machine.put("base", pattern(5, size))
    try:
        machine.create("disk", format, size, backing=machine.backing("base", "raw"))
    except UsageError as error:
        refused(error, "backing")  # some formats can only stand on their own kind
        return
    with machine.open("disk", format) as image:
        reads_as(image, pattern(5, size))


@over("format", formats("create", "write", "backing"))
def test_zeros_hide_the_backing_image(format: str) -> None:
    machine = Machine()
    size = 4 * unit_of(machine, format)
    model = overlay(machine, format, size, size)
    with machine.open("disk", format, writable=True) as image:
        image.zero(100, size - 200)
    model[100 : size - 100] = bytes(size - 200)
    with machine.open("disk", format) as image:
        reads_as(image, model)


# -- sizes that change ----------------------------------------------------------------------------------


def resize(machine: Machine, format: str, size: int) -> None:
    with machine.open("disk", format, writable=True) as image:
        assert machine.context.registry.call(image.driver, "resize", image=image, size=size, preallocation="off")
        image.flush()
        assert image.size >= size


@over("format,options", subformats("create", "write", "resize"))
def test_a_disk_grows_with_zeros(format: str, options: dict[str, str]) -> None:
    machine = Machine()
    unit = min(unit_of(machine, format), 256 * KiB)
    size = 2 * unit + 512
    machine.create("disk", format, size, options)
    try:
        image = machine.open("disk", format, writable=True)
    except UnsupportedError as error:  # a layout that is written once
        refused(error, "cannot be changed")
        return
    with image:
        image.write(0, b"x" * size)
    model = bytearray(b"x" * size)
    for longer in (size + 512, 3 * unit, 3 * unit + 1024, 40 * unit, 3 * GiB):
        resize(machine, format, longer)
        with machine.open("disk", format) as image:
            assert image.size >= longer
            assert image.read(0, size) == model
            assert not any(image.read(size, min(longer - size, 40 * unit)))
        machine.check("disk", format)
    with machine.open("disk", format, writable=True) as image:
        image.write(3 * GiB - 512, b"y" * 512)
    with machine.open("disk", format) as image:
        assert image.read(3 * GiB - 513, 513) == b"\0" + b"y" * 512
        assert image.read(0, size) == model
    machine.check("disk", format)


@over("format", formats("create", "write", "backing", "resize"))
def test_a_disk_grows_with_zeros_over_a_longer_backing_image(format: str) -> None:
    machine = Machine()
    unit = min(unit_of(machine, format), 256 * KiB)
    model = overlay(machine, format, unit + 512, 3 * unit)
    with machine.open("disk", format, writable=True) as image:
        set_size(image, 4 * unit, machine.context)
    with machine.open("disk", format) as image:
        assert image.size >= 4 * unit
        reads_as(image, model)
    machine.check("disk", format)


@over("format", formats("create", "write", "resize", "shrink", blank=True))
def test_what_a_smaller_disk_lost_does_not_come_back(format: str) -> None:
    machine = Machine()
    unit = min(unit_of(machine, format), 256 * KiB)
    size = 6 * unit
    machine.create("disk", format, size)
    with machine.open("disk", format, writable=True) as image:
        image.write(0, b"x" * size)
    for smaller in (5 * unit + 512, 2 * unit + 1024, 512):
        resize(machine, format, smaller)
        with machine.open("disk", format) as image:
            assert image.size == smaller
            assert image.read(0, smaller) == b"x" * smaller
        machine.check("disk", format)
    resize(machine, format, size)
    with machine.open("disk", format) as image:
        reads_as(image, b"x" * 512)
    machine.check("disk", format)


@over("format", formats("create", "write", "resize", blank=True))
def test_a_grown_disk_takes_random_writes(format: str) -> None:
    machine = Machine()
    unit = min(unit_of(machine, format), 256 * KiB)
    machine.create("disk", format, unit)
    resize(machine, format, 9 * unit + 512)
    size = 9 * unit + 512
    steps = [("write", offset, len(data)) for offset, data in fragments(7, size, unit)]
    play(machine, format, steps, bytearray(size))
