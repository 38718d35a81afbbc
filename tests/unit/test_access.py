"""Reading and writing one image: copy on write, zeroing, and the two phases, over an image of dictionaries."""

from __future__ import annotations

from array import array

import pytest
from diskmill.contract.extents import Extent, Kind, Placement
from diskmill.engine import access
from diskmill.errors import ImageError, StorageError, UsageError
from hypothesis import given
from hypothesis import strategies as st
from twins import Clustered, MemoryStorage, memory

UNIT = 64


def image(size: int = 5 * UNIT + 24, base: bytes | None = None, *, zeroes: bool = True) -> Clustered:
    """A disk of clusters of 64 bytes, over one that holds *base*."""
    made = Clustered(memory(), size, UNIT, zeroes=zeroes)
    if base is not None:
        below = Clustered(memory(base), len(base), UNIT, writable=False)
        below.table = {index: index * UNIT for index in range(-(-len(base) // UNIT))}
        made.backing = below
    return made


@given(
    base=st.one_of(st.none(), st.binary(max_size=7 * UNIT)),
    zeroes=st.booleans(),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 344), st.integers(0, 344)), max_size=8),
)
def test_writes_and_zeros_are_read_back(base: bytes | None, zeroes: bool, steps: list[tuple[bool, int, int]]) -> None:
    disk = image(base=base, zeroes=zeroes)
    model = bytearray(((base or b"") + bytes(disk.size))[: disk.size])
    for number, (writes, offset, length) in enumerate(steps):
        length = min(length, disk.size - offset)
        data = bytes([number + 1]) * length if writes else bytes(length)
        if writes:
            disk.write(offset, data)
        else:
            disk.zero(offset, length)
        model[offset : offset + length] = data
    assert disk.read(0, disk.size) == model


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 64), (10, 20), (0, 10), (60, 4), (10, 54), (60, 10), (10, 200), (64, 128), (1, 64), (320, 24), (330, 14)],
)
def test_a_fresh_cluster_is_completed_from_the_backing_image(offset: int, length: int) -> None:
    base = bytes(range(1, 255)) * 2
    disk = image(base=base)
    disk.write(offset, b"\xff" * length)
    expected = bytearray(base[: disk.size])
    expected[offset : offset + length] = b"\xff" * length
    first, last = offset // UNIT, (offset + length - 1) // UNIT
    assert sorted(disk.table) == list(range(first, last + 1))
    for index, place in disk.table.items():  # whole clusters, also in the file itself, padded after the disk's end
        assert place is not None
        whole = (bytes(expected) + bytes(UNIT))[index * UNIT : (index + 1) * UNIT]
        assert disk.file.read(place, UNIT) == whole


def test_whole_clusters_are_not_read_first() -> None:
    class Unreadable(Clustered):
        def extents(self, offset: int, length: int):  # type: ignore[no-untyped-def]
            raise AssertionError("read")

    disk = Unreadable(memory(), 4 * UNIT, UNIT)
    disk.write(UNIT, b"x" * 2 * UNIT)


def test_the_table_points_nowhere_before_the_bytes_are_there() -> None:
    class Failing(MemoryStorage):
        def write(self, offset, data):  # type: ignore[no-untyped-def]
            raise StorageError("Input/output error", file="memory")

    disk = image()
    disk.file = Failing(disk.file.driver, "memory", disk.file.content, writable=True)  # type: ignore[attr-defined,arg-type]
    with pytest.raises(StorageError):
        disk.write(0, b"x")
    assert disk.table == {}
    assert disk.published == []


def test_bytes_of_an_allocated_cluster_are_overwritten_in_place() -> None:
    disk = image()
    disk.write(0, b"a" * UNIT)
    disk.write(10, b"b")
    assert disk.end == UNIT
    assert disk.read(0, UNIT) == b"a" * 10 + b"b" + b"a" * 53


