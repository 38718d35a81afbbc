"""Files as storage, in every cache mode: bytes, holes, zeroing and growth."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diskmill
import pytest
from diskmill.contract.extents import Kind
from diskmill.contract.node import Node
from diskmill.contract.requests import CreateRequest, OpenRequest
from diskmill.errors import DiskmillError, StorageError
from diskmill.opening.context import CACHE_MODES, Context
from diskmill.storages.file import driver, space
from diskmill.storages.file.direct import DirectStorage
from diskmill.storages.file.storage import FileStorage
from hypothesis import given
from hypothesis import strategies as st

KiB = 1024
MiB = 1024 * KiB
Open = Callable[..., FileStorage]


@pytest.fixture(params=CACHE_MODES)
def cache(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(path: Path, *, cache: str = "writeback", writable: bool = True) -> FileStorage:
    return driver.open(OpenRequest(str(path), Context(cache=cache), writable=writable))


def created(path: Path, *, cache: str = "writeback", **options: Any) -> FileStorage:
    return driver.create(CreateRequest(str(path), Context(cache=cache), 0, options=options))


def test_unaligned_writes_in_every_cache_mode(tmp_path: Path, cache: str) -> None:
    path = tmp_path / "disk"
    with created(path, cache=cache) as storage:
        storage.write(5, b"hello" * 1000)
        storage.write_vector(10000, [b"a" * 3, b"", b"b" * 4096, b"c"])
        storage.write(3 * MiB - 7, bytes(range(256)) * 9000)  # longer than the copy buffer
        storage.settle()
    expected = bytearray(3 * MiB - 7 + 256 * 9000)
    expected[5:5005] = b"hello" * 1000
    expected[10000:14100] = b"a" * 3 + b"b" * 4096 + b"c"
    expected[3 * MiB - 7 :] = bytes(range(256)) * 9000
    assert path.read_bytes() == expected
    with opened(path, cache=cache, writable=False) as storage:
        assert storage.size == len(expected)
        for offset, length in ((0, len(expected)), (1, 5000), (4096, 8192), (len(expected) - 3, 100)):
            assert storage.read(offset, length) == bytes(expected[offset : offset + length]).ljust(length, b"\0")


def test_the_size_is_exact_after_an_unaligned_tail(tmp_path: Path, cache: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 5000)
    with opened(path, cache=cache) as storage:
        storage.write(4999, b"yz")
        assert storage.size == 5001
    assert path.read_bytes() == b"x" * 4999 + b"yz"


@pytest.mark.parametrize("cache", ["none", "directsync"])
def test_direct_modes_open_past_the_page_cache(tmp_path: Path, cache: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(8192))
    with opened(path, cache=cache) as storage:
        assert isinstance(storage, DirectStorage)
        number = storage.fileno()
        assert number is not None
        flags = int(Path(f"/proc/self/fdinfo/{number}").read_text().split("flags:")[1].split()[0], 8)
        assert flags & os.O_DIRECT
        assert bool(flags & os.O_DSYNC) == (cache == "directsync")


@pytest.mark.parametrize("cache", ["none", "directsync"])
def test_a_file_system_without_direct_io_is_named(cache: str) -> None:
    with pytest.raises(StorageError, match=r"/proc/self/stat.*does not support O_DIRECT"):
        opened(Path("/proc/self/stat"), cache=cache, writable=False)


def test_writers_of_neighbouring_bytes_do_not_undo_each_other(tmp_path: Path, cache: str) -> None:
    path = tmp_path / "disk"
    with created(path, cache=cache) as storage:

        def write(number: int) -> None:
            for at in range(40):
                storage.write(at * 400 + number * 100, bytes([number + 1]) * 100)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        storage.settle()
    assert path.read_bytes() == b"".join(bytes([number + 1]) * 100 for number in range(4)) * 40


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(("write", "vector", "punch", "zero", "truncate", "full", "falloc")),
        st.integers(0, 40000),
        st.integers(0, 20000),
    ),
    max_size=12,
)


@given(OPERATIONS, st.sampled_from(CACHE_MODES))
def test_any_operations_leave_what_they_should(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, int, int]], cache: str
) -> None:
    path = tmp_path_factory.mktemp("any") / "disk"
    model = bytearray()

    def reach(end: int) -> None:
        model.extend(bytes(max(end - len(model), 0)))

    with created(path, cache=cache) as storage:
        for number, (what, offset, length) in enumerate(operations, 1):
            if what in ("write", "vector") and length:
                data = bytes([number]) * length
                if what == "write":
                    storage.write(offset, data)
                else:
                    storage.write_vector(offset, [data[:7], data[7:]])
                reach(offset + length)
                model[offset : offset + length] = data
            elif what in ("punch", "zero", "full") and length:
                if what == "full":
                    storage.allocate(offset, length, "full")
                else:
                    storage.zero(offset, length, unmap=what == "punch")
                reach(offset + length)
                model[offset : offset + length] = bytes(length)
            elif what == "falloc" and length:
                storage.allocate(offset, length, "falloc")
                reach(offset + length)
            elif what == "truncate":
                storage.truncate(offset)
                reach(offset)
                del model[offset:]
            assert storage.size == len(model)
            assert storage.read(0, len(model) + 10) == bytes(model) + bytes(10)
            at = 0
            for extent in storage.extents(0, len(model) + 5):
                assert extent.start == at
                at = extent.end
                assert extent.kind is Kind.DATA or not any(model[extent.start : extent.end])
            assert at == len(model) + 5
        storage.settle()
    assert path.read_bytes() == model
    path.unlink()


def test_zeroing_partial_blocks_keeps_their_other_bytes(tmp_path: Path, cache: str) -> None:
    for unmap in (True, False):
        path = tmp_path / f"disk{unmap}"
        path.write_bytes(b"x" * 100_000)
        with opened(path, cache=cache) as storage:
            storage.zero(4097, 60_001, unmap=unmap)
        assert path.read_bytes() == b"x" * 4097 + bytes(60_001) + b"x" * (100_000 - 64_098)


def test_zeroing_gives_space_back_where_asked(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * MiB)
    with opened(path) as storage:
        storage.zero(0, MiB // 2, unmap=False)
        assert os.stat(path).st_blocks * 512 >= MiB
        storage.zero(0, MiB // 2, unmap=True)
        assert os.stat(path).st_blocks * 512 < MiB
        assert [extent.kind for extent in storage.extents(0, MiB)] == [Kind.ZERO, Kind.DATA]
        storage.discard(MiB // 2, MiB)
        storage.flush()
        assert os.stat(path).st_blocks == 0
        assert storage.size == MiB


def test_zeros_are_written_where_the_file_system_has_no_other_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "_fallocate", lambda: lambda fd, mode, offset, length: errno.EOPNOTSUPP)
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 5 * MiB)
    with opened(path) as storage:
        storage.zero(MiB + 1, 3 * MiB)
        storage.discard(0, MiB)
        storage.zero(5 * MiB - 1, 11)
        assert storage.size == 5 * MiB + 10
    assert path.read_bytes() == b"x" * (MiB + 1) + bytes(3 * MiB) + b"x" * (MiB - 2) + bytes(11)


def test_a_failed_zeroing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "_fallocate", lambda: lambda fd, mode, offset, length: errno.EIO)
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 8192)
    with opened(path) as storage, pytest.raises(StorageError, match=r"disk.*zero 10 bytes at offset 7.*Input/output"):
        storage.zero(7, 10)


def test_holes_are_seen_after_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(MiB)
    with opened(path) as storage:
        assert [extent.kind for extent in storage.extents(0, MiB)] == [Kind.ZERO]
        storage.write(512 * KiB, b"x" * 4096)
        found = [(extent.start, extent.length, extent.kind) for extent in storage.extents(0, MiB)]
        assert found == [
            (0, 512 * KiB, Kind.ZERO),
            (512 * KiB, 4096, Kind.DATA),
            (516 * KiB, 508 * KiB, Kind.ZERO),
        ]


def test_no_hole_is_seen_where_another_thread_has_written(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    count = 400
    with created(path, cache="unsafe") as storage:
        storage.truncate(count * 4096)
        written = threading.Semaphore(0)

        def write() -> None:
            for number in range(count):
                storage.write(number * 4096, b"x" * 4096)
                written.release()

        thread = threading.Thread(target=write)
        thread.start()
        for number in range(count):
            written.acquire()
            assert next(iter(storage.extents(number * 4096, 4096))).kind is Kind.DATA
        thread.join()


@pytest.mark.parametrize("mode", ["falloc", "full"])
def test_allocated_space_is_there(tmp_path: Path, mode: str) -> None:
    with created(tmp_path / "disk") as storage:
        storage.truncate(MiB)
        storage.allocate(0, 2 * MiB, mode)
        assert storage.size == 2 * MiB
        assert (storage.allocated() or 0) >= 2 * MiB
        assert storage.read(0, 2 * MiB) == bytes(2 * MiB)


def test_an_offset_that_no_file_has_is_an_error(tmp_path: Path, cache: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(10))
    with opened(path, cache=cache) as storage:
        with pytest.raises(StorageError, match=r"beyond the largest file offset"):
            storage.read(2**63, 512)
        with pytest.raises(StorageError, match=r"beyond the largest file offset"):
            storage.write(2**64, bytes(512))


def test_flushes_reach_the_disk_as_the_cache_mode_asks(
    tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(os, "fdatasync", calls.append)
    path = tmp_path / "disk"
    path.write_bytes(bytes(8192))
    with opened(path, cache=cache) as storage:
        storage.flush()
        assert not calls  # nothing was written
        storage.write(0, bytes(4096))
        storage.flush()
        storage.flush()
        assert len(calls) == (0 if cache == "unsafe" else 1)


def test_a_failed_flush_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "disk"
    path.write_bytes(bytes(8192))
    storage = opened(path)
    storage.write(0, b"x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(StorageError, match=r"flush: Input/output error"):
            storage.flush()
    with pytest.raises(StorageError, match=r"flush: Input/output error"):
        storage.flush()
    storage.abandon()


@pytest.mark.parametrize("vector", [False, True])
def test_a_write_that_failed_makes_no_file_longer(
    tmp_path: Path, cache: str, vector: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in what is believed either: a table must not name what is beyond the end. What others write counts."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    storage = opened(path, cache=cache)
    begun, go_on = threading.Event(), threading.Event()
    real = os.pwrite

    def pwrite(fd: int, data: Any, offset: int) -> int:
        if offset == 12288:
            begun.set()
            go_on.wait()
            return real(fd, data, offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: pwrite(fd, buffers[0], offset))
    monkeypatch.setattr(os, "posix_fallocate", lambda fd, offset, length: pwrite(fd, b"", offset))

    def far() -> None:
        if vector:
            storage.write_vector(MiB, [b"x" * 4096])
        else:
            storage.write(MiB, b"x" * 4096)

    for call in (far, lambda: storage.allocate(0, 1 << 30, "falloc")):
        with pytest.raises(StorageError):
            call()
        assert storage.size == 4096
    other = threading.Thread(target=storage.write, args=(12288, b"y" * 4096))
    other.start()
    begun.wait()
    with pytest.raises(StorageError):
        far()
    assert storage.size == 16384
    go_on.set()
    other.join()
    assert storage.size == 16384
    storage.close()
    assert path.read_bytes() == bytes(12288) + b"y" * 4096


@pytest.mark.parametrize("writable", [False, True])
def test_what_is_no_file_is_never_opened(tmp_path: Path, writable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setattr(os, "open", lambda *arguments, **options: pytest.fail("opened"))
    for path in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(StorageError, match=r"neither a regular file nor a block device"):
            opened(path, writable=writable)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "", "x" * 5000, "no/such/folder/x"])
def test_impossible_names_are_errors(name: str) -> None:
    for hook in (driver.open, driver.create):
        request: Any = OpenRequest if hook == driver.open else CreateRequest
        with pytest.raises(StorageError):
            hook(request(name, Context(), *(() if hook == driver.open else (0,))))


def test_a_link_at_the_end_can_be_refused(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x")
    (tmp_path / "link").symlink_to("disk")
    with pytest.raises(StorageError, match=r"link"):
        driver.open(OpenRequest(str(tmp_path / "link"), Context(), options={"follow": False}))
    driver.open(OpenRequest(str(tmp_path / "disk"), Context(), options={"follow": False})).close()


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("gains", [False, True])
def test_a_new_file_has_space_for_what_was_written_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gains: bool, refused: bool
) -> None:
    asked: list[tuple[int, int]] = []

    def allocate(fd: int, offset: int, length: int) -> None:
        asked.append((offset, length))
        if refused:
            raise OSError(errno.EOPNOTSUPP, "not here")
        real(fd, offset, length)

    real = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    monkeypatch.setattr(space, "gains_by_allocation", lambda fd: gains)
    path = tmp_path / "disk"
    with created(path) as storage:
        storage.truncate(16 * MiB)
        storage.write(4 * MiB, b"a" * MiB)
        storage.write_vector(8 * MiB, [b"b" * MiB, b"c" * MiB])
        storage.write(16 * MiB, b"d" * MiB)
        storage.write(0, b"small")
        storage.settle()
    everything = [(4 * MiB, MiB), (8 * MiB, 2 * MiB), (16 * MiB, MiB)]
    assert asked == ((everything[:1] if refused else everything) if gains else [])
    assert 4 * MiB <= path.stat().st_blocks * 512 < 5 * MiB
    expected = bytearray(17 * MiB)
    expected[:5] = b"small"
    for at, letter in ((4, b"a"), (8, b"b"), (9, b"c"), (16, b"d")):
        expected[at * MiB : (at + 1) * MiB] = letter * MiB
    assert path.read_bytes() == expected


def drop(held: list[Node]) -> None:
    """Let go of the only reference to a node."""
    held.clear()
    gc.collect()


def test_a_file_that_is_dropped_gives_its_lock_back_and_says_so(tmp_path: Path, cache: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)
    before = len(os.listdir("/proc/self/fd"))
    for writable, kind in ((False, ResourceWarning), (True, RuntimeWarning)):
        storage = opened(path, cache=cache, writable=writable)
        if writable:
            storage.write(998, b"yyyy")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del storage
            gc.collect()
        assert [one.category for one in caught] == [kind]
        assert f"'{path}' was dropped without being closed" in str(caught[0].message)
        assert len(os.listdir("/proc/self/fd")) == before
        opened(path, cache=cache).close()
    assert path.read_bytes() == b"x" * 998 + b"yyyy"


def test_an_output_that_is_dropped_leaves_nothing(tmp_path: Path) -> None:
    held: list[Node] = [created(tmp_path / "file")]
    held[0].write(0, b"x")
    with pytest.warns(ResourceWarning, match="dropped"):
        drop(held)
    assert os.listdir(tmp_path) == []


def test_an_image_that_is_dropped_is_as_it_was_at_its_last_flush(tmp_path: Path) -> None:
    path = str(tmp_path / "disk.qcow2")
    diskmill.create(path, 4 * MiB, format="qcow2")
    held: list[Node] = [diskmill.open(path, writable=True)]
    held[0].write(0, b"flushed" * KiB)
    held[0].flush()
    held[0].write(2 * MiB, b"not flushed")
    with pytest.warns(RuntimeWarning, match="dropped without being closed: what was written .* may be lost"):
        drop(held)
    with diskmill.open(path, writable=True) as image:
        assert image.read(0, 7 * KiB) == b"flushed" * KiB
    assert diskmill.check(path).corruptions == 0


def test_a_failed_open_drops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"QFI\xfb" + bytes(1000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DiskmillError):
            diskmill.open(str(path), "qcow2")
        gc.collect()


def test_an_image_that_is_open_when_python_ends_is_told_of(tmp_path: Path) -> None:
    program = "import diskmill, sys; image = diskmill.open(sys.argv[1], writable=True)"
    (tmp_path / "disk").write_bytes(bytes(4096))
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "disk"], capture_output=True, text=True, check=True
    )
    assert "was dropped without being closed" in done.stderr
    assert "Traceback" not in done.stderr
