"""Graphs that nobody needs: formats on formats, roles that a format does not have, children that are left out.

Whatever a user puts into ``json:`` names and option strings is answered in one line, and never by an internal error.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from diskmill_cli.main import run
from diskmill_cli.session import Session
from tools import qemu_img

FORMATS = {
    "raw": [],
    "qcow2": [],
    "qcow2-v2": ["-o", "compat=0.10"],
    "qcow2-data": ["-o", "data_file=DATA"],
    "qcow": [],
    "qed": [],
    "vdi": [],
    "vhdx": [],
    "vpc": [],
    "vpc-fixed": ["-o", "subformat=fixed"],
    "vmdk": [],
    "vmdk-flat": ["-o", "subformat=monolithicFlat"],
    "parallels": [],
}
COMMANDS = {
    "info": ["info", "{name}"],
    "chain": ["info", "--backing-chain", "{name}"],
    "check": ["check", "{name}"],
    "repair": ["check", "-r", "all", "{name}"],
    "map": ["map", "{name}"],
    "human": ["map", "--output=json", "{name}"],
    "measure": ["measure", "-O", "qcow2", "{name}"],
    "convert": ["convert", "-O", "raw", "{name}", "{output}"],
    "into": ["convert", "-n", "--target-image-opts", "{other}", "{options}"],
    "grow": ["resize", "{name}", "+1M"],
    "shrink": ["resize", "--shrink", "{name}", "512K"],
    "snapshot": ["snapshot", "-c", "one", "{name}"],
    "bitmap": ["bitmap", "--add", "{name}", "one"],
    "amend": ["amend", "-o", "size=4M", "{name}"],
    "compat": ["amend", "-o", "compat=0.10", "{name}"],
    "bench": ["bench", "-q", "-w", "-c", "2", "{name}"],
    "commit": ["commit", "{name}"],
    "rebase": ["rebase", "-u", "-b", "{other}", "-F", "raw", "{name}"],
    "away": ["rebase", "-b", "", "{name}"],
    "compare": ["compare", "{name}", "{other}"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for case, more in FORMATS.items():
        words = [word.replace("DATA", "data") for word in more]
        qemu_img("create", "-q", "-f", case.partition("-")[0], *words, case, "2M", cwd=folder)
    return folder


def node(name: str, below: Any = None) -> dict[str, Any]:
    file = {"driver": "file", "filename": name}
    return {"driver": name.partition("-")[0], "file": file if below is None else below}


def graphs(case: str) -> dict[str, dict[str, Any]]:
    """Odd graphs with an image of *case* in them."""
    plain, other = node(case), {"driver": "raw", "file": {"driver": "file", "filename": "other"}}
    odd = {role: {**plain, role: other} for role in ("backing", "data-file", "extent", "header", "image", "parent")}
    odd |= {f"no {role}": {**plain, role: None} for role in ("backing", "data-file", "extent")}
    odd["backing that is storage"] = {**plain, "backing": other["file"]}
    odd["data-file that is a format"] = {**plain, "data-file": node("qcow2")}
    odd["itself"] = {**plain, "backing": plain}
    odd["on raw"] = node(case, {"driver": "raw", "file": plain["file"]})
    odd["in a window"] = {"driver": "raw", "offset": 512, "size": 1024, "file": plain}
    for format in ("raw", "qcow2", "vdi", "vmdk", "vhdx", "vpc", "qed", "qcow", "parallels", "luks", "dmg"):
        odd[f"as {format}"] = {"driver": format, "file": plain}
    return odd


@pytest.mark.parametrize("case", FORMATS)
def test_it_is_answered_in_one_line(
    tmp_path: Path, made: Path, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").write_bytes(bytes(1 << 20))
    internal = []
    turn = list(FORMATS).index(case)
    for number, (graph, spec) in enumerate(graphs(case).items()):
        # Some of the commands for each, others for the next format: all of them for every kind of graph.
        for command, words in list(COMMANDS.items())[(number + turn) % 7 :: 7]:
            for path in made.iterdir():
                if path.name.startswith((case, "data")) or path.name in ("qcow2", f"{case}-flat.vmdk"):
                    shutil.copy(path, tmp_path / path.name)
            options = ",".join(f"{key}={value}" for key, value in flat(spec))
            names = {"name": "json:" + json.dumps(spec), "options": options, "other": "other", "output": "output"}
            run([word.format(**names) if "{" in word else word for word in words], Session())
            error = capsys.readouterr().err
            if "internal error" in error:
                internal.append(f"{graph}, {command}: {error}")
    assert not internal, "".join(internal)


def flat(spec: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    result: list[tuple[str, Any]] = []
    for key, value in spec.items():
        result += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value or "")]
    return result


NAMES = ["a\0b", "a\udcff\ud800", "\n", ""]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_no_file_name_is_an_internal_error(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    qemu_img("create", "-q", "-f", "qcow2", "top", "1M", cwd=tmp_path)
    file = {"driver": "file", "filename": name}
    good = {"driver": "file", "filename": "top"}
    specs: list[Any] = [
        file,
        {"driver": "raw", "file": file},
        {"file.filename": name},
        {"driver": name, "file": good},
        {"driver": "qcow2", "file": good, "backing": name},
        {"driver": "qcow2", "file": good, "backing": file},
        {"driver": "qcow2", "file": good, "data-file": file},
        {"driver": "qcow2", "file": {"driver": name, "filename": name}},
        {"driver": "qcow2", "file": good, name: name},
        {"driver": "luks", "file": good, "header": file, "key-secret": name},
        {"driver": "file", "filename": "top", "follow": name},
    ]
    texts = ["json:" + json.dumps(spec) for spec in specs]
    for text in texts:
        for command in COMMANDS.values():
            names = {"name": text, "options": f"file.filename={text}", "other": "disk", "output": "output"}
            assert run([word.format(**names) if "{" in word else word for word in command], Session()) in (0, 1, 2, 63)
        for words in (
            ["create", "-f", "qcow2", "-u", "-b", text, "-F", "raw", "new", "1M"],
            ["create", "-f", "qcow2", "-b", text, "-F", "raw", "new", "1M"],
            ["rebase", "-b", text, "-F", "raw", "top"],
            ["commit", "-b", text, "top"],
            ["convert", "-O", "qcow2", "-B", text, "-F", "raw", "disk", "output"],
            ["convert", "-O", "raw", "disk", text],
            ["info", "--backing-chain", "new"],
            ["dd", f"if={text}", "of=output"],
            ["dd", "if=disk", f"of={text}"],
        ):
            assert run(words, Session()) in (0, 1, 2, 63)
    error = capsys.readouterr().err
    assert "internal error" not in error, [line for line in error.splitlines() if "internal error" in line]


@pytest.mark.parametrize(
    "text", ["help", "?", "driver=help", "driver=qcow2,help", "", ",", "=", "driver=raw,file=help"]
)
def test_option_strings_that_ask_for_help(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["info", "--image-opts", text],
        ["check", "--image-opts", text],
        ["convert", "--image-opts", "-O", "raw", text, "output"],
        ["convert", "-n", "--target-image-opts", "disk", text],
    ):
        assert run(words, Session()) == 1
    error = capsys.readouterr().err
    assert "internal" not in error
    assert error.count("\n") == 4


@pytest.mark.parametrize("words", ["bench -q -w -c 2 {}", "resize {} +1M", "resize --shrink {} 1M"])
def test_an_image_whose_data_file_is_left_out_is_not_changed(
    tmp_path: Path, made: Path, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(made / "qcow2-data", "image")
    before = Path("image").read_bytes()
    name = "json:" + json.dumps({**node("qcow2"), "file": {"driver": "file", "filename": "image"}, "data-file": None})
    assert run([word.format(name) for word in words.split()], Session()) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "its external data file" in error
    assert Path("image").read_bytes() == before
