"""The suite for storages that are created and written: ``from diskmill_testkit.storages import *``.

The module that takes it gives a fixture ``located``, which makes of a word a name that a user would type for a file of
that word, in a place that is empty when the test begins::

    @pytest.fixture
    def located(tmp_path):
        return lambda word: f"pieces:{tmp_path / word}"

Every test is run by itself and under a filter that changes nothing. What is only read has a suite of its own,
:mod:`diskmill_testkit.sources`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from diskmill.contract.extents import Kind
from diskmill.contract.node import Storage
from diskmill.errors import DiskmillError, StorageError
from diskmill.kit.filter import Filter
from diskmill.opening.registry import Registry

from .requests import PassDriver, created, opened_by

__all__ = [
    "make",
    "test_a_new_file_beside_another_replaces_that_and_no_other",
    "test_a_new_output_has_its_name_only_when_it_is_settled",
    "test_a_new_output_replaces_the_old_one_whole",
    "test_a_new_output_that_was_not_settled_leaves_nothing",
    "test_a_read_that_begins_beyond_the_end_is_zeros",
    "test_a_zeroed_range_reads_as_zeros_and_nothing_else_does",
    "test_allocated_space_reads_as_zeros",
    "test_an_empty_write_changes_nothing",
    "test_buffers_are_written_one_after_the_other",
    "test_extents_cover_the_range_in_order_and_zeros_are_zeros",
    "test_the_same_file_is_known_by_two_names",
    "test_what_is_missing_is_named",
    "test_what_is_open_for_reading_cannot_be_written",
    "test_what_was_cut_off_does_not_come_back",
    "test_what_was_written_is_read_and_the_rest_is_zeros",
    "test_zeroing_beyond_the_end_makes_it_longer",
]
"""What a test module takes."""
PAGE = 4096
Make = Callable[..., Storage]
"""Makes new storage by a word, or opens what is there: ``make(word, new=True, writable=True, like=None)``."""


@pytest.fixture(params=["", "filtered"], ids=["alone", "filtered"])
def make(request: pytest.FixtureRequest, located: Callable[[str], str]) -> Iterator[Make]:
    """Makes what the tests ask for, by itself or under a filter, and closes it."""
    yield from makes(Registry(), located, filtered=bool(request.param))


def makes(registry: Registry, located: Callable[[str], str], *, filtered: bool) -> Iterator[Make]:
    """Gives a :data:`Make` with the drivers of *registry*, and closes what it made."""
    opened: list[Storage] = []
    numbers = itertools.count()

    def make(
        word: str | None = None, *, new: bool = True, writable: bool = True, like: Storage | None = None
    ) -> Storage:
        name = located(word or str(next(numbers)))
        if isinstance(like, Filter):
            assert isinstance(like.file, Storage)
            like = like.file
        storage = created(registry, name, like) if new else opened_by(registry, name, writable=writable)
        opened.append(Filter(PassDriver(), storage) if filtered else storage)
        return opened[-1]

    yield make
    for storage in opened:
        storage.close()


def test_what_was_written_is_read_and_the_rest_is_zeros(make: Make) -> None:
    storage = make()
    storage.write(1000, b"abc")
    assert storage.size == 1003
    assert storage.read(998, 10) == b"\0\0abc\0\0\0\0\0"


def test_a_read_that_begins_beyond_the_end_is_zeros(make: Make) -> None:
    storage = make()
    storage.write(0, b"abc")
    buffer = bytearray(b"x" * 100)
    storage.read_into(5000, buffer)
    assert buffer == bytes(100)


def test_an_empty_write_changes_nothing(make: Make) -> None:
    storage = make()
    storage.write(0, b"")
    storage.write(100, b"")
    storage.zero(100, 0)
    assert storage.size == 0


def test_buffers_are_written_one_after_the_other(make: Make) -> None:
    storage = make()
    parts = [bytes([number % 251]) * (number % 7) for number in range(3000)]  # more than one system call takes
    storage.write_vector(10, parts)
    assert storage.read(0, 10 + sum(map(len, parts))) == bytes(10) + b"".join(parts)


@pytest.mark.parametrize("unmap", [True, False])
@pytest.mark.parametrize(("offset", "length"), [(0, 3 * PAGE), (100, 50), (PAGE, PAGE), (4000, 2 * PAGE), (0, 0)])
def test_a_zeroed_range_reads_as_zeros_and_nothing_else_does(make: Make, offset: int, length: int, unmap: bool) -> None:
    storage = make()
    storage.write(0, b"x" * 4 * PAGE)
    storage.zero(offset, length, unmap=unmap)
    expected = bytearray(b"x" * 4 * PAGE)
    expected[offset : offset + length] = bytes(length)
    assert storage.read(0, 4 * PAGE) == expected
    assert storage.size == 4 * PAGE


def test_zeroing_beyond_the_end_makes_it_longer(make: Make) -> None:
    storage = make()
    storage.write(0, b"x" * 10)
    storage.zero(5, 10000)
    assert storage.size == 10005
    assert storage.read(0, 10005) == b"x" * 5 + bytes(10000)


def test_what_was_cut_off_does_not_come_back(make: Make) -> None:
    storage = make()
    storage.write(0, b"x" * 3 * PAGE)
    storage.truncate(PAGE + 10)
    assert storage.size == PAGE + 10
    storage.truncate(3 * PAGE)
    assert storage.read(0, 3 * PAGE) == b"x" * (PAGE + 10) + bytes(2 * PAGE - 10)


@pytest.mark.parametrize("mode", ["falloc", "full"])
def test_allocated_space_reads_as_zeros(make: Make, mode: str) -> None:
    storage = make()
    storage.write(0, b"abc")
    storage.allocate(PAGE, 2 * PAGE, mode)
    assert storage.size == 3 * PAGE
    assert storage.read(0, 3 * PAGE) == b"abc" + bytes(3 * PAGE - 3)


def test_extents_cover_the_range_in_order_and_zeros_are_zeros(make: Make) -> None:
    storage = make()
    storage.truncate(64 * PAGE)
    for page in (3, 4, 17, 40):
        storage.write(page * PAGE + 5, b"data")
    for offset, length in ((0, 64 * PAGE), (5, 1), (4 * PAGE + 1, 30 * PAGE), (60 * PAGE, 10 * PAGE), (0, 0)):
        at = offset
        for extent in storage.extents(offset, length):
            assert extent.start == at
            assert extent.length > 0
            assert extent.node is storage
            assert extent.offset == extent.start
            if extent.kind is Kind.ZERO:
                assert not any(storage.read(extent.start, extent.length))
            at = extent.end
        assert at == offset + length


def test_a_new_output_has_its_name_only_when_it_is_settled(make: Make) -> None:
    storage = make("output")
    storage.write(0, b"whole")
    with pytest.raises(StorageError):
        make("output", new=False)
    storage.settle()
    storage.close()
    assert make("output", new=False).read(0, 5) == b"whole"


@pytest.mark.parametrize("leave", ["close", "abandon"])
def test_a_new_output_that_was_not_settled_leaves_nothing(make: Make, leave: str) -> None:
    storage = make("output")
    storage.write(0, b"half")
    getattr(storage, leave)()
    getattr(storage, leave)()  # twice is harmless
    with pytest.raises(StorageError):
        make("output", new=False)


def test_a_new_output_replaces_the_old_one_whole(make: Make) -> None:
    old = make("output")
    old.write(0, b"a long old content")
    old.settle()
    old.close()
    new = make("output")
    new.write(0, b"new")
    with make("output", new=False, writable=False) as kept:
        assert kept.read(0, 5) == b"a lon"
    new.settle()
    new.close()
    again = make("output", new=False)
    assert (again.size, again.read(0, 3)) == (3, b"new")


def test_a_new_file_beside_another_replaces_that_and_no_other(make: Make) -> None:
    for name in ("one", "other"):
        storage = make(name)
        storage.write(0, name.encode())
        storage.settle()
        storage.close()
    one = make("one", new=False)
    with pytest.raises(StorageError, match="File exists"):
        make("other", like=one)
    late, own = make("third", like=one), make("one", like=one)
    for storage in (late, own):
        storage.write(0, b"new")
        assert not storage.settled
    third = make("third")
    third.settle()
    with pytest.raises(StorageError, match="File exists"):
        late.settle()
    late.abandon()
    own.settle()
    assert own.settled
    own.close()
    third.remove()
    third.close()
    assert make("one", new=False).read(0, 3) == b"new"
    assert make("other", new=False).read(0, 5) == b"other"
    with pytest.raises(StorageError, match="No such file"):
        make("third", new=False)


def test_the_same_file_is_known_by_two_names(make: Make) -> None:
    one = make("one")
    one.settle()
    one.close()
    two = make("two")
    two.settle()
    two.close()
    assert make("one", new=False, writable=False).identity() == make("one", new=False, writable=False).identity()
    assert make("one", new=False, writable=False).identity() != make("two", new=False, writable=False).identity()


def test_what_is_open_for_reading_cannot_be_written(make: Make) -> None:
    storage = make("output")
    storage.settle()
    storage.close()
    with pytest.raises(DiskmillError):
        make("output", new=False, writable=False).write(0, b"x")


def test_what_is_missing_is_named(make: Make) -> None:
    with pytest.raises(StorageError, match=r"not-there.*No such file"):
        make("not-there", new=False)
