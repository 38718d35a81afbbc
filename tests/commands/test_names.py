"""Names of images as QEMU's users write them: paths with colons, devices' drivers, and images of a chain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from diskmill.opening.names import parse_name
from tools import diskmill, qemu_img, qemu_io


@pytest.fixture
def colons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    qemu_img("create", "-q", "-f", "qcow2", "file:c:d.qcow2", "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "./c:d.qcow2", "-F", "qcow2", "file:e:f.qcow2")
    qemu_img("create", "-q", "-f", "raw", "./a:b.raw", "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "file:a:b.raw", "-F", "raw", "over.qcow2")
    return tmp_path


@pytest.mark.parametrize(
    "name", ["file:e:f.qcow2", "./e:f.qcow2", "file:over.qcow2", "over.qcow2", "file:./c:d.qcow2", "c:d.qcow2"]
)
@pytest.mark.parametrize("form", ["json", "human"])
def test_a_path_with_a_colon(name: str, form: str, colons: Path) -> None:
    words = ("info", "--backing-chain", f"--output={form}", name)
    ours, theirs = (one(*words, check=False) for one in (diskmill, qemu_img))
    assert ours.returncode == theirs.returncode
    if form == "json" and not theirs.returncode:
        keys = ("filename", "backing-filename", "full-backing-filename", "format")
        lists = [[{key: one.get(key) for key in keys} for one in json.loads(text.stdout)] for text in (ours, theirs)]
        assert lists[0] == lists[1]
    else:
        wanted = ("image:", "backing file:")
        lines = [[line for line in text.stdout.splitlines() if line.startswith(wanted)] for text in (ours, theirs)]
        assert lines[0] == lines[1]


def test_outputs_with_colons(colons: Path) -> None:
    diskmill("convert", "-O", "qcow2", "file:a:b.raw", "file:x:y.qcow2")
    assert qemu_img("compare", "./a:b.raw", "./x:y.qcow2").returncode == 0
    diskmill("rebase", "-u", "-b", "./x:y.qcow2", "-F", "qcow2", "over.qcow2")
    assert qemu_img("compare", "./a:b.raw", "over.qcow2").returncode == 0


@pytest.mark.parametrize("driver", ["file", "host_device", "host_cdrom"])
def test_drivers_of_devices_are_the_bytes_as_they_are(driver: str, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * 512)
    spec = {"driver": "raw", "file": {"driver": driver, "filename": str(path)}}
    for words in (
        ["-f", driver, path],
        ["--image-opts", f"driver={driver},filename={path}"],
        ["--image-opts", f"driver=raw,file.driver={driver},file.filename={path}"],
        [f"json:{json.dumps(spec)}"],
        [f"{driver}:{path}"],
    ):
        diskmill("convert", "-O", "raw", *words, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == path.read_bytes()
    diskmill("convert", "-n", "-f", "raw", "-O", driver, path, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("driver", ["file", "host_device"])
def test_drivers_of_devices_as_backing_formats(driver: str, tmp_path: Path) -> None:
    base, over = tmp_path / "base", tmp_path / "over"
    base.write_bytes(bytes(range(256)) * 512)
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", base, "-F", driver, over, "128k")
    assert diskmill("compare", "-f", "raw", "-F", "qcow2", base, over).returncode == 0
    diskmill("create", "-q", "-f", "qcow2", "-b", base, "-F", driver, over)
    assert json.loads(qemu_img("info", "-U", "--output=json", over).stdout)["backing-filename-format"] == driver


def test_the_null_device_is_an_empty_disk(tmp_path: Path) -> None:
    for words in (["-f", "host_device", "/dev/null"], ["--image-opts", "driver=host_device,filename=/dev/null"]):
        command = ("convert", "-O", "raw", *words)
        assert [tool(*command, tmp_path / "out").returncode for tool in (qemu_img, diskmill)] == [0, 0]
        assert (tmp_path / "out").read_bytes() == b""
    for words in (["-n"], []):
        (tmp_path / "disk").write_bytes(bytes(512))
        command = ("convert", *words, "-f", "raw", "-O", "host_device", tmp_path / "disk", "/dev/null")
        assert [tool(*command, check=False).returncode for tool in (qemu_img, diskmill)] == [1, 1]


def test_an_image_names_no_device(tmp_path: Path) -> None:
    """The driver's other name is no way around the gate."""
    spec = {"driver": "raw", "file": {"driver": "host_device", "filename": "/dev/null"}}
    over = tmp_path / "over.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", f"json:{json.dumps(spec)}", "-F", "raw", over, "1M")
    done = diskmill("convert", "-O", "raw", over, tmp_path / "out", check=False)
    assert done.returncode == 1 and "'host_device' is not trusted" in done.stderr


def test_names_that_only_look_like_protocols() -> None:
    assert parse_name("file:a:b") == {"file": {"driver": "file", "filename": "./a:b"}}
    assert parse_name("file:///tmp/a:b") == {"file": {"driver": "file", "filename": "/tmp/a:b"}}
    assert parse_name("host_device:/dev/sdb") == {"file": {"driver": "host_device", "filename": "/dev/sdb"}}


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    qemu_img("create", "-q", "-f", "qcow2", "sub/deep/base.qcow2", "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "deep/base.qcow2", "-F", "qcow2", "sub/mid.qcow2", "1M", "-u")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "sub/mid.qcow2", "-F", "qcow2", "top.qcow2", "1M", "-u")
    for number, name in enumerate(("sub/deep/base.qcow2", "sub/mid.qcow2", "top.qcow2"), 1):
        qemu_io(name, f"write -P {number} {number * 64}k 64k")
    return tmp_path


@pytest.mark.parametrize("name", ["deep/base.qcow2", "./deep/../deep/base.qcow2", "{}/sub/deep/base.qcow2"])
def test_commit_finds_its_base_as_the_image_above_it_names_it(name: str, chain: Path) -> None:
    top = Path("top.qcow2").read_bytes()
    before = qemu_img("convert", "-O", "raw", "top.qcow2", "before")
    assert before.returncode == 0
    diskmill("commit", "-q", "-b", name.format(chain), "top.qcow2")
    assert Path("top.qcow2").read_bytes() == top  # as qemu-img leaves it: the base reads as it did, so it is not needed
    assert qemu_img("compare", "before", "sub/deep/base.qcow2").returncode == 0
    assert qemu_img("compare", "before", "top.qcow2").returncode == 0


@pytest.mark.parametrize("name", ["base.qcow2", "nowhere.qcow2", "top.qcow2"])
def test_commit_to_what_is_not_in_the_chain(name: str, chain: Path) -> None:
    for one in (diskmill, qemu_img):
        done = one("commit", "-q", "-b", name, "top.qcow2", check=False)
        assert done.returncode == 1
        assert f"Did not find '{name}' in the backing chain of 'top.qcow2'" in done.stderr


@pytest.mark.parametrize("name", ["a_b:c", "two words:c", "new\nline:c", ":c"])
def test_what_stands_before_a_colon_is_a_protocol_whatever_it_is(name: str, tmp_path: Path) -> None:
    """As QEMU takes it, so that a name means the same to both; `file:` and `./` before it say that it is a file."""
    (tmp_path / name).write_bytes(bytes(1 << 20))
    for program in (diskmill, qemu_img):
        assert program("info", "-f", "raw", name, check=False, cwd=tmp_path).returncode == 1
        for prefix in ("file:", "./", f"{tmp_path}/"):
            assert program("info", "-f", "raw", prefix + name, check=False, cwd=tmp_path).returncode == 0
