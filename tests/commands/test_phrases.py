"""Phrases that programs search qemu-img's messages for (docs/callers.md) are in the drop-in's, on one line."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from diskmill.opening.context import Context
from diskmill.opening.graph import open_image
from tools import dropin, qemu_img, run

PHRASES = re.findall(r"^\| `(.+?)` \|", (Path(__file__).parents[2] / "docs" / "callers.md").read_text(), re.MULTILINE)
LINES = {
    "check raw": ["This image format does not support checks"],
    "info nowhere": ["Could not open '", "No such file or directory"],
    "convert -O raw nowhere new": ["Could not open '", "No such file or directory"],
    "info -f nope raw": ["Could not open '", "Unknown driver"],
    "convert -f raw -O nope raw new": ["Unknown file format"],
    "create -f nope new 1M": ["Unknown file format"],
    "info nope:image": ["Could not open '", "Unknown protocol"],
    "convert -O raw lost new": ["Could not open '", "Could not open backing file", "No such file or directory"],
    "compare lost raw": ["Could not open '", "Could not open backing file", "No such file or directory"],
    "info feature": ["Could not open '", "Unsupported qcow2 feature(s)"],
    "info -f qcow2 raw": ["Could not open '", "Image is not in qcow2 format"],
    "commit whole": ["Image does not have a backing file"],
    "convert -f raw -c -O raw raw new": ["Compression not supported for this file format"],
    "snapshot -a one vdi": ["Block driver does not support snapshots"],
    "create -f qcow2 new": ["Image creation needs a size parameter"],
    "create -f qcow2 -o nope=1 new 1M": ["Invalid parameter"],
    "resize -f raw raw 4k": ["--shrink"],
    "amend -o compat=1.1 locked": ['Failed to get "write" lock', "Is another process using the image"],
    "info locked": ['Failed to get shared "write" lock', "Is another process using the image"],
    "convert -O raw locked new": ['Failed to get shared "write" lock', "Is another process using the image"],
    "info truncated": ["Could not open '"],
    "info json:{}": ["Could not open '"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phrases")
    for name, format in (("raw", "raw"), ("whole", "qcow2"), ("locked", "qcow2"), ("vdi", "vdi"), ("feature", "qcow2")):
        qemu_img("create", "-q", "-f", format, folder / name, "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "gone", "-F", "qcow2", folder / "lost", "1M")
    with (folder / "feature").open("r+b") as file:
        file.seek(72)
        file.write(b"\x80")
    (folder / "truncated").write_bytes((folder / "whole").read_bytes()[:60])
    return folder


@pytest.mark.parametrize("line", LINES)
def test_the_drop_in_has_the_phrase(line: str, folder: Path) -> None:
    with open_image(str(folder / "locked"), context=Context(), writable=True):
        theirs = qemu_img(*line.split(), check=False, cwd=folder)
        ours = run(Path(sys.executable).with_name("qemu-img"), *line.split(), check=False, cwd=folder)
    assert ours.returncode == theirs.returncode != 0
    assert [phrase for phrase in LINES[line] if phrase not in theirs.stderr] == []
    assert [phrase for phrase in LINES[line] if phrase not in ours.stderr] == []
    assert len(ours.stderr.splitlines()) == 1


def test_each_is_in_the_table() -> None:
    assert {phrase for phrases in LINES.values() for phrase in phrases} <= set(PHRASES)


def test_what_the_system_says_is_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of files, of memory, and of threads: ironic tries again after the last two."""
    program = Path(sys.executable).with_name("qemu-img")
    for line, phrase in {"info raw/new": "Not a directory", "convert -f raw -O raw raw nowhere/new": "No such"}.items():
        done = run(program, *line.split(), check=False, cwd=folder)
        assert done.returncode == 1
        assert phrase in done.stderr

    def failing(error: Exception) -> Callable[..., None]:
        def call(*_: object, **__: object) -> None:
            raise error

        return call

    monkeypatch.setattr("threading.Thread.start", failing(RuntimeError("can't start new thread")))
    words = ["convert", "-f", "raw", "-O", "raw", str(folder / "raw"), str(folder / "new")]
    assert "Resource temporarily unavailable" in dropin(*words)[2]
    monkeypatch.setattr("diskmill_cli.main._run", failing(MemoryError()))
    assert "Cannot allocate memory" in dropin("info", folder / "raw")[2]
