"""What the README shows works, and lists what there is."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
from samples import MiB, scattered_file
from tools import assert_identical, diskmill, run

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scattered_file(tmp_path / "disk.raw", 16 * MiB, seed=1)
    return tmp_path


def test_python_example(folder: Path) -> None:
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    printed = run(sys.executable, "-c", example[1], cwd=folder).stdout
    assert str(16 * MiB) in printed
    assert_identical(folder / "disk.raw", folder / "disk.qcow2", formats=("raw", "qcow2"))


def test_command_examples(folder: Path) -> None:
    commands = re.findall(r"^\$ diskmill (.*?)(?: +#.*)?$", README, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        diskmill(*command.split(), cwd=folder)
    assert_identical(folder / "disk.raw", folder / "disk.qcow2", formats=("raw", "qcow2"))


@pytest.mark.parametrize("kind", ["format", "protocol"])
def test_table_of_drivers_is_complete(kind: str) -> None:
    header = {"format": "driver", "protocol": "protocol"}[kind]
    table = README.split(f"| {header} | package |")[1].split("\n\n")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)
    listed = set(re.findall(r"`([\w-]+)`", " ".join(cells)))
    there = set()
    for path in (ROOT / "core" / "pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")):
        project = tomllib.loads(path.read_text())["project"]
        there |= set(project.get("entry-points", {}).get(f"diskmill.{kind}", {}))
    assert listed == there


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    missing = [target for target in targets if "://" not in target and not (ROOT / target).exists()]
    assert missing == []
