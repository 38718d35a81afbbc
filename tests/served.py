"""The images of ``commands/images.py`` as a server has them, held against the files that they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import diskmill
from commands import images
from diskmill.opening.context import Context

IMAGES = (
    *(f"img.{format}" for format in images.FORMATS),
    *(f"img.{format}" for format in (*images.ENCODERS, *images.OURS)),
    "zstd.qcow2", "comp.qcow2", "subclusters.qcow2", "stream.vmdk", "flat.vmdk",
    "pieces.vmdk", "fixed.vpc", "datafile.qcow2", "top.qcow2", "odd.raw", "empty.raw",
    "enc.luks",
)  # fmt: skip


CONTEXT = Context(secrets={"s": b"letmein"})


def without_name(text: str, *names: str | Path) -> str:
    for name in names:
        text = text.replace(str(name), "NAME")
    return text


def opened(name: str, protocol: str, base: str) -> str:
    """How *name* below *base* is called: of an encrypted one, with its key."""
    if not name.endswith(".luks"):
        return f"{base}/{name}"
    file = {"driver": protocol, "filename": f"{base}/{name}"}
    return "json:" + json.dumps({"driver": "luks", "key-secret": "s", "file": file})


def like_the_file(name: str, folder: Path, base: str, tmp_path: Path) -> None:
    """Fail unless of *name* below the URL *base* is said, and read, what is of the file."""
    protocol = base.partition(":")[0]
    path, url = opened(name, "file", str(folder)), opened(name, protocol, base)
    facts = []
    for place, driver, one in ((folder, "file", path), (base, protocol, url)):
        info = replace(diskmill.info(one, context=CONTEXT), actual_size=None, children=[])
        runs: list[list[Any]] = []  # what a file system knows of holes, a server does not
        for entry in diskmill.map(one, context=CONTEXT):
            if runs and runs[-1][0] == entry.depth:
                runs[-1][1] += entry.length
            else:
                runs.append([entry.depth, entry.length])
        names = {without_name(entry.filename, place) for entry in diskmill.map(one, context=CONTEXT) if entry.filename}
        told = without_name(repr(info), place, f'"driver": "{driver}"')
        facts.append((told, runs, names))
    assert facts[0] == facts[1]
    assert diskmill.compare(url, path, context=CONTEXT).identical
    outputs = tmp_path / "one.raw", tmp_path / "other.raw"
    for source, output in zip((path, url), outputs, strict=True):
        diskmill.convert([source], str(output), threads=4, context=CONTEXT)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
