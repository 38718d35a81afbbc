"""The documents as pages: every link leads somewhere, and every public name has a sentence about it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    words = ["--nitpicky", "--fail-on-warning", "-q", "-b", "dummy", "-c", "docs/site", "docs", tmp_path]
    built = subprocess.run([sys.executable, "-m", "sphinx", *words], cwd=ROOT, capture_output=True, text=True)
    assert not built.returncode, built.stderr
