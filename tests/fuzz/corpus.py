"""The images that the fuzzer has kept: in the tree, a zip archive for each driver."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from .mutant import Mutant
from .target import Find, Target

FOLDER = Path(__file__).parent / "corpus"
ROOM = 34_000
"""Bytes of an archive, about: thirteen drivers share 500 KB."""


def stored(driver: str) -> list[Mutant]:
    """The kept images of *driver*."""
    path = FOLDER / f"{driver}.zip"
    if not path.exists():
        return []
    with zipfile.ZipFile(path) as archive:
        found = [Mutant.unpack(archive.read(name)) for name in sorted(archive.namelist())]
    return [mutant for mutant in found if mutant is not None]


def keep(driver: str, folder: Path) -> None:
    """Make the archive of *driver* anew, of what it holds and what runs have left in *folder*.

    What was found once, and is mended, stays in it.
    """
    path = FOLDER / f"{driver}.zip"
    finds = dict(_mended(driver, folder, path))
    candidates = {mutant.pack() for mutant in stored(driver)}
    candidates |= {one.read_bytes() for one in (folder / "queue").glob("*")}
    inputs = []
    with Target(driver) as target:
        known = {_places_of(target, Mutant.of(content)) for content in target.seeds}
        reached = set().union(*known)  # the seeds are made anew each time, and need not be kept
        for data in candidates:
            mutant = Mutant.unpack(data)
            if mutant is not None:
                inputs.append((len(zlib.compress(data)), data, _places_of(target, mutant) - reached))
    chosen: list[bytes] = []
    room = ROOM
    while True:  # the cheapest for what it brings, again and again
        inputs = [(size, data, places - reached) for size, data, places in inputs]
        inputs = [one for one in inputs if one[2] and one[0] + 150 <= room]
        if not inputs:
            break
        size, data, places = max(inputs, key=lambda one: (len(one[2]) / (one[0] + 150), one[1]))
        chosen.append(data)
        reached |= places
        room -= size + 150
    files = {hashlib.sha1(data).hexdigest()[:12]: data for data in chosen} | finds
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    print(f"{driver}: {len(files)} of {len(candidates)} images, {os.path.getsize(path)} bytes", flush=True)


def _mended(driver: str, folder: Path, archive: Path) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of what was found once, and does no harm any more."""
    if archive.exists():
        with zipfile.ZipFile(archive) as old:
            yield from ((name, old.read(name)) for name in old.namelist() if name.startswith("find-"))
    with Target(driver) as target:
        for path in sorted(folder.glob("find-*")):
            mutant = Mutant.unpack(path.read_bytes()) if not path.suffix else None
            if mutant is None:
                continue
            try:
                target.run(mutant)
            except Find as find:
                print(f"{driver}: {path} is not mended: {find.what}", flush=True)
            else:
                yield path.name, mutant.pack()


def _places_of(target: Target, mutant: Mutant) -> frozenset[tuple[str, int, int]]:
    """The steps from line to line of the driver that *mutant* makes it take."""
    places: set[tuple[str, int, int]] = set()
    package = "/diskmill/formats/raw.py" if target.format == "raw" else f"/diskmill_{target.format}/"

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if package not in file:
            return None
        last = 0

        def step(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            if event == "line":
                places.add((file, last, frame.f_lineno))
                last = frame.f_lineno
            return step

        return step

    sys.settrace(trace)
    try:
        target.run(mutant)
    except Find:
        pass
    finally:
        sys.settrace(None)
    return frozenset(places)
