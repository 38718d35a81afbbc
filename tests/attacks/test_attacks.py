"""What a file may cost that was made to cost much: see the package's docstring."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from attacks import MODULES, corpus

SECONDS = 10.0
"""Processor time that a command may take."""
MEMORY = 256 << 10
"""KiB that it may take."""


def test_the_corpus_has_a_hundred_files_of_different_names() -> None:
    names = [one.name for one in corpus()]
    assert len(names) == len(set(names)) >= 100


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("module", MODULES)
def test_no_command_takes_more_than_its_budget(module: str, tmp_path: Path) -> None:
    """No traceback, no warning of Python's, no endless work: whatever is claimed, the file is small."""
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "error", tests / "attacks" / "runner.py", tmp_path, f"{module}:"],
        env={"PYTHONPATH": str(tests), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert runs
    bad = [
        one
        for one in runs
        if one["seconds"] > SECONDS
        or one["memory"] > MEMORY
        or one["status"] not in (0, 1, 2, 3, 4, 63)
        or "Traceback" in one["error"]
        or "internal error" in one["error"]
    ]
    assert not bad, json.dumps(bad, indent=1)
