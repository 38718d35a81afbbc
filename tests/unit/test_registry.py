"""The registry, where no installation is needed to see it; the rest is in tests/plugins/."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import diskmill
import pytest
from diskmill.contract import calls
from diskmill.contract.drivers import FormatDriver, hookimpl
from diskmill.contract.extents import Extent
from diskmill.errors import DriverError, UsageError
from diskmill.kit.image import FormatImage
from diskmill.opening.registry import Registry
from tools import qemu_img, run
from twins import memory


class Good(FormatDriver):
    contract = 1
    name = "good"

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        return 50


class WrongArgument(FormatDriver):
    contract = 1
    name = "wrong"

    @hookimpl
    def probe(self, data: bytes, nme: str) -> int:
        return 100


class Misspelt(FormatDriver):
    contract = 1
    name = "misspelt"

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        return 100

    @hookimpl
    def opne(self, request: object) -> None: ...


@pytest.mark.parametrize(("driver", "word"), [(WrongArgument(), "'nme'"), (Misspelt(), "'opne'")])
def test_a_wrong_hook_is_told_at_registration(driver: FormatDriver, word: str) -> None:
    registry = Registry()
    with pytest.raises(DriverError, match=word):
        registry.add(driver)


class OfTomorrow(Good):
    contract = 99


class Timeless(FormatDriver):
    name = "timeless"


class Boastful(Good):
    capabilities = frozenset({"snapshots"})


class Fanciful(Good):
    capabilities = frozenset({"teleportation"})


class Unmarked(FormatDriver):
    contract = 1
    name = "unmarked"

    def probe(self, data: bytes, name: str) -> int:
        return 100


@pytest.mark.parametrize(
    ("driver", "text"),
    [
        (OfTomorrow(), r"written for version 99 of the contract, and this core has version 1"),
        (Timeless(), r"add 'contract = 1' to its class"),
        (Boastful(), r"capability 'snapshots' without the hook 'snapshot': add a method of that name"),
        (Fanciful(), r"there is no capability 'teleportation': use some of .*, snapshots,"),
        (Unmarked(), r"its method 'probe' is not marked as a hook: put @hookimpl above it"),
    ],
)
def test_a_wrong_declaration_is_told_with_how_to_mend_it(driver: FormatDriver, text: str) -> None:
    with pytest.raises(DriverError, match=text):
        Registry().add(driver)


class Scatterbrain(FormatImage):
    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        raise IndexError("colour")


class Clumsy(Good):
    @hookimpl
    def open(self, request: object) -> str:
        return "an image"

    @hookimpl
    def snapshot(self, image: object, action: str, name: str) -> str:
        return "none"

    @hookimpl
    def measure(self, request: object) -> None:
        raise KeyError("colour")


def test_a_drivers_own_mistake_names_the_driver() -> None:
    registry = Registry()
    registry.add(Clumsy())
    driver = registry.format("good")
    with pytest.raises(DriverError, match="format driver 'good': its hook 'open' gave str, not Image"):
        calls.open_image(registry, driver, request=None)  # type: ignore[arg-type]
    with pytest.raises(DriverError, match=r"mistake in format driver 'good'.* hook 'measure' ended with KeyError"):
        calls.measure(registry, driver, request=None)  # type: ignore[arg-type]
    image = Scatterbrain(driver, memory(), name="disk", size=1 << 20, writable=False)
    with pytest.raises(DriverError, match="format driver 'good': its hook 'snapshot' gave str, not list"):
        calls.snapshots(registry, image)
    with pytest.raises(IndexError) as caught:
        image.read(0, 512)
    assert calls.driver_of(caught.value) is driver


def test_a_word_that_a_hook_does_not_know_changes_nothing(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    diskmill.create(str(image), 1 << 20, format="qcow2")
    before = image.read_bytes()
    with pytest.raises(UsageError, match="invalid repair 'al'"):
        diskmill.check(str(image), repair="al")  # type: ignore[arg-type]
    assert image.read_bytes() == before


@pytest.mark.parametrize("driver", [WrongArgument(), Misspelt()])
def test_a_refused_driver_is_never_called(driver: FormatDriver) -> None:
    registry = Registry()
    with pytest.raises(DriverError):
        registry.add(driver)
    registry.add(Good())
    found = registry.probe(b"", "x")
    assert found is not None
    assert found.name == "good"


def test_a_hook_goes_to_one_driver() -> None:
    registry = Registry()
    registry.add(Good())
    assert registry.call(registry.format("raw"), "probe", data=b"", name="x") == 1
    assert registry.call(registry.format("good"), "probe", data=b"", name="x") == 50
    assert registry.call(registry.format("good"), "measure", request=None) is None


def test_a_hook_goes_to_every_plugin_that_is_no_driver() -> None:
    seen = []

    class Watcher:
        @hookimpl(wrapper=True)
        def probe(self, data: bytes, name: str):  # type: ignore[no-untyped-def]
            seen.append(name)
            return (yield) + 1

    registry = Registry()
    assert registry.call(registry.format("raw"), "probe", data=b"", name="before") == 1
    registry.plugins.register(Watcher())
    assert registry.call(registry.format("raw"), "probe", data=b"", name="a") == 2
    registry.add(Good())
    assert registry.call(registry.format("good"), "probe", data=b"", name="b") == 51
    assert seen == ["a", "b"]


def test_an_unknown_driver_points_to_the_list() -> None:
    with pytest.raises(DriverError, match="diskmill drivers"):
        Registry().format("nonsense")


def test_a_driver_that_is_sure_is_the_only_one_imported(tmp_path: Path) -> None:
    """So that starting does not take longer with each driver that is installed."""
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "disk", "1M")
    program = "import sys, diskmill; print(diskmill.info(sys.argv[1]).format, *sorted(sys.modules))"
    words = run(sys.executable, "-c", program, tmp_path / "disk").stdout.split()
    assert words[0] == "qcow2"
    assert "diskmill_qcow2" in words
    assert "diskmill_vdi" not in words


def test_a_driver_that_cannot_be_imported_is_told_with_the_cause(tmp_path: Path) -> None:
    """Where its image is only recognised, too: the package is there, so that installing it would not help."""
    image, module = tmp_path / "disk", tmp_path / "path" / "diskmill_qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    module.mkdir(parents=True)
    (module / "__init__.py").write_text("raise ImportError('libz.so.1: cannot open shared object file')")
    environment = {**os.environ, "PYTHONPATH": str(module.parent), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    cause = "format driver 'qcow2' could not be loaded: ImportError: libz.so.1: cannot open shared object file"
    for words, status in (
        (["info", image], 0),
        (["bench", "-w", "-c", "1", image], 1),
        (["info", "-f", "qcow2", image], 1),
    ):
        done = run(sys.executable, "-m", "diskmill_cli", *words, env=environment, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (status, 1), done.stderr
        assert cause in done.stderr and "install" not in done.stderr
