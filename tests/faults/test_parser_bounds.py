"""LUKS headers that ask their parser to build much, with a key at hand; without, and the rest: ``tests/attacks``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from attacks.parsers import ATTACKS
from diskmill.commands.check import check
from diskmill.commands.info import info
from diskmill.commands.map import map
from diskmill.errors import DiskmillError
from diskmill.opening.context import Context
from mutations import bounded

HEADERS = [pytest.param(*attack, id=attack[0]) for attack in ATTACKS if attack[0].startswith("luks2")]


@pytest.mark.parametrize(("name", "make"), HEADERS)
def test_a_parser_builds_little(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    path, context = tmp_path / "image", Context(secrets={"key": b"open sesame"})
    make(path)
    options = f"driver=luks,file.filename={path},key-secret=key,kdf-limit=8"
    for command in (info, check):
        with bounded(f"{command.__name__}: {name}"), suppress(DiskmillError):
            command(options, image_opts=True, context=context)


def test_the_merging_of_key_material_counts(tmp_path: Path) -> None:
    path = tmp_path / "image"
    dict(ATTACKS)["luks2 key slots: many stripes"](path)
    options = f"driver=luks,file.filename={path},key-secret=key,kdf-limit=1"
    with bounded("merging"), pytest.raises(DiskmillError, match=r"32768 stripes.*kdf-limit"):
        list(map(options, image_opts=True, context=Context(secrets={"key": b"open sesame"})))


def test_half_a_character_is_no_text(tmp_path: Path) -> None:
    """Nobody could show it."""
    path = tmp_path / "image"
    dict(ATTACKS)["luks2 metadata: half a character"](path)
    with pytest.raises(DiskmillError, match="not JSON"):
        info(str(path))
