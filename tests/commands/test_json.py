"""What `--output=json` and `--progress=json` print keeps to the schemas that docs/schemas publishes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import diskmill
import diskmill.errors
import pytest
from diskmill_cli.arguments import Arguments
from diskmill_cli.catalogue import load
from diskmill_cli.commands import NAMES
from diskmill_cli.main import run
from diskmill_cli.progress import shown
from diskmill_cli.session import Session
from jsonschema import Draft202012Validator
from tools import qemu_img, qemu_io
from tools import run as run_program

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("json")
    with contextlib.chdir(folder):
        qemu_img("create", "-q", "-f", "qcow2", "base.qcow2", "4M")
        qemu_io("base.qcow2", "write -P 1 1M 64k", format="qcow2")
        qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "over.qcow2")
        qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2")
        qemu_img("snapshot", "-c", "first", "over.qcow2")
        qemu_img("create", "-q", "-f", "raw", "disk.raw", "8M")
        qemu_img("create", "-q", "-f", "raw", "empty.raw", "0")
        Path("digests").write_text(f"{'0' * 64}  disk.raw\n")
        leaked = Path("base.qcow2").read_bytes() + bytes(65536)
        Path("leaked.qcow2").write_bytes(leaked)
        qemu_img("convert", "-c", "-O", "qcow2", "base.qcow2", "compressed.qcow2")
    return folder


def printed(folder: Path, *words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(words, Session())
    return status, out.getvalue(), err.getvalue()


def validate(name: str, value: Any) -> None:
    Draft202012Validator(json.loads((SCHEMAS / f"{name}.json").read_text())).validate(value)


@pytest.mark.parametrize(
    "line",
    [
        "info disk.raw",
        "info over.qcow2",
        "info --limits base.qcow2",
        "info --backing-chain --limits over.qcow2",
        "info disk.raw over.qcow2",
        "check base.qcow2",
        "check leaked.qcow2",
        "check compressed.qcow2",
        "map disk.raw",
        "map empty.raw",
        "map over.qcow2",
        "map compressed.qcow2",
        "measure -O qcow2 disk.raw",
        "measure -O qcow2 over.qcow2",
        "measure --size 1G",
        "snapshot -l over.qcow2",
        "snapshot disk.raw",
        "compare base.qcow2 over.qcow2",
        "compare base.qcow2 disk.raw",
        "compare -s base.qcow2 disk.raw",
        "bench -c 5 disk.raw",
        "create -f qcow2 new.qcow2 1M",
        "create -f qcow2 -b base.qcow2 -F qcow2 new.qcow2",
        "resize -f raw empty.raw 1M",
        "commit top.qcow2",
        "commit -d top.qcow2",
        "drivers",
        "drivers qcow2",
        "convert -O qcow2 disk.raw converted.qcow2",
        "convert --salvage -f raw disk.raw converted.raw",
        "digest disk.raw top.qcow2",
        "digest --check digests",
        "sync -n base.qcow2 top.qcow2",
        "rebase -u -b base.qcow2 -F qcow2 top.qcow2",
        "rebase -u -b '' top.qcow2",
        "amend -o lazy_refcounts=on top.qcow2",
        "bitmap --add --clear --disable base.qcow2 week",
    ],
)
def test_what_is_printed_keeps_to_the_schema(folder: Path, line: str) -> None:
    command, *words = shlex.split(line)
    _, out, err = printed(folder, command, "--output=json", *words)
    assert err == ""
    validate(command, json.loads(out))


def test_progress_lines_keep_to_the_schema(folder: Path) -> None:
    _, out, err = printed(folder, "convert", "--progress=json", "-O", "qcow2", "disk.raw", "out.qcow2")
    assert out == ""
    lines = [json.loads(line) for line in err.splitlines()]
    assert lines[-1]["phase"] == "done"
    for line in lines:
        validate("progress", line)


def test_a_signal_gets_a_line_of_json_too(folder: Path) -> None:
    err = io.StringIO()
    with contextlib.redirect_stderr(err), shown(Arguments([("progress", "json")], []), Session(), "convert") as report:
        os.kill(os.getpid(), signal.SIGUSR1)
        report(5, 10)
    first, *_ = (json.loads(line) for line in err.getvalue().splitlines())
    validate("progress", first)
    assert (first["bytes"], first["phase"]) == (0, "convert")


@pytest.mark.parametrize(
    ("line", "code", "file", "hint"),
    [
        ("info nothere", "storage", "nothere", None),
        ("info --formt raw disk.raw", "usage", None, "did you mean '--format'?"),
        ("info --output=jsn --output=json x", "usage", None, "did you mean 'json'?"),
        ("info -f qcw2 disk.raw", "driver", None, "did you mean 'qcow2'"),
        ("info disk.raw nothere", "storage", "nothere", None),
        ("compare disk.raw nothere", "storage", "nothere", None),
        ("check disk.raw", "unsupported", "disk.raw", None),
        ("create -f qcow2 -o preallocation=metdata new.qcow2 1M", "usage", None, "did you mean 'metadata'?"),
        ("convert --limits memory=0 disk.raw x", "usage", None, None),
        ("snapshot -d none over.qcow2", "usage", "over.qcow2", None),
    ],
)
def test_errors_are_objects_too(folder: Path, line: str, code: str, file: str | None, hint: str | None) -> None:
    command, *words = line.split()
    status, _, err = printed(folder, command, *words, "--output=json")
    assert status != 0
    (last,) = map(json.loads, err.splitlines())
    validate("error", last)
    found = last["error"]
    assert (found["code"], found["file"]) == (code, file)
    assert hint is None or hint in (found["hint"] or "")


def test_warnings_are_objects_too_and_codes_are_the_schemas(folder: Path) -> None:
    (folder / "odd.raw").write_bytes(b"\x1f\x8b\x08" + bytes(1021))
    _, out, err = printed(folder, "info", "--output=json", "odd.raw")
    assert json.loads(out)["format"] == "raw"
    validate("error", json.loads(err))
    assert "gzip" in json.loads(err)["warning"]["cause"]
    kinds = [kind for kind in vars(diskmill.errors).values() if isinstance(kind, type)]
    codes = {kind.code for kind in (*kinds, diskmill.LimitError) if issubclass(kind, diskmill.DiskmillError)}
    schema = json.loads((SCHEMAS / "error.json").read_text())
    assert codes == set(schema["oneOf"][0]["properties"]["error"]["properties"]["code"]["enum"])


def test_every_command_with_json_has_a_schema_and_every_schema_a_command() -> None:
    able = {name for name in NAMES if any(option.key == "output" for option in load(name).options)}
    assert {path.stem for path in SCHEMAS.glob("*.json")} == able | {"error", "progress"}
    for path in SCHEMAS.glob("*.json"):
        Draft202012Validator.check_schema(json.loads(path.read_text()))


def test_json_is_ascii_and_valid_whatever_a_name_holds(folder: Path) -> None:
    name = "n\udcff\x1b[31m\x7fé\U0001f600.raw"
    (folder / name).write_bytes(bytes(512))
    _, out, _ = printed(folder, "info", "--output=json", name)
    assert out.isascii()
    assert json.loads(out)["filename"] == name.replace("\udcff", "\N{REPLACEMENT CHARACTER}")


@pytest.mark.parametrize("program", ["diskmill", "qemu-img"])
def test_members_of_later_releases(program: str, tmp_path: Path) -> None:
    """`children` with the length of each file, since QEMU 8.0, and `compressed` in maps, since 8.2; the drop-in too."""
    disk, flat, compressed = tmp_path / "disk.raw", tmp_path / "flat.vmdk", tmp_path / "compressed.qcow2"
    disk.write_bytes(b"x" * 65536 + bytes(1 << 20))
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=monolithicFlat", disk, flat)
    qemu_img("convert", "-f", "raw", "-c", "-O", "qcow2", disk, compressed)

    def told(*words: object) -> Any:
        done = run_program(Path(sys.executable).with_name(program), words[0], "--output=json", *words[1:])
        return json.loads(done.stdout)

    children = told("info", flat)["children"]
    assert [one["name"] for one in children] == ["file", "extents.0"]
    extent = tmp_path / "flat-flat.vmdk"
    assert children[1]["info"] == {
        "filename": str(extent),
        "format": "file",
        "virtual-size": extent.stat().st_size,
        "actual-size": extent.stat().st_blocks * 512,
        "dirty-flag": False,
        "children": [],
    }
    assert [one["compressed"] for one in told("map", compressed)] == [True, False]
