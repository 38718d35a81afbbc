"""The copy engine over twins: contents, order, zeros, errors, salvage."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from diskmill.contract.drivers import FormatDriver
from diskmill.contract.extents import Extent, Kind
from diskmill.contract.node import Buffer, ReadBuffer, Requests
from diskmill.engine.copy import CopyPlan, copy
from diskmill.engine.copy.gauge import CHUNK
from diskmill.engine.progress import Progress
from diskmill.errors import CancelledError, DiskmillError, StorageError
from diskmill.formats.raw import RawImage
from diskmill.kit.image import FormatImage
from diskmill.opening.registry import Registry
from diskmill.sizes import KiB, MiB
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twins import PAGE, Clustered, Content, MemoryDriver, MemoryStorage, memory

UNIT = 16 * KiB


def content(seed: int, size: int) -> bytes:
    """Data, zeros that were written, and bytes alone in the dark."""
    chance = random.Random(seed)
    data = bytearray(size)
    for _ in range(20):
        start = chance.randrange(size)
        length = min(chance.randrange(1, 80 * KiB), size - start)
        data[start : start + length] = chance.choice(
            (chance.randbytes(length), bytes(length), b"\1".ljust(length, b"\0"))
        )
    return bytes(data)


def target(size: int, unit: int = UNIT) -> Clustered:
    return Clustered(memory(), size, unit)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 3 * MiB),
    unit=st.sampled_from([512, 4 * KiB, 64 * KiB, MiB]),
    sparse=st.sampled_from([0, 512, 4096, 64 * KiB]),
    zeroed=st.booleans(),
    in_order=st.booleans(),
    threads=st.integers(1, 4),
)
def test_the_target_reads_as_the_source(
    seed: int, size: int, unit: int, sparse: int, zeroed: bool, in_order: bool, threads: int
) -> None:
    data = content(seed, size)
    out = target(size, unit)
    if not zeroed:
        out.write(0, content(seed + 1, size))  # what was there must go
    copy(memory(data), out, CopyPlan(sparse=sparse, zeroed=zeroed, in_order=in_order, threads=threads))
    assert out.read(0, size) == data


def test_a_part_goes_to_another_place() -> None:
    data = content(1, 2 * MiB)
    out = target(3 * MiB)
    out.write(0, b"k" * 3 * MiB)
    copy(memory(data), out, CopyPlan(), source_offset=12345, target_offset=54321, length=MiB)
    assert out.read(0, 3 * MiB) == b"k" * 54321 + data[12345 : 12345 + MiB] + b"k" * (2 * MiB - 54321)


def test_the_layout_does_not_depend_on_chance() -> None:
    data = content(2, 8 * MiB)
    layouts = set()
    for threads in (1, 2, 8, 8, 8):
        out = target(8 * MiB)
        copy(memory(data), out, CopyPlan(zeroed=True, threads=threads))
        layouts.add(tuple(sorted(out.table.items())))
    assert len(layouts) == 1
    places = [place for _, place in layouts.pop()]
    assert places == sorted(place for place in places if place is not None)


def test_zeros_take_no_space_in_a_new_target() -> None:
    data = bytearray(4 * MiB)
    data[MiB] = 1
    out = target(4 * MiB)
    copy(memory(bytes(data)), out, CopyPlan(zeroed=True))
    assert list(out.table) == [MiB // UNIT]


def test_zeros_are_written_where_that_is_asked() -> None:
    out = target(MiB)
    source = memory()
    source.truncate(MiB)
    copy(source, out, CopyPlan(zeroed=True, sparse=0))
    assert sorted(out.table) == list(range(MiB // UNIT))
    assert None not in out.table.values()


def test_holes_are_left_to_a_shared_backing_image() -> None:
    base = Clustered(memory(b"b" * MiB), MiB, UNIT)
    base.table = {index: index * UNIT for index in range(MiB // UNIT)}
    source, out = target(MiB), target(MiB)
    source.backing = out.backing = base
    source.write(5 * UNIT, b"s" * UNIT)
    source.zero(9 * UNIT, UNIT)
    copy(source, out, CopyPlan(shared=base))
    assert sorted(out.table) == [5, 9]
    assert out.read(0, MiB) == source.read(0, MiB)
    assert next(iter(out.extents(9 * UNIT, UNIT))).kind in (Kind.ZERO, Kind.DATA)


class Bad(MemoryStorage):
    """Storage that cannot be read in some pages."""

    bad: frozenset[int] = frozenset()

    def read_into(self, offset, buffer):  # type: ignore[no-untyped-def]
        if any(page in self.bad for page in range(offset // PAGE, -(-(offset + len(buffer)) // PAGE))):
            raise StorageError("Input/output error", file="bad", place=f"read at offset {offset}")
        super().read_into(offset, buffer)


def bad(data: bytes, *pages: int) -> Bad:
    storage = Bad(MemoryDriver(), "bad", Content(data), writable=False)
    storage.bad = frozenset(pages)
    return storage


def test_what_cannot_be_read_stops_the_copy() -> None:
    with pytest.raises(StorageError, match="Input/output error"):
        copy(bad(b"x" * 4 * MiB, 700), target(4 * MiB), CopyPlan(zeroed=True))


@pytest.mark.parametrize("at_once", [0, 4], ids=["one by one", "asked for together"])
def test_salvage_loses_no_more_than_what_cannot_be_read(at_once: int) -> None:
    data = random.Random(1).randbytes(4 * MiB)
    source = bad(data, 3, 700, 701)
    source.requests = Requests(at_once=at_once)
    lost: list[tuple[int, int]] = []

    def tell(offset: int, length: int, error: DiskmillError) -> None:
        lost.append((offset, length))

    out = target(4 * MiB)
    copy(source, out, CopyPlan(zeroed=True, salvage=tell))
    expected = bytearray(data)
    for page in (3, 700, 701):
        expected[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    assert sorted(lost) == [(page * PAGE, PAGE) for page in (3, 700, 701)]
    assert out.read(0, 4 * MiB) == expected


def test_what_cannot_be_written_stops_the_copy() -> None:
    class Full(MemoryStorage):
        def write(self, offset, data):  # type: ignore[no-untyped-def]
            if offset + len(data) > MiB:
                raise StorageError("No space left on device", file="out")
            super().write(offset, data)

    out = Clustered(Full(MemoryDriver(), "out", Content(), writable=True), 4 * MiB, UNIT)
    with pytest.raises(StorageError, match="No space left"):
        copy(memory(b"x" * 4 * MiB), out, CopyPlan(zeroed=True, threads=4))
    for place in out.table.values():  # what is published was written
        assert place is not None
        assert out.file.read(place, UNIT) == b"x" * UNIT


def test_a_cancelled_copy_says_so() -> None:
    cancel = threading.Event()
    progress = Progress(lambda done, total: cancel.set())
    progress.expect(64 * CHUNK)
    source = memory(b"x" * 64 * CHUNK)
    out = target(64 * CHUNK)
    with pytest.raises(CancelledError):
        copy(source, out, CopyPlan(zeroed=True), progress=progress, cancel=cancel)
    assert len(out.table) < 64 * CHUNK // UNIT


@pytest.mark.parametrize("zeroed", [True, False])
def test_progress_ends_at_the_whole(zeroed: bool) -> None:
    told: list[int] = []
    progress = Progress(lambda done, total: told.append(done))
    progress.expect(5 * MiB + 100)
    copy(memory(content(3, 5 * MiB + 100)), target(5 * MiB + 100), CopyPlan(zeroed=zeroed), progress=progress)
    assert told[-1] == 5 * MiB + 100


def test_an_empty_source_is_nothing_to_do() -> None:
    out = target(UNIT)
    copy(memory(), out, CopyPlan(zeroed=True))
    assert out.table == {}


class Told:
    """Decodes a payload to its length and its last byte, over and over."""

    granularity = 0

    def decode(self, extent: Extent, payload: memoryview, into: memoryview) -> bytes:
        assert len(payload) == extent.stored
        return (len(payload).to_bytes(7, "big") + bytes(payload[-1:])) * (extent.unit // 8)


class Encoded(FormatImage):
    """Units of 4 KiB whose payloads are where *places* says: (offset, stored)."""

    def __init__(self, places: list[tuple[int, int]]) -> None:
        size = len(places) * 4096
        super().__init__(
            FormatDriver(), memory(random.Random(1).randbytes(3 * MiB)), name="e", size=size, writable=False
        )
        self.places = places
        self.codec = Told()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        for index in range(offset // 4096, -(-(offset + length) // 4096)):
            at, stored = self.places[index]
            unit = Extent(index * 4096, 4096, Kind.ENCODED, self.file, at, stored, self.codec, 4096)
            yield unit.clip(offset, offset + length)


@settings(max_examples=30)
@given(
    places=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 64), st.integers(0, 2 * MiB)),
            st.sampled_from([1, 9, 500, 4096, 5000, 100_000, 900_000]),
        ),
        min_size=1,
        max_size=40,
    ),
    ascending=st.booleans(),
    threads=st.integers(1, 3),
)
@example(places=[(0, 900_000), *((at, 9) for at in range(1, 9))], ascending=True, threads=1)
def test_payloads_may_lie_anywhere_and_one_in_another(
    places: list[tuple[int, int]], ascending: bool, threads: int
) -> None:
    if ascending:
        places = sorted(places)
    source = Encoded(places)
    out = target(source.size)
    copy(source, out, CopyPlan(zeroed=True, threads=threads))
    for index, (at, stored) in enumerate(places):
        expected = stored.to_bytes(7, "big") + source.file.read(at + stored - 1, 1)
        assert source.read(index * 4096, 4096) == expected * 512
        assert out.read(index * 4096, 4096) == expected * 512


class Forward(MemoryStorage):
    """Takes bytes once, in order, as standard output does; what is skipped is zeros."""

    forward = True

    def write(self, offset: int, data: ReadBuffer) -> None:
        assert offset >= self.size, "it was written backwards"
        super().write(offset, data)

    def write_vector(self, offset: int, buffers: Sequence[ReadBuffer]) -> None:
        self.write(offset, b"".join(buffers))


class Slow(MemoryStorage):
    """Answers late, by chance, so that tasks end in another order than they began."""

    def read_into(self, offset: int, buffer: Buffer) -> None:
        time.sleep(random.random() * 0.004)
        super().read_into(offset, buffer)


def slow(data: bytes) -> Slow:
    return Slow(MemoryDriver(), "slow", Content(data), writable=False)


@pytest.mark.parametrize("in_order", [True, False])
def test_a_target_that_only_goes_forward_is_written_in_order(in_order: bool) -> None:
    data = random.Random(4).randbytes(20 * CHUNK + 100)
    into = Forward(MemoryDriver(), "forward", Content(), writable=True)
    raw = Registry().format("raw")
    out = RawImage(raw, into, name="out", writable=True, size=len(data))
    copy(slow(data), out, CopyPlan(zeroed=True, in_order=in_order, threads=4))
    assert into.content.read(0, len(data)) == data


def test_a_format_that_wants_its_blocks_in_order_gets_them_so(monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = random.Random(5).randbytes(20 * CHUNK), target(20 * CHUNK)
    monkeypatch.setattr(type(out.driver), "capabilities", out.driver.capabilities | {"writes-forward"})
    copy(slow(data), out, CopyPlan(zeroed=True, in_order=False, threads=4))
    places = [out.table[at] for at in sorted(out.table)]
    assert places == sorted(places)
    assert out.read(0, len(data)) == data


def test_a_copy_tells_up_to_where_all_is_published() -> None:
    data, out, told = random.Random(6).randbytes(20 * CHUNK + 5000), target(20 * CHUNK + 5000), list[int]()

    def reached(upto: int) -> None:
        assert out.read(0, upto) == data[:upto]
        told.append(upto)

    copy(slow(data), out, CopyPlan(zeroed=True, threads=4), reached=reached)
    assert told[-1] == len(data)
    assert len(set(told)) > 3
