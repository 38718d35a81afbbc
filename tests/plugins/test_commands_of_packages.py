"""Commands that packages bring (docs/writing/a-command.md): found, run, helped with, and broken."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tools import diskmill

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "peek" / "src" / "diskmill_peek"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A module path with the documented command, `peek`, and two broken ones, as an installer would leave them."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    marker = tmp_path / "imported"
    for name in ("peek", "glance"):
        note = f"open({str(marker)!r}, 'w').close()\n"
        (tmp_path / "my_package" / f"{name}.py").write_text(note + (EXAMPLE / f"{name}.py").read_text())
    metadata = tmp_path / "peek-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: peek\nVersion: 1\nSummary: To see how disks begin\n"
    )
    (metadata / "entry_points.txt").write_text(
        "[diskmill.command]\npeek = my_package.peek:COMMAND\nglance = my_package.glance:app\n"
        "info = my_package.peek:COMMAND\n"
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
    assert re.search(r"peek +To see how disks begin", told.stdout)
    assert "convert" in told.stdout
    unknown = diskmill("nothing-of-the-kind", env=environment, check=False)
    assert "command not found" in unknown.stderr


def test_a_typer_app_is_a_command(environment: dict[str, str], tmp_path: Path) -> None:
    assert "glance" in diskmill("--help", env=environment).stdout
    assert not (tmp_path / "imported").exists(), "help imports nothing of it"
    told = diskmill("glance", "-n", "5", "--trust", "nothing", "disk.raw", cwd=tmp_path, env=environment)
    assert told.stdout == b"begin".hex(" ") + "\n"
    help = diskmill("glance", "--help", env=environment).stdout
    assert "Show how a disk begins." in help
    assert "--trust" in help
    for words, message in (
        (["--nonsense", "x"], "No such option"),
        ([], "Missing argument"),
        (["gone.raw"], "No such file"),
        (["--trust", "nobody", "disk.raw"], "'nobody' to trust"),
    ):
        refused = diskmill("glance", *words, cwd=tmp_path, env=environment, check=False)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1), refused.stderr
        assert message in refused.stderr


def test_our_commands_are_an_app_of_somebody_elses(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import diskmill_cli, typer\n"
        "app = typer.Typer()\n"
        "@app.command()\ndef other() -> None: ...\n"
        "app.add_typer(diskmill_cli.app, name='disk')\n"
        "app()\n"
    )

    def other(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, program, *words], capture_output=True, text=True, cwd=tmp_path)

    assert other("disk", "create", "-q", "-fqcow2", "-o", "cluster_size=4k", "a.qcow2", "1M").returncode == 0
    assert '"cluster-size": 4096' in other("disk", "info", "--output=json", "a.qcow2").stdout
    failed = other("disk", "info", "gone")
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
    assert "convert" in other("disk", "--help").stdout
    assert "--target-format" in other("disk", "convert", "--help").stdout
