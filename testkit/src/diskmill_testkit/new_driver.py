"""``diskmill new-driver KIND NAME``: writes a package that installs and passes the kit, with the places to fill in."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from diskmill.errors import StorageError, UsageError, did_you_mean
from diskmill_cli.arguments import Arguments, Command, Example
from diskmill_cli.session import Session

KINDS = ("format", "protocol", "filter", "crypto", "plugin", "command")
"""What there is a template for: a folder of ``templates/``, and a group of entry points."""
_NEEDS = {"command": ', "diskmill-cli"', "crypto": ', "cryptography>=42"'}
_TOLD = ("format", "protocol")
"""Kinds of whose drivers the suites must be told more than their names."""
PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "diskmill-{dashed}"
version = "0.1.0"
description = "The {kind} {name} for diskmill"
requires-python = ">=3.11"
dependencies = ["diskmill"{more}]

[project.optional-dependencies]
test = ["diskmill-testkit"{test}]

[project.entry-points."diskmill.{kind}"]
{name} = "{module}:driver"
{found_by}
[tool.hatch.build.targets.wheel]
packages = ["src/{module}"]
"""
README = """\
# diskmill-{dashed}

The places to fill in are marked `FILL IN`: `grep -rn "FILL IN" src pyproject.toml`.

    pip install -e '.[test]'
    pytest
"""


def run(arguments: Arguments, session: Session) -> int:
    if len(arguments.operands) != 2:
        raise UsageError(f"a kind ({', '.join(KINDS)}) and a name are needed")
    kind, name = arguments.operands
    folder = write(kind, name, Path.cwd())
    session.print(f"{folder}: install it with pip install -e '{folder}[test]'; what to fill in is marked FILL IN")
    return 0


def write(kind: str, name: str, where: Path) -> Path:
    """Write the package of a driver of this *kind* into a new folder of *where*, and give that.

    :raises UsageError: an unknown kind, or a name that is none.
    :raises StorageError: the folder is there already, or cannot be written.
    """
    if kind not in KINDS:
        raise UsageError(f"unknown kind '{kind}': choose from {', '.join(KINDS)}", hint=did_you_mean(kind, KINDS))
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(f"'{name}' is no name of a driver: small letters, digits, and dashes between them")
    word = name.replace("-", "_")
    module, folder = f"diskmill_{word}", where / f"diskmill-{name}"
    found_by = ""
    if kind == "protocol":
        found_by = f'\n[project.entry-points."diskmill.prefix"]\n{name} = "{module}:driver"\n'
    elif kind == "format":
        found_by = '\n[project.entry-points."diskmill.magic"]  # FILL IN: how images begin, in hexadecimal\n'
        found_by += f'{name.encode().hex()} = "{module}:driver"\n'
    more = _NEEDS.get(kind, "")
    test = ', "diskmill-qcow2[fast]"' if kind == "crypto" else ""  # a format to try it in
    texts = {
        "pyproject.toml": PROJECT.format(
            dashed=name, kind=kind, name=name, module=module, found_by=found_by, more=more, test=test
        ),
        "README.md": README.format(dashed=name),
        f"src/{module}/__init__.py": _template(kind, "driver.py", name),
        f"src/{module}/py.typed": "",
        "tests/test_conformance.py": _template(kind, "conformance.txt", name),
    }
    if kind in _TOLD:
        texts["tests/conftest.py"] = _template(kind, "conftest.txt", name)
    try:
        folder.mkdir()
        for path, text in texts.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
    except OSError as error:
        raise StorageError.from_os(error, str(folder)) from None
    return folder


def _template(kind: str, file: str, name: str) -> str:
    """A file of the template, whose driver is called *name*."""
    text = (files(__package__) / "templates" / kind / file).read_text()
    words = name.split("-")
    text = text.replace("diskmill_sample", f"diskmill_{'_'.join(words)}")
    return text.replace("Sample", "".join(map(str.capitalize, words))).replace("sample", name)


COMMAND = Command(
    "new-driver",
    "Write the package of a new driver, with the places to fill in.",
    "KIND NAME",
    (),
    run,
    about=f"KIND is one of {', '.join(KINDS)}; the package is a new folder here.",
    examples=(Example("diskmill new-driver format acme", "starts diskmill-acme, a format of your own"),),
)
