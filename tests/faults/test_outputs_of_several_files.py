"""An image of several files is replaced as one: whoever is killed, or fails, at any change of a folder leaves the old
image, the new one, or nothing that opens. A new file that reads together with an old one is the worst there can be: it
is garbage, and nobody is told.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import diskmill
import pytest
from diskmill.errors import DiskmillError
from diskmill.storages.file import output
from replacements import LONG, GiB, KiB, Kind, killed_at
from tools import qemu_img

CHANGES = ("rename", "link", "unlink")

KINDS = {
    "qcow2": Kind("qcow2", {"data_file": "data.raw"}, "disk.qcow2"),
    "qcow2 raw": Kind("qcow2", {"data_file": "data.raw", "data_file_raw": "on"}, "disk.qcow2"),
    "vmdk flat": Kind("vmdk", {"subformat": "monolithicFlat"}, "disk.vmdk"),
    "vmdk split": Kind(
        "vmdk", {"subformat": "twoGbMaxExtentSparse"}, "disk.vmdk", 2 * GiB + 256 * KiB, (0, 2 * GiB, 2 * GiB + LONG)
    ),
    "vmdk split flat": Kind(
        "vmdk", {"subformat": "twoGbMaxExtentFlat"}, "disk.vmdk", 2 * GiB + 256 * KiB, (0, 2 * GiB)
    ),
    "luks": Kind(
        "luks",
        {"header": "disk.header", "key-secret": "key", "iter-time": 10},
        "disk.luks",
        header="disk.header",
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture(params=["nameless", "named"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways: on file systems that have nameless files, and on those that have not."""
    if request.param == "named":
        monkeypatch.setattr(output, "_unnamed", lambda folder, flags: None)


@pytest.fixture
def folders(kind: Kind, tmp_path: Path) -> Callable[[], Path]:
    """Gives a folder with the old image, again and again."""
    first = tmp_path / "first"
    first.mkdir()
    kind.make(first, b"A")
    assert kind.state(first) == "old"
    work = tmp_path / "work"

    def fresh() -> Path:
        shutil.rmtree(work, ignore_errors=True)
        subprocess.run(["cp", "-a", "--sparse=always", first, work], check=True)
        return work

    return fresh


def expect_no_mix(kind: Kind, folder: Path, when: str) -> str:
    state = kind.state(folder)
    assert state in ("old", "new", "none"), when
    if state != "none" and kind.header is None:  # and QEMU sees the same
        source = folder.parent / f"source-{(b'A' if state == 'old' else b'B').hex()}"
        data = (
            {"data-file.driver": "raw", "data-file.file.filename": folder / "data.raw"}
            if "data_file" in kind.options
            else {}
        )
        whole = {"driver": kind.format, "file.filename": folder / kind.main, **data}
        text = ",".join(f"{key}={value}" for key, value in whole.items())
        qemu_img("compare", "--image-opts", f"driver=raw,file.filename={source}", text)
    return state


def test_a_kill_at_any_change_of_a_folder_leaves_no_mix(
    kind: Kind, folders: Callable[[], Path], way: None, tmp_path: Path
) -> None:
    folder, number, states = folders(), 1, []
    while killed_at(CHANGES, number, partial(kind.make, folder, b"B")):
        states.append(expect_no_mix(kind, folder, f"killed at change {number}"))
        folder, number = folders(), number + 1
    assert states[0] == "old"
    assert "none" in states, "the old main file is gone before anything else is"
    assert kind.state(folder) == "new"
    assert not [name for name in os.listdir(folder) if name.startswith(".diskmill-")]


