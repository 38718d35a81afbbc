"""What the shells offer: asked as their scripts ask, and in the shells themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from diskmill_cli.catalogue import load
from diskmill_cli.commands import NAMES
from diskmill_cli.completion import formats
from tools import diskmill, qemu_img, run, tool

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    qemu_img("create", "-q", "-f", "qcow2", "disk.qcow2", "1M", cwd=folder)
    qemu_img("snapshot", "-c", "monday", "disk.qcow2", cwd=folder)
    qemu_img("bitmap", "--add", "disk.qcow2", "week", cwd=folder)
    return folder


def offered(folder: Path, *words: str) -> list[str]:
    done = diskmill(*words, cwd=folder, env={"_DISKMILL_COMPLETE": "fish"})
    assert done.stderr == ""
    return [line.partition("\t")[0] for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["re"], ["rebase", "resize"]),
        (["--color", "a"], ["auto", "always"]),
        (["--color", "never", "in"], ["info"]),
        (["help", "com"], ["commit", "compare"]),
        (["convert", "--target-i"], ["--target-image-opts", "--target-is-zero"]),
        (["info", "--output", "j"], ["json"]),
        (["info", "--output=j"], ["--output=json"]),
        (["convert", "-t", "write"], ["writeback", "writethrough"]),
        (["convert", "-twrite"], ["-twriteback", "-twritethrough"]),
        (["resize", "--preallocation", "m"], ["metadata"]),
        (["info", "--trust", "any"], ["anything", ":files"]),
        (["create", "-f", "qcow2", "-o", "comp"], ["compat=", "compression_level=", "compression_type="]),
        (["create", "-f", "qcow2", "-o", "compat=1.1,compression_type=z"], None),
        (["create", "-f", "qcow2", "-o", "lazy_refcounts="], ["lazy_refcounts=on", "lazy_refcounts=off"]),
        (["convert", "-pO", "vmdk", "-o", "subformat=two"], None),
        (["amend", "disk.qcow2", "-o", "lazy"], ["lazy_refcounts="]),
        (["snapshot", "disk.qcow2", "-a", ""], ["monday"]),
        (["convert", "disk.qcow2", "-l", "m"], ["monday"]),
        (["bitmap", "--clear", "disk.qcow2", "w"], ["week"]),
        (["bitmap", "disk.qcow2", "other", "--merge", ""], ["week"]),
        (["info", ""], [":files"]),
        (["convert", "--backing=di"], [":files --backing="]),
        (["info", "--", "-"], [":files"]),
        (["dd", "i"], ["if="]),
        (["dd", "if=d"], [":files if="]),
        (["drivers", "vm"], ["vma", "vmdk"]),
        (["snapshot", "nothere", "-a", ""], []),
        (["nothing", ""], []),
    ],
)
def test_what_is_offered(folder: Path, words: list[str], expected: list[str] | None) -> None:
    found = offered(folder, *words)
    if expected is None:
        assert found
        assert all(one.startswith(words[-1]) for one in found)
    else:
        assert found == expected


def test_formats_and_all_options_are_offered(folder: Path) -> None:
    assert offered(folder, "convert", "-O", "") == formats()
    for name in NAMES:
        flags = {flag for option in load(name).options for flag in option.flags if flag.startswith("--")}
        assert flags <= set(offered(folder, name, "--"))


def test_an_image_that_is_none_or_hostile_only_offers_nothing(folder: Path) -> None:
    (folder / "bad.qcow2").write_bytes(b"QFI\xfb\0\0\0\3" + b"\xff" * 600)
    assert offered(folder, "snapshot", "bad.qcow2", "-a", "") == []


def test_typer_is_not_imported(folder: Path) -> None:
    code = (
        "import sys; from diskmill_cli.main import run; from diskmill_cli.session import Session; "
        "run(['create', '-f', 'qcow2', '-o', 'cl'], Session()); print({'typer', 'rich'} & {*sys.modules})"
    )
    done = run(sys.executable, "-c", code, env={"_DISKMILL_COMPLETE": "zsh"})
    assert done.stdout.split() == ["cluster_size=", "set()"]


# -- the shells ------------------------------------------------------------------------------------------------------


def env() -> dict[str, str]:
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


def in_bash(folder: Path, line: str) -> list[str]:
    """What readline would be given: bash breaks words at `=` and `:` also."""
    script = """
        eval "$(diskmill --show-completion bash)"
        compopt() { :; }
        COMP_LINE=$1 COMP_POINT=${#1}
        _diskmill diskmill "$2" x
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    word = line.rpartition(" ")[2]
    last = "=" if word.endswith("=") else word.rpartition("=")[2]
    command = [tool("bash"), "-c", script, "bash", line, last]
    done = subprocess.run(command, cwd=folder, env=env(), capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("diskmill re", ["rebase", "resize"]),
        ("diskmill info --output=j", ["json"]),
        ("diskmill info --output=", ["human", "json"]),
        ("diskmill create -f qcow2 -o comp", ["compat=", "compression_level=", "compression_type="]),
        ("diskmill create -f qcow2 -o compat=1.1,lazy_refcounts=o", ["on", "off"]),
        ("diskmill snapshot disk.qcow2 -a ", ["monday"]),
        ("diskmill info di", ["disk.qcow2"]),
        ("diskmill 'info' di", ["disk.qcow2"]),
        ("diskmill dd if=di", ["disk.qcow2"]),
    ],
)
def test_bash(folder: Path, line: str, expected: list[str]) -> None:
    assert in_bash(folder, line) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("diskmill re", ["rebase", "resize"]),
        ("diskmill info --output=j", ["--output=json"]),
        ("diskmill create -f qcow2 -o comp", ["compat=", "compression_level=", "compression_type="]),
        ("diskmill snapshot disk.qcow2 -a ", ["monday"]),
        ("diskmill info di", ["disk.qcow2"]),
        ("diskmill dd if=di", ["if=disk.qcow2"]),
    ],
)
def test_fish(folder: Path, line: str, expected: list[str]) -> None:
    script = "diskmill --show-completion fish | source; complete -C $argv[1]"
    done = subprocess.run(
        [tool("fish"), "--no-config", "-c", script, line], cwd=folder, env=env(), capture_output=True, text=True
    )
    assert [one.partition("\t")[0] for one in done.stdout.splitlines()] == expected, done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["re"], ["rebase", "resize"]),
        (["info", "--output=j"], ["--output=json"]),
        (["create", "-f", "qcow2", "-o", "comp"], ["compat=", "compression_level=", "compression_type="]),
        (["snapshot", "disk.qcow2", "-a", ""], ["monday"]),
        (["info", "di"], ["FILES"]),
        (["dd", "if=di"], ["SKIP", "if=", "FILES"]),
    ],
)
def test_zsh(folder: Path, words: list[str], expected: list[str]) -> None:
    script = """
        compdef() { : }
        _files() { print FILES }
        compset() { [[ -n $2 ]] && print -l SKIP $2 }
        _describe() { for one in ${(P)3}; do print -r -- ${one%%:*}; done }
        eval "$(diskmill --show-completion zsh)"
        words=(diskmill "$@") CURRENT=$#words
        _diskmill
    """
    command = [tool("zsh"), "-f", "-c", script, "zsh", *words]
    done = subprocess.run(command, cwd=folder, env=env(), capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected, done.stderr
