"""Drivers and plugins from outside: installed into a fresh environment, found, used; and when they are broken.

Of the environments `bare` has diskmill and its command, `outside` the example driver of docs/ too.
Other plugins are put on PYTHONPATH as pip would leave them: a module, and metadata with its entry points.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from packages import Python
from samples import KiB, MiB, scattered_file
from tools import qemu_img


@pytest.fixture(scope="module")
def bare(environment: Callable[..., Python]) -> Python:
    return partial(environment("diskmill-cli"), "diskmill_cli")


@pytest.fixture(scope="module")
def python(environment: Callable[..., Python]) -> Python:
    return environment("diskmill-cli", "diskmill-blk")


@pytest.fixture(scope="module")
def outside(python: Python) -> Python:
    return partial(python, "diskmill_cli")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return scattered_file(tmp_path / "disk.raw", 5 * MiB + 512, seed=5)


def plugin(folder: Path, name: str, group: str, code: str, *, dist: str | None = None) -> Path:
    """A module *name* with *code* whose `plugin` is an entry point of *group*, installed in *folder*."""
    module = f"module_{(dist or name).replace('-', '_')}"
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist or name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}:plugin\n")
    return folder


def fails(done: CompletedProcess[str], *words: str) -> None:
    """Fail unless it ended with one line of error that has all of *words*."""
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("diskmill: ")
    assert all(word in lines[0] for word in words), lines[0]


# -- a driver --------------------------------------------------------------------------------------------------------


def test_the_driver_is_shown(outside: Python, bare: Python) -> None:
    shown = outside("drivers").stdout
    assert "blk" in shown
    assert "the worked example of a driver" in shown
    assert "block_size" not in shown  # one line a driver; options are told of one
    assert "block_size" in outside("drivers", "blk").stdout
    assert "blk" not in bare("drivers").stdout


@pytest.mark.parametrize("options", [[], ["-o", "block_size=4k"], ["-o", "block_size=2M"]])
def test_convert_there_and_back(outside: Python, disk: Path, tmp_path: Path, options: list[str]) -> None:
    there, back = tmp_path / "disk.blk", tmp_path / "back.raw"
    outside("convert", "-f", "raw", "-O", "blk", *options, disk, there)
    assert json.loads(outside("info", "--output=json", there).stdout)["format"] == "blk"
    outside("check", there)
    outside("compare", disk, there)
    outside("convert", "-O", "raw", there, back)
    assert back.read_bytes() == disk.read_bytes()


def test_the_library_uses_it(python: Python, disk: Path, tmp_path: Path) -> None:
    there = tmp_path / "disk.blk"
    code = """
import sys, diskmill
diskmill.convert([sys.argv[1]], sys.argv[2], format="raw", output_format="blk")
with diskmill.open(sys.argv[2]) as disk:
    print(disk.driver.name, disk.read(0, disk.size) == open(sys.argv[1], "rb").read())
"""
    assert python("-c", code, disk, there).stdout.split() == ["blk", "True"]


def test_other_commands_use_it(outside: Python, tmp_path: Path) -> None:
    there = tmp_path / "disk.blk"
    outside("create", "-f", "blk", there, "10M")
    outside("resize", there, "20M")
    info = json.loads(outside("info", "--output=json", there).stdout)
    assert (info["virtual-size"], info["cluster-size"]) == (20 * MiB, 64 * KiB)
    entries = json.loads(outside("map", "--output=json", there).stdout)
    assert [(entry["start"], entry["length"], entry["zero"]) for entry in entries] == [(0, 20 * MiB, True)]
    measured = json.loads(outside("measure", "--output=json", "-O", "blk", "--size", "10M").stdout)
    assert measured["fully-allocated"] == 10 * MiB + 2 * 64 * KiB


def test_its_options_are_checked_and_explained(outside: Python, tmp_path: Path) -> None:
    assert "block_size" in outside("create", "-f", "blk", "-o", "help", tmp_path / "disk.blk").stdout
    fails(outside("create", "-f", "blk", "-o", "block_size=3k", tmp_path / "x", "1M", check=False), "block_size")
    fails(outside("create", "-f", "blk", "-o", "colour=red", tmp_path / "x", "1M", check=False), "colour")
    assert not (tmp_path / "x").exists()


# -- what is not installed -------------------------------------------------------------------------------------------


def test_a_format_that_is_not_installed_names_its_package(bare: Python, disk: Path, tmp_path: Path) -> None:
    fails(bare("convert", "-O", "qcow2", disk, tmp_path / "out", check=False), "qcow2", "diskmill-qcow2")
    assert not (tmp_path / "out").exists()
    fails(bare("info", "-f", "vmdk", disk, check=False), "vmdk", "diskmill-vmdk")
    fails(bare("info", "-f", "nonsense", disk, check=False), "nonsense")


def test_an_image_of_a_format_that_is_not_installed_is_not_taken_for_raw_in_silence(
    bare: Python, tmp_path: Path
) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    done = bare("info", image, check=False)
    assert "qcow2" in done.stderr
    assert "diskmill-qcow2" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_image_of_a_format_that_is_not_installed_is_not_written_as_raw(bare: Python, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    before = image.read_bytes()
    fails(bare("resize", "--shrink", image, "64k", check=False), "looks like qcow2", "diskmill-qcow2", "-f raw")
    assert image.read_bytes() == before
    bare("resize", "-f", "raw", "--shrink", image, "64k")
    assert image.stat().st_size == 65536


# -- plugins that are not drivers ------------------------------------------------------------------------------------

TRACE = """
import sys
from diskmill.contract.drivers import hookimpl

