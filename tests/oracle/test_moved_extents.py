"""Guest data at another offset than in its own image: ciphers go by the offset, so it must not be lost on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from samples import MiB, scattered_file
from tools import diskmill

SECRET = ("--object", "secret,id=s,data=letmein")


@pytest.fixture(params=["luks", "qcow2"])
def encrypted(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, bytes]:
    """An encrypted image, its option string, and its guest bytes."""
    source = scattered_file(tmp_path / "source.raw", 2 * MiB, seed=7)
    image = tmp_path / "image"
    prefix = "" if request.param == "luks" else "encrypt."
    options = f"{prefix}key-secret=s,{prefix}iter-time=10" + (",encrypt.format=luks" if prefix else "")
    diskmill("convert", *SECRET, "-f", "raw", "-O", request.param, "-o", options, source, image)
    return image, f"driver={request.param},{prefix}key-secret=s,file.filename={image}", source.read_bytes()


def test_second_of_two_sources(encrypted: tuple[Path, str, bytes], tmp_path: Path) -> None:
    _, options, data = encrypted
    diskmill("convert", *SECRET, "--image-opts", "-O", "raw", options, options, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data * 2


def test_dd_skip(encrypted: tuple[Path, str, bytes], tmp_path: Path) -> None:
    _, options, data = encrypted
    diskmill("dd", *SECRET, "--image-opts", "-O", "raw", "bs=512", "skip=7", f"if={options}", f"of={tmp_path / 'out'}")
    assert (tmp_path / "out").read_bytes() == data[7 * 512 :]


def test_window_onto_an_encrypted_disk(encrypted: tuple[Path, str, bytes], tmp_path: Path) -> None:
    image, options, data = encrypted
    driver = options.partition(",")[0].removeprefix("driver=")
    secret = {"key-secret": "s"} if driver == "luks" else {"encrypt": {"key-secret": "s"}}
    below = {"driver": driver, **secret, "file": {"driver": "file", "filename": str(image)}}
    name = "json:" + json.dumps({"driver": "raw", "offset": MiB, "size": 512 * 1024, "file": below})
    diskmill("convert", *SECRET, "-O", "raw", name, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data[MiB : MiB + 512 * 1024]
