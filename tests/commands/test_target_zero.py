"""``convert --target-zero=auto``: what the output reads as is found out, said, and it then holds the source."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import diskmill as library
import pytest
from diskmill.errors import CancelledError
from nbd_servers import nbdkit, uri
from samples import MiB, scattered_file
from tools import diskmill, qemu_img, qemu_io

SIZE = 40 * MiB
RAW = ("-f", "raw", "-O", "raw")
FAR = 23 * MiB + 12345
"""Where a look here and there does not come by."""


def converted(source: Path | str, target: str, *words: str) -> dict[str, object]:
    """What was found of *target*, which then reads as *source* does."""
    command = ("convert", "-n", "--target-zero=auto", "--output=json", *words)
    found: dict[str, object] = json.loads(diskmill(*command, source, target).stdout)["target-zero"]
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return scattered_file(tmp_path / "source", SIZE, seed=3, pieces=12)


@pytest.mark.parametrize("data", [None, 0, FAR, SIZE - 1])
def test_a_file_of_zeros_and_one_with_a_byte_of_data_anywhere(tmp_path: Path, source: Path, data: int | None) -> None:
    target = tmp_path / "target"
    content = bytearray(SIZE)
    if data is not None:
        content[data] = 1
    target.write_bytes(content)
    found = converted(source, str(target), *RAW)
    if data is None:
        assert found == {"zeros": True, "by": "reading"}
    else:
        assert (found["zeros"], found["by"]) == (False, "reading")
        at = found["data"]
        assert isinstance(at, int) and at <= data < at + 65536
    assert target.read_bytes() == source.read_bytes()


def test_what_images_tell_of_themselves_is_not_read(tmp_path: Path, source: Path) -> None:
    empty, mapped, over = (tmp_path / name for name in ("empty", "mapped", "over"))
    qemu_img("create", "-q", "-f", "qcow2", mapped, "40M")
    qemu_io(mapped, "write -P 7 39M 64k", format="qcow2")
    qemu_img("create", "-q", "-f", "qcow2", empty, "40M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", mapped, "-F", "qcow2", over)
    (tmp_path / "sparse").touch()
    with (tmp_path / "sparse").open("r+b") as file:
        file.truncate(SIZE)
    for path, format, zeros in (
        (empty, "qcow2", True),
        (over, "qcow2", False),  # what it has of its backing image it reads as, too
        (mapped, "qcow2", False),
        (tmp_path / "sparse", "raw", True),
    ):
        found = converted(source, str(path), "-f", "raw", "-O", format)
        assert (found["zeros"], found["by"]) == (zeros, "status" if zeros else "reading"), path
        assert qemu_img("compare", "-f", "raw", "-F", format, source, path).returncode == 0


def test_an_encrypted_target_is_not_zeros(tmp_path: Path, source: Path) -> None:
    secret, target = ("--object", "secret,id=s,data=letmein"), tmp_path / "target"
    diskmill("create", "-q", *secret, "-f", "luks", "-o", "key-secret=s,iter-time=10", target, "40M")
    opened = f"driver=luks,key-secret=s,file.filename={target}"
    assert converted(source, opened, *secret, "-f", "raw", "--target-image-opts")["zeros"] is False
    qemu_img("compare", *secret, "--image-opts", f"driver=raw,file.filename={source}", opened)


@pytest.mark.parametrize("filled", [False, True])
def test_an_export_tells_of_its_holes(tmp_path: Path, source: Path, filled: bool) -> None:
    with nbdkit(tmp_path / "sock", "memory", "40M"):
        if filled:
            diskmill("convert", "-n", "-f", "raw", "-O", "raw", source, uri(tmp_path / "sock"))
        found = converted(source, uri(tmp_path / "sock"), *RAW)
        assert (found["zeros"], found["by"]) == (not filled, "reading" if filled else "status")
        qemu_img("compare", "-f", "raw", "-F", "raw", source, uri(tmp_path / "sock"))


def test_it_is_told_to_who_reads_along(tmp_path: Path, source: Path) -> None:
    target = tmp_path / "target"
    assert "it reads as zeros" in diskmill("convert", "--target-zero=auto", "-f", "raw", source, target).stderr
    again = diskmill("convert", "-n", "--target-zero=auto", "-f", "raw", source, target)
    assert "holds data" in again.stderr
    assert diskmill("convert", "-q", "-n", "--target-zero=auto", "-f", "raw", source, target).stderr == ""
    for words in (("--target-zero=yes",), ("--target-zero=auto", "--target-is-zero")):
        refused = diskmill("convert", "-n", *words, "-f", "raw", source, target, check=False)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1)


def test_looking_can_be_cancelled(tmp_path: Path, source: Path) -> None:

    cancel = threading.Event()

    class Seen:
        def __call__(self, done: int, total: int) -> None:
            pass

        def phase(self, name: str) -> None:
            cancel.set()

    target = tmp_path / "target"
    target.write_bytes(bytes(SIZE))
    with pytest.raises(CancelledError):
        library.convert(source, target, existing=True, target_zero="auto", format="raw", progress=Seen(), cancel=cancel)
