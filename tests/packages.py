"""The packages of the workspace as users have them: wheels, and environments with some of them.

pip installs the wheels once (:func:`everything`). An environment of some of them has what they declare that they need,
and nothing else: the files that pip wrote down for each package (RECORD), linked into an environment of its own.
"""

from __future__ import annotations

import fcntl
import os
import sys
import sysconfig
import venv
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tools import run

ROOT = Path(__file__).parents[1]
MEMBERS = [
    *(ROOT / name for name in ("core", "cli", "dropin", "testkit", "docs/example-driver")),
    *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml")),
    *sorted(path.parent for path in ROOT.glob("docs/examples/*/pyproject.toml")),
]
BUILD = """
import os, sys
from hatchling.build import build_wheel
for folder in sys.argv[2:]:
    os.chdir(folder)
    build_wheel(sys.argv[1])
"""
"""What pip and `build` have done in a process of its own for each package."""
Python = Callable[..., CompletedProcess[str]]
"""Runs a module, the file of a script, or ``-c`` in an environment: ``python("diskmill_cli", "info", …)``."""


def built(folder: Path, *projects: Path) -> list[Path]:
    """The wheels of *projects*, made in *folder*, by name."""
    run(sys.executable, "-c", BUILD, folder, *projects, timeout=200)
    found = sorted(folder.iterdir())
    assert len(found) == len(projects)
    return found


def pip(environment: Path, *words: Any) -> CompletedProcess[str]:
    """pip, which need not be in the *environment* that it works on."""
    python = environment / "bin" / "python"
    told = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    return run(*told, *words, timeout=200)


def install(environment: Path, *wheels: Path) -> None:
    """Install *wheels*, and nothing besides: what they need is there."""
    pip(environment, "install", "-q", "--no-deps", "--no-index", *wheels)


def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheels of all packages, and what they need; made once for all processes of a test run."""
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent
    folder = base / "everything"
    with open(base / "everything.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            venv.create(folder)
            wheels = base / "wheels"
            wheels.mkdir()
            install(folder, *built(wheels, *MEMBERS))
            (folder / "complete").touch()
    return folder


def site(environment: Path) -> Path:
    """Where packages are in *environment*."""
    return Path(sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)}))


def environment(folder: Path, source: Path, *packages: str) -> Python:
    """A new environment in *folder* with *packages* of :func:`everything`, which is *source*, and what they need."""
    venv.create(folder)
    ours = {canonicalize_name(one.name): one for one in distributions(path=[str(site(source))])}
    others = {canonicalize_name(one.name): one for one in distributions(path=[sysconfig.get_path("purelib")])}
    for distribution in needed({**others, **ours}, packages):
        for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            (site(folder) / name).symlink_to(str(distribution.locate_file(name)))

    def python(what: str, *words: Any, plugins: Path | None = None, **options: Any) -> CompletedProcess[str]:
        path = {"PYTHONPATH": "" if plugins is None else str(plugins), "XDG_CACHE_HOME": str(folder / "cache")}
        said = (what,) if "/" in what or what == "-c" else ("-m", what)
        return run(folder / "bin" / "python", *said, *words, env=path, **options)

    return python


def needed(known: dict[str, Distribution], packages: Iterable[str]) -> Iterator[Distribution]:
    """The distributions that *packages* are and, by their metadata, need. A name may have extras."""
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(name) for name in packages]
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        for extra in {"", *one.extras}:
            if (name, extra) in seen:
                continue
            if not any(other == name for other, _ in seen):
                yield known[name]
            seen.add((name, extra))
            requirements = map(Requirement, known[name].requires or ())
            waiting += [need for need in requirements if need.marker is None or need.marker.evaluate({"extra": extra})]
