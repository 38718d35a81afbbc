"""What services put around qemu-img: little address space, little processor time; and what they ask of it meanwhile."""

from __future__ import annotations

import os
import resource
import sys
import tarfile
from pathlib import Path

import pytest
from tools import assert_identical, diskmill, qemu_img, qemu_io, run

GiB = 1 << 30
SIZE = 20 * GiB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse disk of 20 GiB with data all over it, as raw and as qcow2."""
    folder = tmp_path_factory.mktemp("limits")
    with (folder / "disk.raw").open("wb") as file:
        file.truncate(SIZE)
        for at in range(0, SIZE, 64 << 20):
            os.pwrite(file.fileno(), os.urandom(1 << 16), at)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2", cwd=folder)
    return folder


@pytest.mark.parametrize(
    "line",
    [
        "info disk.qcow2",
        "check disk.qcow2",
        "map disk.qcow2",
        "map --output=json disk.raw",
        "measure -O qcow2 disk.raw",
        "compare disk.raw disk.qcow2",
        "convert -m 16 -O qcow2 disk.raw out.qcow2",
        "convert -m 16 -c -O qcow2 disk.qcow2 out.qcow2",
        "convert -m 16 disk.qcow2 out.raw",
        "bench -c 200 disk.qcow2",
    ],
)
def test_commands_work_in_one_gigabyte_and_thirty_seconds(folder: Path, line: str) -> None:
    limited(folder, line, 1024)


def test_fewer_threads_work_where_there_is_no_room_for_more(folder: Path) -> None:
    limited(folder, "convert -m 16 disk.qcow2 out.raw", 400)


def limited(folder: Path, line: str, address_space: int) -> None:
    """Run our qemu-img in so many MiB of address space, and hold what it makes against the disk."""
    limits = ("bash", "-c", f'ulimit -v {1024 * address_space}; ulimit -t 30; exec "$@"', "-")
    run(*limits, Path(sys.executable).with_name("qemu-img"), *line.split(), cwd=folder)
    output = folder / line.split()[-1]
    if output.name.startswith("out"):
        assert_identical(folder / "disk.raw", output, formats=("raw", output.suffix[1:]))
        output.unlink()


def test_a_disk_inside_a_tar_is_read_by_offset_and_size(tmp_path: Path) -> None:
    """As OVA packages are read without unpacking them."""
    disk = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", disk, "8M")
    qemu_io(disk, "write -P 9 1M 1M", format="qcow2")
    with tarfile.open(tmp_path / "vm.ova", "w") as archive:
        archive.add(disk, "disk.qcow2")
    with tarfile.open(tmp_path / "vm.ova") as archive:
        entry = archive.getmember("disk.qcow2")
    inner = f'{{"driver":"raw","offset":{entry.offset_data},"size":{entry.size},"file.filename":"{tmp_path}/vm.ova"}}'
    name = f'json:{{"driver":"qcow2","file":{inner}}}'
    diskmill("convert", name, tmp_path / "out.raw")
    assert_identical(disk, tmp_path / "out.raw", formats=("qcow2", "raw"))
    assert diskmill("info", name).stdout.splitlines()[1] == "file format: qcow2"


def test_hundreds_of_calls_in_one_process_leak_nothing(tmp_path: Path) -> None:
    """Neither open files nor memory: what the process holds stops growing once everything is imported."""
    import diskmill as library

    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "base.qcow2", "64M")
    disk = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", disk)

    def calls(count: int) -> None:
        for _ in range(count):
            library.info(str(disk))
            library.info_chain(str(disk))
            with pytest.raises(library.DiskmillError):
                library.info(str(tmp_path / "nothing"))

    calls(50)
    files, memory = os.listdir("/proc/self/fd"), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    calls(200)
    assert len(os.listdir("/proc/self/fd")) == len(files)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2048  # KiB


@pytest.mark.parametrize("program", ["diskmill", "qemu-img"])
def test_a_disk_in_more_files_than_the_soft_limit_lets_be_open(tmp_path: Path, program: str) -> None:
    """The hard limit is what counts, and it is an error in one line."""
    words = (Path(sys.executable).with_name(program), "create", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentFlat")
    run("bash", "-c", 'ulimit -Sn 64; exec "$@"', "-", *words, "disk.vmdk", "300G", cwd=tmp_path)
    assert len(list(tmp_path.iterdir())) == 151
    done = run("bash", "-c", 'ulimit -n 64; exec "$@"', "-", *words, "other.vmdk", "300G", cwd=tmp_path, check=False)
    assert done.returncode == 1 and "Too many open files" in done.stderr and len(done.stderr.splitlines()) == 1
    assert len(list(tmp_path.iterdir())) == 151
