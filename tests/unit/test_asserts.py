"""``assert`` is for the type checker: ``python -O`` takes it away, and an image must not come to one.

What is left says only that a name is of a class or is not None, which the code around it has seen to.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SOURCES = [path for part in ("core", "cli", "dropin", "plugins") for path in (REPOSITORY / part).rglob("src/**/*.py")]


def narrows(test: ast.expr) -> bool:
    """Whether *test* does no more than narrow a type."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return all(narrows(value) for value in test.values)
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return isinstance(test.operand, ast.Call) and narrows(test.operand)
    if isinstance(test, ast.Call):
        return isinstance(test.func, ast.Name) and test.func.id in ("isinstance", "callable")
    return (
        isinstance(test, ast.Compare)
        and isinstance(test.ops[0], ast.IsNot)
        and isinstance(test.comparators[0], ast.Constant)
        and test.comparators[0].value is None
        and not any(isinstance(part, ast.Call) for part in ast.walk(test.left))
    )


def others(code: str) -> Iterator[str]:
    """The assertions of *code* that judge more than a type."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Assert) and not narrows(node.test):
            yield f"{node.lineno}: {ast.unparse(node)}"


def test_nothing_is_asserted_but_types() -> None:
    assert len(SOURCES) > 200
    found = [f"{path.relative_to(REPOSITORY)}:{one}" for path in SOURCES for one in others(path.read_text())]
    assert not found


@pytest.mark.parametrize("code", ["assert x", "assert x > 1", "assert f(x) is not None", "assert x is not None or y"])
def test_a_judgement_is_found(code: str) -> None:
    assert list(others(code))
