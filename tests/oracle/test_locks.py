"""Locks: diskmill and QEMU's programs see each other's use of an image."""

from __future__ import annotations

import errno
import fcntl
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from diskmill.contract.requests import OpenRequest
from diskmill.errors import LockedError
from diskmill.opening.context import Context
from diskmill.opening.creation import create_image
from diskmill.opening.graph import open_image
from diskmill.storages.file import driver
from tools import qemu_img, qemu_io, tool

MiB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    return path


@contextmanager
def held_by_qemu_io(path: Path, *options: str, format: str = "qcow2") -> Iterator[None]:
    """While qemu-io has *path* open."""
    process = subprocess.Popen(
        [tool("qemu-io"), "-f", format, *options, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("read 0 512\n")
    process.stdin.flush()
    text = ""
    while "ops" not in text:  # it has been read: the image is open
        line = process.stdout.readline()
        assert line, f"qemu-io ended: {text}"
        text += line
    try:
        yield
    finally:
        process.communicate("quit\n", timeout=30)


def _greets(address: Path) -> bool:
    """Whether the server is ready: its socket is there before it has opened the image."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(address))
            return client.recv(8) == b"NBDMAGIC"
        except (FileNotFoundError, ConnectionError):
            return False


@contextmanager
def held_by_qemu_nbd(path: Path, folder: Path, *options: str) -> Iterator[None]:
    """While qemu-nbd exports *path*."""
    address = folder / "socket"
    process = subprocess.Popen([tool("qemu-nbd"), "-f", "qcow2", "-t", "-k", str(address), *options, str(path)])
    try:
        end = time.monotonic() + 30
        while not _greets(address):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(30)


def opened(path: Path, *, writable: bool = False, share: bool = False) -> Any:
    return driver.open(OpenRequest(str(path), Context(share=share), writable=writable))


def test_what_qemu_writes_is_not_read(image: Path) -> None:
    with held_by_qemu_io(image):
        with pytest.raises(LockedError) as caught:
            opened(image)
        refused = qemu_img("map", image, check=False)
        cause = 'Failed to get shared "write" lock'
        assert refused.returncode == 1
        assert cause in refused.stderr
        assert caught.value.cause == f"{cause}: is another process using the image [{image}]?"
        with pytest.raises(LockedError, match='Failed to get "write" lock'):
            opened(image, writable=True)
        assert 'Failed to get "write" lock' in qemu_io(image, "write 0 512", format="qcow2", check=False).stderr
    opened(image).close()
    opened(image, writable=True).close()


def test_what_qemu_writes_is_read_where_that_is_asked_for(image: Path) -> None:
    with held_by_qemu_io(image):
        with opened(image, share=True) as storage:
            assert storage.read(0, 4) == b"QFI\xfb"
        with pytest.raises(LockedError):
            opened(image, writable=True, share=True)


def test_readers_share(image: Path) -> None:
    with held_by_qemu_io(image, "-r"), opened(image) as one, opened(image) as other:
        assert one.read(0, 4) == other.read(0, 4)
        qemu_img("map", image)
        with pytest.raises(LockedError, match='Failed to get "write" lock'):
            opened(image, writable=True)


def test_what_we_write_is_not_read_by_qemu(image: Path) -> None:
    with opened(image, writable=True):
        for command in ("info", "map", "check"):
            refused = qemu_img(command, image, check=False)
            assert refused.returncode == 1
            assert 'Failed to get shared "write" lock' in refused.stderr
        assert 'Failed to get "write" lock' in qemu_img("resize", image, "2M", check=False).stderr
        qemu_img("info", "-U", image)
    qemu_img("check", image)


def test_what_we_read_is_not_written_by_qemu(image: Path) -> None:
    with opened(image):
        refused = qemu_img("resize", image, "2M", check=False)
        assert refused.returncode == 1
        assert 'Failed to get "write" lock' in refused.stderr
    with opened(image, share=True):
        qemu_img("resize", image, "2M")


def test_an_export_excludes_as_it_should(image: Path, tmp_path: Path) -> None:
    with held_by_qemu_nbd(image, tmp_path), pytest.raises(LockedError):
        opened(image)
    with held_by_qemu_nbd(image, tmp_path, "-r"):
        opened(image).close()
        with pytest.raises(LockedError):
            opened(image, writable=True)


def test_an_output_in_use_is_not_replaced(image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    with held_by_qemu_io(image), pytest.raises(LockedError):
        create_image(str(image), "raw", MiB, {}, context=Context())
    assert image.read_bytes() == before


def test_an_unfinished_output_keeps_writers_off_the_old_one(image: Path) -> None:
    made = create_image(str(image), "raw", MiB, {}, context=Context())
    assert 'Failed to get "write" lock' in qemu_img("resize", image, "2M", check=False).stderr
    qemu_img("map", image)
    made.abandon()
    qemu_img("resize", image, "2M")


def test_a_raw_disk_in_use_can_be_described_but_not_read(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(MiB))
    with held_by_qemu_io(path, format="raw"):
        qemu_img("info", "-f", "raw", path)
        open_image(str(path), "raw", context=Context(), shallow=True).close()
        assert qemu_img("convert", "-f", "raw", "-O", "raw", path, tmp_path / "copy", check=False).returncode == 1
        with pytest.raises(LockedError):
            open_image(str(path), "raw", context=Context())


def test_an_image_with_metadata_in_use_is_not_described(image: Path) -> None:
    with held_by_qemu_io(image):
        assert qemu_img("info", image, check=False).returncode == 1
        with pytest.raises(LockedError, match='Failed to get shared "write" lock'):
            open_image(str(image), "qcow2", context=Context(), shallow=True)
        open_image(str(image), "qcow2", context=Context(share=True), shallow=True).close()


def test_a_copy_by_another_name_is_another_image(image: Path, tmp_path: Path) -> None:
    shutil.copy(image, tmp_path / "copy")
    with held_by_qemu_io(image):
        opened(tmp_path / "copy", writable=True).close()


def test_one_process_excludes_itself(image: Path) -> None:
    with opened(image, writable=True):
        for writable in (False, True):
            with pytest.raises(LockedError):
                opened(image, writable=writable)
        opened(image, share=True).close()
    opened(image, writable=True).close()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_systems_without_locks_are_used_without(image: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    real: Callable[..., Any] = fcntl.fcntl

    def refuse(fd: int, command: int, argument: Any = 0) -> Any:
        if command in (fcntl.F_OFD_SETLK, fcntl.F_OFD_GETLK):
            raise OSError(code, "no locks here")
        return real(fd, command, argument)

    with held_by_qemu_io(image):
        monkeypatch.setattr(fcntl, "fcntl", refuse)
        with opened(image, writable=True) as storage:
            assert storage.read(0, 4) == b"QFI\xfb"
