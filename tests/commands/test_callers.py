"""Programs of Debian that call qemu-img, on the drop-in: each finds ours in its PATH, and does what it is there for.

The drop-in stands behind a script that writes down how it was called, so that a test can tell that it was.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from callers import Dropin
from tools import SEARCH_PATH, assert_clean, assert_identical, qemu_img, qemu_img_json, qemu_io, run, tool

MiB = 1 << 20
OSLO = "/usr/lib/python3/dist-packages/oslo_utils/imageutils.py"


@pytest.fixture(scope="module")
def dropin(tmp_path_factory: pytest.TempPathFactory) -> Dropin:
    return Dropin(tmp_path_factory.mktemp("dropin"))


# libvirt's storage pool


@pytest.fixture(scope="module")
def virsh(dropin: Dropin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """virsh on a libvirtd of its own, with everything it keeps in a temporary folder, as an ordinary user runs it."""
    home = tmp_path_factory.mktemp("libvirt")
    socket = Path(f"/tmp/diskmill-libvirt-{os.getpid()}")  # a socket's path must be short
    places = {f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("CONFIG", "CACHE", "DATA", "STATE")}
    env = {**os.environ, **dropin.env, **places, "XDG_RUNTIME_DIR": str(socket)}
    socket.mkdir(mode=0o700)
    # Where root runs the tests, libvirtd must not think that the machine's virtual machines are its own.
    ordinary = [tool("unshare"), "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []
    log = (home / "log").open("w")
    daemon = subprocess.Popen([*ordinary, tool("libvirtd"), "--timeout", "600"], env=env, stdout=log, stderr=log)

    def ask(*words: object) -> str:
        address = f"storage+unix:///session?socket={socket}/libvirt/libvirt-sock"
        return run(tool("virsh"), "-q", "-c", address, *map(str, words), env=env).stdout

    try:
        deadline = time.monotonic() + 60
        while not (socket / "libvirt" / "libvirt-sock").exists() and time.monotonic() < deadline:
            assert daemon.poll() is None, (home / "log").read_text()
            time.sleep(0.05)
        (home / "pool").mkdir()
        ask("pool-define-as", "pool", "dir", "--target", home / "pool")
        ask("pool-start", "pool")
        yield ask
    finally:
        daemon.terminate()
        daemon.wait(timeout=60)
        shutil.rmtree(socket)


def path_of(virsh: Callable[..., str], name: str) -> Path:
    return Path(virsh("vol-path", "--pool", "pool", name).strip())


def capacity(virsh: Callable[..., str], name: str) -> int:
    return int(ElementTree.fromstring(virsh("vol-dumpxml", "--pool", "pool", name)).findtext("capacity", ""))


@pytest.mark.parametrize("format", ["qcow2", "raw"])
def test_a_libvirt_volume_is_created_cloned_and_resized(virsh: Callable[..., str], dropin: Dropin, format: str) -> None:
    name, copy = f"disk.{format}", f"copy.{format}"
    virsh("vol-create-as", "pool", name, 64 * MiB, "--format", format, "--allocation", 0)
    volume = path_of(virsh, name)
    assert qemu_img_json("info", volume)["format"] == format
    qemu_io(volume, "write -P 7 1M 3M", format=format)
    virsh("pool-refresh", "pool")
    dropin.calls()

    virsh("vol-clone", "--pool", "pool", name, copy)
    assert_identical(volume, path_of(virsh, copy), formats=(format, format))
    virsh("vol-resize", "--pool", "pool", name, 96 * MiB)
    assert qemu_img_json("info", volume)["virtual-size"] == 96 * MiB == capacity(virsh, name)
    qemu_io(volume, "read -P 7 1M 3M", "read -P 0 64M 32M", format=format)
    if format == "qcow2":  # raw volumes libvirt copies and resizes itself
        assert_clean(volume)
        assert_clean(path_of(virsh, copy))
        assert {line.split()[0] for line in dropin.calls()} == {"convert", "resize"}


def test_a_libvirt_volume_on_a_backing_volume(virsh: Callable[..., str], dropin: Dropin) -> None:
    virsh("vol-create-as", "pool", "base.qcow2", 32 * MiB, "--format", "qcow2")
    backing = ("--backing-vol", "base.qcow2", "--backing-vol-format", "qcow2")
    virsh("vol-create-as", "pool", "over.qcow2", 32 * MiB, "--format", "qcow2", *backing)
    volume = ElementTree.fromstring(virsh("vol-dumpxml", "--pool", "pool", "over.qcow2"))
    assert volume.findtext("backingStore/path") == str(path_of(virsh, "base.qcow2"))
    assert [line.split()[0] for line in dropin.calls()][-2:] == ["create", "create"]


def test_a_libvirt_volume_becomes_one_of_another_format(
    virsh: Callable[..., str], dropin: Dropin, tmp_path: Path
) -> None:
    virsh("vol-create-as", "pool", "source.qcow2", 16 * MiB, "--format", "qcow2")
    qemu_io(path_of(virsh, "source.qcow2"), "write -P 5 2M 1M", format="qcow2")
    description = tmp_path / "volume.xml"
    description.write_text(
        "<volume><name>made.vmdk</name><capacity>16777216</capacity><target><format type='vmdk'/></target></volume>"
    )
    virsh("vol-create-from", "pool", description, "source.qcow2", "--inputpool", "pool")
    assert_identical(path_of(virsh, "source.qcow2"), path_of(virsh, "made.vmdk"), formats=("qcow2", "vmdk"))
    assert dropin.calls()[-1].startswith("convert -f qcow2 -O vmdk")


# Others


@pytest.mark.parametrize("form", ["human", "json"])
def test_oslo_utils_understands_info(dropin: Dropin, tmp_path: Path, form: str) -> None:
    """OpenStack's parser of what info prints, as nova, cinder, glance and ironic use it."""
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "base.qcow2", "10M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", tmp_path / "disk.qcow2")
    qemu_img("snapshot", "-c", "before", tmp_path / "disk.qcow2")
    program = (
        "import subprocess, sys\n"
        "from oslo_utils.imageutils import QemuImgInfo\n"
        "words = ['qemu-img', 'info', '--force-share', '--output=' + sys.argv[1], sys.argv[2]]\n"
        "print(vars(QemuImgInfo(subprocess.check_output(words, text=True), format=sys.argv[1])))\n"
    )
    assert tool(OSLO)
    words = ("/usr/bin/python3", "-c", program, form, tmp_path / "disk.qcow2")
    ours, theirs = run(*words, env=dropin.env).stdout, run(*words, env={"PATH": SEARCH_PATH}).stdout
    assert ours == theirs
    assert f"'virtual_size': {10 * MiB}" in ours
    assert "base.qcow2" in ours
    assert dropin.calls()[-1].startswith("info --force-share")


