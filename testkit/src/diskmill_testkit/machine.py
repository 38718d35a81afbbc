"""What the suites run over: every format driver that is installed, by what it declares, and a place for its images.

Images are made in memory (`memory:` names), so that thousands of them cost seconds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from diskmill.contract.drivers import FormatDriver
from diskmill.contract.extents import Extent
from diskmill.contract.node import Image
from diskmill.contract.options import Option
from diskmill.contract.requests import Backing
from diskmill.errors import DiskmillError
from diskmill.opening.context import Context
from diskmill.opening.creation import create_image
from diskmill.opening.gate import ANYTHING
from diskmill.opening.graph import open_image
from diskmill.opening.registry import Registry
from diskmill.sizes import KiB, MiB

from .selection import Cases, Chosen
from .traits import made_by, traits_of
from .twins import Content, MemoryDriver

REGISTRY = Registry()
REGISTRY.add(MemoryDriver())
FORMATS: dict[str, FormatDriver] = {driver.name: driver for driver in REGISTRY.all(FormatDriver.group)}


def adopt(driver: FormatDriver) -> None:
    """Let the suites run over *driver*, too, which has no entry point."""
    if driver.name not in FORMATS:
        REGISTRY.add(driver)
        FORMATS[driver.name] = driver


def names(*capabilities: str, blank: bool = False) -> list[str]:
    """The formats that have all of *capabilities*.

    With *blank*, only those whose unwritten bytes read as zeros, and not as what noise decrypts to.
    """
    return [
        name
        for name, driver in FORMATS.items()
        if driver.capabilities.issuperset(capabilities) and not (blank and traits_of(name).noise)
    ]


def formats(*capabilities: str, blank: bool = False) -> Cases:
    """A case for each of the chosen formats that has all of *capabilities*; see :func:`names`."""
    return lambda chosen: [name for name in names(*capabilities, blank=blank) if name in chosen]


def layouts(*capabilities: str) -> Cases:
    """A case for each way to write of each of the chosen formats that can be written and have all of *capabilities*:
    its name, and options to create it with."""
    return lambda chosen: [
        pytest.param(name, options, id="-".join([name, *map(str, options.values())]))
        for name in formats("create", "write", *capabilities)(chosen)
        for options in traits_of(name).layouts
    ]


def subformats(*capabilities: str) -> Cases:
    """A case for each of the chosen formats that have all of *capabilities*, and for each ``subformat`` that one has:
    its name, and options to create it with."""

    def cases(chosen: Chosen) -> list[Any]:
        found: list[Any] = []
        for name in formats(*capabilities, blank=True)(chosen):
            choices = next((one.choices for one in FORMATS[name].options if one.name == "subformat"), ())
            found += [pytest.param(name, {}, id=name)]
            found += [pytest.param(name, {"subformat": choice}, id=f"{name}-{choice}") for choice in choices]
        return found

    return cases


def read_only() -> list[str]:
    """The formats of which images come from encoders and samples."""
    return [name for name in FORMATS if made_by(name)]


def kinds(chosen: Chosen) -> list[tuple[str, str]]:
    """A case for each kind of image that an encoder makes, or that is a sample."""
    return [(name, kind) for name in read_only() if name in chosen for kind in made_by(name)]


def fillable() -> list[str]:
    """The formats of which an image with given contents can be made here: see `Machine.fill`."""
    return [*names("create", "write"), *read_only()]


class Machine:
    """A place for the images of one test: a context, and files in memory. A new one sweeps out the one before."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.context = Context(
            trust=ANYTHING, secrets={"key": b"open sesame"}, registry=REGISTRY, warn=self.warnings.append
        )
        self.files.clear()

    @property
    def driver(self) -> MemoryDriver:
        """What the files of the test lie in, and can be made to fail by."""
        driver = self.context.registry.protocol("memory")
        assert isinstance(driver, MemoryDriver)
        return driver

    @property
    def files(self) -> dict[str, Content]:
        return self.driver.files

    def options(self, format: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """*options*, and those without which the format makes no image: the key of an encrypted one, made quickly."""
        names = {option.name for option in FORMATS[format].options if "create" in option.when}
        given = dict(options or {})
        if given.get("encryption") in (True, "on"):  # the old spelling of encrypt.format=aes
            given.setdefault("encrypt.key-secret", "key")
        if "encrypt.format" in given:
            given.setdefault("encrypt.key-secret", "key")
            if given["encrypt.format"] == "luks":
                given.setdefault("encrypt.iter-time", 10)
        if "key-secret" in names:
            given = {"key-secret": "key", "iter-time": 10} | given
            if given.get("version") == "2":  # LUKS2 has Argon2 besides
                given.setdefault("pbkdf-memory", 1024)
        return given

    def create(
        self,
        name: str,
        format: str,
        size: int,
        options: Mapping[str, Any] | None = None,
        *,
        backing: Backing | None = None,
    ) -> None:
        """An empty image, settled, that reads as zeros."""
        with create_image(
            f"memory:{name}", format, size, self.options(format, options), context=self.context, backing=backing
        ) as image:
            if not image.blank:
                image.zero(0, image.size)
            image.settle()

    def fill(self, name: str, format: str, data: bytes, kind: str | None = None) -> bytes:
        """An image of a disk that begins with *data*, and goes on with zeros where the format cannot say its size.

        :return: what the disk holds: *data*, or what a sample has instead.
        """
        made = made_by(format)
        if made:
            image, disk = made[kind or next(iter(made))](data)
            self.put(name, image)
            return disk
        self.create(name, format, len(data))
        with self.open(name, format, writable=True) as opened:
            opened.write(0, data)
        return data

    def open(
        self,
        name: str,
        format: str | None,
        *,
        writable: bool = False,
        over: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> Image:
        """The image *name*; *over* makes of its file's options those of a filter over it."""
        return open_image(self.spec(name, format, over), format, context=self.context, writable=writable)

    def spec(
        self, name: str, format: str | None, over: Callable[[dict[str, Any]], dict[str, Any]] = dict
    ) -> dict[str, Any]:
        """The options that open the image *name*, with the key of an encrypted one."""
        spec: dict[str, Any] = {"file": over({"driver": "memory", "filename": f"memory:{name}"})}
        driver = FORMATS[format] if format is not None else None
        opened = {option.name for option in driver.options if "open" in option.when} if driver else set()
        if "key-secret" in opened:
            spec["key-secret"] = "key"
            if "kdf-limit" in opened:
                spec["kdf-limit"] = 1
        if "encrypt.key-secret" in opened and self.encrypted(name):
            spec["encrypt.key-secret"] = "key"
        return spec

    def backing(self, name: str, format: str) -> Backing:
        """The image *name*, to stand on."""
        with self.open(name, format) as image:
            return Backing(f"memory:{name}", format, image.size, image.details())

    def encrypted(self, name: str) -> bool:
        spec = {"file": {"driver": "memory", "filename": f"memory:{name}"}}
        try:
            with open_image(spec, context=self.context, shallow=True) as image:
                return image.encrypted
        except DiskmillError:
            return False

    def put(self, name: str, data: bytes) -> None:
        """A file of *data*."""
        self.files[name] = Content(data)

    def check(self, name: str, format: str) -> None:
        """Fail unless the image is consistent, as far as its format can tell."""
        if "check" in FORMATS[format].capabilities:
            with self.open(name, format) as image:
                result = self.context.registry.call(image.driver, "check", image=image, repair="")
            assert (result.corruptions, result.leaks, result.check_errors) == (0, 0, 0), result.findings


def unit_of(machine: Machine, format: str, options: Mapping[str, Any] | None = None) -> int:
    """Bytes that the format allocates together; 64 KiB for one that does not."""
    machine.create("unit", format, 4 * MiB, options)
    with machine.open("unit", format) as image:
        return image.unit if image.unit > 1 else 64 * KiB


def variants(driver: FormatDriver) -> Iterator[tuple[Option, Any]]:
    """Each option that the driver takes to create an image, with each value that stands to reason."""
    for option in driver.options:
        # The size is asked for by name; a detached header is no disk by itself.
        if "create" not in option.when or option.name in ("size", "detached-header"):
            continue
        if option.choices:
            values: tuple[Any, ...] = option.choices
        elif option.type == "bool":
            values = (True, False)
        elif option.type == "size":
            values = (512, 4 * KiB, 64 * KiB, 1 * MiB, 2 * MiB)
        else:
            continue  # free text and numbers: the driver's own tests know what they mean
        for value in values:
            yield option, value


def pattern(seed: int, length: int) -> bytes:
    """Bytes that look like no other seed's."""
    return random.Random(seed).randbytes(length)


def fragments(seed: int, size: int, unit: int) -> list[tuple[int, bytes]]:
    """Writes to scattered places, some in whole units, some not, out of order, so that images are fragmented."""
    chance = random.Random(seed)
    writes = []
    for _ in range(12):
        if chance.random() < 0.5:
            start = chance.randrange(size)
            length = chance.randrange(1, unit)
        else:
            start = chance.randrange(-(-size // unit)) * unit
            length = chance.choice((unit, 2 * unit, unit // 2))
        length = min(length, size - start)
        writes.append((start, chance.choice((chance.randbytes(length), bytes(length), b"\xaa" * length))))
    return writes


def merged(extents: list[Extent]) -> list[Extent]:
    """*extents* with neighbours that go on where the one before ended made one."""
    result: list[Extent] = []
    for extent in extents:
        last = result[-1] if result else None
        if last is not None and last._replace(length=extent.length) == extent._replace(
            start=last.start,
            offset=extent.offset - last.length if extent.node is not None and not extent.unit else extent.offset,
            skip=extent.skip - last.length if extent.unit else extent.skip,
        ):
            result[-1] = last._replace(length=last.length + extent.length)
        else:
            result.append(extent)
    return result


def refused(error: DiskmillError, *words: str) -> None:
    """Fail unless the refusal is one line that says one of *words*."""
    text = str(error)
    assert "\n" not in text and any(word in text for word in words), text
