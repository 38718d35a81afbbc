"""Walking a graph of images: what covers what."""

from __future__ import annotations

from diskmill.contract.extents import Extent, Kind
from diskmill.engine.walk import walk
from hypothesis import given
from hypothesis import strategies as st
from twins import PAGE, Clustered, memory

TABLE = st.dictionaries(st.integers(0, 7), st.one_of(st.none(), st.integers(0, 9).map(lambda index: index * PAGE)))


def chain(sizes: list[int], tables: list[dict[int, int | None]]) -> Clustered:
    """Images of clusters of a page, on top of each other, the first on top."""
    below = None
    for number, (size, table) in enumerate(zip(reversed(sizes), reversed(tables), strict=True)):
        file = memory(bytes([number + 1]) * 5 * PAGE)
        file.content.size = 10 * PAGE  # half of it is a hole
        top = Clustered(file, size, PAGE)
        top.table, top.backing, below = table, below, top
    assert below is not None
    return below


def byte_at(image: Clustered, offset: int) -> tuple[int, int]:
    """(byte, depth) at *offset*, found the slow way."""
    depth, at = 0, image
    while True:
        place = at.table.get(offset // PAGE, -1) if offset < at.size else None
        if place is None:
            return 0, depth
        if place >= 0:
            return at.file.read(place + offset % PAGE, 1)[0], depth
        if at.backing is None:
            return 0, depth
        assert isinstance(at.backing, Clustered)
        depth, at = depth + 1, at.backing


@given(
    sizes=st.lists(st.integers(1, 8 * PAGE), min_size=3, max_size=3),
    tables=st.lists(TABLE, min_size=3, max_size=3),
    where=st.tuples(st.integers(0, 8 * PAGE), st.integers(0, 8 * PAGE)),
    sparse=st.booleans(),
)
def test_every_byte_comes_from_the_first_image_that_has_it(
    sizes: list[int], tables: list[dict[int, int | None]], where: tuple[int, int], sparse: bool
) -> None:
    image = chain(sizes, tables)
    offset = min(where[0], image.size)
    length = min(where[1], image.size - offset)
    at = offset
    for extent in walk(image, offset, length, sparse=sparse):
        assert extent.start == at and extent.length > 0
        at = extent.end
        for probe in {extent.start, extent.start + extent.length // 2, extent.end - 1}:
            byte, depth = byte_at(image, probe)
            if extent.reads_as_zeros:
                assert byte == 0
            else:
                assert extent.node is not None
                assert extent.node.read(extent.offset + probe - extent.start, 1)[0] == byte
                assert extent.depth == depth
    assert at == offset + length


def test_a_hole_in_storage_is_told_apart_only_on_request() -> None:
    image = chain([2 * PAGE], [{0: 0, 1: 5 * PAGE}])
    assert [extent.kind for extent in walk(image, 0, 2 * PAGE)] == [Kind.DATA, Kind.SPARSE]
    assert [extent.kind for extent in walk(image, 0, 2 * PAGE, sparse=False)] == [Kind.DATA, Kind.DATA]


def test_without_its_backing_image_a_hole_stays_one() -> None:
    image = chain([PAGE, PAGE], [{}, {0: 0}])
    assert [extent.kind for extent in walk(image, 0, PAGE, above=image.backing)] == [Kind.HOLE]
    assert [(extent.kind, extent.depth) for extent in walk(image, 0, PAGE)] == [(Kind.DATA, 1)]


def test_only_what_an_image_gives_is_left_to_it() -> None:
    """Four pages: own data, of the one between, of the lowest one, and beyond that one's end."""
    image = chain([4 * PAGE, 4 * PAGE, 3 * PAGE], [{0: 0}, {1: PAGE}, {2: 0}])
    assert image.backing is not None
    lowest = image.backing.backing
    kinds = [extent.kind for extent in walk(image, 0, 4 * PAGE, above=lowest)]
    assert kinds == [Kind.DATA, Kind.DATA, Kind.HOLE, Kind.ZERO]
    assert [extent.kind for extent in walk(lowest, 0, 3 * PAGE, above=image)] == [Kind.ZERO, Kind.ZERO, Kind.DATA]


def test_data_in_an_image_below_goes_on_to_its_storage() -> None:
    inner = chain([3 * PAGE], [{0: 4 * PAGE, 1: None}])
    outer = Clustered(inner, 2 * PAGE, PAGE)
    outer.table = {0: PAGE, 1: 0}
    found = list(walk(outer, 0, 2 * PAGE))
    assert [(extent.start, extent.kind) for extent in found] == [(0, Kind.SPARSE), (PAGE, Kind.DATA)]
    assert (found[1].node, found[1].offset) == (inner.file, 4 * PAGE)


@given(
    start=st.integers(0, 100),
    length=st.integers(1, 100),
    cut=st.tuples(st.integers(0, 250), st.integers(0, 250)).map(sorted),
    unit=st.sampled_from([0, 200]),
)
def test_a_clipped_extent_names_the_same_bytes(start: int, length: int, cut: list[int], unit: int) -> None:
    extent = Extent(start, length, Kind.DATA, memory(), 1000, unit=unit)
    low, high = max(start, cut[0]), min(start + length, cut[1])
    if low < high:
        part = extent.clip(*cut)
        assert (part.start, part.end) == (low, high)
        assert part.offset + part.skip == 1000 + low - start
        assert (part.skip if unit else part.offset - 1000) == low - start
