"""Outputs on block devices, which hold what was there before: none of it may turn up in a new image.

The device is a file that says it is one, so that no test needs to be root.
"""

from __future__ import annotations

import random
import stat
import threading
from pathlib import Path

import diskmill
import pytest
from diskmill.contract.requests import CreateRequest
from diskmill.errors import DiskmillError, StorageError
from diskmill.opening.context import CACHE_MODES, Context
from diskmill.storages.file import driver, space
from diskmill.storages.file.storage import FileStorage
from formats import Machine, formats
from samples import scattered_file
from tools import qemu_img

MiB = 1 << 20
SIZE = 32 * MiB
KEY = {"key-secret": "key", "iter-time": 10}


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device full of noise."""
    path = tmp_path / "device"
    path.write_bytes(random.Random(1).randbytes(MiB) * (SIZE // MiB))
    path.chmod(0o607)  # tells it from other files
    mode = path.stat().st_mode
    monkeypatch.setattr(stat, "S_ISBLK", lambda one: one == mode)
    monkeypatch.setattr(space, "device_sector", lambda fd: 512)
    return path


def created(path: Path, cache: str) -> FileStorage:
    return driver.create(CreateRequest(str(path), Context(cache=cache), 0))


@pytest.mark.parametrize("cache", CACHE_MODES)
@pytest.mark.parametrize("zeroes", [True, False])
def test_what_was_there_before_is_never_read(
    device: Path, cache: str, zeroes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if zeroes:  # the device has an operation of its own

        def device_zero(fd: int, offset: int, length: int) -> bool:
            assert offset % 512 == length % 512 == 0
            return space.zero_range(fd, offset, length)

        monkeypatch.setattr(space, "device_zero", device_zero)
    before = device.read_bytes()
    dice = random.Random(cache)
    expected = bytearray()

    def reach(end: int) -> None:
        expected.extend(bytes(max(end - len(expected), 0)))

    with created(device, cache) as storage:
        assert storage.size == 0
        for _ in range(60):
            offset, length = dice.randrange(4 * MiB), dice.choice((1, 511, 512, 4096, 70000, 300000))
            what = dice.choice(("write", "write", "vector", "zero", "truncate", "allocate", "discard"))
            if what in ("write", "vector"):
                data = dice.randbytes(length)
                storage.write(offset, data) if what == "write" else storage.write_vector(offset, [data[:7], data[7:]])
                reach(offset + length)
                expected[offset : offset + length] = data
            elif what == "zero":
                storage.zero(offset, length)
                reach(offset + length)
                expected[offset : offset + length] = bytes(length)
            elif what == "truncate":
                storage.truncate(offset)
                del expected[offset:]
                reach(offset)
            elif what == "allocate":
                storage.allocate(offset, length, "falloc")
                reach(offset + length)
            assert storage.size == len(expected)
            at = dice.randrange(5 * MiB)
            assert storage.read(at, 100000) == bytes(expected[at : at + 100000]).ljust(100000, b"\0")
        storage.settle()
    after = device.read_bytes()
    assert after[: len(expected)] == expected
    assert after[5 * MiB :] == before[5 * MiB :]


def test_a_device_is_too_small_for_what_is_beyond_its_end(device: Path) -> None:
    with created(device, "writeback") as storage:
        with pytest.raises(StorageError, match="too few"):
            storage.truncate(SIZE + 1)
        storage.truncate(SIZE)
        storage.settle()
    assert device.read_bytes() == bytes(SIZE)


@pytest.mark.parametrize("format", formats("create", "write", blank=True))
def test_every_format_on_a_device_that_was_used(device: Path, tmp_path: Path, format: str) -> None:
    source, context = scattered_file(tmp_path / "source", 4 * MiB, seed=3), Machine().context
    diskmill.convert([str(source)], str(device), format="raw", output_format=format, context=context)
    if format == "raw":  # the device is longer
        assert device.read_bytes()[: 4 * MiB] == source.read_bytes()
    else:
        result = diskmill.compare(str(source), str(device), format_a="raw", format_b=format, context=context)
        assert result.identical, result.message
    if format == "qcow2":
        qemu_img("check", device)


def test_an_output_that_is_not_finished_leaves_nothing_that_looks_like_an_image(device: Path, tmp_path: Path) -> None:
    source = scattered_file(tmp_path / "source", 8 * MiB, seed=3)
    diskmill.convert([str(source)], str(device), format="raw", output_format="qcow2")  # an older one
    cancel = threading.Event()

    def stop(done: int, size: int) -> None:
        if done:
            cancel.set()

    with pytest.raises(DiskmillError):
        diskmill.convert(
            [str(source)], str(device), format="raw", output_format="qcow2", progress=stop, cancel=cancel, rate=MiB
        )
    with device.open("rb") as file:
        assert file.read(65536) == bytes(65536)


@pytest.mark.parametrize("format", ["qcow2", "luks"])
def test_an_old_file_that_would_go_with_what_the_device_gets_is_refused(
    device: Path, tmp_path: Path, format: str
) -> None:
    """The device changes at once, the file only when all is whole: whoever is killed between had both, and garbage."""
    beside, before = tmp_path / "beside", device.read_bytes()
    main, options = (
        (beside, {"data_file": str(device)}) if format == "qcow2" else (device, {"header": str(beside)} | KEY)
    )
    context = Context(secrets={"key": b"passphrase"})
    beside.write_bytes(b"old")
    with pytest.raises(DiskmillError, match=r"it is written in place, and '.*beside'.*remove that first"):
        diskmill.create(str(main), MiB, format=format, options=options, context=context)
    assert device.read_bytes() == before
    assert beside.read_bytes() == b"old"
    beside.unlink()
    diskmill.create(str(main), MiB, format=format, options=options, context=context)
    assert device.read_bytes() != before
    assert beside.stat().st_size > 3


def test_the_header_reaches_a_device_last(device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever the process is killed: there is no image on the device before all of it is there."""
    source, context = scattered_file(tmp_path / "source", 4 * MiB, seed=3), Context(overwrite="in-place")
    seen = []
    pwrite = FileStorage.write

    def write(self: FileStorage, offset: int, data: bytes) -> None:
        if self.name == str(device):
            with device.open("rb") as file:
                seen.append((offset, file.read(4)))
        pwrite(self, offset, data)

    monkeypatch.setattr(FileStorage, "write", write)
    diskmill.convert([str(source)], str(device), format="raw", output_format="qcow2", context=context)
    assert [offset for offset, _ in seen][-1] == 0
    blanked = next(at for at, (_, head) in enumerate(seen) if head == bytes(4))
    assert all(head == bytes(4) for _, head in seen[blanked:])
    with device.open("rb") as file:
        assert file.read(4) == b"QFI\xfb"
