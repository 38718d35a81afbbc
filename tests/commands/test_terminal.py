"""What a person sees: diskmill under a pseudo-terminal, as docs/picture.py runs it for the README's picture."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from diskmill.contract.results import ImageInfo, MapEntry
from rich.console import Console
from tools import diskmill, qemu_img, qemu_io

sys.path.append(str(Path(__file__).parents[2] / "docs"))

import picture

PROGRAM = str(Path(sys.executable).with_name("diskmill"))
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def shown(folder: Path, *words: str, columns: int = 100, **env: str) -> str:
    return picture.shown([PROGRAM, *words], folder, columns=columns, env=env)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal")
    qemu_img("create", "-q", "-f", "qcow2", "base.qcow2", "64M", cwd=folder)
    qemu_io("base.qcow2", "write -P 1 0 32M", format="qcow2", cwd=folder)
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "over.qcow2", cwd=folder)
    qemu_io("over.qcow2", "write -P 1 16M 16M", "write -z 48M 8M", format="qcow2", cwd=folder)
    qemu_img("snapshot", "-c", "evil\x1b]0;title\x07\x1b[31m", "over.qcow2", cwd=folder)
    return folder


def test_the_strip_shows_where_the_data_lies(folder: Path) -> None:
    first = COLOUR.sub("", shown(folder, "map", "over.qcow2", columns=66)).splitlines()[0]
    assert first.strip() == "▓" * 16 + "█" * 16 + "·" * 16 + "░" * 8 + "·" * 8


def test_a_map_of_many_ranges_stays_small() -> None:
    from diskmill_cli.terminal import show_map

    entries = (MapEntry(at * 65536, 65536, 0, at % 2 == 0, at % 2 == 1, at % 2 == 0) for at in range(50_000))
    console = Console(file=io.StringIO(), width=80)
    show_map(entries, console)
    text = console.file.getvalue()
    assert text.splitlines()[0].strip() == "█" * 78
    assert len(text.splitlines()) < 1010
    assert "49000 more" in text


@pytest.mark.parametrize("words", [("info", "over.qcow2"), ("snapshot", "-l", "over.qcow2")])
def test_a_name_does_not_command_the_terminal(folder: Path, words: tuple[str, ...]) -> None:
    text = shown(folder, *words)
    assert "evil" in text
    assert "\x1b]" not in text
    assert "\x07" not in text
    assert "\x1b[31m" not in text


def test_bitmaps_are_a_table() -> None:
    from diskmill_cli.terminal import show_info

    console = Console(file=io.StringIO(), width=80)
    bitmap = {"name": "b\x1b0", "granularity": 65536, "flags": ["auto", "in-use"]}
    show_info([ImageInfo("disk", "qcow2", 1 << 20, specific={"compat": "1.1", "bitmaps": [bitmap]})], console)
    row = next(line for line in console.file.getvalue().splitlines() if "auto" in line)
    assert row.split()[1:-1] == ["b\N{REPLACEMENT CHARACTER}0", "64", "KiB", "auto,", "in-use"]


def test_the_bar_has_rate_and_time_and_fits(folder: Path) -> None:
    for columns in (100, 40):
        text = COLOUR.sub("", shown(folder, "convert", "-p", "-O", "qcow2", "over.qcow2", "out.qcow2", columns=columns))
        assert "100.0 %" in text
        bars = [line for line in text.splitlines() if "━" in line]
        assert bars
        assert all(len(line) <= columns for line in bars)
        assert ("MiB/s" in text or "GiB/s" in text) == (columns == 100)


def test_no_color_is_respected(folder: Path) -> None:
    assert "\x1b[3" in shown(folder, "map", "over.qcow2")
    for words in (("map", "over.qcow2"), ("info", "over.qcow2"), ("compare", "base.qcow2", "over.qcow2")):
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]", shown(folder, *words, NO_COLOR="1"))


def test_a_pipe_gets_plain_text(folder: Path) -> None:
    for words in (("info", "over.qcow2"), ("map", "over.qcow2")):
        expected = re.sub("[\x1b\x07]", "\N{REPLACEMENT CHARACTER}", qemu_img(*words, cwd=folder).stdout)
        assert diskmill(*words, cwd=folder).stdout == expected
    for program in (diskmill, qemu_img):
        text = program("convert", "-p", "over.qcow2", "plain.raw", cwd=folder).stdout
        assert re.fullmatch(
            r"(    \(\d+\.\d\d/100%\)\n)+", text
        )  # each ends in a carriage return, read as a line's end
