"""An image whose format was guessed to be raw stays one that is guessed to be raw, whatever a guest writes to it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from diskmill.errors import DiskmillError
from diskmill.formats.head import Head
from diskmill.opening.context import Context
from diskmill.opening.gate import ANYTHING
from diskmill.opening.graph import guess_format, open_image
from samples import MiB
from tools import diskmill, qemu_img, qemu_io, run

CREATED = ["qcow2", "qcow", "qed", "vdi", "vhdx", "vpc", "vmdk", "parallels"]
TEXTS = {
    "vmdk": b"# Disk DescriptorFile\nversion=1\n",
    "parallels": b"<?xml version='1.0'?>\n<Parallels_disk_image Version='1.0'>",
    "cloop": b"#!/bin/sh\n#V2.0 Format\n",
    "luks": b"LUKS\xba\xbe\0\1",
    "bochs": b"Bochs Virtual HD Image\0",
    "sparse": b"\x3a\xff\x26\xed\1\0\0\0",
    "ewf": b"EVF\x09\x0d\x0a\xff\0",
    "sparseimage": b"sprs\0\0\0\3",
    "vma": b"VMA\0\0\0\0\1",
}
CASES = [(format, "image") for format in CREATED] + [(format, "text") for format in TEXTS]


@pytest.fixture(params=CASES, ids=["-".join(case) for case in CASES])
def head(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    """The first bytes of an image of a format, as a guest may write them."""
    format, kind = request.param
    if kind == "text":
        return TEXTS[format].ljust(4096, b"\n")
    qemu_img("create", "-q", "-f", format, tmp_path / "pattern", "2M")
    return (tmp_path / "pattern").read_bytes()[:4096].ljust(4096, b"\0")


def raw(path: Path, data: bytes = b"", size: int = MiB) -> Path:
    path.write_bytes(data)
    os.truncate(path, size)
    return path


def is_raw(path: Path) -> bool:
    with open_image(str(path), "raw", context=Context()) as image:
        return guess_format(image.file, Context()).name == "raw"


def test_no_write_makes_a_header_of_its_first_bytes(tmp_path: Path, head: bytes) -> None:
    path = raw(tmp_path / "disk")
    wholes: list[tuple[int, bytes]] = [(0, head), (0, head[:512])]
    for pieces in ([wholes[0]], [wholes[1]], [(0, head[:6]), (6, head[6:])], [(2, head[2:]), (0, head[:2])]):
        raw(path)
        os.truncate(path, 0)
        raw(path)
        with open_image(str(path), context=Context(), writable=True) as image:
            refused = 0
            for offset, data in pieces:
                try:
                    image.write(offset, data)
                except DiskmillError as error:
                    refused += "guessed" in str(error) and 'format="raw"' in str(error) and str(error).isprintable()
            assert refused == 1
        assert is_raw(path)
    with open_image(str(path), "raw", context=Context(), writable=True) as image:
        image.write(0, head)  # the user's word
    assert not is_raw(path)


def test_nor_does_zeroing_or_another_size(tmp_path: Path) -> None:
    path = raw(tmp_path / "disk", b"QED\1".ljust(512, b"x"))
    changes: list[Callable[[object], None]] = [lambda image: image.zero(3, 1), lambda image: image.discard(3, 1)]  # type: ignore[attr-defined]
    for change in changes:
        with open_image(str(path), context=Context(), writable=True) as image:
            with pytest.raises(DiskmillError, match="taken for qed"):
                change(image)
            image.zero(0, 512)
            image.write(0, b"QED\1")
    small = raw(tmp_path / "small", b"QED\0", 20)  # too short for what a header of that format has
    assert is_raw(small)
    assert "taken for qed" in diskmill("resize", small, "1M", check=False).stderr
    assert small.stat().st_size == 20
    diskmill("resize", "-f", "raw", small, "1M")


@pytest.mark.parametrize("kept", ["recorded", "probed"])
def test_commit_into_a_base_that_no_user_called_raw(tmp_path: Path, kept: str) -> None:
    """A format that the overlay alone tells is an image's word: it counts where images are trusted with anything."""
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "pattern", "1M")
    format = "qcow2" if kept == "recorded" else "qcow"
    base, top = raw(tmp_path / "base"), tmp_path / "top"
    qemu_img("create", "-q", "-f", format, "-b", base, "-F", "raw", top)
    os.truncate(tmp_path / "pattern", 512)
    qemu_io(top, f"write -q -s {tmp_path / 'pattern'} 0 512", format=format)
    done = diskmill("commit", "-f", format, top, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "guessed" in done.stderr
    assert is_raw(base)
    with open_image(str(top), format, context=Context(trust=ANYTHING), writable=True, writable_backing=True) as image:
        assert image.backing is not None
        assert (getattr(image.backing, "head") is None) == (kept == "recorded")  # noqa: B009 - a raw image's own
    options = f"driver={format},file.filename={top},backing.driver=raw,backing.file.filename={base}"
    diskmill("commit", "--image-opts", options)
    assert not is_raw(base)


def test_convert_into_an_image_that_was_guessed(tmp_path: Path) -> None:
    source, target = tmp_path / "source", raw(tmp_path / "target")
    qemu_img("create", "-q", "-f", "qcow2", source, "1M")
    words = ["convert", "-n", "-f", "raw", "--target-image-opts", source, f"file.filename={target}"]
    for more in ([], ["-C"], ["-S", "0"], ["-W"]):
        done = diskmill(*words, *more, check=False)
        assert done.returncode == 1
        assert "taken for qcow2" in done.stderr
        assert is_raw(target)
    diskmill(*words[:-1], f"driver=raw,file.filename={target}")
    assert not is_raw(target)


def test_the_rest_of_the_disk_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = raw(tmp_path / "disk")
    looks: list[int] = []
    monkeypatch.setattr(Head, "_judge", lambda self, offset, data, size: looks.append(offset))
    with open_image(str(path), context=Context(), writable=True) as image:
        image.write(4096, bytes(8192))
        image.zero(4096, 4096)
        assert not looks
        image.write(4000, b"x" * 5000)
        assert looks == [4000]
    data = path.read_bytes()
    assert data[4000:9000] == b"x" * 5000
    assert not any(data[:4000])
    assert not any(data[9000:])


WARNED = {
    "resize": ["resize", "{disk}", "2M"],
    "resize, quietly": ["resize", "-q", "{disk}", "2M"],
    "resize, named": ["resize", "-f", "raw", "{disk}", "2M"],
    "bench, reading": ["bench", "-q", "-c", "1", "{disk}"],
    "bench, writing": ["bench", "-q", "-w", "-c", "1", "{disk}"],
    "convert -n": ["convert", "-n", "{other}", "{disk}"],
    "convert -n, options": ["convert", "-n", "--target-image-opts", "{other}", "file.filename={disk}"],
    "convert": ["convert", "-O", "raw", "{disk}", "{other}"],
    "info": ["info", "{disk}"],
    "map": ["map", "{disk}"],
    "check": ["check", "{disk}"],
    "check -r": ["check", "-r", "all", "{disk}"],
    "amend": ["amend", "-o", "size=2M", "{disk}"],
    "snapshot -l": ["snapshot", "-l", "{disk}"],
    "snapshot -c": ["snapshot", "-c", "one", "{disk}"],
    "bitmap": ["bitmap", "--add", "{disk}", "b"],
    "rebase": ["rebase", "-u", "-F", "raw", "-b", "{other}", "{disk}"],
    "commit": ["commit", "{disk}"],
    "commit, base": ["commit", "{top}"],
    "compare": ["compare", "{disk}", "{disk}"],
}


def dropin(*words: str, check: bool) -> subprocess.CompletedProcess[str]:
    return run(Path(sys.executable).with_name("qemu-img"), *words, check=check)


@pytest.mark.parametrize("words", WARNED.values(), ids=WARNED.keys())
def test_the_warning_comes_where_qemu_img_gives_it(tmp_path: Path, words: list[str]) -> None:
    found = []
    for program in (qemu_img, dropin, diskmill):
        names = {"disk": raw(tmp_path / "disk"), "other": raw(tmp_path / "other"), "top": tmp_path / "top"}
        qemu_img("create", "-q", "-f", "qcow", "-b", names["disk"], "-F", "raw", names["top"])
        done = program(*(word.format(**names) for word in words), check=False)
        lines = done.stderr.splitlines()
        found.append((done.returncode, lines[:3] if lines and lines[0].startswith("WARNING") else []))
        warned = [line for line in lines if line.startswith("diskmill: warning:") and "guessed" in line]
    assert found[0] == found[1]
    assert len(warned) == bool(found[0][1])
