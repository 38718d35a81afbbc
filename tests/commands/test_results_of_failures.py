"""A command that fails has printed nothing on stdout that looks like a result."""

from __future__ import annotations

from pathlib import Path

import pytest
from diskmill.opening.context import Context
from diskmill.opening.graph import open_image
from tools import assert_identical, diskmill, qemu_img, qemu_io


@pytest.mark.parametrize("command", ["map", "map --output=json", "info", "measure -O qcow2", "check", "snapshot -l"])
def test_of_an_image_that_is_locked(command: str, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    with open_image(str(path), context=Context(), writable=True):
        done = diskmill(*command.split(), path, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def test_of_an_image_that_has_no_map_of_this_kind(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"x" * 65536)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", tmp_path / "raw", tmp_path / "packed")
    done = diskmill("map", tmp_path / "packed", check=False)
    assert (done.returncode, done.stdout) == (1, "")


def test_a_map_without_data_has_its_heading(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    assert diskmill("map", path).stdout == qemu_img("map", path).stdout != ""


def test_an_output_that_exists_says_the_format_of_its_backing_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a volume manager copies chains: `convert -n -B BASE` without `-F`."""
    monkeypatch.chdir(tmp_path)
    qemu_img("create", "-q", "-f", "qcow2", "base", "1M")
    qemu_io("base", "write -P 1 0 128k")
    for name in ("source", "target"):
        qemu_img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", name)
    qemu_io("source", "write -P 5 64k 64k")
    diskmill("convert", "-n", "-O", "qcow2", "-B", "base", "source", "target")
    assert_identical("source", "target")
    assert sum(one["length"] for one in _own("target")) == 65536
    assert diskmill("convert", "-O", "qcow2", "-B", "base", "source", "new", check=False).returncode == 1


def _own(name: str) -> list[dict[str, int]]:
    import json

    entries = json.loads(qemu_img("map", "--output=json", name).stdout)
    return [one for one in entries if one["depth"] == 0 and one["data"]]