class Plugin:
    @hookimpl(wrapper=True)
    def open(self, request):
        node = yield
        print("opened", node.driver.name, request.name, file=sys.stderr)
        return node

plugin = Plugin()
"""

DENY = """
from diskmill.contract.drivers import hookimpl
from diskmill.errors import RefusedError

class Plugin:
    @hookimpl(wrapper=True)
    def open(self, request):
        if "secret" in request.name:
            raise RefusedError("nobody may open this", file=request.name)
        return (yield)

plugin = Plugin()
"""


def test_a_hook_wrapper_traces_every_open(outside: Python, disk: Path, tmp_path: Path) -> None:
    plugins = plugin(tmp_path, "trace", "diskmill.plugin", TRACE)
    there = tmp_path / "disk.blk"
    outside("convert", "-f", "raw", "-O", "blk", disk, there)
    for image, format in ((disk, "raw"), (there, "blk")):
        seen = outside("info", image, plugins=plugins).stderr.splitlines()
        assert seen == [f"opened file {image}", f"opened {format} {image}"]


def test_a_hook_wrapper_denies_for_every_format(outside: Python, tmp_path: Path) -> None:
    plugins = plugin(tmp_path, "deny", "diskmill.plugin", DENY)
    for format in ("raw", "blk"):
        for name in ("secret", "open"):
            outside("create", "-f", format, tmp_path / f"{name}.{format}", "1M")
        outside("info", tmp_path / f"open.{format}", plugins=plugins)
        fails(outside("info", tmp_path / f"secret.{format}", plugins=plugins, check=False), "nobody may open this")


def test_a_plugin_that_cannot_be_loaded_stops_everything(outside: Python, disk: Path, tmp_path: Path) -> None:
    """It may have been there to forbid something."""
    plugins = plugin(tmp_path, "guard", "diskmill.plugin", "import not_installed")
    fails(outside("info", disk, plugins=plugins, check=False), "guard", "not_installed", "uninstall")


# -- drivers that are broken -----------------------------------------------------------------------------------------

DRIVER = """
from diskmill.contract.drivers import FormatDriver, hookimpl

class Driver(FormatDriver):
    contract = 1
    name = "odd"
    capabilities = frozenset()

    {hook}

plugin = Driver()
"""


def broken(outside: Python, plugins: Path, disk: Path, *words: str) -> None:
    """Fail unless driver "odd" is reported with *words*, and the others work."""
    fails(outside("info", "-f", "odd", disk, plugins=plugins, check=False), "odd", *words)
    shown = outside("drivers", plugins=plugins)
    assert "blk" in shown.stdout
    assert "odd" in shown.stdout + shown.stderr
    for name in ("disk.blk", "again.blk"):
        outside("convert", "-O", "blk", disk, disk.with_name(name), plugins=plugins)
    assert json.loads(outside("info", "--output=json", disk.with_name("disk.blk"), plugins=plugins).stdout)


def test_a_driver_that_cannot_be_imported(outside: Python, disk: Path, tmp_path: Path) -> None:
    plugins = plugin(tmp_path, "odd", "diskmill.format", "import not_installed")
    broken(outside, plugins, disk, "No module named 'not_installed'")


def test_a_driver_whose_hook_has_a_wrong_signature(outside: Python, disk: Path, tmp_path: Path) -> None:
    code = DRIVER.format(hook="@hookimpl\n    def probe(self, data, nme): return 100")
    broken(outside, plugin(tmp_path, "odd", "diskmill.format", code), disk, "'probe'", "'nme'")


def test_a_driver_with_a_hook_that_does_not_exist(outside: Python, disk: Path, tmp_path: Path) -> None:
    code = DRIVER.format(hook="@hookimpl\n    def opne(self, request): return None")
    broken(outside, plugin(tmp_path, "odd", "diskmill.format", code), disk, "'opne'")


def test_an_entry_point_that_is_no_driver(outside: Python, disk: Path, tmp_path: Path) -> None:
    broken(outside, plugin(tmp_path, "odd", "diskmill.format", "plugin = 7"), disk, "not a format driver")


def test_two_drivers_of_one_name(outside: Python, disk: Path, tmp_path: Path) -> None:
    code = DRIVER.format(hook="")
    plugin(tmp_path, "odd", "diskmill.format", code, dist="first-odd")
    plugin(tmp_path, "odd", "diskmill.format", code, dist="second-odd")
    broken(outside, tmp_path, disk, "module_first_odd:plugin and module_second_odd:plugin", "uninstall one")
