"""The suite for storages that are read at any offset: ``from diskmill_testkit.sources import *``.

The module that takes it gives a fixture ``held``, which puts bytes where the storage finds them, and gives the name
that a user would type::

    @pytest.fixture
    def held(tmp_path):
        def put(data):
            (tmp_path / "disk.000").write_bytes(data)
            return f"pieces:{tmp_path / 'disk'}"
        return put

Every test is run by itself and under a filter that changes nothing.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator

import pytest
from diskmill.contract.extents import Kind
from diskmill.contract.node import Storage
from diskmill.errors import DiskmillError
from diskmill.kit.filter import Filter
from diskmill.opening.registry import Registry

from .requests import PassDriver, opened_by

__all__ = [
    "opened",
    "test_a_protocol_is_read_by_several_threads",
    "test_what_a_protocol_holds_is_read_at_any_offset",
    "test_what_a_protocol_opened_for_reading_is_not_changed",
]
"""What a test module takes."""
HELD = random.Random(12).randbytes(300_000) + bytes(100_000) + b"the end" * 1000
HELD += bytes(-len(HELD) % 512)
Open = Callable[[], Storage]
"""Opens what holds ``HELD`` for reading."""


@pytest.fixture(params=["", "filtered"], ids=["alone", "filtered"])
def opened(request: pytest.FixtureRequest, held: Callable[[bytes], str]) -> Iterator[Open]:
    """Opens what the module holds, by itself or under a filter, and closes it."""
    yield from opens(Registry(), held(HELD), filtered=bool(request.param))


def opens(registry: Registry, name: str, *, filtered: bool) -> Iterator[Open]:
    """Gives an :data:`Open` of *name* with the drivers of *registry*, and closes what it opened."""
    found: list[Storage] = []

    def open() -> Storage:
        found.append(opened_by(registry, name))
        return Filter(PassDriver(), found[-1]) if filtered else found[-1]

    yield open
    for storage in found:
        storage.close()


def test_what_a_protocol_holds_is_read_at_any_offset(opened: Open) -> None:
    storage = opened()
    assert storage.size == len(HELD)
    assert not storage.forward
    for offset, length in (
        (0, 1),
        (299_990, 20),
        (len(HELD) - 5, 5),
        (len(HELD), 0),
        (0, len(HELD)),
        (12_345, 100_001),
    ):
        assert storage.read(offset, length) == HELD[offset : offset + length]
    assert storage.read(len(HELD) - 3, 10) == HELD[-3:] + bytes(7)  # beyond the end are zeros
    assert storage.read(len(HELD) + 70_000, 9) == bytes(9)
    assert storage.read_some(len(HELD) - 3, 10) == HELD[-3:]
    at = 0
    for extent in storage.extents(0, storage.size):
        assert (extent.start, extent.node, extent.offset) == (at, storage, at)
        assert extent.kind is not Kind.ZERO or not any(HELD[extent.start : extent.end])
        at = extent.end
    assert at == len(HELD)


def test_a_protocol_is_read_by_several_threads(opened: Open) -> None:
    storage = opened()
    wrong: list[int] = []

    def read(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(20):
            offset, length = chance.randrange(len(HELD)), chance.randrange(50_000)
            if storage.read_some(offset, length) != HELD[offset : offset + length]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_a_protocol_opened_for_reading_is_not_changed(opened: Open) -> None:
    storage = opened()
    changes: list[Callable[[], object]] = [
        lambda: storage.write(0, b"x"),
        lambda: storage.zero(0, 512),
        lambda: storage.truncate(512),
        lambda: storage.allocate(0, 512, "full"),
    ]
    for change in changes:
        with pytest.raises(DiskmillError):
            change()
    assert storage.read(0, 1000) == HELD[:1000]
    if not storage.forward:
        assert storage.identity() == opened().identity()
    storage.interrupt()  # whoever waits leaves; the rest is up to the storage
    storage.close()
    storage.close()
