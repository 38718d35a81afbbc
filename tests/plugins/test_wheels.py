"""The wheels of all packages, installed as users combine them, each step into the environment of the one before."""

from __future__ import annotations

import json
import sys
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from tools import assert_identical, qemu_img, run

ROOT = Path(__file__).parents[2]
MEMBERS = [
    ROOT / "core",
    ROOT / "cli",
    ROOT / "dropin",
    ROOT / "testkit",
    *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml")),
]
Command = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name → wheel; one is made by `build`, all others by the same backend, in one go."""
    folder = tmp_path_factory.mktemp("wheels")
    core, *others = MEMBERS
    run(sys.executable, "-m", "build", "-q", "--wheel", "--no-isolation", "--outdir", folder, core)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, *others)
    found = {path.name.split("-")[0]: path for path in folder.iterdir()}
    assert len(found) == len(MEMBERS)
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare") / "environment"
    venv.create(folder)
    return folder


def install(bare: Path, *wheels: Path | str) -> None:
    pip = (sys.executable, "-m", "pip", "--python", bare / "bin" / "python", "--disable-pip-version-check")
    run(*pip, "install", "-q", "-c", ROOT / "constraints.txt", *wheels, timeout=300)


def test_wheels_in_their_combinations(bare: Path, wheels: dict[str, Path], tmp_path: Path) -> None:
    def command(name: str, *words: Any, check: bool = True) -> CompletedProcess[str]:
        return run(bare / "bin" / name, *words, check=check, cwd=tmp_path)

    def has(module: str) -> bool:
        return command("python", "-c", f"import {module}", check=False).returncode == 0

    # A library with one driver: no command, and nothing that only the command needs.
    install(bare, wheels["diskmill"], wheels["diskmill_vdi"])
    code = "import diskmill; diskmill.create('a.vdi', 1 << 20, format='vdi'); print(diskmill.info('a.vdi').format)"
    assert command("python", "-c", code).stdout == "vdi\n"
    assert not has("typer")
    assert not has("rich")

    # The command with qcow2, as the extras name them.
    install(bare, f"{wheels['diskmill']}[cli,qcow2]", wheels["diskmill_cli"], wheels["diskmill_qcow2"])
    assert not has("numpy")
    qemu_img("convert", "-f", "raw", "-O", "qcow2", __file__, "a.qcow2", cwd=tmp_path)
    command("diskmill", "convert", "-O", "qcow2", "a.qcow2", "b.qcow2")
    assert_identical(tmp_path / "a.qcow2", tmp_path / "b.qcow2", formats=("qcow2", "qcow2"))
    assert "No errors" in command("diskmill", "check", "b.qcow2").stdout  # small and sound: there is no need of it
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", __file__, "c.qcow2", cwd=tmp_path)
    lacking = command("diskmill", "check", "c.qcow2", check=False)
    assert lacking.returncode == 1
    assert lacking.stderr.count("\n") == 1
    assert "pip install numpy" in lacking.stderr
    missing = command("diskmill", "create", "-f", "vmdk", "a.vmdk", "1M", check=False)
    assert "install the package diskmill-vmdk: pip install diskmill-vmdk" in missing.stderr

    # All of it.
    others = [wheel for name, wheel in wheels.items() if name != "diskmill"]
    install(bare, f"{wheels['diskmill']}[all]", *others)
    found = json.loads(command("diskmill", "drivers", "--output=json").stdout)
    assert [one for one in found if one["broken"]] == []
    assert {one["name"] for one in found if one["kind"] == "format"} == declared("diskmill.format")
    assert {one["package"] for one in found} == {
        one for one in names() if one not in ("diskmill-cli", "diskmill-qemu-img")
    }
    assert command("diskmill", "check", "b.qcow2").returncode == 0
    assert "qemu-img version" in command("qemu-img", "--version").stdout
    share = bare / "share"
    pages = {path.name for path in (share / "man" / "man1").iterdir()}
    assert {"diskmill.1", "diskmill-convert.1", "qemu-img.1"} <= pages
    for path in (
        "bash-completion/completions/diskmill",
        "zsh/site-functions/_diskmill",
        "fish/vendor_completions.d/diskmill.fish",
    ):
        assert "_DISKMILL_COMPLETE" in (share / path).read_text()


def projects() -> list[dict[str, Any]]:
    return [tomllib.loads((member / "pyproject.toml").read_text())["project"] for member in MEMBERS]


def names() -> set[str]:
    return {str(project["name"]) for project in projects()}


def declared(group: str) -> set[str]:
    return {name for project in projects() for name in project.get("entry-points", {}).get(group, {})}


def test_a_clone_installs_what_it_is_asked_for() -> None:
    words = ("--dry-run", "--no-deps", "--no-build-isolation", "--ignore-installed", "-q", "--report=-")
    done = run(sys.executable, ROOT / "dev.py", "install", "vdi", *words, timeout=200)
    chosen = {one["metadata"]["name"] for one in json.loads(done.stdout)["install"]}
    assert chosen == {"diskmill", "diskmill-cli", "diskmill-vdi"}
    wrong = run(sys.executable, ROOT / "dev.py", "install", "nothing", check=False)
    assert (wrong.returncode, "there is no driver 'nothing'" in wrong.stderr) == (2, True)
