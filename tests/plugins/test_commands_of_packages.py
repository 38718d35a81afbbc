"""Commands that packages bring (docs/writing-a-driver.md): found, run, helped with; and what a broken one may break."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from tools import diskmill

TEXT = (Path(__file__).parents[2] / "docs" / "writing-a-driver.md").read_text()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A module path with the documented command, `peek`, and two broken ones, as an installer would leave them."""
    section = TEXT.partition("## Packages that bring a command")[2]
    example = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert example is not None
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    marker = tmp_path / "imported"
    (tmp_path / "my_package" / "peek.py").write_text(f"open({str(marker)!r}, 'w').close()\n{example[1]}")
    metadata = tmp_path / "peek-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: peek\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(
        "[diskmill.command]\npeek = my_package.peek:COMMAND\ninfo = my_package.peek:COMMAND\n"
        "missing = my_package.nothing:COMMAND\nwrong = my_package.peek:run\n"
    )
    (tmp_path / "disk.raw").write_bytes(b"begin" + bytes(2043))
    return {**os.environ, "PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}


def test_it_runs_has_help_and_is_imported_for_nothing_else(environment: dict[str, str], tmp_path: Path) -> None:
    assert "raw" in diskmill("info", "disk.raw", cwd=tmp_path, env=environment).stdout  # no package takes a name away
    assert not (tmp_path / "imported").exists()
    assert diskmill("peek", "-n", "5", "disk.raw", cwd=tmp_path, env=environment).stdout == b"begin".hex(" ") + "\n"
    assert "its first sector" in diskmill("peek", "--help", env=environment).stdout
    refused = diskmill("peek", "--nonsense", env=environment, check=False)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1


def test_a_broken_one_is_named_and_breaks_nothing_else(environment: dict[str, str], tmp_path: Path) -> None:
    for name in ("missing", "wrong"):
        failed = diskmill(name, env=environment, check=False)
        assert failed.returncode == 1
        assert failed.stderr.startswith(f"diskmill: command '{name}' could not be loaded")
        assert len(failed.stderr.splitlines()) == 1
    told = diskmill("--help", env=environment)
    assert "peek" in told.stdout
    assert "convert" in told.stdout
    assert "command 'missing' could not be loaded" in told.stderr
    unknown = diskmill("nothing-of-the-kind", env=environment, check=False)
    assert "command not found" in unknown.stderr
