"""docs/writing-a-driver.md quotes the example driver as it is, and what else it shows works."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import diskmill
import pytest
from diskmill.contract.context import Context
from diskmill.errors import RefusedError
from diskmill.opening.registry import Registry

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "writing-a-driver.md").read_text()
SNIPPETS = re.findall(r"^```(python|toml)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
GUARD, PIECES = ([code for _, code in SNIPPETS if f"class {name}" in code] for name in ("Guard", "Pieces"))
QUOTED = [code for _, code in SNIPPETS if code not in (*GUARD, *PIECES)]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def stands_in(code: str, file: list[str]) -> bool:
    """Whether *code* is a stretch of *file*, perhaps less indented."""
    wanted = code.splitlines()
    for at in range(len(file) - len(wanted) + 1):
        if textwrap.dedent("\n".join(file[at : at + len(wanted)])).splitlines() == wanted:
            return True
    return False


@pytest.mark.parametrize("code", QUOTED)
def test_what_is_quoted_stands_in_the_example(code: str) -> None:
    files = [*(DOCS / "example-driver").rglob("*.py"), DOCS / "example-driver" / "pyproject.toml"]
    assert any(stands_in(code, lines(path)) for path in files)


def test_the_page_quotes_the_example() -> None:
    assert len(QUOTED) >= 12


def test_the_plugin_that_the_page_shows_works(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    [code] = GUARD
    exec(code.replace("/srv/private/", f"{tmp_path}/private/"), names)
    registry = Registry()
    registry.plugins.register(names["plugin"])
    context = Context(registry=registry)
    (tmp_path / "private").mkdir()
    for path in (tmp_path / "private" / "disk", tmp_path / "disk"):
        diskmill.create(str(path), 1 << 20)
    diskmill.info(str(tmp_path / "disk"), format="raw", context=context)
    with pytest.raises(RefusedError, match="nobody may open this"):
        diskmill.info(str(tmp_path / "private" / "disk"), format="raw", context=context)


def test_the_storage_that_the_page_shows_works(tmp_path: Path) -> None:
    [code] = PIECES
    assert len(code.strip().splitlines()) <= 25
    names: dict[str, Any] = {}
    exec(code, names)
    registry = Registry()
    registry.add(names["PiecesDriver"]())
    context = Context(registry=registry)
    whole = tmp_path / "disk.qcow2"
    diskmill.create(str(whole), 1 << 20, format="qcow2")
    with diskmill.open(str(whole), writable=True) as disk:
        disk.write(100_000, b"in pieces" * 1000)
        expected = disk.read(0, disk.size)
    data = whole.read_bytes()
    for number, at in enumerate(range(0, len(data), 70_001)):
        (tmp_path / f"disk.{number:03}").write_bytes(data[at : at + 70_001])
    diskmill.convert([f"pieces:{tmp_path}/disk"], str(tmp_path / "out"), context=context)
    assert (tmp_path / "out").read_bytes() == expected


def test_the_example_stays_small() -> None:
    count = sum(len(lines(path)) for path in (DOCS / "example-driver").rglob("*.py"))
    assert count < 360
