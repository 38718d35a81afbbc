"""Random scenarios by seed: the same ones in each ordinary run, and others for as long as one likes.

``DISKMILL_SCENARIOS=SECONDS`` lets a test go on beyond its ordinary seeds, ``DISKMILL_SEED=NUMBER`` begin with another.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path


def for_a_while(count: int, scenario: Callable[[int, Path], None], folder: Path) -> int:
    """Run *scenario* with *count* seeds, or more where the environment says so, each in a new folder below *folder*.

    :return: how many there were.
    """
    seconds = float(os.environ.get("DISKMILL_SCENARIOS", "0"))
    first = int(os.environ.get("DISKMILL_SEED", "0"))
    start, seed = time.monotonic(), first
    while seed < first + count or time.monotonic() - start < seconds:
        place = folder / str(seed)
        place.mkdir()
        scenario(seed, place)
        shutil.rmtree(place)
        seed += 1
    return seed - first
