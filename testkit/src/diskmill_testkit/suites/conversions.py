"""From every format into every other, and back to the bytes that it began with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diskmill
import pytest
from diskmill.contract.extents import Kind
from diskmill.errors import UnsupportedError, UsageError
from diskmill.sizes import KiB, MiB

from ..machine import FORMATS, Machine, fillable, formats, fragments, names, pattern, refused, variants
from ..selection import Cases, Chosen, over

__all__ = [
    "test_compare_finds_a_byte",
    "test_compressed",
    "test_from_each_to_each",
    "test_info_and_map_describe_it",
    "test_measured_sizes_hold",
    "test_onto_a_backing_image",
    "test_rebase_onto_a_first_backing_image",
    "test_the_same_input_gives_the_same_image",
]
"""What a test module takes."""

SIZE = 3 * MiB + 512


def disk() -> bytes:
    """What a disk holds: zeros, data in fragments, data that compresses and data that does not."""
    data = bytearray(SIZE)
    for offset, part in fragments(11, SIZE, 64 * KiB):
        data[offset : offset + len(part)] = part
    data[MiB : MiB + 300000] = (b"the same again; " * 20000)[:300000]
    data[-512:] = pattern(1, 512)
    return bytes(data)


def convert(
    machine: Machine,
    source: str,
    format: str,
    output: str,
    output_format: str,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> None:
    diskmill.convert(
        [f"memory:{source}"],
        f"memory:{output}",
        format=format,
        output_format=output_format,
        options=machine.options(output_format, options),
        context=machine.context,
        **more,
    )


def holds(machine: Machine, name: str, format: str, expected: bytes) -> None:
    with machine.open(name, format) as image:
        data = image.read(0, image.size)
    assert data[: len(expected)] == expected
    assert not any(data[len(expected) :])
    machine.check(name, format)


def plain(format: str) -> bool:
    """Whether its images open without a key: `convert` gets none here."""
    return not any(option.name == "key-secret" for option in FORMATS[format].options)


def keyless(*capabilities: str) -> Cases:
    """A case for each chosen format with *capabilities* that needs no key."""
    return lambda chosen: [name for name in formats(*capabilities)(chosen) if plain(name)]


def pairs(chosen: Chosen) -> list[tuple[str, str]]:
    """Each source with each target, where one of them was chosen."""
    sources = [name for name in fillable() if plain(name)]
    every = [(source, target) for source in sources for target in names("create")]
    return [(source, target) for source, target in every if source in chosen or target in chosen]


@over("source,target", pairs)
def test_from_each_to_each(source: str, target: str) -> None:
    machine = Machine()
    data = machine.fill("one", source, disk())
    convert(machine, "one", source, "two", target)
    holds(machine, "two", target, data)


@over("format", formats("create"))
def test_the_same_input_gives_the_same_image(format: str) -> None:
    """Threads race; what they write does not depend on who wins. Random identifiers aside, which formats have."""
    sizes = set()
    for _ in range(3):
        machine = Machine()
        machine.put("raw", disk())
        convert(machine, "raw", "raw", "out", format, threads=4)
        sizes.add(machine.files["out"].size)
        holds(machine, "out", format, disk())
    assert len(sizes) == 1


@over("format", formats("create", "compression"))
def test_compressed(format: str) -> None:
    """In every variant of the format that can: it is smaller. One that cannot says so, and one can."""
    data = (b"nothing new under the sun " * 100000)[: 2 * MiB] + pattern(4, MiB) + bytes(MiB) + b"tail" * 128
    done = 0
    chosen = [{option.name: value} for option, value in variants(FORMATS[format]) if option.choices]
    for options in ({}, *(options for options in chosen if "preallocation" not in options)):
        machine = Machine()
        machine.put("raw", data)
        try:
            convert(machine, "raw", "raw", "out", format, options, compress=True)
        except (UnsupportedError, UsageError) as error:
            refused(error, "compress", *options, *map(str, options.values()))
            continue
        holds(machine, "out", format, data)
        assert machine.files["out"].size < 2 * MiB, options
        convert(machine, "out", format, "back", "raw")
        assert bytes(machine.files["back"]) == data
        done += 1
    assert done


@pytest.mark.parametrize("compress", [False, True])
@over("format", formats("create", "write", "backing"))
def test_onto_a_backing_image(format: str, compress: bool) -> None:
    """What the source left to its backing image stays there, however large the units of either are."""
    if compress and "compression" not in FORMATS[format].capabilities:
        return
    machine = Machine()
    machine.put("base", pattern(1, SIZE))
    model = bytearray(pattern(1, SIZE))
    machine.create("source", "qcow", SIZE, backing=machine.backing("base", "raw"))
    with machine.open("source", "qcow", writable=True) as image:
        for offset, data in [*fragments(3, SIZE, 64 * KiB), (2 * MiB - 700, bytes(9000))]:
            image.write(offset, data)
            model[offset : offset + len(data)] = data
    try:
        convert(
            machine, "source", "qcow", "disk", format, backing="memory:base", backing_format="raw", compress=compress
        )
    except UsageError as error:
        refused(error, "backing")  # some formats can only stand on their own kind
        return
    holds(machine, "disk", format, bytes(model))


@pytest.mark.parametrize("unsafe", [False, True])
@over("format", formats("create", "write", "backing"))
def test_rebase_onto_a_first_backing_image(format: str, unsafe: bool) -> None:
    """What read as zeros goes on doing so, unless the user vouches that it need not."""
    machine = Machine()
    machine.put("base", pattern(1, SIZE))
    machine.create("disk", format, SIZE)
    model = bytearray(SIZE)
    with machine.open("disk", format, writable=True) as image:
        for offset, data in fragments(3, SIZE, 64 * KiB):
            image.write(offset, data)
            model[offset : offset + len(data)] = data
        kept = [(one.start, one.end) for one in image.extents(0, SIZE) if one.kind is not Kind.HOLE]
    try:
        diskmill.rebase(
            "memory:disk", "memory:base", backing_format="raw", format=format, unsafe=unsafe, context=machine.context
        )
    except UnsupportedError as error:
        refused(error, "backing")
        holds(machine, "disk", format, bytes(model))
        return
    if unsafe:
        model, own = bytearray(pattern(1, SIZE)), model
        for start, end in kept:
            model[start:end] = own[start:end]
    holds(machine, "disk", format, bytes(model))


@over("format", keyless("create", "write"))
def test_compare_finds_a_byte(format: str) -> None:
    machine = Machine()
    machine.put("raw", disk())
    convert(machine, "raw", "raw", "out", format)
    names = ("memory:raw", "memory:out")
    assert diskmill.compare(*names, format_a="raw", format_b=format, context=machine.context).identical
    with machine.open("out", format, writable=True) as image:
        byte = image.read(MiB + 77777, 1)
        image.write(MiB + 77777, bytes([byte[0] ^ 1]))
    found = diskmill.compare(*names, format_a="raw", format_b=format, context=machine.context)
    assert not found.identical
    assert found.offset is not None
    assert found.offset <= MiB + 77777 < found.offset + 64 * KiB


@over("format", keyless("create"))
def test_measured_sizes_hold(format: str) -> None:
    machine = Machine()
    machine.put("raw", disk())
    try:
        measured = diskmill.measure("memory:raw", format="raw", output_format=format, context=machine.context)
    except UnsupportedError:
        return  # not every format can tell
    convert(machine, "raw", "raw", "out", format)
    assert measured.required <= measured.fully_allocated
    assert machine.files["out"].size <= measured.fully_allocated


@over("format", keyless("create"))
def test_info_and_map_describe_it(format: str) -> None:
    machine = Machine()
    machine.put("raw", disk())
    convert(machine, "raw", "raw", "out", format)
    told = diskmill.info("memory:out", format=format, context=machine.context)
    assert (told.format, told.filename) == (format, "memory:out")
    assert told.virtual_size >= SIZE
    at = 0
    for entry in diskmill.map("memory:out", format=format, context=machine.context):
        assert entry.start == at
        at += entry.length
    assert at == told.virtual_size
