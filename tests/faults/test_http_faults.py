"""A web server that fails in every way: the image is read as it is, or there is one line that says why not."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import diskmill
import diskmill_http.patience
import pytest
from diskmill.errors import DiskmillError, StorageError
from diskmill.opening.context import Context
from diskmill.opening.graph import open_image
from diskmill.opening.places import storage_of
from http_servers import Fault, FaultServer, faulty
from samples import KiB, MiB, sparse_file

DATA = random.Random(1).randbytes(5 * MiB + 300)
RUNS = int(os.environ.get("DISKMILL_HTTP_RUNS", "200"))
Plan = Callable[[int, int, int], Fault | None]


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diskmill_http.patience, "FIRST_WAIT", 0.001)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers are on this machine, whatever its own way to the network is."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


def spec(server: FaultServer, **options: Any) -> str:
    words = {"driver": "raw", "file.driver": "http", "file.url": server.url, "file.timeout": 2}
    words.update({f"file.{key}": value for key, value in options.items()})
    return ",".join(f"{key}={value}" for key, value in words.items())


def convert(server: FaultServer, output: Path, **options: Any) -> None:
    diskmill.convert([spec(server, **options)], str(output), image_opts=True, threads=4)


def reads(plan: Plan, tmp_path: Path, data: bytes = DATA, **options: Any) -> FaultServer:
    """Fail unless a copy of *data* from a server that fails by *plan* is the same."""
    with faulty(data, plan) as server:
        convert(server, tmp_path / "out", **options)
        assert (tmp_path / "out").read_bytes() == data + bytes(-len(data) % 512)
        (tmp_path / "out").unlink()
        return server


def refuses(plan: Plan, tmp_path: Path, *words: str, **options: Any) -> None:
    """Fail unless such a copy ends with one line that has all of *words*, and leaves nothing."""
    with faulty(DATA, plan) as server:
        with pytest.raises(DiskmillError) as caught:
            convert(server, tmp_path / "out", **options)
        text = str(caught.value)
        assert "\n" not in text
        assert server.url in text
        assert all(word in text for word in words), text
        assert os.listdir(tmp_path) == []


def once(fault: Fault, *at: int) -> Plan:
    return lambda number, first, length: fault if number in at else None


def data_only(fault: Fault) -> Plan:
    """For all requests but the one that opens the file."""
    return lambda number, first, length: fault if number else None


def test_a_server_that_resets_every_so_often_is_asked_on_from_there(tmp_path: Path) -> None:
    for kind in ("reset", "close"):
        server = reads(data_only(Fault(kind, 200 * KiB)), tmp_path, retries=1)
        total = sum(
            int(last) - int(first) + 1
            for asked in server.asked
            for first, last in [asked["Range"].removeprefix("bytes=").split("-")]
        )
        assert len(server.asked) >= len(DATA) // (200 * KiB)
        starts = [int(asked["Range"].removeprefix("bytes=").split("-")[0]) for asked in server.asked[1:]]
        if kind == "close":  # what was received is not asked for again
            assert len(set(starts)) == len(starts)
        assert total > len(DATA)


def test_a_server_that_stalls_is_asked_again(tmp_path: Path) -> None:
    reads(once(Fault("stall", 100 * KiB), 2), tmp_path, timeout=1)
    begin = time.monotonic()
    refuses(data_only(Fault("stall")), tmp_path, "silent for too long", "after 2 tries", timeout=1, retries=1)
    assert time.monotonic() - begin < 10


def test_a_busy_server_is_given_the_time_that_it_asks_for(tmp_path: Path) -> None:
    for status in (408, 429, 500, 502, 503, 504):
        reads(once(Fault("status", status), 0, 2, 3), tmp_path)
    begin = time.monotonic()
    reads(once(Fault("status", 503, ("Retry-After", "1")), 1), tmp_path)
    assert time.monotonic() - begin >= 1
    date = formatdate(time.time() + 2, usegmt=True)
    begin = time.monotonic()
    reads(once(Fault("status", 429, ("Retry-After", date)), 0), tmp_path)
    assert time.monotonic() - begin > 0.5
    refuses(data_only(Fault("status", 503)), tmp_path, "503 Service Unavailable", "after 4 tries", retries=3)


def test_a_wait_that_is_asked_for_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diskmill_http.patience, "LONGEST_WAIT", 0.1)
    reads(once(Fault("status", 503, ("Retry-After", "99999999999999999999")), 1), tmp_path)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 505, 304, 204])
def test_what_is_of_no_use_to_ask_again_is_asked_once(status: int, tmp_path: Path) -> None:
    with faulty(DATA, lambda number, first, length: Fault("status", status)) as server:
        with pytest.raises(StorageError, match=str(status)):
            convert(server, tmp_path / "out")
        assert server.count == 1


@pytest.mark.parametrize("kind", ["etag", "bytes"])
def test_a_file_that_changes_is_an_error_and_never_a_mix(kind: str, tmp_path: Path) -> None:
    for number in (1, 2, 4):
        refuses(once(Fault(kind), number), tmp_path, "it changed on the server")


def test_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    refuses(once(Fault("status", 416, ("Content-Range", "bytes */9")), 3), tmp_path, "it changed on the server")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("length", 5), "not as long as its range"),
        (Fault("range"), "another range"),
        (Fault("gzip"), "encoded (gzip)"),
        (Fault("whole"), "no longer gives ranges"),
    ],
)
def test_wrong_answers(fault: Fault, words: str, tmp_path: Path) -> None:
    refuses(once(fault, 2), tmp_path, words)


def test_answers_that_need_more_requests(tmp_path: Path) -> None:
    reads(data_only(Fault("short")), tmp_path)
    reads(data_only(Fault("slow")), tmp_path)
    reads(once(Fault("garbage"), 0, 3), tmp_path)


def test_sizes(tmp_path: Path) -> None:
    for size in (0, 1, 511, 256 * KiB, 256 * KiB + 1, MiB * 3 // 2):
        reads(lambda number, first, length: None, tmp_path, DATA[:size])


def test_tables_are_read_ahead(tmp_path: Path) -> None:
    with faulty(DATA, lambda number, first, length: None) as server:
        with open_image(spec(server), image_opts=True, context=Context()) as image:
            file = storage_of(image)
            for at in range(0, MiB, 4 * KiB):
                assert file.read(at + 1, 100) == DATA[at + 1 : at + 101]
            assert file.read(len(DATA) - 10, 30) == DATA[-10:] + bytes(20)
        assert server.count < 10


def test_who_waits_for_a_server_is_woken() -> None:
    """Whether for an answer, its rest, or the time of another try."""
    for fault in (Fault("stall"), Fault("stall", 1000), Fault("status", 503, ("Retry-After", "50"))):
        with (
            faulty(DATA, data_only(fault)) as server,
            open_image(spec(server, timeout=20), image_opts=True, context=Context()) as image,
        ):
            file = storage_of(image)
            errors: list[Exception] = []

            def read(file: Any = file, errors: list[Exception] = errors) -> None:
                try:
                    file.read(0, MiB)
                except DiskmillError as error:
                    errors.append(error)

            threads = [threading.Thread(target=read) for _ in range(6)]  # more than there are connections
            for thread in threads:
                thread.start()
            time.sleep(0.3)
            begin = time.monotonic()
            file.interrupt()
            for thread in threads:
                thread.join(10)
            assert time.monotonic() - begin < 1
            assert len(errors) == 6
            assert "interrupted" in str(errors[0])


@pytest.mark.parametrize("work", ["convert", "digest", "compare"])
def test_cancelling_reaches_who_waits_for_a_server(work: str, tmp_path: Path) -> None:
    cancel, out = threading.Event(), tmp_path / "out"
    with faulty(DATA, data_only(Fault("stall"))) as server:
        name = spec(server, timeout=20)
        other = sparse_file(tmp_path / "other", len(DATA) // 512 * 512 + 512, {0: b"x"})
        calls: dict[str, Callable[[], object]] = {
            "convert": lambda: diskmill.convert([name], str(out), image_opts=True, cancel=cancel),
            "digest": lambda: diskmill.digest(name, image_opts=True, cancel=cancel),
            "compare": lambda: diskmill.compare(
                name, f"driver=raw,file.filename={other}", image_opts=True, cancel=cancel
            ),
        }
        stopped: list[float] = []
        timer = threading.Timer(0.5, lambda: (cancel.set(), stopped.append(time.monotonic())))
        timer.start()
        with pytest.raises(diskmill.CancelledError):
            calls[work]()
        assert time.monotonic() - stopped[0] < 1
    assert not out.exists()


def test_a_server_that_may_come_back_is_worth_another_try(tmp_path: Path) -> None:
    for fault, transient in ((Fault("status", 503), True), (Fault("status", 404), False)):
        with faulty(DATA, data_only(fault)) as server, pytest.raises(StorageError) as caught:
            convert(server, tmp_path / "out", retries=0)
        assert caught.value.transient is transient


def test_a_dead_connection_that_was_kept_costs_nothing(tmp_path: Path) -> None:
    """Servers close connections that are idle: that is no failure."""
    with (
        faulty(DATA, lambda number, first, length: None) as server,
        open_image(spec(server, retries=0), image_opts=True, context=Context()) as image,
    ):
        file = storage_of(image)
        for connection in file.client.connections._idle:  # type: ignore[attr-defined]
            connection.http.sock.shutdown(2)
        assert file.read(0, MiB) == DATA[:MiB]


def random_plan(seed: int) -> Plan:
    """Faults of all kinds, some of which pass and some of which do not."""
    rng, lock = random.Random(seed), threading.Lock()
    share = rng.choice((0.05, 0.3, 0.7))
    fatal = rng.random() < 0.3
    kinds = ["reset", "close", "status", "short", "garbage"] + ["etag", "bytes", "length", "range", "gzip"] * fatal

    def plan(number: int, first: int, length: int) -> Fault | None:
        with lock:
            if rng.random() > share:
                return None
            kind = rng.choice(kinds)
            count = rng.choice((429, 500, 503)) if kind == "status" else rng.randrange(1, length + 1)
            return Fault(kind, count)

    return plan


def test_random_faults(tmp_path: Path) -> None:
    """The copy is the same, or there is one line and nothing of it; never anything between. `DISKMILL_HTTP_RUNS` says
    how often."""
    data = DATA[: MiB + 700]
    same = 0
    for seed in range(RUNS):
        output = tmp_path / f"out{seed}"
        with faulty(data, random_plan(seed)) as server:
            try:
                convert(server, output, readahead=64 * KiB, retries=8)
            except StorageError as error:
                text = str(error)
            else:
                assert output.read_bytes() == data + bytes(-len(data) % 512), seed
                output.unlink()
                text, same = "", same + 1
        assert "\n" not in text
        assert os.listdir(tmp_path) == []
    assert RUNS * 0.5 < same < RUNS, "both outcomes are seen"


def test_without_ranges_a_lost_connection_is_made_good(tmp_path: Path) -> None:
    """What came already is passed over, unless the file has changed."""
    from diskmill_http.http_storage import OnePass

    def plan(number: int, first: int, length: int) -> Fault | None:
        return Fault("whole") if number == 0 else None

    def broken(number: int, first: int, length: int) -> Fault | None:
        return Fault("close", 300 * KiB) if number == 1 else None

    with faulty(DATA, plan) as server:
        storage = _open(server)
        assert isinstance(storage, OnePass)
        assert storage.size == len(DATA)
        assert storage.read(0, 100 * KiB) == DATA[: 100 * KiB]
        assert storage.client_answer_lost()
        server.plan = broken
        assert storage.read(200 * KiB, len(DATA) - 200 * KiB) == DATA[200 * KiB :]
        assert storage.read(70 * KiB, 10) == DATA[70 * KiB :][:10]  # what came last is kept
        storage.close()
    with faulty(DATA, plan) as server:
        storage = _open(server)
        storage.read(0, 100 * KiB)
        storage.client_answer_lost()
        server.etag = '"two"'
        with pytest.raises(StorageError, match="it changed on the server"):
            storage.read(200 * KiB, KiB)
        storage.close()


def _open(server: FaultServer) -> Any:
    from diskmill.contract import calls
    from diskmill.contract.requests import OpenRequest

    context = Context()
    driver = context.registry.protocol("http")
    place = driver.place({"filename": server.url})
    storage: Any = calls.open_storage(context.registry, driver, OpenRequest(server.url, context, place=place))

    def lose() -> bool:
        storage._answer.connection.http.sock.shutdown(2)
        return True

    storage.client_answer_lost = lose
    return storage
