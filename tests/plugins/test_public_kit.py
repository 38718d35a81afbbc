"""The formats that show what the public contract and kit are good for: they use nothing else, and are short."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parents[2] / "plugins"
FORMATS = ["sparse", "ewf", "sparseimage", "vma"]
PUBLIC = ("contract", "kit", "errors", "sizes", "markup")
LINES = 350
"""Of code, in a format: blank lines, comments and docstrings do not count."""


def modules(format: str) -> list[Path]:
    found = sorted((PLUGINS / format / "src").rglob("*.py"))
    assert found
    return found


def imported(path: Path) -> Iterator[str]:
    """The modules that *path* imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""


def code_lines(path: Path) -> int:
    text = path.read_text()
    lines: set[int] = set()
    idle = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in idle:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


@pytest.mark.parametrize("format", FORMATS)
def test_it_imports_what_is_public(format: str) -> None:
    for path in modules(format):
        for name in imported(path):
            package, _, rest = name.partition(".")
            assert package != "diskmill" or rest.partition(".")[0] in PUBLIC, f"{path.name} imports {name}"
            assert not package.startswith("diskmill_") or package == f"diskmill_{format}", f"{path.name} imports {name}"


@pytest.mark.parametrize("format", FORMATS)
def test_it_is_short(format: str) -> None:
    assert sum(code_lines(path) for path in modules(format)) <= LINES
