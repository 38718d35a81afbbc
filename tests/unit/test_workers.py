"""Threads that work through tasks: order, errors, stopping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from diskmill.engine.progress import Progress, RateLimit
from diskmill.engine.workers import MAX_THREADS, Workers
from diskmill.errors import CancelledError, StorageError

Work = Callable[[int, int], None]


def start(tasks: Iterator[int], work: Work, *, threads: int = 4, cancel: threading.Event | None = None) -> None:
    Workers(tasks, lambda workers: work, threads=threads, cancel=cancel).run()


def test_every_task_is_done_once() -> None:
    done: list[int] = []
    start(iter(range(1000)), lambda task, turn: done.append(task))
    assert sorted(done) == list(range(1000))


def test_turns_are_the_order_of_the_tasks() -> None:
    pairs: list[tuple[int, int]] = []
    start(iter(range(100)), lambda task, turn: pairs.append((task, turn)))
    assert all(task == turn for task, turn in pairs)


def test_what_is_done_in_turn_is_done_in_order() -> None:
    passed: list[int] = []

    def make(workers: Workers[int]) -> Work:
        def work(task: int, turn: int) -> None:
            time.sleep(0.0001 * (task * 7 % 5))
            workers.in_turn(turn)
            passed.append(task)
            workers.done()

        return work

    Workers(iter(range(200)), make, threads=8).run()
    assert passed == list(range(200))


def test_an_error_stops_the_others_and_is_raised() -> None:
    seen: list[int] = []

    def make(workers: Workers[int]) -> Work:
        def work(task: int, turn: int) -> None:
            seen.append(task)
            if task == 5:
                raise StorageError("No space left on device", file="out")
            workers.in_turn(turn)  # later tasks wait for number 5, which never comes
            workers.done()

        return work

    with pytest.raises(StorageError, match="No space left"):
        Workers(iter(range(10**6)), make, threads=4).run()
    assert len(seen) < 1000


def test_an_error_of_the_tasks_themselves_is_raised() -> None:
    def tasks() -> Iterator[int]:
        yield 1
        raise StorageError("Input/output error", file="in")

    with pytest.raises(StorageError, match="Input/output"):
        start(tasks(), lambda task, turn: None)


def test_an_error_in_making_a_worker_is_raised() -> None:
    def make(workers: Workers[int]) -> Work:
        raise MemoryError

    with pytest.raises(MemoryError):
        Workers(iter([1]), make).run()


def test_a_cancelled_run_ends_soon_and_says_so() -> None:
    cancel = threading.Event()
    seen: list[int] = []

    def work(task: int, turn: int) -> None:
        seen.append(task)
        if task == 10:
            cancel.set()

    with pytest.raises(CancelledError):
        start(iter(range(10**6)), work, cancel=cancel)
    assert len(seen) < 1000


def test_a_cancel_wakes_those_that_wait() -> None:
    cancel = threading.Event()

    def make(workers: Workers[int]) -> Work:
        def work(task: int, turn: int) -> None:
            if task == 0:
                time.sleep(0.05)
                cancel.set()
                workers.check()
            workers.in_turn(turn)

        return work

    with pytest.raises(CancelledError):
        Workers(iter(range(10)), make, threads=3, cancel=cancel).run()


def test_workers_that_wait_for_a_network_are_interrupted_when_the_user_cancels() -> None:
    cancel, left = threading.Event(), threading.Event()

    def work(task: int, turn: int) -> None:
        cancel.set()
        assert left.wait(30)
        raise StorageError("interrupted")

    began = time.monotonic()
    with pytest.raises(CancelledError):
        Workers(iter(range(9)), lambda workers: work, threads=2, cancel=cancel, interrupt=left.set).run()
    assert 0.2 < time.monotonic() - began < 5


def test_workers_that_end_by_themselves_are_not_interrupted() -> None:
    called: list[int] = []

    def work(task: int, turn: int) -> None:
        if task == 1:
            raise StorageError("No space left on device", file="out")
        time.sleep(0.05)

    with pytest.raises(StorageError, match="No space left"):
        Workers(iter(range(9)), lambda workers: work, threads=2, interrupt=lambda: called.append(1)).run()
    assert not called


@pytest.mark.parametrize(("asked", "most"), [(1, 1), (3, 3), (1000, MAX_THREADS)])
def test_there_are_as_many_threads_as_asked_for_within_bounds(asked: int, most: int) -> None:
    made = []

    def make(workers: Workers[int]) -> Work:
        made.append(threading.current_thread())
        return lambda task, turn: None

    Workers(iter(range(10)), make, threads=asked).run()
    assert len(made) == most
    assert not any(thread.is_alive() for thread in made)


def test_progress_tells_the_end_and_not_every_step() -> None:
    told: list[tuple[int, int]] = []
    progress = Progress(lambda done, total: told.append((done, total)))
    progress.expect(60000)
    progress.expect(40000)
    for _ in range(100000):
        progress.advance(1)
    assert told[-1] == (100000, 100000)
    assert len(told) <= 1001
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_the_rate_holds_over_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    monkeypatch.setattr(time, "sleep", slept.append)
    limit = RateLimit(1000)
    for _ in range(4):
        limit.take(500)  # the clock stands still: each waits for all that were before
    assert slept == [0.5, 1.0, 1.5]


def test_without_a_rate_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("slept"))
    limit = RateLimit()
    for _ in range(10):
        limit.take(10**12)