def test_the_old_files_of_a_killed_replacement_are_still_there(
    kind: Kind, folders: Callable[[], Path], tmp_path: Path
) -> None:
    """Before the new main file has its name, nobody has lost anything that cannot be found by hand."""
    folder, number = folders(), 1
    before = sorted((folder / name).stat().st_size for name in os.listdir(folder))
    while killed_at(CHANGES, number, partial(kind.make, folder, b"B")):
        if kind.state(folder) == "none":
            kept = {name for name in os.listdir(folder) if name.endswith(".old")}
            names = {name for name in os.listdir(folder) if not name.startswith(".diskmill-")}
            assert len(kept | names) >= len(before)
        folder, number = folders(), number + 1


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
def test_a_failure_at_any_change_of_a_folder_leaves_no_mix(
    kind: Kind, folders: Callable[[], Path], way: None, lasting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, failed = 1, True
    while failed:
        folder, count, failed = folders(), 0, False
        before = sorted(os.listdir(folder))

        def failing(function: Callable[..., Any], number: int = number) -> Callable[..., Any]:
            def call(*arguments: Any, **keywords: Any) -> Any:
                nonlocal count, failed
                count += 1
                if count == number or lasting and count > number:
                    failed = True
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                return function(*arguments, **keywords)

            return call

        with monkeypatch.context() as patch:
            for name in (*CHANGES, "fsync"):
                patch.setattr(os, name, failing(getattr(os, name)))
            told = ""
            try:
                kind.make(folder, b"B")
            except DiskmillError as error:
                told = str(error)
        assert "\n" not in told
        state = expect_no_mix(kind, folder, f"failed at change {number}")
        if not told:
            assert state == "new"  # what could not be removed is hidden, and harms nobody
        elif not lasting:
            assert state in ("old", "new"), "the old files got their names back"
            if state == "old":
                assert sorted(os.listdir(folder)) == before
        number += 1
    assert number > 6


def test_each_step_reaches_the_disk_before_the_next(
    kind: Kind, folders: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the cache mode asks for it, a power cut cannot undo the first step and keep the second."""
    folder, steps = folders(), []

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            result = function(*arguments, **keywords)
            if name == "fsync":
                steps.append("fsync")
            elif (kind.header or kind.main) in arguments:
                steps.append("main")
            elif not str(arguments[0]).endswith(".old"):
                steps.append("other")
            return result

        return call

    with monkeypatch.context() as patch:
        for name in (*CHANGES, "fsync"):
            patch.setattr(os, name, noting(name, getattr(os, name)))
        kind.make(folder, b"B")
    others = [step for step in steps if step == "other"]
    assert steps == ["main", "fsync", *others, "fsync", "main", "fsync"]
    assert len(others) >= 2


def collisions(kind: Kind) -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """What makes two files of one image the same: options, and symbolic links (name → what it names)."""
    if kind.format == "vmdk":
        second = "disk-s002.vmdk" if "Sparse" in kind.options["subformat"] else "disk-f002.vmdk"
        first = second.replace("2", "1")
        if "split" in kind.options["subformat"].lower() or kind.size > GiB:
            yield "a link to another", {}, {second: first}
            yield "a link to the main file", {}, {second: "disk.vmdk"}
        else:
            yield "a link to the main file", {}, {"disk-flat.vmdk": "disk.vmdk"}
        return
    option = "header" if kind.format == "luks" else "data_file"
    yield "the name", {option: kind.main}, {}
    yield "the name, otherwise", {option: f"../work/./{kind.main}"}, {}
    yield "a link", {option: "link"}, {"link": kind.main}


@pytest.mark.parametrize("overwrite", ["replace", "in-place"])
@pytest.mark.parametrize("there", [True, False], ids=["over an old image", "anew"])
def test_two_files_of_an_image_in_one_place_are_refused_before_anything_is_made(
    kind: Kind, folders: Callable[[], Path], overwrite: str, there: bool, tmp_path: Path
) -> None:
    for name, options, links in collisions(kind):
        folder = folders()
        if not there:
            shutil.rmtree(folder)
            folder.mkdir()
        for link, target in links.items():
            (folder / link).unlink(missing_ok=True)
            (folder / link).symlink_to(target)
        before = {one.name: one.lstat().st_mtime_ns for one in folder.iterdir()}
        context = kind.context()
        context.overwrite = overwrite
        with pytest.raises(DiskmillError, match="two files of the new image at once"):
            diskmill.create(
                str(folder / kind.main),
                kind.size,
                format=kind.format,
                options={**kind.options, **options},
                context=context,
            )
        assert {one.name: one.lstat().st_mtime_ns for one in folder.iterdir()} == before, name


def test_what_an_image_is_made_from_cannot_become_a_file_of_it(tmp_path: Path) -> None:
    base, link, disk = tmp_path / "base.raw", tmp_path / "link", tmp_path / "disk.qcow2"
    base.write_bytes(b"base" * KiB)
    link.symlink_to(base)
    for target, backing, data in ((disk, base, link), (link, base, None)):
        options = {} if data is None else {"data_file": str(data)}
        with pytest.raises(DiskmillError, match="also an input"):
            diskmill.create(str(target), format="qcow2", options=options, backing=str(backing), backing_format="raw")
    with pytest.raises(DiskmillError):
        diskmill.convert([str(base)], str(disk), format="raw", output_format="qcow2", options={"data_file": str(link)})
    assert base.read_bytes() == b"base" * KiB
    assert sorted(os.listdir(tmp_path)) == ["base.raw", "link"]
