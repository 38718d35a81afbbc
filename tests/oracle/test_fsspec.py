"""Images behind fsspec, in file systems that come with it: read and written as files are."""

from __future__ import annotations

from pathlib import Path

import diskmill
import fsspec
import pytest
from commands import images
from served import like_the_file
from tools import diskmill as command
from tools import qemu_img


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    images.build(path)
    return path


@pytest.mark.parametrize("name", ["img.qcow2", "top.qcow2", "pieces.vmdk", "odd.raw", "empty.raw"])
def test_it_reads_as_a_file_does(name: str, folder: Path, tmp_path: Path) -> None:
    like_the_file(name, folder, f"fsspec+file://{folder}", tmp_path)


def test_an_output_gets_its_name_when_it_is_whole(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    command("convert", folder / "img.qcow2", "-O", "raw", f"fsspec+file://{out}/disk.raw")
    qemu_img("compare", folder / "img.qcow2", out / "disk.raw")
    assert [path.name for path in out.iterdir()] == ["disk.raw"]
    damaged = tmp_path / "damaged.qcow2"
    damaged.write_bytes((folder / "comp.qcow2").read_bytes()[:-70_000])
    done = command("convert", damaged, "-O", "raw", f"fsspec+file://{out}/other.raw", check=False)
    assert done.returncode == 1
    assert [path.name for path in out.iterdir()] == ["disk.raw"]


def test_refusals(folder: Path, tmp_path: Path) -> None:
    top = tmp_path / "top.qcow2"
    secret = f"fsspec+file://{folder}/long.raw"
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", secret, "-F", "raw", top, "1M")
    for words, cause in (
        (("compare", top, top), "protocol 'fsspec+file' is not trusted"),
        (("info", "fsspec+nothing://x/y"), "knows no protocol 'nothing'"),
        (("info", f"fsspec+file://{folder}/gone"), "No such file"),
        (("info", "fsspec+simplecache::file:///x"), "fsspec"),
        (("resize", "-f", "raw", secret, "+1M"), "cannot be changed"),
    ):
        done = command(*words, check=False)
        assert done.returncode
        assert cause in done.stderr
        assert done.stderr.count("\n") <= 2


def test_memory_has_what_was_written(folder: Path) -> None:
    diskmill.convert([str(folder / "img.qcow2")], "fsspec+memory://disks/a.raw", output_format="raw")
    assert diskmill.compare(str(folder / "img.qcow2"), "fsspec+memory://disks/a.raw").identical


@pytest.mark.parametrize("url", ["diskmill::file://{}", "diskmill://disk.raw::file://{}", "diskmill::memory://x.qcow2"])
def test_the_disk_is_a_file_of_fsspec(url: str, folder: Path, tmp_path: Path) -> None:
    with fsspec.open("memory://x.qcow2", "wb") as file:
        file.write((folder / "img.qcow2").read_bytes())
    with fsspec.open(url.format(folder / "img.qcow2")) as disk:
        (tmp_path / "disk.raw").write_bytes(disk.read())
    qemu_img("compare", "-f", "raw", tmp_path / "disk.raw", folder / "img.qcow2")


def test_the_file_system_of_a_disk(folder: Path) -> None:
    disk = fsspec.filesystem("diskmill", fo=str(folder / "img.qcow2"), trust="nothing")
    (one,) = disk.ls("")
    assert one["size"] == disk.size("disk.raw") == disk.image.size
    assert disk.cat_file("disk.raw", 0, 512) == disk.image.read(0, 512)
    for mode, error in (("wb", NotImplementedError), ("rb", FileNotFoundError)):
        with pytest.raises(error):
            disk.open("other.raw" if mode == "rb" else "disk.raw", mode)
    disk.close()
