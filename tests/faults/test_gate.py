"""The gate: what names inside an image can open, and what they cannot, whatever form they take."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from diskmill.contract.drivers import FormatDriver, hookimpl
from diskmill.contract.extents import Extent, Kind
from diskmill.contract.limits import Budget, LimitError, Limits
from diskmill.contract.node import Image
from diskmill.contract.references import Reference
from diskmill.contract.requests import OpenRequest
from diskmill.errors import DiskmillError, ImageError, RefusedError, StorageError
from diskmill.kit.image import FormatImage
from diskmill.opening.context import Context
from diskmill.opening.gate import ANYTHING, FOLDER, NOTHING, Trust
from diskmill.opening.graph import open_image
from diskmill.opening.places import place_named
from diskmill.opening.registry import Registry, default_registry
from hypothesis import given
from hypothesis import strategies as st

SECRET = "/etc/passwd"
MAGIC = b"ASKS"


class Asking(FormatImage):
    """An image that is nothing but references."""

    attached: tuple[Any, ...] = ()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, Kind.HOLE)

    def attach(self, reference: Reference, node: Any) -> None:
        self.attached = (*self.attached, node)

    def children(self) -> Iterator[Any]:
        yield self.file
        yield from self.attached


class AskingDriver(FormatDriver):
    """``asks``: a format whose images hold a JSON list of [role, name, format, storage only]."""

    contract = 1
    name = "asks"
    children = (*FormatDriver.children, "log")

    @hookimpl
    def probe(self, data: bytes, name: str) -> int:
        return 100 if data.startswith(MAGIC) else 0

    @hookimpl
    def open(self, request: OpenRequest) -> Asking:
        file = request.file
        assert file is not None
        text = file.read(len(MAGIC), max(file.size - len(MAGIC), 0))
        try:
            asked = json.loads(text)
        except ValueError:
            raise ImageError("its references are damaged", file=request.name) from None
        image = Asking(self, file, name=request.name, size=512, writable=request.writable)
        image.references = [Reference(role, name, form, storage=storage) for role, name, form, storage in asked]
        if request.child is not None:
            header = request.child("header")
            if header is not None:
                image.attached = (header,)
        return image


REGISTRY = Registry()
REGISTRY.add(AskingDriver())


def asking(path: Path, *names: str, role: str = "backing", format: str | None = None, storage: bool = False) -> Path:
    """An image at *path* that refers to *names*."""
    path.write_bytes(MAGIC + json.dumps([[role, name, format, storage] for name in names]).encode())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    asking(folder / "base")
    (tmp_path / "outside").write_bytes(bytes(512))
    return folder


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are opened from now on, resolved."""
    gc.collect()  # what earlier tests left may open files when it is finalised
    return spied(monkeypatch)


