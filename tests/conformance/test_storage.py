"""One contract of storage, kept by every protocol, by itself and under a filter; by their twin in memory, too."""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from diskmill.contract import calls
from diskmill.contract.drivers import FilterDriver
from diskmill.contract.extents import Kind
from diskmill.contract.node import Storage
from diskmill.contract.options import validate
from diskmill.contract.requests import CreateRequest, OpenRequest
from diskmill.errors import DiskmillError, StorageError
from diskmill.kit.filter import Filter
from diskmill.opening.context import Context
from diskmill.opening.creation import create_image
from diskmill.opening.names import parse_name
from diskmill.opening.places import protocol_of
from diskmill.opening.registry import Registry
from http_servers import faulty
from hypothesis import given
from hypothesis import strategies as st
from nbd_servers import nbdkit, uri
from ssh_server import SshServer
from twins import Content, MemoryDriver

PAGE = 4096
Make = Callable[..., Storage]


class PassDriver(FilterDriver):
    """A filter that changes nothing."""

    contract = 1
    name = "pass"


@pytest.fixture(params=["file", "memory", "ssh", "pass-file", "pass-memory", "pass-ssh"])
def make(
    request: pytest.FixtureRequest, tmp_path: Path, ssh_server: SshServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Make]:
    """Makes new storage by name, or opens what is there."""
    monkeypatch.setenv("DISKMILL_SSH", ssh_server.command)
    registry = Registry()
    registry.add(MemoryDriver())
    context = Context(registry=registry)
    protocol = request.param.removeprefix("pass-")
    filtered = protocol != request.param
    driver = registry.protocol(protocol)
    opened = []
    numbers = itertools.count()

    def make(
        name: str | None = None, *, new: bool = True, writable: bool = True, like: Storage | None = None
    ) -> Storage:
        path = tmp_path / f"{name or next(numbers)}"
        where = {"file": str(path), "memory": f"memory:{path.name}", "ssh": ssh_server.url(path)}[protocol]
        place = driver.place({"filename": where})
        if isinstance(like, Filter):
            assert isinstance(like.file, Storage)
            like = like.file
        if new:
            options = validate(driver.options, {}, when="create", driver=driver.name)
            asked = CreateRequest(where, context, 0, options=options, like=like, place=place)
            storage = registry.call(driver, "create", request=asked)
        else:
            options = validate(driver.options, {}, when="open", driver=driver.name)
            wanted = OpenRequest(where, context, options=options, writable=writable, place=place)
            storage = registry.call(driver, "open", request=wanted)
        if filtered:
            storage = Filter(PassDriver(), storage)
        opened.append(storage)
        return storage

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


@given(
    operations=st.lists(
        st.tuples(st.sampled_from(["write", "zero", "unmap", "truncate"]), st.integers(0, 20000), st.integers(0, 9000)),
        max_size=20,
    )
)
def test_the_twin_does_as_a_file_does(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, int, int]]
) -> None:
    registry = Registry()
    registry.add(MemoryDriver())
    context = Context(registry=registry, cache="unsafe")
    folder = tmp_path_factory.getbasetemp()
    file = registry.call(registry.protocol("file"), "create", request=CreateRequest(str(folder / "twin"), context, 0))
    twin = registry.call(registry.protocol("memory"), "create", request=CreateRequest("memory:twin", context, 0))
    try:
        for number, (what, offset, length) in enumerate(operations):
            for storage in (file, twin):
                if what == "write":
                    storage.write(offset, bytes([number + 1]) * length)
                elif what == "truncate":
                    storage.truncate(offset)
                else:
                    storage.zero(offset, length, unmap=what == "unmap")
            assert file.size == twin.size
        assert file.read(0, 30000) == twin.read(0, 30000)
    finally:
        file.close()


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


def test_images_are_made_on_storage_of_any_protocol() -> None:
    memory = MemoryDriver()
    registry = Registry()
    registry.add(memory)
    with create_image("memory:disk", "raw", 1000, {}, context=Context(registry=registry)) as image:
        image.write(0, b"abc")
        assert not memory.files
        image.settle()
    assert bytes(memory.files["disk"]) == b"abc" + bytes(1021)


