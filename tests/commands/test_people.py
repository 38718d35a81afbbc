"""What people at a terminal are told, and may type."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from diskmill.sizes import format_size, parse_size
from diskmill_cli.catalogue import load
from diskmill_cli.commands import NAMES
from tools import diskmill, qemu_img, qemu_io, run

sys.path.append(str(Path(__file__).parents[2] / "docs"))

import picture

DISKMILL = Path(sys.executable).with_name("diskmill")
DROPIN = Path(sys.executable).with_name("qemu-img")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def shown(folder: Path, *words: str, columns: int = 100, program: Path = DISKMILL, **env: str) -> str:
    """What a command leaves on a terminal, colours taken away."""
    return COLOUR.sub("", picture.shown([str(program), *words], folder, columns=columns, env=env, check=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    qemu_img("create", "-q", "-f", "qcow2", "disk.qcow2", "64M", cwd=folder)
    qemu_io("disk.qcow2", "write -P 1 0 32M", format="qcow2", cwd=folder)
    qemu_img("snapshot", "-c", "before-the-upgrade-of-everything", "disk.qcow2", cwd=folder)
    qemu_img("bitmap", "--add", "disk.qcow2", "week", cwd=folder)
    return folder


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("inof disk.qcow2", "'info'"),
        ("versoin", "'version'"),
        ("help confert", "'convert'"),
        ("info --outptu=json disk.qcow2", "'--output'"),
        ("info --output=jsno disk.qcow2", "'json'"),
        ("info -f qwco2 disk.qcow2", "'qcow2'"),
        ("create -f qcow2 -o clustersize=64k new.qcow2 1M", "'cluster_size'"),
        ("create -f qcow2 -o preallocation=metdata new.qcow2 1M", "'metadata'"),
        ("amend -o lazy_refcount=on disk.qcow2", "'lazy_refcounts'"),
        ("convert -t writebck disk.qcow2 x", "'writeback'"),
        ("resize --preallocation=metdata disk.qcow2 1G", "'metadata'"),
        ("info --trust=anythng disk.qcow2", "'anything'"),
        ("info --limits=memroy=1G disk.qcow2", "'memory'"),
        ("dd if=disk.qcow2 of=x sikp=1", "'skip'"),
        ("drivers vmkd", "'vmdk'"),
    ],
)
def test_what_is_spelled_nearly_right_is_told(folder: Path, words: str, meant: str) -> None:
    done = diskmill(*words.split(), check=False, cwd=folder)
    assert done.returncode == 1
    assert re.search(rf"did you mean .*{re.escape(meant)}.*\?\n$", done.stderr), done.stderr
    assert done.stderr.count("\n") == 1


def test_nothing_is_made_up_for_other_words(folder: Path) -> None:
    assert "did you mean" not in diskmill("xyzzy", check=False).stderr
    assert "did you mean" not in diskmill("info", "--xyzzy", "x", check=False).stderr


def test_help_and_version_are_commands_but_not_of_the_drop_in() -> None:
    assert diskmill("help").stdout == diskmill("--help").stdout
    assert diskmill("help", "convert").stdout == diskmill("convert", "--help").stdout
    assert diskmill("version").stdout == diskmill("--version").stdout
    assert run(DROPIN, "help", check=False).returncode == 1
    assert run(DROPIN, "version", check=False).returncode == 1


@pytest.mark.parametrize("words", ["convert disk.qcow2 new.vmdk", "create new.vhd 1M", "dd if=disk.qcow2 of=new.qcow2"])
def test_who_writes_raw_by_oversight_is_told(folder: Path, words: str) -> None:
    format = {"new.vmdk": "vmdk", "new.vhd": "vpc", "of=new.qcow2": "qcow2"}
    wanted = next(value for key, value in format.items() if key in words)
    told = shown(folder, *words.split())
    assert "is written as raw" in told
    assert re.search(rf"-[Of] {wanted}", told)
    assert "as raw" not in diskmill(*words.split(), cwd=folder).stderr  # nobody reads along
    assert "is written as raw" not in shown(folder, *words.split(), program=DROPIN)
    flag = "-f" if words.startswith("create") else "-O"
    assert "is written as raw" not in shown(folder, words.split()[0], flag, "raw", *words.split()[1:])


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10GiB", 10 << 30),
        ("64 MiB", 64 << 20),
        ("1.5 GiB", 3 << 29),
        ("10GB", 10**10),
        ("10 kB", 10_000),
        ("512 B", 512),
        ("1024.0", 1024),
        ("2 TiB", 2 << 40),
        ("10G", 10 << 30),
    ],
)
def test_sizes_that_are_printed_can_be_typed(tmp_path: Path, text: str, size: int) -> None:
    diskmill("create", "-q", "-f", "raw", "x.raw", text, cwd=tmp_path)
    assert (tmp_path / "x.raw").stat().st_size == -(-size // 512) * 512
    ours = run(DROPIN, "create", "-q", "-f", "raw", "y.raw", text, cwd=tmp_path, check=False)
    theirs = qemu_img("create", "-q", "-f", "raw", "z.raw", text, cwd=tmp_path, check=False)
    assert (ours.returncode == 0) == (theirs.returncode == 0)


def test_every_printed_size_is_read_back() -> None:
    for size in (0, 1, 999, 1000, 1023, 1 << 20, 10**9, 10 << 30, 3 << 40, 1 << 62):
        assert abs(parse_size(format_size(size)) - size) <= size / 100


@pytest.mark.parametrize("text", ["1.5", "10Gi", "10 GiBs", "GiB", "1 0G", "1.5B", "10iB"])
def test_what_is_no_size_is_none(tmp_path: Path, text: str) -> None:
    assert "invalid" in diskmill("create", "x.raw", text, cwd=tmp_path, check=False).stderr


def test_help_keeps_what_is_in_brackets_and_has_defaults_and_choices(folder: Path) -> None:
    assert "[enable=]PATTERN" in shown(folder, "--help")
    assert "[=LIMITS]" in shown(folder, "info", "--help")
    for name in NAMES:
        text = re.sub(r"[\s│]+", " ", shown(folder, name, "--help", columns=160))
        assert "<str>" not in text
        assert "<bool>" not in text
        for option in load(name).options:
            assert not option.default or f"[default: {option.default}]" in text
            assert all(choice in text for choice in option.choices)
    listed = diskmill("create", "-f", "qcow2", "-o", "help").stdout
    assert re.search(r"compat=.*0\.10.*1\.1.*\[default: 1\.1\]", listed)
    assert re.search(r"preallocation=.*\(off, metadata, falloc, full\)", listed)
    assert "[default" not in run(DROPIN, "create", "-f", "qcow2", "-o", "help").stdout


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("convert -p -O qcow2 disk.qcow2 out.qcow2", ["convert", "finish"]),
        ("check -p disk.qcow2", ["check"]),
        ("measure -p -O qcow2 disk.qcow2", ["measure"]),
        ("amend -p -o lazy_refcounts=on out.qcow2", ["amend"]),
        ("commit -p over.qcow2", ["commit", "flush", "empty the overlay"]),
        ("rebase -p -b  over.qcow2", ["rebase", "finish"]),
    ],
)
def test_progress_is_a_line_a_phase_and_ends_full(folder: Path, words: str, lines: list[str]) -> None:
    diskmill("create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", "over.qcow2", cwd=folder)
    if words.startswith("amend"):
        diskmill("create", "-q", "-f", "qcow2", "out.qcow2", "1M", cwd=folder)
    bars = [line for line in shown(folder, *words.split(" ")).splitlines() if "━" in line]
    assert [re.split(r"\s*━", line)[0] for line in bars] == lines
    for line in bars:
        assert "╺" not in line  # nothing is left
        assert re.search(r"\d\d:\d\d$", line)  # what it took
    if words.startswith(("convert", "commit", "measure")):
        assert re.search(r"100.0 % 64 MiB of 64 MiB\s+[\d.]+ [KMGT]?i?B/s", bars[0])


def test_progress_leaves_json_alone(folder: Path) -> None:
    done = diskmill("measure", "-p", "--output=json", "-O", "qcow2", "disk.qcow2", cwd=folder)
    assert json.loads(done.stdout)["required"]
    assert "100%" in done.stderr
    assert (
        json.loads(shown(folder, "check", "-p", "--output=json", "disk.qcow2").rpartition("%)")[2])["format"] == "qcow2"
    )


def test_colours_are_as_wanted(folder: Path) -> None:
    for words in (["map", "disk.qcow2"], ["info", "disk.qcow2"], ["info", "nothere"]):
        for before in (True, False):
            always, never = (["--color=always"], ["--color", "never"])
            line = [*always, *words] if before else [*words, *always]
            done = diskmill(*line, check=False, cwd=folder, env={"NO_COLOR": "1"})
            assert "\x1b[" in done.stdout + done.stderr
            line = [*never, *words] if before else [*words, *never]
            assert "\x1b[" not in picture.shown([str(DISKMILL), *line], folder, check=False).replace("\x1b[?25", "")
    assert run(DROPIN, "info", "--color=always", "disk.qcow2", cwd=folder, check=False).returncode == 1


def plain(folder: Path, *words: str) -> bytes:
    """What is printed to a terminal whose character set is ASCII."""
    env = {**os.environ, "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "COLUMNS": "60"}
    done = subprocess.run([DISKMILL, "--color=always", *words], cwd=folder, env=env, capture_output=True)
    assert done.stderr == b""
    return done.stdout


def test_a_terminal_without_utf8_gets_plain_characters(folder: Path) -> None:
    for words in (
        ["info", "disk.qcow2"],
        ["map", "disk.qcow2"],
        ["drivers"],
        ["drivers", "qcow2"],
        ["check", "disk.qcow2"],
        ["convert", "--help"],
        ["snapshot", "disk.qcow2"],
    ):
        text = plain(folder, *words)
        assert text.isascii()
        assert b"?" not in text.replace(b"would a repair do?", b"").replace(b"same?", b""), words
    assert re.search(rb"^ #{29}\.{29}", re.sub(rb"\x1b\[[\d;]*m", b"", plain(folder, "map", "disk.qcow2")))


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["snapshot", "disk.qcow2"], ["before-the-upgrade-of-everything"]),
        (["info", "disk.qcow2"], ["before-the-upgrade-of-everything", "week", "lazy refcounts", "64 KiB"]),
        (["map", "disk.qcow2"], ["0x2000000", "not allocated"]),
        (["drivers"], ["qcow2", "snapshots, backing files, compression, bitmaps", "cwbzkrghsme"]),
        (["drivers", "qcow2"], ["diskmill-qcow2", "encrypt.ivgen-hash-alg", "power of two from 512 to 2M"]),
    ],
)
def test_narrow_tables_lose_nothing(folder: Path, words: list[str], kept: list[str]) -> None:
    text = shown(folder, *words, columns=60)
    assert all(len(line) <= 60 for line in text.splitlines())
    assert text.count("…") == shown(folder, *words, columns=300).count("…")  # none for want of room
    for one in kept:  # in order, though other columns may stand between the pieces
        assert re.search(".*?".join(map(re.escape, one.replace(" ", ""))), text, re.DOTALL), one


def test_the_summary_of_a_check_tells_leaks_beside_errors() -> None:
    import io

    from diskmill.contract.results import CheckResult
    from diskmill_cli.terminal import show_check
    from rich.console import Console

    console = Console(file=io.StringIO(), width=80)
    show_check(CheckResult("d", "qcow2", corruptions=2, leaks=3), console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "2 corruptions" in text
    assert "3 leaked clusters" in text


def test_drivers_are_a_line_each_and_one_is_told_in_full(folder: Path) -> None:
    found = json.loads(diskmill("drivers", "--output=json").stdout)
    rows = shown(folder, "drivers").splitlines()[1 : 1 + len(found)]
    assert [row.split()[:2] for row in rows] == [[one["name"], one["kind"]] for one in found]
    assert {one["kind"] for one in found} >= {"format", "protocol", "filter", "crypto", "command"}
    for one in found:
        assert one["package"]
        assert one["version"]
        assert one["origin"]
    full = shown(folder, "drivers", "qcow2")
    for option in next(one for one in found if one["name"] == "qcow2")["options"]:
        assert option["name"] in full
    assert "cluster_size" not in shown(folder, "drivers")


def test_an_unknown_driver_can_be_of_any_kind() -> None:
    """A format, a protocol or a filter may be meant."""
    for name, words in (
        ("nbdd", "did you mean 'nbd'"),
        ("trottle", "did you mean 'throttle'"),
        ("xyz", "no driver is"),
    ):
        done = diskmill("drivers", name, check=False)
        assert done.returncode == 1
        assert "no driver is called" in done.stderr and words in done.stderr and "format" not in done.stderr
