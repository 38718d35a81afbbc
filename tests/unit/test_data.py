"""Structures, options, names, sizes, zeros: text and bytes into values and back."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from diskmill.contract.options import HelpAsked, Option, split, validate
from diskmill.engine.zeros import data_runs, is_zero
from diskmill.errors import DiskmillError, ImageError, UsageError
from diskmill.kit.structs import Record, Structure, raw, several, u16, u32, u64
from diskmill.opening.names import display, nest, parse_name, parse_options, relative_to
from diskmill.opening.places import place_named
from diskmill.opening.registry import Registry
from diskmill.sizes import MAX_SIZE, GiB, KiB, MiB, format_size, parse_size, round_down, round_up
from hypothesis import given
from hypothesis import strategies as st
from twins import MemoryDriver


class Header(Record):
    magic = raw(4)
    version = u32
    _pad = raw(3)
    table = several(3, u16)
    size = u64


HEADER = Structure("Header", ">", Header)


# -- structures


@given(
    magic=st.binary(min_size=4, max_size=4),
    version=st.integers(0, 2**32 - 1),
    table=st.tuples(*[st.integers(0, 2**16 - 1)] * 3),
    size=st.integers(0, 2**64 - 1),
)
def test_a_structure_is_read_as_it_was_written(magic: bytes, version: int, table: tuple[int, ...], size: int) -> None:
    data = HEADER.pack(HEADER.new(magic=magic, version=version, table=table, size=size))
    assert len(data) == HEADER.size == 25
    record = HEADER.unpack(b"??" + data, 2)
    assert (record.magic, record.version, record.table, record.size) == (magic, version, table, size)
    assert data[HEADER.offsets["size"] :] == size.to_bytes(8, "big")


@pytest.mark.parametrize("length", [0, 1, 24])
def test_a_structure_that_is_cut_off_is_refused_by_name(length: int) -> None:
    with pytest.raises(ImageError, match=rf"disk.*Header.*{length} of 25"):
        HEADER.unpack(bytes(length), file="disk")


def test_a_structure_beyond_the_data_is_refused() -> None:
    with pytest.raises(ImageError, match="0 of 25"):
        HEADER.unpack(bytes(25), 100)


def test_padding_is_not_kept() -> None:
    record = HEADER.unpack(b"\xff" * 25)
    assert not hasattr(record, "_pad")
    assert HEADER.pack(record)[8:11] == bytes(3)


def test_a_wrong_field_is_a_mistake_of_the_program() -> None:
    with pytest.raises(TypeError, match="colour"):
        HEADER.new(colour=1)
    with pytest.raises(AttributeError, match="colour"):
        _ = HEADER.new().colour
    with pytest.raises(ValueError, match="Header"):
        HEADER.pack(HEADER.new(version=2**32))


# -- options

OPTIONS = (
    Option("cluster_size", "size", "", default=65536),
    Option("compat", "str", "", default="1.1", choices=("0.10", "1.1"), when=("create", "amend")),
    Option("lazy", "bool", ""),
    Option("count", "int", "", when=("open",)),
)


def test_defaults_are_filled_in_but_not_to_amend() -> None:
    assert validate(OPTIONS, {}, when="create", driver="x") == {"cluster_size": 65536, "compat": "1.1"}
    assert validate(OPTIONS, {}, when="amend", driver="x") == {}


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({"cluster_size": "64k"}, 65536),
        ({"cluster_size": 4096}, 4096),
        ({"compat": "0.10"}, "0.10"),
        ({"lazy": "on"}, True),
        ({"lazy": "off"}, False),
        ({"lazy": True}, True),
    ],
)
def test_values_are_parsed(given: dict[str, object], value: object) -> None:
    [name] = given
    parsed = validate(OPTIONS, given, when="create", driver="x")[name]
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"nonsense": "1"}, "cluster_size"),  # the known ones are listed
        ({"count": "1"}, "count"),  # not to create
        ({"cluster_size": "many"}, "cluster_size"),
        ({"compat": "2.0"}, "0.10, 1.1"),
        ({"lazy": "maybe"}, "lazy"),
    ],
)
def test_bad_options_are_named(given: dict[str, str], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        validate(OPTIONS, given, when="create", driver="x")


@pytest.mark.parametrize("text", ["-1", "x", "1.5"])
def test_numbers_are_whole_and_not_negative(text: str) -> None:
    with pytest.raises(UsageError, match="count"):
        validate(OPTIONS, {"count": text}, when="open", driver="x")


@given(st.lists(st.tuples(st.from_regex(r"[a-z][a-z.\-]{0,9}", fullmatch=True), st.text(max_size=9)), max_size=5))
def test_option_strings_are_split_as_they_were_joined(pairs: list[tuple[str, str]]) -> None:
    pairs = [(name, value.replace("\0", "")) for name, value in pairs]
    text = ",".join(f"{name}={value.replace(',', ',,')}" for name, value in pairs)
    assert split(text) == pairs


def test_a_bare_name_means_on() -> None:
    assert split("lazy,compat=1.1") == [("lazy", "on"), ("compat", "1.1")]


@pytest.mark.parametrize("text", ["help", "?", "a=1,help", "help,a=1"])
def test_help_is_heard_anywhere(text: str) -> None:
    with pytest.raises(HelpAsked):
        split(text)


def test_a_value_without_a_name_is_refused() -> None:
    with pytest.raises(UsageError):
        split("=1")


# -- names


@pytest.mark.parametrize(
    ("name", "driver", "filename"),
    [
        ("disk", "file", "disk"),
        ("/a/b:c", "file", "/a/b:c"),
        ("./nbd:x", "file", "./nbd:x"),
        ("file:disk", "file", "disk"),
        ("file:///a/b", "file", "/a/b"),
        ("nbd://host/x", "nbd", "nbd://host/x"),
    ],
)
def test_plain_names(name: str, driver: str, filename: str) -> None:
    assert parse_name(name) == {"file": {"driver": driver, "filename": filename}}


def test_option_strings_and_json_say_the_same() -> None:
    spec = {"driver": "qcow2", "file": {"driver": "file", "filename": "a,b"}, "backing": {"driver": "raw"}}
    assert parse_options("driver=qcow2,file.driver=file,file.filename=a,,b,backing.driver=raw") == spec
    assert parse_name("json:" + json.dumps(spec)) == spec
    flat = {"driver": "qcow2", "file.driver": "file", "file.filename": "a,b", "backing.driver": "raw"}
    assert parse_name("json:" + json.dumps(flat)) == spec


@given(st.text(max_size=60))
def test_any_name_is_parsed_or_refused(text: str) -> None:
    for name in (text, f"json:{text}", f"json:{{{text}}}"):
        with suppress(DiskmillError):
            assert isinstance(parse_name(name), dict)


@pytest.mark.parametrize("name", ["json:" + "[" * 100000, "json:" + '{"file":' * 3000 + "{}" + "}" * 3000])
def test_names_nested_without_end_are_refused(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_name(name)
    assert len(str(caught.value)) < 1000


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UsageError):
        nest([("file", "disk"), ("file.filename", "disk")])


@pytest.mark.parametrize("name", ["disk", "/a/b", "nbd://host/x"])
def test_a_plain_name_is_shown_as_it_was_typed(name: str) -> None:
    assert display(parse_name(name)) == name


def test_what_is_no_plain_name_is_shown_in_full() -> None:
    spec = parse_options("driver=raw,offset=512,file.filename=disk")
    assert parse_name(display(spec)) == spec


@pytest.mark.parametrize(
    ("name", "image", "driver", "filename"),
    [
        ("base", "/images/top", "file", "/images/base"),
        ("/base", "/images/top", "file", "/base"),
        ("../base", "/images/top", "file", "/images/../base"),
        ("base", "top", "file", "base"),
        ("base", "memory:images/top", "memory", "memory:images/base"),
        ("nbd://h/x", "/images/top", "nbd", "nbd://h/x"),
    ],
)
def test_references_are_relative_to_the_image(name: str, image: str, driver: str, filename: str) -> None:
    registry = Registry()
    registry.add(MemoryDriver())
    found = relative_to(parse_name(name), place_named(image, None, registry))["file"]
    assert (found["driver"], found["filename"]) == (driver, filename)


# -- sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("1k", KiB),
        ("1K", KiB),
        ("2M", 2 * MiB),
        ("1.5G", 3 * GiB // 2),
        ("512b", 512),
        ("0x200", 512),
        (str(MAX_SIZE), MAX_SIZE),
        (" 7k", 7 * KiB),
        ("0" * 5000 + "7", 7),  # longer than what Python makes a number of
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "-1", "1x", "k", "1.5", "1kk", "8E", "1e3", str(MAX_SIZE + 1), "nan", "0x", "١", "9" * 5000, "1" + "0" * 5000],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


def test_a_size_without_a_suffix_takes_the_callers() -> None:
    assert parse_size("3", suffix="M") == 3 * MiB
    assert parse_size("3k", suffix="M") == 3 * KiB


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (1024, "1 KiB"), (1536 * MiB, "1.5 GiB"), (2**60, "1 EiB")],
)
def test_sizes_are_shown_as_qemu_img_shows_them(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 2**64), st.integers(1, 2**22))
def test_rounding(value: int, unit: int) -> None:
    assert round_down(value, unit) <= value <= round_up(value, unit)
    assert round_up(value, unit) % unit == round_down(value, unit) % unit == 0
    assert round_up(value, unit) - round_down(value, unit) in (0, unit)


# -- zeros


@given(
    pieces=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2)), max_size=12),
    granule=st.sampled_from([8, 16, 64]),
    before=st.integers(0, 9),
    beyond=st.integers(0, 20),
)
def test_data_runs_are_the_granules_that_are_not_zero(
    pieces: list[tuple[int, int]], granule: int, before: int, beyond: int
) -> None:
    data = b"".join(bytes([value]) * length for length, value in pieces)
    buffer = bytearray(b"\xff" * 8 * before + data + b"\xff" * beyond)
    begin = 8 * before
    found = [(at - begin, length) for at, length in data_runs(buffer, begin, begin + len(data), granule)]
    expected = [
        any(data[at : at + granule]) for at in range(0, len(data), granule)
    ]  # a granule at a time, the last one maybe shorter
    told = [False] * len(expected)
    last = -1
    for start, length in found:
        assert start > last and start % granule == 0 and length > 0
        assert start + length == len(data) or length % granule == 0
        for index in range(start // granule, -(-(start + length) // granule)):
            told[index] = True
        last = start + length  # neighbours would have been one run
    assert told == expected


@pytest.mark.parametrize("granule", [4 * MiB, 3 * MiB])
def test_large_granules(granule: int) -> None:
    data = bytearray(3 * granule)
    data[granule + granule - 1] = 1  # the last byte of the second
    assert list(data_runs(data, 0, len(data), granule)) == [(granule, granule)]


@pytest.mark.parametrize("length", [0, 1, 65535, 65536, 65537, 200000])
def test_one_byte_makes_the_difference(length: int) -> None:
    assert is_zero(bytes(length))
    for at in {0, length // 2, length - 1} if length else ():
        data = bytearray(length)
        data[at] = 1
        assert not is_zero(data)
        assert not is_zero(memoryview(data))


# -- errors


def test_an_error_is_one_line_whatever_a_name_holds() -> None:
    error = ImageError("bad\x1b[31m", file="a\nb", place="header")
    assert str(error).isprintable()
    assert str(error).count("header") == 1
