"""Readers beside writers: nobody reads what belongs elsewhere, and nobody's write is lost, in every format."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from contention import LAYOUTS, contend
from diskmill.contract.node import Image
from diskmill.contract.threads import Ranges
from diskmill.formats.raw import RawImage
from diskmill.sizes import KiB, MiB
from formats import FORMATS, Machine, formats
from twins import MemoryStorage

SIZE = 8 * MiB


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_writers_and_three_readers(layout: str, tmp_path: Path) -> None:
    assert contend(tmp_path, layout, 0.4, 1).failures == []


def test_every_format_that_is_written_is_fought_over() -> None:
    assert {format for format, _ in LAYOUTS.values()} >= set(formats("create", "write"))


class Parked:
    """Lets the reads of one thread of storage in memory wait before they take the bytes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.waits, self.go_on = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None
        read = MemoryStorage.read_into

        def read_into(storage: MemoryStorage, offset: int, buffer: bytearray | memoryview) -> None:
            if threading.current_thread() is self.thread:
                self.waits.set()
                assert self.go_on.wait(60)
            read(storage, offset, buffer)

        patch.setattr(MemoryStorage, "read_into", read_into)

    def read(self, image: Image, offset: int, length: int) -> Iterator[bytes]:
        """Look the range up, be given up to the caller, and then read it."""
        found: list[bytes] = []
        self.thread = threading.Thread(target=lambda: found.append(image.read(offset, length)))
        self.thread.start()
        assert self.waits.wait(60)
        yield b""
        self.go_on.set()
        self.thread.join()
        yield found[0]


@pytest.mark.parametrize("way", ["discard", "zero", "overwrite"])
@pytest.mark.parametrize("format", formats("create", "write"))
def test_a_reader_that_was_slow_reads_no_other_offset(format: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    machine.create("disk", format, SIZE)
    half = SIZE // 2
    with machine.open("disk", format, writable=True) as image:
        image.write(0, b"a" * half)
        image.flush()
        image.read(0, 64 * KiB)  # the tables are in memory
        reading = Parked(monkeypatch).read(image, 0, 64 * KiB)
        next(reading)
        if way == "discard":
            image.discard(0, half)
        elif way == "zero":
            image.zero(0, half)
        else:
            image.write(0, b"b" * half)
        image.flush()
        image.write(half, b"z" * half)
        image.flush()
        assert set(next(reading)) <= {ord("a"), ord("b"), 0}
        image.write(0, b"c" * half)
        assert image.read(0, SIZE) == b"c" * half + b"z" * half
    machine.check("disk", format)


def test_who_reads_an_image_is_inside_the_one_that_it_stands_on(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    machine.create("disk", "qcow2", SIZE)
    with machine.open("disk", "qcow2", writable=True) as below:
        above = RawImage(FORMATS["raw"], below, name="above", writable=True)
        above.write(0, b"a" * MiB)
        above.flush()
        reading = Parked(monkeypatch).read(above, 0, 64 * KiB)
        next(reading)
        above.discard(0, MiB)
        above.flush()
        above.write(MiB, b"z" * MiB)
        above.flush()
        assert set(next(reading)) <= {ord("a"), 0}


def test_ranges_that_meet_take_turns_and_others_do_not_wait() -> None:
    ranges = Ranges(threading.RLock())
    order: list[str] = []

    def later(name: str, start: int, end: int) -> threading.Thread:
        def job() -> None:
            with ranges.hold(start, end):
                order.append(name)

        thread = threading.Thread(target=job)
        thread.start()
        return thread

    with ranges.hold(10, 20):
        later("beside", 20, 30).join(60)
        with ranges.hold(12, 14):  # a part of what it has
            order.append("inside")
        waiting = [later("within", 15, 16), later("over", 0, 100)]
        order.append("held")
    for thread in waiting:
        thread.join(60)
    assert order[:3] == ["beside", "inside", "held"] and sorted(order[3:]) == ["over", "within"]
