"""What each command imports for a small image: start-up is a feature, and every module costs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from tools import run

PROGRAM = """
import sys
before = {*sys.modules}
from diskmill_cli.main import run
from diskmill_cli.session import Session
status = run(sys.argv[1:], Session())
print(*sorted({*sys.modules} - before), file=sys.stderr)
sys.exit(status)
"""
HEAVY = {"dataclasses", "importlib.metadata", "inspect", "json", "numpy", "pluggy", "rich", "stevedore", "typer"}
"""What a plain command needs none of, each as slow as many modules of ours."""
OTHERS = 47
"""Modules of Python's own, beside those that every program has; bisect is for small reads."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    modules(folder, "create", "-q", "-f", "qcow2", "disk.qcow2", "1M")  # what is installed is remembered from here on
    modules(folder, "create", "-q", "-f", "qcow2", "marked.qcow2", "1M")
    modules(folder, "bitmap", "--add", "marked.qcow2", "b")
    return folder


def modules(folder: Path, *words: str, **more: str) -> set[str]:
    environment = {**os.environ, **more, "XDG_CACHE_HOME": str(folder / "cache"), "HOME": str(folder)}
    return {*run(sys.executable, "-P", "-c", PROGRAM, *words, cwd=folder, env=environment).stderr.split()}


@pytest.mark.parametrize(
    ("words", "own"),
    [
        ("info disk.qcow2", 73),
        ("map disk.qcow2", 70),
        ("create -q -f qcow2 new.qcow2 1M", 76),
        ("measure -O qcow2 disk.qcow2", 83),
        ("snapshot -l disk.qcow2", 70),
        ("bitmap --clear marked.qcow2 b", 74),
        ("resize -q disk.qcow2 1M", 74),
        ("check disk.qcow2", 75),
        ("convert -O raw disk.qcow2 out.raw", 105),
    ],
)
def test_a_start_imports_no_more_than_it_did(places: Path, words: str, own: int) -> None:
    """Whoever makes one of these figures larger says why."""
    found = modules(places, *words.split())
    ours = {name for name in found if name.startswith("diskmill")}
    assert not found & HEAVY
    assert len(ours) <= own, sorted(ours)
    assert len(found - ours) <= OTHERS, sorted(found - ours)


DUMMY = """
from diskmill.contract.drivers import {base}, hookimpl
class Dummy({base}):
    contract, name = 1, "{name}"
    {hook}
driver = Dummy()
"""
KINDS = {"format": "FormatDriver", "filter": "FilterDriver", "protocol": "ProtocolDriver", "crypto": "CryptoDriver"}


def test_what_is_installed_and_not_used_is_not_imported(places: Path, tmp_path: Path) -> None:
    """Fifty packages more, of all kinds: a command imports of them what it would without them, which is nothing."""
    for number in range(50):
        kind = [*KINDS, "command"][number % 5]
        name = f"dummy{number}"
        hook = "@hookimpl\n    def probe(self, data, name): return 0" if kind == "format" else ""
        (tmp_path / f"{name}.py").write_text(DUMMY.format(base=KINDS.get(kind, "Driver"), name=name, hook=hook))
        metadata = tmp_path / f"{name}-1.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        told = f"[diskmill.magic]\n{number:02x}64756d = {name}:driver\n" if number % 10 == 0 else ""
        (metadata / "entry_points.txt").write_text(f"[diskmill.{kind}]\n{name} = {name}:driver\n{told}")
    few = modules(places, "info", "disk.qcow2")
    path = {"PYTHONPATH": str(tmp_path)}
    modules(places, "info", "disk.qcow2", **path)  # what is installed is remembered from here on
    assert modules(places, "info", "disk.qcow2", **path) == few
    (places / "disk.raw").write_bytes(bytes(512))
    assert not any("dummy" in name for name in modules(places, "info", "-f", "raw", "disk.raw", **path))
    # Whether it is theirs: that, only the formats, and of those that tell how their images begin, whose it may be.
    asked = modules(places, "info", "disk.raw", **path)
    assert {name for name in asked if "dummy" in name} == {f"dummy{number}" for number in range(5, 50, 10)}
    (places / "disk.raw").write_bytes(bytes([20]) + b"dum" + bytes(508))
    asked = modules(places, "info", "disk.raw", **path)
    assert {name for name in asked if "dummy" in name} == {"dummy20"} | {
        f"dummy{number}" for number in range(5, 50, 10)
    }
