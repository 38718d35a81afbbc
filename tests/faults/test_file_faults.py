"""Storage that fails: full disks, limits, short transfers, device errors. Each is one line that names the file."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diskmill.contract.requests import CreateRequest, OpenRequest
from diskmill.errors import DiskmillError, StorageError
from diskmill.opening.context import CACHE_MODES, Context
from diskmill.storages.file import driver
from diskmill.storages.file.storage import FileStorage
from tools import diskmill

MiB = 1 << 20


@pytest.fixture(params=CACHE_MODES)
def cache(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def storage(tmp_path: Path, cache: str) -> Any:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * 64)
    storage = driver.open(OpenRequest(str(path), Context(cache=cache), writable=True))
    yield storage
    storage.abandon()


def one_line(error: DiskmillError, *parts: str) -> None:
    text = str(error)
    assert "\n" not in text
    for part in parts:
        assert part in text


@pytest.fixture
def small_files() -> Any:
    """No file may become larger than 1 MiB; what is written beyond gets an error, and would get a deadly signal."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MiB, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


BEYOND: dict[str, Callable[[FileStorage], None]] = {
    "write": lambda storage: storage.write(MiB - 512, bytes(4096)),
    "vector": lambda storage: storage.write_vector(MiB - 512, [bytes(512), bytes(512)]),
    "unaligned": lambda storage: storage.write(MiB - 1, b"ab"),
    "truncate": lambda storage: storage.truncate(2 * MiB),
    "zero": lambda storage: storage.zero(MiB, MiB),
    "falloc": lambda storage: storage.allocate(0, 2 * MiB, "falloc"),
    "full": lambda storage: storage.allocate(0, 2 * MiB, "full"),
}


@pytest.mark.parametrize("what", BEYOND)
def test_a_file_that_may_not_grow_is_an_error_not_a_death(
    tmp_path: Path, cache: str, what: str, small_files: None
) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    storage = driver.create(CreateRequest(str(path), Context(cache=cache), 0))
    with pytest.raises(StorageError) as caught:
        BEYOND[what](storage)
    one_line(caught.value, str(path), "File too large")
    assert caught.value.errno == errno.EFBIG
    storage.abandon()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_errors_of_the_device_name_file_and_place(
    storage: FileStorage, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*arguments: Any) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        for name in ("preadv", "pwrite", "pwritev", "ftruncate"):
            patch.setattr(os, name, fail)
        cases: list[tuple[str, Callable[[], object]]] = [
            ("read at offset 4096", lambda: storage.read(4096, 100)),
            ("write at offset 512", lambda: storage.write(512, b"x")),
            ("write at offset 8192", lambda: storage.write_vector(8192, [bytes(4096), bytes(4096)])),
            ("set the size to 7 bytes", lambda: storage.truncate(7)),
        ]
        for place, call in cases:
            with pytest.raises(StorageError) as caught:
                call()
            one_line(caught.value, storage.name, place, os.strerror(code))
            assert caught.value.errno == code


def test_transfers_that_come_up_short_go_on(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    real_read, real_write, real_vector = os.preadv, os.pwrite, os.pwritev
    step = 512 if storage.requests.align == 1 else storage.requests.align

    def preadv(fd: int, buffers: Any, offset: int) -> int:
        return real_read(fd, [memoryview(buffers[0])[:step]], offset)

    def pwrite(fd: int, data: Any, offset: int) -> int:
        return real_write(fd, memoryview(data)[:step], offset)

    def pwritev(fd: int, buffers: Any, offset: int) -> int:
        return real_vector(fd, [memoryview(buffers[0])[:7]], offset)

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "pwritev", pwritev)
    expected = bytearray(bytes(range(256)) * 64)
    assert storage.read(100, 16000) == bytes(expected[100:16100])
    assert storage.read(0, 16384) == bytes(expected)
    storage.write(4096, b"a" * 8192)
    storage.write(50, b"b" * 5000)
    storage.write_vector(10001, [b"c" * 5, b"d" * 3000, b"e"])
    expected[4096:12288] = b"a" * 8192
    expected[50:5050] = b"b" * 5000
    expected[10001:13007] = b"c" * 5 + b"d" * 3000 + b"e"
    assert storage.read(0, 16384) == bytes(expected)


def test_a_write_that_gets_nowhere_ends(storage: FileStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda *arguments: 0)
    with pytest.raises(StorageError, match="write at offset 0"):
        storage.write(0, bytes(8192))


def test_a_file_cut_short_meanwhile_reads_as_zeros(storage: FileStorage) -> None:
    os.truncate(storage.name, 5000)
    assert storage.read(4096, 4096) == (bytes(range(256)) * 64)[4096:5000] + bytes(8192 - 5000)


def test_a_source_cut_short_meanwhile_is_an_error(tmp_path: Path, cache: str) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * 64)
    with driver.open(OpenRequest(str(path), Context(cache=cache))) as storage:
        assert storage.read(16000, 1000)[384:] == bytes(616)  # beyond the end all is zeros
        os.truncate(path, 4096)
        for read in (lambda: storage.read(4000, 4096), lambda: list(storage.extents(8192, 4096))):
            with pytest.raises(StorageError, match="shorter"):
                read()


def test_a_full_disk_fails_a_conversion_whole(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(4 * MiB))
    target.write_bytes(b"old")
    done = diskmill("convert", "-f", "raw", "-O", "raw", source, target, check=False, file_size=MiB)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert str(target) in done.stderr
    assert "File too large" in done.stderr
    assert target.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]
