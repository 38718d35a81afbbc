#!/usr/bin/env python3
"""The commands that a developer of diskmill uses. Needs Python 3.11 or later, nothing else: the first run makes a
virtual environment in .venv, with every package of the workspace and the tools (for the demonstration with what that
needs), in the versions of constraints.txt.

    python3 dev.py demo             make a real disk image, convert it, look at it, compare
    python3 dev.py test [ARG...]    lint, types and all tests; with arguments, only `pytest ARG...`
    python3 dev.py lint             ruff and mypy alone
    python3 dev.py fuzz [DRIVER] [SECONDS]  look for images that a driver does not bear (`fuzz --help`)
    python3 dev.py bench [ARG...]   the benchmark against qemu-img (`bench --help`)
    python3 dev.py install [DRIVER...] [-PIP-OPTION...]  install diskmill, its command and drivers (all of them, if
                                    none is named) from here into the Python that runs this
    python3 dev.py wheels [FOLDER]  build the wheels of all packages, into dist/
    python3 dev.py docs [FOLDER]    the documents as pages to read in a browser, into site/; strict
    python3 dev.py manual           write the manual pages anew
    python3 dev.py picture          write the pictures in docs/img anew
    python3 dev.py tools            name the Debian packages that the tests need and this machine lacks
    python3 dev.py setup            only make the environment ready
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / "bin"
DEMO = ROOT / "demo"
DEMO_NEEDS = ("core", "cli", "plugins/qcow2")
BUILDERS = ["hatchling", "editables"]
"""What builds the packages of the workspace and installs them in place; among the tools of pyproject.toml."""
MiB = 1024 * 1024


def main(arguments: list[str]) -> int:
    if sys.version_info < (3, 11):  # noqa: UP036  an older one must hear it from us, not from a traceback
        sys.exit(f"dev.py: diskmill needs Python 3.11 or later, this is {sys.version.split()[0]}")
    command, *rest = arguments or ["help"]
    if command == "tools":
        print(*missing_packages())
        return 0
    if command == "install":
        return install_here(rest)
    if command not in ("setup", "demo", "test", "lint", "bench", "fuzz", "docs", "manual", "picture", "wheels"):
        print(__doc__.strip())
        return 0 if command in ("help", "-h", "--help") else 2
    set_up(whole=command != "demo")
    if command == "demo":
        return demo()
    if command == "test":
        return test(rest)
    if command == "lint":
        return lint()
    if command == "bench":
        more("bench")  # the works that need it are left out where it cannot be had
        return call(BIN / "python", "-m", "bench", *rest)
    if command == "fuzz":
        return fuzz(rest)
    if command == "wheels":
        return wheels(*rest[:1])
    if command == "docs":
        return docs(*rest[:1])
    if command == "manual":
        return call(BIN / "python", "-m", "diskmill_cli.manual", "cli", "dropin")
    if command == "picture":
        return call(BIN / "python", "docs/picture.py", make_disk().parent)
    return 0


def call(*command: str | Path, env: dict[str, str] | None = None) -> int:
    """Run a command from the root and return its exit status."""
    sys.stdout.flush()
    return subprocess.run(
        [str(word) for word in command], cwd=ROOT, env=None if env is None else {**os.environ, **env}
    ).returncode


# The environment


def workspace() -> tuple[list[Path], list[str]]:
    """The folders of the workspace's packages, and what development needs, both from pyproject.toml."""
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["diskmill"]["members"]
    members = [path.parent for pattern in patterns for path in sorted(ROOT.glob(f"{pattern}/pyproject.toml"))]
    return members, settings["dependency-groups"]["dev"]


def set_up(*, whole: bool = True) -> None:
    """Make .venv hold every package of the workspace, installed in place, and the tools; quick when nothing changed.

    :param whole: False: what the demonstration needs will do.
    """
    members, tools = workspace()
    constraints = ROOT / "constraints.txt"
    recipe = hashlib.sha256(sys.version.encode())
    for path in (ROOT / "pyproject.toml", constraints, *(member / "pyproject.toml" for member in members)):
        recipe.update(f"{path}\0".encode() + path.read_bytes())
    for_all, for_demo = recipe.hexdigest(), f"{recipe.hexdigest()} demo"
    stamp = VENV / "recipe"
    there = stamp.read_text() if stamp.is_file() else ""
    if there != for_all and (whole or there != for_demo):
        if there != for_demo:
            make_environment()
        if whole:
            install(members, tools, constraints)
        else:
            install([ROOT / name for name in DEMO_NEEDS], BUILDERS, constraints)
        stamp.write_text(for_all if whole else for_demo)
    # As pip does for what it installs: else each start compiles anew where PYTHONDONTWRITEBYTECODE is set.
    call(BIN / "python", "-m", "compileall", "-q", *(member / "src" for member in members))


def make_environment() -> None:
    if importlib.util.find_spec("ensurepip") is None:
        sys.exit("dev.py: this Python cannot make virtual environments: apt-get install python3-venv")
    print(f"Setting up {VENV} …", flush=True)
    venv.create(VENV, with_pip=True, clear=True)


def install(members: list[Path], tools: list[str], constraints: Path) -> None:
    pip = (BIN / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "-c", constraints)
    # The build backend comes first and pinned, so that the packages are built with it, not each in a place of its own.
    editable = [word for member in members for word in ("-e", member)]
    if call(*pip, *tools) or call(*pip, "--no-build-isolation", *editable):
        sys.exit("dev.py: pip could not install the environment; what it said stands above")