def spied(patch: pytest.MonkeyPatch) -> list[str]:
    for group in ("diskmill.format", "diskmill.protocol", "diskmill.crypto"):
        REGISTRY.all(group)  # a driver may read files when it is imported: before anybody looks
    paths: list[str] = []
    real: Callable[..., int] = os.open

    def spy(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        fd = real(path, flags, *arguments, **options)
        if not flags & os.O_PATH:  # a folder on the way; what is not opened cannot be read either
            paths.append(os.readlink(f"/proc/self/fd/{fd}"))
        return fd

    patch.setattr(os, "open", spy)
    return paths


def open_with(path: Path, trust: Trust = FOLDER, **options: Any) -> Image:
    return open_image(str(path), context=Context(registry=REGISTRY, trust=trust), **options)


def file_node(path: object) -> dict[str, object]:
    return {"driver": "file", "filename": str(path)}


def in_one_line(call: Callable[[], object]) -> bool:
    """Whether *call* succeeds, or fails as a user can be told."""
    try:
        call()
    except DiskmillError as error:
        return str(error).isprintable()
    return True


def as_json(value: object) -> str:
    return "json:" + json.dumps(value)


GOOD = file_node("base")
BAD = file_node(SECRET)

HOSTILE = {
    "absolute": SECRET,
    "file:": f"file:{SECRET}",
    "file://": f"file://{SECRET}",
    "parent": "../" * 30 + SECRET.lstrip("/"),
    "sibling folder": "../outside",
    "parent inside": "x/../../outside",
    "link": "link",
    "link in a folder": "linked/passwd",
    "pipe": "pipe",
    "folder": ".",
    "device": "/dev/zero",
    "own descriptor": "/proc/self/fd/0",
    "process root": f"/proc/self/root{SECRET}",
    "nbd": "nbd:127.0.0.1:10809:exportname=x",
    "nbd url": "nbd://127.0.0.1/x",
    "http": "http://127.0.0.1/x",
    "a protocol that is none": "disk:base",
    "pipe:": f"pipe:{SECRET}",
    "host_device": "host_device:/dev/vda",
    "NUL": f"base\0{SECRET}",
    "no such character": "\ud800base",
    "json, raw": as_json({"driver": "raw", "file": BAD}),
    "json, bare": as_json(BAD),
    "json, no driver": as_json({"filename": SECRET}),
    "json, dotted": as_json({"driver": "raw", "file.driver": "file", "file.filename": SECRET}),
    "json, no protocol": as_json({"file": {"filename": SECRET}}),
    "json, child by name": as_json({"driver": "raw", "file": SECRET}),
    "json, backing by name": as_json({"driver": "asks", "file": GOOD, "backing": SECRET}),
    "json, data file by name": as_json({"driver": "asks", "file": GOOD, "data-file": SECRET}),
    "json, header by name": as_json({"driver": "asks", "file": GOOD, "header": SECRET}),
    "json, header": as_json({"driver": "asks", "file": GOOD, "header": BAD}),
    "json, backing": as_json({"driver": "asks", "file": GOOD, "backing": {"driver": "raw", "file": BAD}}),
    "json, name beside a good child": as_json({"filename": SECRET, "backing": GOOD}),
    "json, driver and name beside a good child": as_json({**BAD, "backing": GOOD}),
    "json, network beside a good child": as_json({"driver": "nbd", "host": "127.0.0.1", "backing": GOOD}),
    "json, network server": as_json({"driver": "nbd", "server": {"type": "inet", "host": "127.0.0.1", "port": "1"}}),
    "json, nested names": as_json({"driver": "raw", "file": as_json({"driver": "raw", "file": BAD})}),
    "json, a number": as_json({"driver": "file", "filename": 0}),
    "json, a list": as_json({"driver": "raw", "file": [BAD]}),
    "json, null": as_json({"driver": "raw", "file": None}),
    "json, number as child": as_json({"driver": "raw", "file": 7}),
    "json, driver that is none": as_json({"driver": 5, "filename": SECRET}),
    "json, file as a format": as_json({"driver": "file", "filename": SECRET, "file": BAD}),
    "json, following": as_json({"driver": "file", "filename": "link", "follow": True}),
    "json, deep": "json:" + '{"file":' * 400 + "{}" + "}" * 400,
    "json, too deep": "json:" + '{"file":' * 100_000 + "{}" + "}" * 100_000,
    "json, deep dots": as_json({"file." * 5000 + "filename": SECRET}),
    "json, empty": "json:{}",
    "json, no object": "json:7",
    "json, broken": "json:{",
    "long": "x" * 5000,
    "long path": "x/" * 5000,
    "empty": "",
    "terminal escapes": "\x1b[2J\n/etc/passwd",
}


@pytest.mark.parametrize("storage", [False, True], ids=["image", "storage"])
@pytest.mark.parametrize("trust", ["nothing", "folder", "other"])
@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_nothing_but_the_trusted_is_opened(
    folder: Path, opens: list[str], name: str, trust: str, storage: bool
) -> None:
    (folder / "link").symlink_to(SECRET)
    (folder / "linked").symlink_to("/etc")
    os.mkfifo(folder / "pipe")
    (folder / "other").mkdir()
    policy = {"nothing": NOTHING, "folder": FOLDER, "other": Trust([str(folder / "other")])}[trust]
    image = asking(folder / "top", name, storage=storage)
    with pytest.raises(DiskmillError) as caught:
        open_with(image, policy)
    assert opens == [str(image)]
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("storage", [False, True], ids=["image", "storage"])
@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_with_trust_in_anything_hostile_names_still_do_not_crash(folder: Path, name: str, storage: bool) -> None:
    (folder / "pipe").mkdir()
    assert in_one_line(lambda: open_with(asking(folder / "top", name, storage=storage), ANYTHING).close())


def test_what_lies_in_the_folder_is_opened(folder: Path, opens: list[str]) -> None:
    (folder / "below").mkdir()
    asking(folder / "below" / "deep")
    (folder / "alias").symlink_to("below/deep")
    names = [
        "base",
        "./base",
        "below/../base",
        str(folder / "base"),
        f"file:{folder}/base",
        "below/deep",
        "alias",
        as_json({"driver": "raw", "file": GOOD}),
        as_json({"driver": "raw", "file": {"filename": "base"}}),
        as_json({"filename": "base"}),
        as_json({"driver": "raw", "offset": 0, "file": file_node(folder / "base")}),
    ]
    for name in names:
        before = len(opens)
        open_with(asking(folder / "top", name)).close()
        found = "below/deep" if name in ("below/deep", "alias") else "base"
        assert opens[before:] == [str(folder / "top"), str(folder / found)]


@pytest.mark.parametrize("number", ["9" * 5000, "9" * 30, "-512", "1.5", "true", "null", "{}", "[1]", '"-1"', '"x"'])
@pytest.mark.parametrize("option", ["offset", "size"])
def test_options_in_a_reference_are_checked(folder: Path, option: str, number: str) -> None:
    name = f'json:{{"driver":"raw","{option}":{number},"file":{{"driver":"file","filename":"base"}}}}'
    with pytest.raises(DiskmillError) as caught:
        open_with(asking(folder / "top", name))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("child", [{"log.filename": SECRET}, {"log": file_node(SECRET)}, {"log.file.filename": SECRET}])
@pytest.mark.parametrize("driver", [{"driver": "asks"}, {}], ids=["named", "unnamed"])
@pytest.mark.parametrize("format", ["asks", None])
def test_children_that_only_its_driver_declares_are_judged(
    folder: Path, opens: list[str], child: dict[str, Any], driver: dict[str, str], format: str | None
) -> None:
    name = as_json({**driver, **child, "file": file_node(folder / "base")})
    with pytest.raises(DiskmillError):
        open_with(asking(folder / "top", name, format=format))
    assert SECRET not in opens


def test_a_user_gives_children_that_only_the_driver_declares(folder: Path, opens: list[str]) -> None:
    context = Context(registry=REGISTRY)
    node = {"driver": "asks", "file.filename": str(folder / "base"), "log.filename": str(folder.parent / "outside")}
    with open_image(as_json(node), context=context) as image:
        assert isinstance(image, Asking) and len(image.attached) == 1
    assert opens[-1] == str(folder.parent / "outside")
    with pytest.raises(DiskmillError, match="log"):
        open_image(as_json({**node, "driver": "raw"}), context=context)
    with pytest.raises(DiskmillError, match=r"raw.*no header"):
        open_image(
            as_json({"driver": "raw", "file": file_node(folder / "base"), "header": file_node(folder / "base")}),
            context=context,
        )


def test_policies_name_folders(folder: Path, tmp_path: Path) -> None:
    image = asking(folder / "top", "../outside")
    for texts in (["folder"], ["nothing"], [str(folder)], [str(tmp_path / "out")]):
        with pytest.raises(RefusedError, match=r"top.*'\.\./outside'.*outside the trusted folders.*trust"):
            open_with(image, Trust.parse(texts))
    for texts in (["anything"], [str(tmp_path)], ["folder", str(tmp_path)], ["/"]):
        open_with(image, Trust.parse(texts)).close()


def test_an_image_in_the_root_folder_may_only_name_its_neighbours() -> None:
    spec = {"file": file_node(SECRET)}
    registry = default_registry()
    home = place_named("/", None, registry)

    def admit(trust: Trust, spec: dict[str, Any], reference: str) -> None:
        trust.admit(spec, image="/top", reference=reference, home=home, registry=registry)

    with pytest.raises(RefusedError):
        admit(FOLDER, spec, SECRET)
    admit(FOLDER, {"file": file_node("/not-there")}, "not-there")
    admit(Trust(["/"]), spec, SECRET)


def test_the_home_is_the_folder_of_what_the_user_named(folder: Path) -> None:
    (folder / "below").mkdir()
    middle = asking(folder / "below" / "middle", "../base")
    open_with(asking(folder / "top", "below/middle")).close()  # middle, too, may name what lies below top's folder
    with pytest.raises(RefusedError):
        open_with(middle)


def test_a_link_put_there_after_the_decision_is_not_followed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Trust.admit

    def exchanged(self: Trust, *arguments: Any, **options: Any) -> Any:
        decided = real(self, *arguments, **options)
        (folder / "base").unlink()
        (folder / "base").symlink_to(SECRET)
        return decided

    monkeypatch.setattr(Trust, "admit", exchanged)
    with pytest.raises(StorageError, match="symbolic links"):
        open_with(asking(folder / "top", "base"))


def test_what_the_user_typed_is_theirs(folder: Path, tmp_path: Path) -> None:
    image = asking(folder / "top", SECRET)
    spec = {"driver": "asks", "file": file_node(image), "backing": str(tmp_path / "outside")}
    context = Context(registry=REGISTRY, trust=NOTHING)
    open_image(spec, context=context).close()
    open_image({**spec, "backing": None}, context=context).close()


@pytest.mark.parametrize("shallow", [False, True])
@pytest.mark.parametrize("role", ["backing", "extent"])
def test_loops_end(folder: Path, role: str, shallow: bool) -> None:
    for name, other in (("one", "two"), ("two", "three"), ("three", "one"), ("self", "self")):
        asking(folder / name, other, role=role)
    for name in ("one", "self"):
        warnings: list[str] = []
        context = Context(registry=REGISTRY, warn=warnings.append)
        if shallow:
            open_image(str(folder / name), context=context, shallow=True).close()
            assert len(warnings) == (role == "extent")
        else:
            with pytest.raises(ImageError, match="loop"):
                open_image(str(folder / name), context=context)


@pytest.mark.parametrize("shallow", [False, True])
def test_many_files_that_each_need_many_files_end(folder: Path, shallow: bool) -> None:
    for level in range(20):
        asking(folder / f"level{level}", *[f"level{level + 1}"] * 10, role="extent")
    asking(folder / "level20")
    context = Context(registry=REGISTRY, budget=Budget(Limits(files=60)))
    if shallow:
        open_image(str(folder / "level0"), context=context, shallow=True).close()
    else:
        with pytest.raises(DiskmillError, match="files are needed"):
            open_image(str(folder / "level0"), context=context)


def test_long_chains_open_and_endless_ones_do_not(folder: Path) -> None:
    longest = Limits().chain
    for number in range(longest + 1):
        asking(folder / f"image{number}", f"image{number + 1}")
    asking(folder / f"image{longest + 1}")
    with pytest.raises(LimitError, match=r"longer than.*--limits chain="):
        open_with(folder / "image0")
    open_with(folder / "image1").close()


def test_a_failure_leaves_nothing_open(folder: Path) -> None:
    image = asking(folder / "top", "base", SECRET)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(RefusedError):
        open_with(image)
    assert len(os.listdir("/proc/self/fd")) == before


LEAVES = st.none() | st.booleans() | st.integers()
LEAVES |= st.sampled_from([SECRET, "base", "link", "nbd://x", "file", "raw", "asks", as_json(GOOD), as_json(BAD)])
KEYS = st.sampled_from(
    ["driver", "file", "backing", "data-file", "header", "image", "filename", "file.filename", "file.driver", "offset"]
)
TREES = st.recursive(
    LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=4) | st.just(GOOD) | st.just(BAD), max_leaves=12
)


@given(st.dictionaries(KEYS, TREES, max_size=5), st.booleans(), st.sampled_from([None, "raw", "asks", "file"]))
def test_no_json_name_opens_the_secret(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any], storage: bool, format: str | None
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    asking(folder / "base")
    (folder / "link").unlink(missing_ok=True)
    (folder / "link").symlink_to(SECRET)
    image = asking(folder / "top", as_json(tree), storage=storage, format=format)
    with pytest.MonkeyPatch.context() as patch:
        opened = spied(patch)
        assert in_one_line(lambda: open_with(image).close())
    assert set(opened) <= {str(folder / "top"), str(folder / "base")}
