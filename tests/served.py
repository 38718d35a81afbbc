"""The images of ``commands/images.py`` as a server has them, held against the files that they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diskmill
from commands import images

IMAGES = (
    *(f"img.{format}" for format in images.FORMATS),
    "img.bochs", "img.cloop", "img.dmg", "zstd.qcow2", "comp.qcow2", "subclusters.qcow2", "stream.vmdk", "flat.vmdk",
    "pieces.vmdk", "fixed.vpc", "datafile.qcow2", "top.qcow2", "odd.raw", "empty.raw",
)  # fmt: skip


def without_name(text: str, *names: str | Path) -> str:
    for name in names:
        text = text.replace(str(name), "NAME")
    return text


def like_the_file(name: str, folder: Path, base: str, tmp_path: Path) -> None:
    """Fail unless of *name* below the URL *base* is said, and read, what is of the file."""
    path, url = str(folder / name), f"{base}/{name}"
    facts = []
    for place, one in ((folder, path), (base, url)):
        info = replace(diskmill.info(one), actual_size=None, children=[])
        runs: list[list[Any]] = []  # what a file system knows of holes, a server does not
        for entry in diskmill.map(one):
            if runs and runs[-1][0] == entry.depth:
                runs[-1][1] += entry.length
            else:
                runs.append([entry.depth, entry.length])
        names = {without_name(entry.filename, place) for entry in diskmill.map(one) if entry.filename}
        facts.append((without_name(repr(info), place), runs, names))
    assert facts[0] == facts[1]
    assert diskmill.compare(url, path).identical
    outputs = tmp_path / "one.raw", tmp_path / "other.raw"
    for source, output in zip((path, url), outputs, strict=True):
        diskmill.convert([source], str(output), threads=4)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
