"""The pictures in docs/img show what the commands print: `python3 dev.py picture` makes them anew."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from samples import MiB

sys.path.append(str(Path(__file__).parents[2] / "docs"))

import picture

ROOT = Path(__file__).parents[2]

PROGRAM = str(Path(sys.executable).with_name("diskmill"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with data where the one of the pictures has some, and much smaller."""
    folder = tmp_path_factory.mktemp("pictures")
    with (folder / "disk.raw").open("wb") as disk:
        for start in (0, 100, 134, 300, 500, 800):
            disk.seek(start * MiB)
            disk.write(os.urandom(MiB) + bytes(MiB))
        disk.truncate(1024 * MiB)
    picture.prepare(PROGRAM, folder)
    return folder


@pytest.mark.parametrize("name", picture.PICTURES)
def test_a_picture_shows_what_the_commands_print(name: str, folder: Path) -> None:
    path = ROOT / "docs" / "img" / f"{name}.svg"
    commands = picture.PICTURES[name]
    (folder / "disk.qcow2").unlink(missing_ok=True)
    printed = "\n".join(
        f"$ diskmill {' '.join(words)}\n{picture.shown([PROGRAM, *words], folder, check=False)}" for words in commands
    )
    assert picture.words_of(picture.text_of(path)) == picture.words_of(printed)


def test_a_picture_that_is_old_is_told(tmp_path: Path) -> None:
    old = tmp_path / "old.svg"
    old.write_text((ROOT / "docs" / "img" / "drivers.svg").read_text().replace("vmdk", "mdvk"))
    assert "vmdk" not in picture.words_of(picture.text_of(old))
    assert {path.stem for path in (ROOT / "docs" / "img").glob("*.svg")} == set(picture.PICTURES)
