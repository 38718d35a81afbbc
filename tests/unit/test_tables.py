"""Tables of entries: bytes to numbers and back, and their runs."""

from __future__ import annotations

import random
from array import array
from itertools import pairwise

import pytest
from diskmill.kit import tables
from diskmill.kit.tables import Run
from hypothesis import given
from hypothesis import strategies as st
from twins import memory

WIDTHS = {2: "H", 4: "I", 8: "Q"}


@st.composite
def entries(draw: st.DrawFn) -> tuple[array[int], int]:
    """A table as drivers have them (stretches that are equal, or count up, or down), and the step."""
    width = draw(st.sampled_from([4, 8]))
    step = draw(st.sampled_from([0, 1, 2, 512, 65536]))
    top = 2 ** (8 * width)
    values: list[int] = []
    for _ in range(draw(st.integers(1, 8))):
        first = draw(st.one_of(st.integers(0, 5), st.integers(0, top - 1), st.integers(top - 3, top - 1)))
        by = draw(st.sampled_from([0, 0, step, step, -step, 1, -1, 2 * step]))
        values += [(first + index * by) % top for index in range(draw(st.integers(2, 6)))]
    return array(WIDTHS[width], values), step


def expand(runs: list[Run]) -> list[int]:
    return [run.value + index * run.step for run in runs for index in range(run.length)]


@pytest.mark.parametrize("find", [tables._runs_python, tables._runs_numpy])
@given(case=entries())
def test_runs_say_what_the_table_says(find: object, case: tuple[array[int], int]) -> None:
    table, step = case
    runs = list(find(table, step))  # type: ignore[operator]
    at = 0
    for run in runs:
        assert run.at == at
        assert run.length > 0
        assert run.step in (0, step)
        assert all(type(part) is int for part in run)
        assert run.value or not run.step, "0 says that there is nothing; the next entry may by chance be the step"
        at += run.length
    assert expand(runs) == table.tolist()


@given(case=entries())
def test_both_ways_to_find_runs_find_as_few(case: tuple[array[int], int]) -> None:
    table, step = case
    one, other = list(tables._runs_python(table, step)), list(tables._runs_numpy(table, step))
    # Where "equal" passes into "counting up", either may own the entry between; beyond that they agree.
    assert max(len(one), len(other)) <= 2 * min(len(one), len(other))


@pytest.mark.parametrize("find", [tables._runs_python, tables._runs_numpy])
def test_a_long_run_is_one(find: object) -> None:
    table = array("Q", [0] * 1000 + [65536 * index for index in range(5, 1005)] + [7] * 10)
    runs = list(find(table, 65536))  # type: ignore[operator]
    assert runs == [Run(0, 1000, 0, 0), Run(1000, 1000, 5 * 65536, 65536), Run(2000, 10, 7, 0)]


@pytest.mark.parametrize("find", [tables._runs_python, tables._runs_numpy])
def test_counting_down_is_no_run(find: object) -> None:
    assert len(list(find(array("I", [7, 6, 5]), 1))) == 3  # type: ignore[operator]


@pytest.mark.parametrize("find", [tables._runs_python, tables._runs_numpy])
def test_a_run_does_not_go_around_the_largest_number(find: object) -> None:
    table = array("I", [2**32 - 1, 0, 1])
    assert expand(list(find(table, 1))) == [2**32 - 1, 0, 1]  # type: ignore[operator]


def test_an_empty_table_has_no_runs() -> None:
    assert list(tables.runs(array("I"), 1)) == []


def test_a_large_table_goes_the_fast_way_with_the_same_answer() -> None:
    table = array("I", range(1 << 18)) + array("I", [9, 8, 8])
    assert list(tables.runs(table, 1)) == list(tables._runs_python(table, 1))


@given(data=st.binary(max_size=64), width=st.sampled_from([2, 4, 8]), order=st.sampled_from(["big", "little"]))
def test_bytes_become_numbers_and_bytes_again(data: bytes, width: int, order: str) -> None:
    data = data[: len(data) // width * width]
    table = tables.from_bytes(data, width, order)
    assert table.tolist() == [
        int.from_bytes(data[at : at + width], order)  # type: ignore[arg-type]
        for at in range(0, len(data), width)
    ]
    before = table[:]
    assert tables.to_bytes(table, order) == data
    assert table == before


def test_a_table_is_read_from_its_place() -> None:
    file = memory(b"...." + bytes([0, 0, 0, 1, 0, 0, 2, 0]))
    assert tables.read(file, 4, 2, 4, "big").tolist() == [1, 512]


@given(count=st.integers(0, 20), value=st.integers(0, 1000), step=st.sampled_from([0, 1, 512]))
def test_a_run_is_filled_in(count: int, value: int, step: int) -> None:
    table = tables.filled(30, 4, 77)
    tables.fill_run(table, 5, count, value, step)
    assert table.tolist() == [77] * 5 + [value + index * step for index in range(count)] + [77] * (25 - count)


@pytest.mark.parametrize("order", ["little", "big"])
def test_runs_of_bits(order: str) -> None:
    chance = random.Random(4)
    for _ in range(200):
        data = b"".join(chance.choice((b"\0", b"\xff", chance.randbytes(1))) for _ in range(chance.randrange(1, 9)))
        bits = [byte >> (at if order == "little" else 7 - at) & 1 for byte in data for at in range(8)]
        first = chance.randrange(8)
        count = chance.randrange(len(bits) - first + 1)
        runs = list(tables.bit_runs(data, first, count, order))
        assert [int(present) for _, length, present in runs for _ in range(length)] == bits[first : first + count]
        assert [at for at, _, _ in runs] == [sum(length for _, length, _ in runs[:index]) for index in range(len(runs))]
        assert all(one[2] != other[2] for one, other in pairwise(runs))
