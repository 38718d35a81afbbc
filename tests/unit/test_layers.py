"""The rooms of the core, and who may use whom: each only what is below it, and nobody in a circle.

Imports inside functions count, as they close circles too; those that only a type checker follows do not.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

import diskmill
import pytest

ROOT = Path(diskmill.__file__).parent
REPOSITORY = Path(__file__).parents[2]
PLUGINS = REPOSITORY / "plugins"
FLOORS = (
    {"credentials"},
    {"errors", "sizes", "records"},
    {"contract"},
    {"engine", "trace", "qapi"},
    {"kit"},
    {"formats", "storages"},
    {"opening"},
    {"commands", "library"},
    {"jobs", "aio"},
    {"__init__"},
)
PUBLIC = {"contract", "kit", "errors", "sizes", "records", "jobs"}
"""What plugins may import of the core, beside the names of ``diskmill`` itself."""


def module_of(path: Path, root: Path, package: str) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))


def imports(path: Path, module: str, known: Collection[str] | None = None) -> Iterator[str]:
    """The modules that *path* imports when it runs, at its top or in a function.

    :param known: what may be a module where it is imported from a package by its name; None: those of the core.
    """
    known = MODULES if known is None else known
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for one in node.names:
                inner = f"{base}.{one.name}"
                yield inner if inner in known else base
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(ast.parse(path.read_text()))


FILES = {module_of(path, ROOT, "diskmill"): path for path in ROOT.rglob("*.py")}
MODULES = set(FILES)


def floor_of(module: str) -> int:
    room = module.split(".")[1] if "." in module else "__init__"
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def test_every_module_has_a_room() -> None:
    for module in MODULES:
        floor_of(module)


@pytest.mark.parametrize("module", sorted(MODULES - {"diskmill"}))
def test_a_module_uses_only_what_is_below_it(module: str) -> None:
    upwards = [
        used
        for used in imports(FILES[module], module)
        if used in MODULES and used != "diskmill" and floor_of(used) > floor_of(module)
    ]
    assert not upwards


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected parts of a graph that have more than one node (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def connect(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in index:
                connect(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            part = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(part) > 1:
                found.append(sorted(part))

    for node in edges:
        if node not in index:
            connect(node)
    return found


def test_no_modules_of_the_core_need_one_another_in_a_circle() -> None:
    edges = {
        module: {used for used in imports(path, module) if used in MODULES and used not in (module, "diskmill")}
        for module, path in FILES.items()
    }
    assert not circles(edges)


def plugin_files() -> list[Path]:
    return sorted(PLUGINS.glob("*/src/*/*.py"))


def test_plugins_import_nothing_private_of_the_core() -> None:
    private = []
    for path in plugin_files():
        module = module_of(path, path.parents[1], "")[1:]
        for used in imports(path, module):
            room = used.split(".")[1] if used.startswith("diskmill.") else None
            if room is not None and room not in PUBLIC:
                private.append(f"{module} imports {used}")
    assert not private


def test_no_other_package_has_modules_in_a_circle() -> None:
    packages = {path.parent for path in REPOSITORY.glob("plugins/*/src/*/__init__.py")}
    packages |= {path.parent for room in ("cli", "dropin") for path in REPOSITORY.glob(f"{room}/src/*/__init__.py")}
    for package in sorted(packages):
        files = {module_of(path, package, package.name): path for path in package.rglob("*.py")}
        edges = {
            module: {
                other
                for used in imports(path, module, files)
                for other in files
                if (used == other or used.startswith(f"{other}.") and used not in files) and other != module
            }
            for module, path in files.items()
        }
        # An entry module declares, and imports the rest in its hooks; those may take its constants.
        edges = {module: used - {package.name} for module, used in edges.items()}
        assert not circles(edges), package.name


LONGEST_FILE, LONGEST_FUNCTION = 700, 105
"""Lines. What would be longer than anything that is there is taken apart, or says here why not."""


def functions(lines: list[str]) -> Iterator[tuple[str, int]]:
    """Each function in *lines*, by how they are indented, and how many of them it takes: a parser takes ten times as
    long."""
    inside: list[tuple[int, int]] = []
    last = 0
    for number, line in enumerate([*lines, "end"]):
        text = line.lstrip()
        if not text:
            continue
        while inside and len(line) - len(text) <= inside[-1][1] and not text.startswith(")"):
            start, _ = inside.pop()
            yield lines[start], last - start + 1
        if text.startswith(("def ", "async def ")):
            inside.append((number, len(line) - len(text)))
        last = number


def test_nothing_is_longer_than_a_reader_keeps_in_mind() -> None:
    rooms = ("core", "cli", "dropin", "plugins", "testkit", "tests")
    sources = [path for room in rooms for path in (REPOSITORY / room).rglob("*.py")]
    assert len(sources) > 400
    for path in sources:
        lines = path.read_text().splitlines()
        assert len(lines) <= LONGEST_FILE, path
        for name, count in functions(lines) if len(lines) > LONGEST_FUNCTION else ():
            assert count <= LONGEST_FUNCTION, f"{path}: {name}"


def test_the_rooms_are_there() -> None:
    there = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there == set().union(*FLOORS)
