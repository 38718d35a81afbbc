"""What docs/commands.md and docs/cookbook.md show works from the shell and from Python, and both do the same."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import diskmill
import pytest
from diskmill_cli.commands import NAMES
from diskmill_cli.main import run
from diskmill_cli.session import Session
from samples import MiB, scattered_file
from tools import qemu_img, qemu_io

DOCS = Path(__file__).parents[2] / "docs"


def sections(page: str) -> dict[str, str]:
    return {part.split("\n", 1)[0]: part for part in (DOCS / page).read_text().split("\n## ")[1:]}


COMMANDS, COOKBOOK = sections("commands.md"), sections("cookbook.md")
SECTIONS = COMMANDS | COOKBOOK


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    scattered_file(folder / "disk.raw", 16 * MiB, seed=1)
    for name in ("disk.qcow2", "base.qcow2"):
        qemu_img("convert", "-f", "raw", "-O", "qcow2", "disk.raw", name, cwd=folder)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "overlay.qcow2", cwd=folder)
    qemu_io("overlay.qcow2", "write -P 5 3M 1M", format="qcow2", cwd=folder)
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "disk.raw", "disk.vmdk", cwd=folder)
    shutil.copyfile(folder / "disk.raw", folder / "parts.raw")
    table = b"2048,8192,83\n"  # first sector, sectors, type
    subprocess.run(["/sbin/sfdisk", "--quiet", folder / "parts.raw"], input=table, check=True)
    (folder / "passphrase").write_text("correct horse")
    return folder


def test_every_command_has_an_example() -> None:
    assert set(COMMANDS) == set(NAMES)
    assert len(COOKBOOK) >= 15


@pytest.mark.parametrize("name", SECTIONS)
def test_shell_and_python_do_the_same(name: str, images: Path, tmp_path: Path) -> None:
    shell, python = (shutil.copytree(images, tmp_path / kind) for kind in ("shell", "python"))
    redirected: list[Path] = []
    with contextlib.chdir(shell):
        for line in re.findall(r"^\$ diskmill (.*)$", SECTIONS[name], re.MULTILINE):
            command, _, said = line.partition(" > ")
            with contextlib.redirect_stdout(io.StringIO()) as out:
                assert run(shlex.split(command), Session()) == 0
            if said:
                Path(said).write_text(out.getvalue())
                redirected.append(Path(said))
        for path in redirected:
            path.unlink()
    code = re.search(r"```python\n(.*?)```", SECTIONS[name], re.DOTALL)
    assert code is not None
    with contextlib.chdir(python), contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code[1], name, "exec"), {"diskmill": diskmill})
    assert {path.name for path in shell.iterdir()} == {path.name for path in python.iterdir()}
    for path in [path for path in shell.iterdir() if path.suffix not in ("", ".luks")]:
        ours, other = diskmill.info(str(path)), diskmill.info(str(python / path.name))
        assert (ours.format, ours.virtual_size) == (other.format, other.virtual_size)
        assert str(ours.specific).replace(str(shell), "") == str(other.specific).replace(str(python), "")
        assert diskmill.compare(str(path), str(python / path.name), strict=True).identical


@pytest.mark.parametrize("page", ["library.md", "for-services.md", "drivers/fileobj.md", "drivers/fsspec.md"])
def test_what_the_pages_show_of_the_library_runs(page: str, images: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(images, tmp_path / "images")
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        done = subprocess.run([sys.executable, "-W", "error", "-c", block], cwd=folder, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        assert done.stdout