class Xor:
    """A cipher of sectors of 16 bytes: every byte with 0x55."""

    granularity = 16

    def encrypt(self, start: int, offset: int, data: memoryview) -> bytes:
        assert start % 16 == 0 and len(data) % 16 == 0
        return bytes(byte ^ 0x55 for byte in data)

    def decode(self, extent: Extent, payload: memoryview, into: memoryview) -> bytes:
        assert extent.start % 16 == 0 and len(payload) % 16 == 0
        return bytes(byte ^ 0x55 for byte in payload)


class Encrypted(Clustered):
    def extents(self, offset: int, length: int):  # type: ignore[no-untyped-def]
        for extent in super().extents(offset, length):
            yield extent._replace(kind=Kind.ENCODED, codec=Xor()) if extent.kind is Kind.DATA else extent

    def reserve(self, offset: int, length: int) -> list[Placement]:
        low, high = offset // 16 * 16, -(-(offset + length) // 16) * 16
        return [place._replace(cipher=Xor()) for place in super().reserve(low, high - low)]


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(1, 255)), max_size=6))
def test_parts_of_cipher_sectors(steps: list[tuple[int, int, int]]) -> None:
    disk = Encrypted(memory(), 256, UNIT)
    model = bytearray(256)
    for offset, length, byte in steps:
        length = min(length, 256 - offset)
        disk.write(offset, bytes([byte]) * length)
        model[offset : offset + length] = bytes([byte]) * length
    assert disk.read(0, 256) == model
    for index in range(256):
        assert disk.read(index, 1) == model[index : index + 1]


def test_a_compressed_unit_is_decoded_whole_and_cut() -> None:
    class Reverse:
        granularity = 0

        def decode(self, extent: Extent, payload: memoryview, into: memoryview) -> bytes:
            return bytes(payload)[::-1]

    unit = Extent(0, 8, Kind.ENCODED, memory(b"..87654321"), 2, 8, Reverse(), 8)
    view = memoryview(bytearray(3))
    access.read_extent(unit.clip(2, 5), view)
    assert bytes(view) == b"345"


def test_a_unit_that_decodes_to_the_wrong_length_is_damaged() -> None:
    class Short:
        granularity = 0

        def decode(self, extent: Extent, payload: memoryview, into: memoryview) -> bytes:
            return b"123"

    unit = Extent(0, 8, Kind.ENCODED, memory(b"12345678"), 0, 8, Short(), 8)
    with pytest.raises(ImageError, match="damaged"):
        access.read_extent(unit, memoryview(bytearray(8)))


def test_buffers_of_other_than_bytes_count_in_bytes() -> None:
    """An array of numbers has fewer items than bytes: all of them are checked and placed, and none beside."""
    disk = image()
    disk.write(0, b"a" * disk.size)
    numbers = array("Q", range(20))
    disk.write(100, memoryview(numbers))
    expected = b"a" * 100 + numbers.tobytes()
    assert disk.read(0, disk.size) == expected.ljust(disk.size, b"a")
    with pytest.raises(UsageError, match="not all inside"):
        disk.write(disk.size - 100, memoryview(numbers))
    found = array("Q", bytes(160))
    disk.read_into(100, memoryview(found))
    assert found == numbers


def test_beyond_the_end_there_are_zeros_to_read_and_nothing_to_write() -> None:
    disk = image(100)
    disk.write(0, b"x" * 100)
    assert disk.read(98, 4) == b"xx\0\0"
    assert disk.read(200, 4) == bytes(4)
    for offset, length in ((99, 2), (100, 1), (-1, 1)):
        with pytest.raises(UsageError):
            disk.write(offset, b"y" * length)
        with pytest.raises(UsageError):
            disk.zero(offset, length)
    with pytest.raises(UsageError, match="before the beginning"):
        disk.read(-1, 4)


@pytest.mark.parametrize("offset", [0, 5])
def test_zeroing_uses_whole_clusters_and_writes_the_rest(offset: int) -> None:
    disk = image(base=b"b" * 344)
    disk.zero(offset, 344 - offset)
    assert [index for index, place in disk.table.items() if place is None] == list(range(1 if offset else 0, 6))
    assert disk.read(0, 344) == b"b" * offset + bytes(344 - offset)
