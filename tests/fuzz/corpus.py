"""The images that the fuzzer has kept: in the tree, a zip archive for each driver."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
import zlib
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


def keep(driver: str, queue: Path) -> None:
    """Make the archive of *driver* anew, of what it holds and what lies in the folder *queue*."""
    target = Target(driver)
    known = {_places_of(target, Mutant.of(content)) for content in target.seeds}
    reached = set().union(*known)  # the seeds are made anew each time, and need not be kept
    candidates = {mutant.pack() for mutant in stored(driver)}
    candidates |= {path.read_bytes() for path in queue.glob("*")}
    inputs = []
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
    path = FOLDER / f"{driver}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for data in sorted(chosen):
            archive.writestr(zipfile.ZipInfo(hashlib.sha1(data).hexdigest()[:12]), data, zipfile.ZIP_DEFLATED)
    print(f"{driver}: {len(chosen)} of {len(candidates)} images, {os.path.getsize(path)} bytes", flush=True)


def _places_of(target: Target, mutant: Mutant) -> frozenset[tuple[str, int, int]]:
    """The steps from line to line of the driver that *mutant* makes it take."""
    places: set[tuple[str, int, int]] = set()
    package = f"/diskmill_{target.format}/"

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