# -- what is only read: every protocol, by itself and under a filter ------------------------------------------------

HELD = random.Random(12).randbytes(300_000) + bytes(100_000) + b"the end" * 1000
HELD += bytes(-len(HELD) % 512)
ONCE = ("pipe", "pass-pipe")
AT_ANY_OFFSET = [f"{over}{name}" for over in ("", "pass-") for name in ("file", "memory", "ssh", "nbd", "http")]
Open = Callable[[], Storage]


@pytest.fixture
def opened(
    request: pytest.FixtureRequest, tmp_path: Path, ssh_server: SshServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    """Opens what holds ``HELD`` for reading."""
    monkeypatch.setenv("DISKMILL_SSH", ssh_server.command)
    protocol = request.param.removeprefix("pass-")
    memory, path, sock = MemoryDriver(), tmp_path / "held", tmp_path / "sock"
    path.write_bytes(HELD)
    memory.files["held"] = Content(HELD)
    registry = Registry()
    registry.add(memory)
    names = {"file": str(path), "memory": "memory:held", "ssh": ssh_server.url(path), "nbd": uri(sock)}
    with ExitStack() as stack:
        if protocol == "nbd":
            stack.enter_context(nbdkit(sock, "-r", "file", path))
        if protocol == "http":
            for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
                monkeypatch.delenv(name)
            names["http"] = stack.enter_context(faulty(HELD, lambda number, first, length: None)).url
        if protocol == "pipe":
            names["pipe"] = f"pipe:{tmp_path / 'fifo'}"
            os.mkfifo(tmp_path / "fifo")

            def feed() -> None:
                with suppress(BrokenPipeError):  # not all of it need be read
                    (tmp_path / "fifo").write_bytes(HELD)

            feeder = threading.Thread(target=feed, daemon=True)
            feeder.start()
            stack.callback(feeder.join, 10)

        def open() -> Storage:
            spec = dict(parse_name(names[protocol])["file"])
            driver = protocol_of(spec.pop("driver"), registry)
            place = driver.place(spec)
            options = validate(driver.options, {}, when="open", driver=driver.name)
            asked = OpenRequest(place.display(), Context(registry=registry), options=options, place=place)
            storage = calls.open_storage(registry, driver, asked)
            stack.callback(storage.close)
            return storage if protocol == request.param else Filter(PassDriver(), storage)

        yield open


@pytest.mark.parametrize("opened", AT_ANY_OFFSET, indirect=True)
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


@pytest.mark.parametrize("opened", AT_ANY_OFFSET, indirect=True)
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


@pytest.mark.parametrize("opened", [*AT_ANY_OFFSET, *ONCE], indirect=True)
def test_what_a_protocol_opened_for_reading_is_not_changed(opened: Open) -> None:
    storage = opened()
    for change in (
        lambda: storage.write(0, b"x"),
        lambda: storage.zero(0, 512),
        lambda: storage.truncate(512),
        lambda: storage.allocate(0, 512, "full"),
    ):
        with pytest.raises(DiskmillError):
            change()
    assert storage.read(0, 1000) == HELD[:1000]
    if not storage.forward:
        assert storage.identity() == opened().identity()
    storage.interrupt()  # whoever waits leaves; the rest is up to the storage
    storage.close()
    storage.close()


@pytest.mark.parametrize("opened", ONCE, indirect=True)
def test_what_comes_once_is_read_forward(opened: Open) -> None:
    storage = opened()
    assert storage.forward
    assert storage.read_some(0, 1000) == storage.read_some(0, 1000) == HELD[:1000]  # the head is kept
    found = bytearray()
    while part := storage.read_some(len(found), 70_000):
        found += part
    assert found == HELD
    with suppress(StorageError):  # it is gone, or still the same
        assert storage.read_some(100_000, 10) == HELD[100_000:100_010]
