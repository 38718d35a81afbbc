"""The examples of docs/examples: typed, as small as their pages say, installed alone, held to the kit."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import packages
import pytest
from diskmill_testkit.new_driver import KINDS, write
from packages import ROOT, Python
from tools import run

EXAMPLES = {path.parent.name: path.parent for path in sorted(ROOT.glob("docs/examples/*/pyproject.toml"))}
PAGES = {path: path.read_text() for path in sorted((ROOT / "docs" / "writing").glob("*.md"))}
QUICK = "not test_damaged_images and not test_noise"
"""What the kit does for a second or more with each format; the template's driver has them all."""


def sources(name: str) -> list[Path]:
    return [path for path in sorted((EXAMPLES[name] / "src").rglob("*.py")) if path.read_text().count("\n") > 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the environment with the examples and the kit."""
    return tmp_path_factory.mktemp("examples") / "environment"


@pytest.fixture(scope="module")
def python(folder: Path, everything: Path) -> Python:
    names = [f"diskmill-{name}" for name in EXAMPLES]
    return packages.environment(folder, everything, "diskmill-testkit", "diskmill-qcow2[fast]", *names)


def test_they_pass_the_kit_where_nothing_else_is_installed(python: Python, tmp_path: Path) -> None:
    words = ("-v", "-p", "no:cacheprovider", "--import-mode=importlib", "--rootdir", tmp_path, "-k", QUICK)
    for name, example in EXAMPLES.items():  # away from what pytest is told here
        shutil.copytree(example / "tests", tmp_path / name)
    done = python("pytest", *words, *(tmp_path / name for name in EXAMPLES), timeout=250, cwd=tmp_path)
    for name in EXAMPLES:
        assert f"{name}/test_conformance.py::test_" in done.stdout, name
    assert not {"SKIPPED", "XFAIL", "XPASS", "FAILED"} & set(done.stdout.split())


def test_mypy_is_content_with_them_and_the_installed_wheels(python: Python, folder: Path, tmp_path: Path) -> None:
    """And with what `new-driver` writes."""
    files = [path for name in EXAMPLES for path in sources(name)]
    for kind in KINDS:
        files += sorted((write(kind, f"acme-{kind}", tmp_path) / "src").rglob("*.py"))
    words = ("--strict", "--cache-dir", tmp_path / "cache", "--python-executable", folder / "bin" / "python")
    run(sys.executable, "-m", "mypy", *words, *files, cwd=tmp_path, timeout=250)


@pytest.mark.parametrize("name", EXAMPLES)
def test_its_page_quotes_it_and_says_how_long_it_is(name: str) -> None:
    [page] = [text for text in PAGES.values() if f"examples/{name}/" in text]
    for path in sources(name):
        text = path.read_text()
        assert f"```python\n{text}```" in page, f"the page quotes another {path.name}"
    lines = sum(path.read_text().count("\n") for path in sources(name))
    assert re.findall(r"(\d+) lines", page) == [str(lines)]
