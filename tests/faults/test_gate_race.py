"""The gate raced: a second process exchanges what a reference leads to at full speed, and gets nothing opened by it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from diskmill.contract.node import Storage
from diskmill.contract.requests import OpenRequest
from diskmill.errors import DiskmillError, StorageError
from diskmill.opening.context import Context
from diskmill.opening.gate import FOLDER
from diskmill.opening.graph import open_image
from diskmill.opening.places import place_named
from diskmill.opening.registry import default_registry
from diskmill.opening.siblings import Siblings

SECONDS = float(os.environ.get("DISKMILL_RACE_SECONDS", "0.8"))
"""How long each kind of race goes on."""
OURS, FOREIGN = b"ours" * 128, b"foreign!" * 64

SWAPPER = """
import ctypes, os, sys
exchange = ctypes.CDLL(None, use_errno=True).renameat2
one, other = (os.fsencode(name) for name in sys.argv[1:])
print("ready", flush=True)
while os.getppid() == int(os.environ["PARENT"]):
    for _ in range(1000):
        if exchange(-100, one, -100, other, 2):  # AT_FDCWD, RENAME_EXCHANGE
            sys.exit(os.strerror(ctypes.get_errno()))
"""


@contextmanager
def exchanging(one: Path, other: Path) -> Iterator[None]:
    """*one* and *other* change names with each other, all the time."""
    command = [sys.executable, "-c", SWAPPER, str(one), str(other)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PARENT": str(os.getpid())}) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        try:
            yield
        finally:
            alive = process.poll() is None
            process.kill()
    assert alive


def count(attempt: Callable[[], bytes | None]) -> tuple[int, int]:
    """How many attempts went through, and how many of those read what is not ours."""
    went, foreign, until = 0, 0, time.monotonic() + SECONDS
    while time.monotonic() < until:
        try:
            found = attempt()
        except DiskmillError:
            continue
        went += 1
        foreign += found != OURS
    return went, foreign


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The image's folder, with a file in a folder below, and what is to take their places, which leads outside."""
    folder, outside = tmp_path / "images", tmp_path / "outside"
    (folder / "below").mkdir(parents=True)
    outside.mkdir()
    (folder / "base").write_bytes(OURS)
    (folder / "below" / "base").write_bytes(OURS)
    (outside / "base").write_bytes(FOREIGN)
    (folder / "evil-file").symlink_to(outside / "base")
    (folder / "evil-below").symlink_to(outside)
    (folder / "evil-pipe").symlink_to("/dev/zero")
    return folder


def reference(folder: Path, name: str) -> Callable[[], bytes]:
    """What opens a reference to *name* of an image in *folder*, and reads what was opened."""
    context = Context()
    driver = context.registry.protocol("file")

    def attempt() -> bytes:
        spec = {"driver": "file", "filename": str(folder / name)}
        home = place_named(str(folder), None, context.registry)
        spec = FOLDER.admit(spec, image="top", reference=name, home=home, registry=context.registry)
        with driver.open(OpenRequest(name=spec["filename"], context=context, place=spec["place"])) as storage:
            return bytes(storage.read(0, len(OURS)))

    return attempt


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [("below/base", "below", "evil-below"), ("base", "base", "evil-file"), ("base", "base", "evil-pipe")],
    ids=["folder", "file", "device"],
)
def test_a_reference_opens_what_was_judged(folder: Path, name: str, one: str, other: str) -> None:
    with exchanging(folder / one, folder / other):
        went, foreign = count(reference(folder, name))
    assert foreign == 0
    assert went > 20


def test_the_folder_of_the_image_is_the_one_that_it_was_opened_in(tmp_path: Path, folder: Path) -> None:
    """The user's own path has a link in it: where that leads to by the time of the reference does not matter."""
    import struct

    overlay = bytearray(1024)
    overlay[:48] = struct.pack(">4sIQIIQIIQ", b"QFI\xfb", 1, 72, 4, 0, 512, 0x0C090000, 0, 48)  # qcow, version 1
    overlay[72:76] = b"base"
    for where in ("images", "outside"):
        (tmp_path / where / "top").write_bytes(overlay)
    (tmp_path / "way").symlink_to("images")
    (tmp_path / "other").symlink_to("outside")
    pairs = {b"images": OURS, b"outside": FOREIGN}

    def attempt() -> bytes | None:
        with open_image(str(tmp_path / "way" / "top"), "qcow", context=Context()) as image:
            assert image.backing is not None
            file = image.file
            assert isinstance(file, Storage) and file.place is not None
            home = file.place.folder()
            assert home is not None
            same = image.backing.read(0, len(OURS)) == pairs[os.path.basename(os.fsencode(home.display()))]
            return OURS if same else FOREIGN

    with exchanging(tmp_path / "way", tmp_path / "other"):
        went, foreign = count(attempt)
    assert foreign == 0
    assert went > 20


def test_siblings_are_opened_and_made_in_the_folder_of_the_image(folder: Path) -> None:
    """They lie where the image was opened, and nowhere else, when that folder changes names with a link."""
    context = Context()
    driver = context.registry.protocol("file")
    file = driver.open(OpenRequest(name=str(folder / "below" / "base"), context=context))
    (folder / "below" / "part").write_bytes(OURS)
    (folder.parent / "outside" / "part").write_bytes(FOREIGN)
    siblings = Siblings(file, context)
    number = 0

    def attempt() -> bytes | None:
        nonlocal number
        number += 1
        if number % 2:
            found = siblings.open("part")
            if found is None:  # moments at which it is missing
                return OURS
            with found:
                return found.read(0, len(OURS))
        with siblings.make(f"new{number}", like=file) as made:
            made.settle()
        return OURS

    with file, exchanging(folder / "below", folder / "evil-below"):
        went, foreign = count(attempt)
    assert foreign == 0
    assert went > 20
    assert {one.name for one in (folder.parent / "outside").iterdir()} == {"base", "part"}


@pytest.mark.parametrize("name", ["/proc/self/fd/{fd}", "/dev/fd/{fd}", "/proc/self/cwd/base"])
def test_links_of_the_kernel_are_judged_by_what_they_lead_to(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent / "outside")
    fd = os.open("base", os.O_RDONLY)
    try:
        with pytest.raises(DiskmillError, match="outside the trusted folders"):
            reference(folder, name.format(fd=fd))()
        path = os.path.join("/proc", str(os.getpid()), "fd", str(fd))
        request = OpenRequest(name=path, context=Context(), options={"follow": False})
        with pytest.raises(StorageError, match="symbolic link"):
            request.context.registry.protocol("file").open(request)
    finally:
        os.close(fd)


def test_a_trusted_folder_may_be_named_by_a_link(tmp_path: Path, folder: Path) -> None:
    """Where it leads when the policy is made is what is trusted."""
    from diskmill.opening.gate import Trust

    link = tmp_path / "trusted"
    link.symlink_to("images")
    policy = Trust.parse([str(link)])
    link.unlink()
    link.symlink_to("outside")
    spec = {"driver": "file", "filename": str(folder / "base")}
    assert policy.admit(spec, image="top", reference="x", home=None, registry=default_registry())["filename"] == str(
        folder / "base"
    )
    spec = {"driver": "file", "filename": str(link / "base")}
    with pytest.raises(DiskmillError, match="outside"):
        policy.admit(spec, image="top", reference="x", home=None, registry=default_registry())
