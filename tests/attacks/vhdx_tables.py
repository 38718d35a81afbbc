"""What becomes of a new VHDX: its table is filled with entries that all say much the same."""

from __future__ import annotations

import struct
from pathlib import Path

from vhdx_samples import BAT, region

MiB = 1 << 20


def fill(path: Path, way: str, count: int) -> None:
    """Let all blocks be at the same place or two, or be nowhere, as *way* says."""
    with path.open("r+b") as file:
        head = file.read(4 * MiB)
        offset = region(head, BAT)
        end = -(-file.seek(0, 2) // MiB)
        file.truncate((end + 2) * MiB)
        states = {
            "one block": (end << 20 | 6, end << 20 | 6),
            "two blocks": (end << 20 | 6, (end + 1) << 20 | 6),
            "free": (0, 0),
            "zero": (2, 2),
        }
        file.seek(offset)
        file.write(struct.pack("<2Q", *states[way]) * (count // 2))
        file.seek(end * MiB)
        file.write(b"\x5a" * 4096)