def install_here(words: list[str]) -> int:
    """Install from the clone, with the Python that runs this: what needs no index to be found in."""
    members, _ = workspace()
    drivers = {member.name: member for member in members if member.parent.name == "plugins"}
    names = [word for word in words if not word.startswith("-")]
    unknown = [name for name in names if name not in drivers]
    if unknown:
        print(f"dev.py: there is no driver '{unknown[0]}'; there are {', '.join(sorted(drivers))}", file=sys.stderr)
        return 2
    chosen = [ROOT / "core", ROOT / "cli", *(drivers[name] for name in names or drivers)]
    options = [word for word in words if word.startswith("-")]
    return call(sys.executable, "-m", "pip", "install", *options, *chosen)


def wheels(folder: str = "dist") -> int:
    """A wheel of each package of the workspace."""
    members, _ = workspace()
    build = (BIN / "python", "-m", "build", "--wheel", "--no-isolation", "--outdir", folder)
    return max(call(*build, member) for member in members)


def docs(folder: str = "site") -> int:
    """The pages of docs/, with the library's reference out of its docstrings. Links that lead nowhere, and public names
    without a docstring, fail."""
    status = call(BIN / "sphinx-build", "--nitpicky", "--fail-on-warning", "-q", "-c", "docs/site", "docs", folder)
    if not status:
        print(f"The pages begin at {ROOT / folder / 'index.html'}")
    return status


def missing_packages() -> list[str]:
    """Debian packages of the tools that the tests need and that are not on this machine."""
    import tomllib

    packages = tomllib.loads((ROOT / "tests" / "tools.toml").read_text())
    return sorted({package for tool, package in packages.items() if find_tool(tool) is None})


def find_tool(name: str) -> str | None:
    if "/" in name:
        return name if Path(name).is_file() else None
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


# Checks


def lint() -> int:
    """ruff over everything, mypy --strict over all that is installed and over what is not tests."""
    members, _ = workspace()
    sources = [str(member / "src") for member in members if (member / "src").is_dir()]
    env = {"MYPYPATH": os.pathsep.join([str(ROOT), *sources])}
    checks = (
        call(BIN / "ruff", "check", "."),
        call(BIN / "ruff", "format", "--check", "."),
        call(BIN / "mypy", *sources, "bench", "dev.py", "docs/picture.py", env=env),
    )
    return max(checks)


def test(arguments: list[str]) -> int:
    missing = missing_packages()
    if missing:
        print(f"Some tests will fail for want of tools: apt-get install {' '.join(missing)}", flush=True)
    if arguments:
        return call(BIN / "pytest", *arguments)
    linted = lint()
    # Results of the tests come last, so that their closing line is what one sees.
    tested = call(BIN / "pytest", "-n", str(os.cpu_count() or 2), "--dist", "worksteal")
    if linted:
        print("ruff or mypy complained; see above the tests", file=sys.stderr)
    return tested or linted


def fuzz(arguments: list[str]) -> int:
    """tests/fuzz."""
    if not more("fuzz"):
        return 1
    return call(BIN / "python", "-m", "fuzz", *arguments, env={"PYTHONPATH": str(ROOT / "tests")})


def more(group: str) -> bool:
    """Whether what the dependency group *group* names is there. It is large, or not to be had for every Python, so it
    is installed when it is first asked for."""
    import tomllib

    names = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"][group]
    folder = names[0].replace(".", "_")
    if not any((VENV / "lib").glob(f"python*/site-packages/{folder}-*")):
        pip = (BIN / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        if call(*pip, "-c", ROOT / "constraints.txt", *names):
            print(f"dev.py: pip could not install {names[0]}; what it said stands above", file=sys.stderr)
            return False
    return True


# The demonstration


def demo() -> int:
    """raw → qcow2 of a real disk, then a look at it and the proof that both hold the same."""
    make_disk()
    diskmill = BIN / "diskmill"
    for words in (
        ["convert", "-p", "-f", "raw", "-O", "qcow2", "demo/disk.raw", "demo/disk.qcow2"],
        ["info", "demo/disk.qcow2"],
        ["compare", "demo/disk.raw", "demo/disk.qcow2"],
    ):
        print("\n$ diskmill", *words, flush=True)
        status = call(diskmill, *words)
        if status:
            return status
    print(f"\nThe images are in {DEMO}; try more with {diskmill}")
    return 0


def make_disk() -> Path:
    """Make demo/disk.raw, a disk of 1 GiB with Python's standard library on it: in an ext4 file system, or where there
    is no mkfs.ext4, as a tar archive from its first sector on (as one would write to a tape)."""
    DEMO.mkdir(exist_ok=True)
    path = DEMO / "disk.raw"
    path.unlink(missing_ok=True)
    library = Path(sysconfig.get_path("stdlib"))
    skip = shutil.ignore_patterns("site-packages", "dist-packages", "__pycache__", "*.a")
    with tempfile.TemporaryDirectory(prefix="diskmill-demo-") as scratch:
        tree = Path(scratch) / "python"
        shutil.copytree(library, tree, ignore=skip, symlinks=True, ignore_dangling_symlinks=True)
        mkfs = find_tool("mkfs.ext4")
        if mkfs is None:
            print(f"{path}: a tar archive of {library} on 1 GiB (mkfs.ext4 is not installed: no file system)")
            with tarfile.open(path, "w") as archive:
                archive.add(tree, "python")
            os.truncate(path, 1024 * MiB)
        else:
            print(f"{path}: an ext4 file system of 1 GiB with a copy of {library}", flush=True)
            path.touch()
            os.truncate(path, 1024 * MiB)
            subprocess.run([mkfs, "-q", "-F", "-L", "diskmill", "-d", tree, path], check=True)
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
