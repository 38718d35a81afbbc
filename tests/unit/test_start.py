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
OTHERS = 46
"""Modules of Python's own, beside those that every program has."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    modules(folder, "create", "-q", "-f", "qcow2", "disk.qcow2", "1M")  # what is installed is remembered from here on
    modules(folder, "create", "-q", "-f", "qcow2", "marked.qcow2", "1M")
    modules(folder, "bitmap", "--add", "marked.qcow2", "b")
    return folder


def modules(folder: Path, *words: str) -> set[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "HOME": str(folder)}
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
    ],
)
def test_a_start_imports_no_more_than_it_did(places: Path, words: str, own: int) -> None:
    """Whoever makes one of these figures larger says why."""
    found = modules(places, *words.split())
    ours = {name for name in found if name.startswith("diskmill")}
    assert not found & HEAVY
    assert len(ours) <= own, sorted(ours)
    assert len(found - ours) <= OTHERS, sorted(found - ours)
