"""What goes to a person: names out of images command no terminal and forge no lines, wherever they are shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from diskmill_cli.secrets import ask
from diskmill_cli.session import Session
from tools import diskmill, qemu_img, run, tool

EVIL = "a\nimage: forged\r\x1b[2Jb\x9b1m\u202ec\u200bd\u2028e"
FILE = EVIL.replace(":", "=")
ORDINARY = "Größe 磁盘 диск 💾 a b"
PROGRAMS = ("diskmill", "qemu-img")


def ours(program: str, *words: str | os.PathLike[str], cwd: Path, check: bool = True) -> str:
    """The output, stderr after stdout, with its line ends as they are."""
    command = [Path(sys.executable).with_name(program), *words]
    done = subprocess.run(command, capture_output=True, cwd=cwd)
    assert done.returncode == 0 or not check
    return (done.stdout + done.stderr).decode()


def clean(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    qemu_img("create", "-q", "-f", "qcow2", "disk", "1M", cwd=tmp_path)
    for name in (EVIL, ORDINARY):
        qemu_img("snapshot", "-c", name, "disk", cwd=tmp_path)
        qemu_img("bitmap", "--add", "disk", name, cwd=tmp_path)
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", FILE, "top", "1M", cwd=tmp_path)
    (tmp_path / FILE).write_bytes(bytes(512))
    return tmp_path


@pytest.mark.parametrize("program", PROGRAMS)
def test_human_output(folder: Path, program: str) -> None:
    for words in (["info", "disk"], ["snapshot", "-l", "disk"], ["info", "top"], ["info", FILE], ["map", FILE]):
        text = ours(program, *words, cwd=folder)
        assert clean(text), words
        expected = qemu_img(*words, cwd=folder).stdout
        assert "forged" in text or "map" in words
        assert "\nimage: forged" not in text
        assert (ORDINARY in text) == (ORDINARY in expected)


def test_ordinary_names_are_shown_as_qemu_img_shows_them(tmp_path: Path) -> None:
    qemu_img("create", "-q", "-f", "qcow2", ORDINARY, "1M", cwd=tmp_path)
    qemu_img("snapshot", "-c", ORDINARY, ORDINARY, cwd=tmp_path)
    qemu_img("bitmap", "--add", ORDINARY, ORDINARY, cwd=tmp_path)
    for words in (["info", ORDINARY], ["snapshot", "-l", ORDINARY], ["map", ORDINARY]):
        assert ours("qemu-img", *words, cwd=tmp_path) == qemu_img(*words, cwd=tmp_path).stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_errors_and_warnings(folder: Path, program: str) -> None:
    for words in (
        ["bitmap", "--remove", "disk", EVIL + "x"],
        ["snapshot", "-a", EVIL + "x", "disk"],
        ["info", EVIL + "x"],
        ["check", "-f", EVIL, "disk"],
        ["info", f"--{EVIL}", "disk"],
        [EVIL],
        ["convert", "-O", "raw", "-o", f"{EVIL}=1", "disk", "output"],
        ["info", f"json:{json.dumps({'driver': 'raw', 'file': EVIL + 'x'})}"],
        ["info", "--object", f"secret,id={EVIL},data=x", "disk"],
    ):
        text = ours(program, *words, cwd=folder, check=False)
        assert clean(text), words
        assert text.count("\n") == 1, words


def test_a_program_gets_names_to_the_letter(folder: Path) -> None:
    told = json.loads(ours("diskmill", "info", "--output=json", "disk", cwd=folder))
    assert [one["name"] for one in told["snapshots"]] == [EVIL, ORDINARY]


def test_a_session_lets_nothing_out(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()
    session.print(EVIL, EVIL)
    session.note(EVIL)
    session.warn(EVIL)
    session.error(EVIL)
    shown = capsys.readouterr()
    assert clean(shown.out)
    assert clean(shown.err)
    assert (shown.out.count("\n"), shown.err.count("\n")) == (2, 3)
    prompts: list[str] = []
    monkeypatch.setattr("getpass.getpass", lambda prompt: prompts.append(prompt) or "x")
    ask(EVIL)
    assert clean(prompts[0])
    assert "\n" not in prompts[0]


CLOSED = {"out": ">&-", "err": "2>&-", "in": "<&-", "all": "<&- >&- 2>&-"}


@pytest.mark.parametrize("which", CLOSED)
def test_closed_standard_files_are_nobodys(folder: Path, which: str) -> None:
    """No image gets their descriptors, and the exit status is as it is; qemu-img is the oracle."""
    for words in (
        "info disk",
        "map disk",
        "convert -p -O raw disk output",
        "check disk",
        "info missing",
        "resize disk",
    ):
        before = (folder / "disk").read_bytes()
        found = []
        for program in (tool("qemu-img"), Path(sys.executable).with_name("qemu-img")):
            command = f"{program} {words} {CLOSED[which]}"
            found.append(subprocess.run(["sh", "-c", command], capture_output=True, cwd=folder).returncode)
        assert found[0] == found[1], words
        assert (folder / "disk").read_bytes() == before


def test_the_descriptor_of_an_image_is_none_of_the_standard_ones(folder: Path) -> None:
    code = "import os, diskmill_cli.main as m; m._open_standard_files(); fd = os.open('disk', 0); os._exit(fd)"
    done = subprocess.run(["sh", "-c", f'{sys.executable} -c "{code}" <&- >&- 2>&-'], cwd=folder)
    assert done.returncode > 2


def test_a_trust_that_is_empty_is_none(tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(bytes(512))
    qemu_img("create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base", "top", cwd=tmp_path)
    for program in PROGRAMS:
        path = Path(sys.executable).with_name(program)
        refused = run(path, "map", "top", cwd=tmp_path, env={"DISKMILL_TRUST": ""}, check=False)
        assert refused.returncode == 1
        assert "was not opened" in refused.stderr
        run(path, "map", "top", cwd=tmp_path, env={"DISKMILL_TRUST": "folder"})
    diskmill("map", "top", cwd=tmp_path)
