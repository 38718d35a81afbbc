"""File objects and open images in the place of names."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import diskmill
import pytest
from diskmill.jobs import Convert, Source, Target
from samples import MiB, scattered_file
from tools import qemu_img


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    scattered_file(tmp_path / "disk.raw", 4 * MiB, seed=3)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2", cwd=tmp_path)
    return tmp_path


def same(a: object, b: object) -> bool:
    return diskmill.compare(a, b).identical  # type: ignore[arg-type]


def test_a_file_object_is_an_image(files: Path) -> None:
    data = (files / "disk.qcow2").read_bytes()
    assert diskmill.info(io.BytesIO(data)).format == "qcow2"
    with open("disk.qcow2", "rb") as file:
        diskmill.convert(file, "copy.vmdk", output_format="vmdk")
        assert same(file, "copy.vmdk") and same("disk.raw", io.BytesIO(data))
        assert diskmill.digest(file) == diskmill.digest("disk.raw")
        assert list(diskmill.map(file))[-1].start + list(diskmill.map(file))[-1].length == 4 * MiB
        assert not file.closed


def test_what_is_inside_an_archive_is_read_in_place(files: Path) -> None:
    with zipfile.ZipFile("disk.zip", "w") as archive:
        archive.write("disk.qcow2")
    with zipfile.ZipFile("disk.zip") as archive, archive.open("disk.qcow2") as member:
        assert same(member, "disk.raw")


def test_a_file_object_is_written(files: Path) -> None:
    memory = io.BytesIO((files / "disk.qcow2").read_bytes())
    with diskmill.open(memory, writable=True) as image:
        image.write(MiB, b"x" * MiB)
        image.zero(0, MiB)
    diskmill.resize(memory, 5 * MiB)
    assert not memory.closed
    (files / "written.qcow2").write_bytes(memory.getvalue())
    qemu_img("check", "written.qcow2", cwd=files)
    with diskmill.open("written.qcow2") as image:
        assert image.size == 5 * MiB
        assert image.read(0, 2 * MiB) == bytes(MiB) + b"x" * MiB


@pytest.mark.parametrize("thing", [io.StringIO("text"), 5, object()])
def test_what_is_no_binary_file_is_refused(thing: object) -> None:
    with pytest.raises(diskmill.UsageError, match=r"binary mode|not (int|object)"):
        diskmill.open(thing)  # type: ignore[arg-type]


def test_errors_of_the_object_are_ours(files: Path) -> None:
    closed = io.BytesIO(b"x" * 512)
    closed.close()
    with pytest.raises(diskmill.UsageError, match="is closed"):
        diskmill.open(closed, "raw")
    with open("disk.qcow2", "rb") as file, pytest.raises(diskmill.StorageError, match="reading only"):
        diskmill.open(file, writable=True)
    with pytest.raises(diskmill.StorageError, match="no program holds"):
        diskmill.open("fileobj:BytesIO-1")


def test_an_object_that_an_image_names_is_not_opened(files: Path) -> None:
    """References out of images lead to what the caller holds as little as to any other place."""
    held = io.BytesIO(bytes(MiB))
    with diskmill.open(held, "raw") as image:
        qemu_img("create", "-q", "-u", "-f", "qcow2", "-b", image.file.name, "-F", "raw", "evil.qcow2", "1M", cwd=files)
        with pytest.raises(diskmill.DiskmillError):
            diskmill.open("evil.qcow2")


def test_an_open_image_is_a_source(files: Path) -> None:
    with diskmill.open("disk.qcow2", writable=True) as image:
        image.write(0, b"not on disk yet")
        diskmill.convert([image, image], "twice.raw")
        assert (files / "twice.raw").read_bytes()[4 * MiB :][:15] == b"not on disk yet"
        assert diskmill.info(image).filename == "disk.qcow2"
        assert diskmill.measure(image, output_format="qcow2").required > 0
        assert diskmill.digest(image) == diskmill.digest(image)
        assert not same(image, "disk.raw")
        image.read(0, 512)  # it is open still
    with pytest.raises(diskmill.ClosedError):
        diskmill.info(image)


def test_a_command_that_fails_leaves_the_image_open(files: Path) -> None:
    with diskmill.open("disk.qcow2") as image:
        with pytest.raises(diskmill.UsageError, match="also an input"):
            diskmill.convert(image, "disk.qcow2", existing=True)
        with pytest.raises(diskmill.UsageError, match="reading only"):
            diskmill.resize(image, 5 * MiB)
        with pytest.raises(diskmill.UsageError, match="open its snapshot"):
            diskmill.convert(image, "copy.raw", snapshot="one")
        assert len(image.read(0, 512)) == 512


def test_what_is_held_is_not_sent_to_another_process(files: Path) -> None:
    with diskmill.open("disk.qcow2") as image:
        from diskmill.opening.names import given_name

        job = Convert((Source(given_name(image)),), Target("copy.raw"))
        with pytest.raises(diskmill.UsageError, match="name its file"):
            pickle.dumps(job)