def test_cloud_localds_makes_a_qcow2_seed(dropin: Dropin, tmp_path: Path) -> None:
    (tmp_path / "user-data").write_text("#cloud-config\nhostname: x\n")
    words = ("--disk-format=qcow2", tmp_path / "seed.qcow2", tmp_path / "user-data")
    run(tool("cloud-localds"), *words, env=dropin.env)
    assert_clean(tmp_path / "seed.qcow2")
    qemu_img("convert", "-O", "raw", tmp_path / "seed.qcow2", tmp_path / "seed.iso")
    assert b"hostname: x" in (tmp_path / "seed.iso").read_bytes()
    assert dropin.calls()[-1].startswith("convert -f raw -O qcow2")


def test_genimage_makes_a_qcow2_image(dropin: Dropin, tmp_path: Path) -> None:
    for folder in ("root", "input"):
        (tmp_path / folder).mkdir()
    (tmp_path / "input" / "part.img").write_bytes(b"partition" * 100_000)
    (tmp_path / "genimage.cfg").write_text(
        'image disk.img { hdimage {} partition one { partition-type = 0x83 image = "part.img" } }\n'
        'image disk.qcow2 { qemu { format = "qcow2" } partition whole { image = "disk.img" } }\n'
    )
    run(tool("genimage"), "--loglevel", "1", cwd=tmp_path, env=dropin.env)
    assert dropin.calls()[-1].startswith("convert")
    assert_clean(tmp_path / "images" / "disk.qcow2")
    assert_identical(tmp_path / "images" / "disk.qcow2", tmp_path / "images" / "disk.img", formats=("qcow2", "raw"))


def test_vmdb2_makes_an_image(dropin: Dropin, tmp_path: Path) -> None:
    (tmp_path / "disk.vmdb").write_text('steps:\n- mkimg: "{{ output }}"\n  size: 64M\n')
    run(tool("vmdb2"), "--output", tmp_path / "disk.img", tmp_path / "disk.vmdb", env=dropin.env, cwd=tmp_path)
    assert (tmp_path / "disk.img").stat().st_size == 64 * MiB
    assert dropin.calls() == [f"create -f raw {tmp_path / 'disk.img'} 64M"]
