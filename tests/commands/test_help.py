"""Help, completion and the manual page, all from the commands' declarations, and what programs look for in them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from diskmill_cli.catalogue import load
from diskmill_cli.commands import NAMES
from diskmill_cli.manual import dropin_page, formats, manual_pages
from tools import diskmill, run, tool

ROOT = Path(__file__).parents[2]
DROPIN = Path(sys.executable).with_name("qemu-img")


PAGES = {ROOT / "cli" / "share" / "man" / "man1" / name: text for name, text in manual_pages().items()}
PAGES[ROOT / "dropin" / "share" / "man" / "man1" / "qemu-img.1"] = dropin_page()


def rendered(page: Path) -> str:
    return re.sub(r".\x08", "", run(tool("mandoc"), "-T", "utf8", page).stdout)


def test_the_manual_pages_are_sound_and_current() -> None:
    """`python3 dev.py manual` writes them anew."""
    for path, text in PAGES.items():
        assert path.read_text() == text, path.name
    assert {path for folder in ("cli", "dropin") for path in ROOT.glob(f"{folder}/share/man/man1/*")} == set(PAGES)
    checked = run(tool("mandoc"), "-T", "lint", "-W", "warning", *PAGES)
    assert checked.stdout + checked.stderr == ""


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_every_option_and_example(name: str) -> None:
    text = rendered(ROOT / "cli" / "share" / "man" / "man1" / f"diskmill-{name}.1")
    for option in load(name).options:
        assert all(flag in text for flag in option.flags)
    assert all(example.line in text for example in load(name).examples)


@pytest.mark.parametrize("command", ["create -f", "convert -O", "amend -f"])
def test_quiet_or_not_options_are_listed(command: str) -> None:
    words = (*command.split(), "qcow2", "-o", "help")
    assert "lazy_refcounts" in diskmill(*words).stdout
    assert diskmill(*words, "-q").stdout == diskmill(*words).stdout


@pytest.mark.parametrize("name", NAMES)
def test_help_shows_options_by_panel_and_examples(name: str) -> None:
    command = load(name)
    text = diskmill(name, "--help", env={"COLUMNS": "200"}).stdout
    assert command.examples
    for option in command.options:
        assert all(flag in text for flag in option.flags)
    assert all(example.line in text and example.does in text for example in command.examples)


def test_the_dropins_help_has_what_programs_look_for() -> None:
    """libguestfs greps for `info … -U`, others for formats, and for options that came late."""
    for words in (["--help"], ["-h"], ["info", "-h"], ["convert", "--help"]):
        text = run(DROPIN, *words).stdout
        lines = text.splitlines()
        assert re.match(r"qemu-img version \d+\.\d+\.\d+ ", lines[0])
        synopsis = {
            line.split()[0]: line for line in lines if line.startswith("  ") and line.strip().split()[0] in NAMES
        }
        assert set(NAMES) <= set(synopsis)
        assert re.search(r"\binfo\b.*-U\b", synopsis["info"])
        assert re.search(r"\bresize\b.*--shrink\b", synopsis["resize"])
        for flag in ("--force-share", "--target-is-zero", "--bitmaps", "--image-opts", "--salvage", "--backing-chain"):
            assert flag in text
        supported = re.search(r"^Supported formats: (.*)$", text, re.MULTILINE)
        assert supported is not None
        assert {*formats(), "file", "nbd", "https", "blkdebug"} <= set(supported[1].split())
        assert re.search(r"^\s+bitmap (.+) filename bitmap", text, re.MULTILINE)  # vdsm
        for format in ("raw", "qcow2", "vhdx", "vdi", "nbd"):  # CloudStack
            assert re.search(rf"Supported\sformats:[a-zA-Z0-9-_\s]*?\b{format}\b", text, re.IGNORECASE)


def test_the_version_is_what_parsers_expect() -> None:
    """cinder and oslo look for `qemu-img version ([0-9.]*)`."""
    text = subprocess.run([DROPIN, "--version"], capture_output=True, text=True, check=True).stdout
    assert re.match(r"qemu-img version ([0-9.]*)", text)[1] == "7.2.0"  # type: ignore[index]
