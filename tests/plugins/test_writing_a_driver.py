"""docs/writing-a-driver.md quotes the example driver as it is; and the small examples do what their pages say."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import diskmill
import pytest
from diskmill.errors import RefusedError
from diskmill.opening.context import Context
from diskmill.opening.graph import open_image
from diskmill.opening.registry import Registry

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "writing-a-driver.md").read_text()
QUOTED = [code for _, code in re.findall(r"^```(python|toml)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)]


def example(name: str) -> str:
    return (DOCS / "examples" / name / "src" / f"diskmill_{name}" / "__init__.py").read_text()


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
    code = example("guard")
    exec(code.replace("/srv/private", f"{tmp_path}/private"), names)
    registry = Registry()
    registry.plugins.register(names["plugin"])
    context = Context(registry=registry)
    (tmp_path / "private").mkdir()
    for path in (tmp_path / "private" / "disk", tmp_path / "disk"):
        diskmill.create(str(path), 1 << 20)
    diskmill.info(str(tmp_path / "disk"), format="raw", context=context)
    (tmp_path / "link").symlink_to("private/disk")
    (tmp_path / "folder").symlink_to("private")
    for way in ("private/disk", "private/../private/./disk", "link", "folder/disk"):
        with pytest.raises(RefusedError, match="nobody may open this"):
            diskmill.info(str(tmp_path / way), format="raw", context=context)


def test_the_storage_that_the_page_shows_works(tmp_path: Path) -> None:
    code = example("pieces")
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


def test_the_filter_that_the_page_shows_works(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(example("watch"), names)
    driver = names["driver"]
    registry = Registry()
    registry.add(driver)
    diskmill.create(str(tmp_path / "disk"), 1 << 20)
    spec = {"driver": "watch", "file": {"driver": "file", "filename": str(tmp_path / "disk")}}
    with open_image(spec, context=Context(registry=registry), writable=True) as image:
        image.write(512, b"x" * 1024)
    assert driver.seen == [(512, 1024)]
    assert (tmp_path / "disk").read_bytes()[:2048] == bytes(512) + b"x" * 1024 + bytes(512)
