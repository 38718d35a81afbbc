"""What third parties may use stays as it is: `contract/` and `kit/` are held against a list of their signatures.

The list, ``public.txt``, is written anew with ``DISKMILL_WRITE_PUBLIC=1``. That refuses to drop a line before what it
says was deprecated for two minor versions; whatever changes goes into the changelog of the contract, too
(docs/for-third-parties.md).
"""

from __future__ import annotations

import ast
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import diskmill_testkit
import pytest
from diskmill.contract.deprecation import deprecated
from diskmill.contract.drivers import CONTRACT

ROOT = Path(__file__).parents[2]
CORE = ROOT / "core" / "src" / "diskmill"
LIST = Path(__file__).with_name("public.txt")
PAGE = (ROOT / "docs" / "for-third-parties.md").read_text()
ROOMS = ("contract", "kit", "errors", "sizes", "records")
VERSION = tomllib.loads((ROOT / "core" / "pyproject.toml").read_text())["project"]["version"]


def public() -> list[str]:
    """A line for each public name, with its signature, as it stands in the source."""
    found: list[str] = []
    for room in ROOMS:
        files = sorted((CORE / room).glob("*.py")) if (CORE / room).is_dir() else [CORE / f"{room}.py"]
        for path in files:
            module = ".".join(path.relative_to(CORE).with_suffix("").parts).removesuffix(".__init__")
            found += lines(module, ast.parse(path.read_text()).body)
    return sorted(set(found))


def lines(prefix: str, body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and visible(node.name):
            marks = "".join(f"  @{ast.unparse(mark)}" for mark in node.decorator_list)
            if isinstance(node, ast.ClassDef):
                bases = ", ".join(map(ast.unparse, [*node.bases, *(word.value for word in node.keywords)]))
                yield f"{prefix}.{node.name}: class({bases}){marks}"
                yield from lines(f"{prefix}.{node.name}", node.body)
            else:
                returns = ast.unparse(node.returns) if node.returns else ""
                yield f"{prefix}.{node.name}({ast.unparse(node.args)}) -> {returns}{marks}"
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and visible(node.target.id):
            default = " = …" if node.value is not None else ""
            yield f"{prefix}.{node.target.id}: {ast.unparse(node.annotation)}{default}"
        elif isinstance(node, ast.Assign):
            yield from (
                f"{prefix}.{name.id}" for name in node.targets if isinstance(name, ast.Name) and visible(name.id)
            )


def visible(name: str) -> bool:
    return name == "__init__" or not name.startswith("_")


def may_go(line: str, version: str) -> bool:
    """Whether what *line* says was deprecated at least two minor versions before *version*."""
    mark = re.search(r"@deprecated\('(\d+)\.(\d+)'", line)
    if mark is None:
        return False
    major, minor = map(int, version.split(".")[:2])
    return (major, minor) >= (int(mark[1]), int(mark[2]) + 2)


def test_what_is_public_is_as_it_was() -> None:
    now, before = public(), LIST.read_text().splitlines() if LIST.exists() else []
    gone = [line for line in before if line not in now and not may_go(line, VERSION)]
    names = {re.split("[(:]", line)[0] for line in now}
    lost = [line for line in gone if re.split("[(:]", line)[0] not in names]
    assert not lost, "deprecate it for two minor versions first (diskmill.contract.deprecation)"
    if os.environ.get("DISKMILL_WRITE_PUBLIC"):
        LIST.write_text("".join(f"{line}\n" for line in now))
        return
    assert gone == [], "signatures that changed: may a driver of today still call them so?"
    assert [line for line in now if line not in before] == [], "new, and not yet on the list"


def test_the_list_goes_by_the_rule() -> None:
    line = "kit.tables.read() -> None  @deprecated('0.4', 'other()')"
    assert [may_go(line, version) for version in ("0.4.0", "0.5.9", "0.6.0", "1.0.0")] == [False, False, True, True]
    assert not may_go("kit.tables.read() -> None", "9.0.0")


def test_what_is_deprecated_works_and_says_until_when() -> None:
    @deprecated("0.4", "other()")
    def old(number: int, *, twice: bool = False) -> int:
        return number * (2 if twice else 1)

    with pytest.warns(DeprecationWarning, match=r"old is deprecated since 0\.4 and goes in 0\.6: use other\(\)"):
        assert old(4, twice=True) == 8


def test_the_page_names_what_is_public_and_the_contracts_number() -> None:
    section = PAGE.partition("## What is public")[2].partition("\n## ")[0]
    assert {f"diskmill.{room}" for room in ROOMS} <= set(re.findall(r"`(diskmill\.\w+)`", section))
    changelog = PAGE.partition("## The contract's changelog")[2]
    assert re.findall(r"^\*\*(\d+)\*\*", changelog, re.MULTILINE)[0] == str(CONTRACT)
    assert diskmill_testkit.__version__.split(".")[0] == str(CONTRACT)
